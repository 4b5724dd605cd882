"""The application as a WSGI callable: routing, errors, and other WSGI servers."""

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest
import webtest
from applications import RecordingObserver, make_route
from http_clients import ROW, HttpResponse, RawConnection, http_request, wait_until
from optional_programs import require_program
from project import MODEL, ROOT
from server_process import free_ports
from worker_processes import complete_lines

import iris_wsgi
from iris_wsgi.errors import Problem
from iris_wsgi.wsgi.application import App, Request, Response


def test_two_routes_for_one_method_and_path_are_refused_at_construction():
    routes = [make_route(lambda _: Response(b"1")), make_route(lambda _: Response(b"2"))]
    with pytest.raises(ValueError, match="two routes answer GET /x"):
        App(routes, RecordingObserver(), 100)


@pytest.mark.parametrize("error", [ValueError("secret"), RecursionError("secret"), MemoryError("secret"), KeyError("secret")])
def test_an_unexpected_exception_is_500_and_only_the_log_has_its_text(error):
    def handler(request: Request) -> Response:
        raise error

    observer = RecordingObserver()
    response = webtest.TestApp(App([make_route(handler)], observer, 100)).get("/x", status=500, headers={"X-Request-ID": "it"})
    assert observer.failures == ["it"]
    assert "secret" not in response.text and "Traceback" not in response.text
    assert response.json["request_id"] == "it"


def test_an_explicit_500_is_logged_too():
    def handler(request: Request) -> Response:
        raise Problem("The model failed.")

    observer = RecordingObserver()
    response = webtest.TestApp(App([make_route(handler)], observer, 100)).get("/x", status=500)
    assert response.json["detail"] == "The model failed."
    assert len(observer.failures) == 1


def test_a_get_route_never_reads_the_body():
    class Untouched:
        def read(self, *_):
            raise AssertionError("the body was read")

    app = App([make_route(lambda request: Response(request.body or b"none"))], RecordingObserver(), 100)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/x", "CONTENT_LENGTH": "5", "wsgi.input": Untouched()}
    assert app(environ, lambda *_: None) == [b"none"]


def test_the_application_follows_the_specification_under_wsgiref_and_its_validator():
    class Quiet(WSGIRequestHandler):
        def log_message(self, *_):
            pass

    app = iris_wsgi.create_app(role="web_single", model_dir=str(MODEL))
    with make_server("127.0.0.1", 0, validator(app), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
            body = json.dumps({"data": [[5.1, 3.5, 1.4, 0.2]]})
            requests = [("POST", "/predict/label", 200), ("POST", "/predict/batch", 200), ("GET", "/metadata", 200),
                     ("GET", "/metrics", 200), ("HEAD", "/label", 200), ("OPTIONS", "/label", 204), ("GET", "/no", 404),
                     ("PUT", "/predict", 405)]  # fmt: skip
            for method, path, status in requests:
                connection.request(method, path, body if method == "POST" else None, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
                assert response.status == status, (method, path, content)
                if path == "/predict/label":
                    assert content == b'{"prediction":"setosa"}\n'
            connection.close()
        finally:
            server.shutdown()
            thread.join()


def test_the_application_is_a_waitress_application(tmp_path):
    from waitress.server import create_server

    server = create_server(
        iris_wsgi.create_app(model_dir=str(MODEL), state_dir=str(tmp_path)), host="127.0.0.1", port=0, threads=1
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.effective_port, timeout=120)
        connection.request("POST", "/predict/label", b'{"data": [[7.2, 3.6, 6.1, 2.5]]}', {"Transfer-Encoding": "identity"})
        assert connection.getresponse().status in (200, 501)
        connection.close()
        connection.request("POST", "/predict/label", iter([b'{"data": [[7.2, 3.6,', b" 6.1, 2.5]]}"]))
        assert connection.getresponse().read() == b'{"prediction":"virginica"}\n'
        connection.close()
    finally:
        server.task_dispatcher.shutdown(timeout=1)
        # In the server's thread, which may be using the connections.
        server.trigger.pull_trigger(lambda: server.asyncore.close_all(server._map))
        thread.join(120)


# Start commands of other WSGI servers, without the port. The settings let gunicorn and uWSGI exit after a failed start.
HERE = Path(sys.executable).parent
PLUGIN = f"python{sys.version_info[0]}{sys.version_info[1]}"
UWSGI = ("--die-on-term", "--master", "--enable-threads", "--plugin", PLUGIN, "--virtualenv", str(HERE.parent))
SERVERS = {
    "waitress": (str(HERE / "waitress-serve"), "--listen=127.0.0.1:{port}", "--call", "iris_wsgi:create_app"),
    "gunicorn": (str(HERE / "gunicorn"), "--no-control-socket", "-b", "127.0.0.1:{port}", "iris_wsgi:create_app()"),
    "uwsgi": ("uwsgi", *UWSGI, "--lazy-apps", "--http-socket", "127.0.0.1:{port}", "--module", "iris_wsgi:create_app()"),
}


class Another(NamedTuple):
    """WSGI server of another project, with its address and its output."""

    process: subprocess.Popen
    host: str
    port: int
    log: Path

    def ask(self, *words: object) -> HttpResponse:
        with RawConnection(self) as connection:
            return connection.exchange(http_request(*words))


@pytest.fixture
def under(tmp_path) -> Iterator[Callable[..., Another]]:
    """Function that starts the application under a server with these variables. The fixture ends the servers."""
    started: list[Another] = []

    def start(command: tuple[str, ...], **environ: str) -> Another:
        if require_program(command[0]).endswith("uwsgi") and not Path(f"/usr/lib/uwsgi/plugins/{PLUGIN}_plugin.so").exists():
            pytest.skip(f"uWSGI has no plugin for {PLUGIN}")
        (port,) = free_ports(1)
        environment = {**os.environ, "IRIS_STATE_DIR": str(tmp_path / "state"), **environ}
        with (tmp_path / f"log-{port}").open("wb") as log:
            words = [word.format(port=port) for word in command]
            process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        started.append(Another(process, "127.0.0.1", port, Path(log.name)))
        return started[-1]

    yield start
    for server in started:
        server.process.terminate()
        server.process.wait(120)


def responds(server: Another) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    try:
        RawConnection(server).socket.close()
    except ConnectionError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("name", SERVERS)
def test_under_other_servers_the_environment_counts(under, name):
    server = under(SERVERS[name], IRIS_ROLE="web_single", IRIS_MAX_ROWS="2", IRIS_PORT="9", IRIS_IRIS_PORT="tcp://10.0.0.7:80")
    wait_until(lambda: responds(server), "the server listens")
    assert server.ask("POST", "/predict/batch", {"data": [ROW] * 2}).status == 200
    assert server.ask("POST", "/predict/batch", {"data": [ROW] * 3}).status == 422
    assert server.ask("GET", "/v2").status == server.ask("GET", "/jobs").status == 404
    lines = [json.loads(line) for line in complete_lines(server.log) if line.startswith("{")]
    (result,) = [line["message"] for line in lines if line["level"] == "warning"]
    assert result == "settings without effect under another WSGI server, which has its own options: IRIS_PORT"


@pytest.mark.long
@pytest.mark.parametrize("name", SERVERS)
def test_under_other_servers_role_all_executes_jobs(under, name):
    server = under(SERVERS[name])
    wait_until(lambda: responds(server), "the server listens")
    href = server.ask("POST", "/jobs", {"data": [ROW]}).json()["href"]
    wait_until(lambda: server.ask("GET", href).json()["status"] == "succeeded", "the job is done")
    assert server.ask("GET", "/livez").status == 200


@pytest.mark.long
@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"IRIS_PROT": "1"}, "iris_wsgi: IRIS_PROT is not a setting; did you mean IRIS_PORT?"),
        ({"IRIS_ROLE": "prep"}, "iris_wsgi: IRIS_ROLE=prep requires IRIS_PRED_URL, which is empty"),
        ({"IRIS_MODEL_DIR": "/nowhere"}, "iris_wsgi: /nowhere/golden.json cannot be read: No such file or directory; "
                                         "IRIS_MODEL_DIR names the folder of a model"),
        ({"IRIS_ROLE": "asynchronous", "IRIS_STATE_DIR": "/proc/iris"}, None),
    ],
)  # fmt: skip
def test_under_other_servers_a_failed_start_is_one_line(under, name, environ, expected):
    # uWSGI's master would restart the failed application in a loop.
    server = under(tuple(word for word in SERVERS[name] if word != "--lazy-apps"), **environ)
    assert server.process.wait(120) == 4
    log = server.log.read_text()
    lines = [line for line in log.splitlines() if line.startswith("iris_wsgi: ")]
    assert len(lines) == 1 and "Traceback" not in log and "--" not in lines[0]
    assert expected is None or lines == [expected]


