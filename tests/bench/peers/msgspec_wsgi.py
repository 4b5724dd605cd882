"""WSGI application without a framework. Alone it runs on bjoern: PORT, and `measured` for metrics and a log line."""

import sys
import time
from collections.abc import Callable
from typing import Any

from msgspec_label import Label, RequestMetrics, log_line

STATUS_LINES = {200: "200 OK", 422: "422 Unprocessable Content"}
Start = Callable[[str, list[tuple[str, str]]], Any]


def make_plain() -> Callable[[dict[str, Any], Start], list[bytes]]:
    label = Label()

    def plain(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, content = label.by_path(environ["PATH_INFO"])(body)
        environ["peer.status"] = status
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        start_response(STATUS_LINES[status], headers)
        return [content]

    return plain


def make_measured(logs: bool = False) -> Callable[[dict[str, Any], Start], list[bytes]]:
    plain, metrics = make_plain(), RequestMetrics()

    def measured(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        began = time.perf_counter()
        content = plain(environ, start_response)
        found = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["peer.status"], began
        metrics.count(*found)
        if logs:
            log_line(*found)
        return content

    return measured


if __name__ == "__main__":
    import bjoern

    app = make_measured(logs=True) if sys.argv[2:] == ["measured"] else make_plain()
    bjoern.run(app, "127.0.0.1", int(sys.argv[1]))
