"""Calls the application without a server and prints the CPU µs of a call; each call has a different row."""

import io
import json
import sys
import time

import rows

import iris_wsgi


def main(model: str, count: int) -> None:
    app = iris_wsgi.create_app(role="web_single", model_dir=model)
    environs = [make_environ(body) for body in rows.single_row_bodies()[: count + 500]]
    for request in environs[:500]:
        call(app, request)
    started = time.process_time_ns()
    for request in environs[500:]:
        call(app, request)
    spent = time.process_time_ns() - started
    json.dump({"cpu": spent / 1e3 / (len(environs) - 500)}, sys.stdout)


def make_environ(body: bytes) -> dict[str, object]:
    """Returns the WSGI environ of a request of the load generator."""
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/predict/label",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_USER_AGENT": "bench/1",
        "HTTP_ACCEPT": "*/*",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def call(app, environ: dict[str, object]) -> bytes:
    return b"".join(app(environ, start_response))


def start_response(status: str, headers: list[tuple[str, str]]) -> None:
    if not status.startswith("200"):
        raise SystemExit(f"the application responded with {status}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
