"""The application without a server: a log that keeps its lines, and calls of a WSGI application."""

import io
import json
import os

from iris_wsgi.observability.log import Log
from iris_wsgi.wsgi.application import Route, RouteDoc


class RecordingLog(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.kept: list[str] = []

    def write(self, line: str) -> None:
        self.kept.append(line)

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.kept]


def call_wsgi(app, method: str, path: str, body: bytes = b"", **environ) -> tuple[int, dict[str, str], bytes]:
    told = {}

    def start_response(status, headers):
        told["status"], told["headers"] = int(status[:3]), dict(headers)

    given = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    content = b"".join(app({**given, "CONTENT_TYPE": "application/json", **environ}, start_response))
    return told["status"], told["headers"], content


class RecordingObserver:
    def __init__(self):
        self.failures = []
        self.answers = []

    def started(self):
        pass

    def failed(self, ids):
        self.failures.append(ids.request)

    def answered(self, *told):
        self.answers.append(told)


def make_route(handler, method="GET", path="/x", **more):
    return Route(method, path, handler, RouteDoc("for a test", {}), **more)