@pytest.mark.long
def test_gunicorn_reports_arguments_that_are_not_settings(under):
    for arguments, expected in (
        ("rol='all'", "rol is not a setting; did you mean role?"),
        ("port=1", "port is a setting of bin/serve"),
    ):
        server = under((*SERVERS["gunicorn"][:-1], f"iris_wsgi:create_app({arguments})"))
        assert server.process.wait(120) == 4
        assert f"\niris_wsgi: {expected}" in server.log.read_text()


def thread_count(server: Another) -> int:
    """Returns the number of threads of the started process, the parent of the workers."""
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


@pytest.mark.long
@pytest.mark.parametrize("name", ["gunicorn", "uwsgi"])
def test_an_application_loaded_before_a_fork_responds_503_if_its_threads_are_missing(under, name):
    command = tuple(word for word in SERVERS[name] if word != "--lazy-apps")
    command = (*command, "--preload") if name == "gunicorn" else command
    server = under(command)
    wait_until(lambda: responds(server), "the server listens")
    for words in (("GET", "/livez"), ("POST", "/jobs", {"data": [ROW]})):
        response = server.ask(*words)
        assert response.status == 503 and "forked after the application was loaded" in response.json()["detail"]
    threads = thread_count(server)
    server = under(command, IRIS_ROLE="web_single")
    wait_until(lambda: responds(server), "the server listens")
    assert server.ask("POST", "/predict/label", {"data": [ROW]}).json() == {"prediction": "setosa"}
    # uWSGI forks without informing Python, so a lock of another thread stays locked.
    assert name == "gunicorn" or threads == thread_count(server)


@pytest.mark.long
def test_a_uwsgi_process_without_a_master_has_its_threads(under, tmp_path):
    (tmp_path / "uwsgi.ini").write_text("[uwsgi]\nmaster = false\n")
    options = (word for word in SERVERS["uwsgi"] if word not in ("--master", "--lazy-apps"))
    server = under((*options, "--ini", str(tmp_path / "uwsgi.ini")))
    wait_until(lambda: responds(server), "the server listens")
    job = server.ask("POST", "/jobs", {"data": [ROW]})
    assert job.status == 202
    wait_until(lambda: server.ask("GET", job.headers["location"]).json()["status"] == "succeeded", "a thread executes the job")
