"""Between HTTP/1.1 messages and a WSGI application (PEP 3333): environ from a request, bytes from an answer."""

import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from io import BytesIO
from typing import Any

from iris_wsgi.errors import PHRASES, PROBLEM_JSON, Problem, problem_document
from iris_wsgi.http1 import Request
from iris_wsgi.wsgi import Environ, StartResponse, new_request_id

Application = Callable[[Environ, StartResponse], Any]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NO_CONTENT = ("1", "204", "304")


class Gateway:
    """Calls one application for the requests of one server, each answer whole and in memory."""

    def __init__(self, application: Application, host: str, port: int, multiprocess: bool) -> None:
        self.application = application
        self.constant: Environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SERVER_SOFTWARE": "iris_wsgi",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        self.second, self.date = 0, ""

    def connection(self, address: tuple[Any, ...]) -> Environ:
        """The part of the environ that all requests of a connection share."""
        return {**self.constant, "REMOTE_ADDR": str(address[0]), "REMOTE_PORT": str(address[1])}

    def answer(self, shared: Environ, request: Request, close: bool) -> bytes:
        """Runs the application and gives its answer as it goes over the wire; `close` is told to the client."""
        head, body = request
        environ = {**shared, **head.variables, "wsgi.input": BytesIO(body)}
        if head.length is None:
            environ["CONTENT_LENGTH"] = str(len(body))
        told: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable[[bytes], object]:
            told[:] = status, headers
            return written.append

        written: list[bytes] = []
        answer = self.application(environ, start_response)
        try:
            content = b"".join((*written, *answer))
        finally:
            if hasattr(answer, "close"):
                answer.close()
        status, headers = told
        return self.message(status, headers, content, head.method, "close" if close else head.version == "1.0" and "keep-alive")

    def message(self, status: str, headers: list[tuple[str, str]], content: bytes, method: str, connection: str | bool) -> bytes:
        """The bytes of an answer. A line end within a header is a defect of the application, and a ValueError."""
        lines = [f"HTTP/1.1 {status}\r\nDate: {self.now()}", *[f"{name}: {value}" for name, value in headers]]
        if connection:
            lines.append(f"Connection: {connection}")
        bare = method == "HEAD" or status.startswith(NO_CONTENT)
        text = "\r\n".join(lines)
        if not bare and "\r\nContent-Length: " not in text and "\r\ncontent-length: " not in text.lower():
            lines.append(f"Content-Length: {len(content)}")
            text = "\r\n".join(lines)
        if text.count("\n") != len(lines) or text.count("\r") != len(lines):
            raise ValueError("the application gave a header with a line end in it")
        return f"{text}\r\n\r\n".encode("latin-1") + (b"" if bare else content)

    def refusal(self, status: int, detail: str, method: str, close: bool, retry_after: int | None = None) -> tuple[bytes, str]:
        """A problem document of the server itself, and the request id in it."""
        request_id = new_request_id()
        body = problem_document(Problem(detail, status=status), request_id)
        headers = [("Content-Type", PROBLEM_JSON), ("X-Request-ID", request_id), ("Content-Length", str(len(body)))]
        if retry_after is not None:
            headers.append(("Retry-After", str(retry_after)))
        return self.message(f"{status} {PHRASES[status]}", headers, body, method, close and "close"), request_id

    def now(self) -> str:
        """The date as HTTP writes it, made once a second."""
        second = int(time.time())
        if second != self.second:
            self.second, self.date = second, formatdate(second, usegmt=True)
        return self.date
