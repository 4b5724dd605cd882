"""The application without a server: a recording log, a recording observer, and calls of a WSGI application."""

import io
import json
import os

from iris_wsgi.observability.log import Log
from iris_wsgi.wsgi.application import Route, RouteDoc


class RecordingLog(Log):
    """Log that stores its lines."""

    def __init__(self) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.raw_lines: list[str] = []

    def write(self, line: str) -> None:
        self.raw_lines.append(line)

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.raw_lines]


def call_wsgi(app, method: str, path: str, body: bytes = b"", **environ) -> tuple[int, dict[str, str], bytes]:
    """Calls a WSGI application. Returns the status, the headers, and the body."""
    response = {}

    def start_response(status, headers):
        response["status"], response["headers"] = int(status[:3]), dict(headers)

    request = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    content = b"".join(app({**request, "CONTENT_TYPE": "application/json", **environ}, start_response))
    return response["status"], response["headers"], content


class RecordingObserver:
    """Request observer that stores the ids of failed requests and the arguments of each response."""

    def __init__(self):
        self.failures = []
        self.responses = []

    def started(self):
        pass

    def ended(self):
        pass

    def failed(self, ids):
        self.failures.append(ids.request)

    def answered(self, *arguments):
        self.responses.append(arguments)


def make_route(handler, method="GET", path="/x", **options):
    return Route(method, path, handler, RouteDoc("for a test", {}), **options)
