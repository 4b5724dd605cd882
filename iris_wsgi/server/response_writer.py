"""Serializer of responses as HTTP/1.1 messages (RFC 9112)."""

import time

from waitress.utilities import build_http_date

from iris_wsgi.errors import Problem
from iris_wsgi.wsgi.application import NO_CONTENT, STATUS_LINES, Response, render_problem

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# A longer body is not copied: it may be a file that many slow clients read at the same time.
MAX_JOINED = 65536

Pieces = tuple[bytes | memoryview, ...]


class ResponseWriter:
    """Serializes responses. The Date header is computed once a second."""

    def __init__(self) -> None:
        self.second, self.date = 0, ""

    def message(self, response: Response, request_id: str, method: str, connection: str | None) -> Pieces:
        """Returns a response in one or two pieces. `connection` is the value of the Connection header.

        Raises ValueError for a line end within a header, which is a defect.
        """
        status, body = response.status, response.body
        headers = "".join([f"{name}: {value}\r\n" for name, value in response.headers])
        if headers.count("\n") != len(response.headers):
            raise ValueError("a header of the response contains a line end")
        if connection is not None:
            headers += f"Connection: {connection}\r\n"
        if status not in NO_CONTENT:
            headers += f"Content-Type: {response.media_type}\r\nContent-Length: {len(body)}\r\n"
        head = f"HTTP/1.1 {STATUS_LINES[status]}\r\nDate: {self.now()}\r\nX-Request-ID: {request_id}\r\n{headers}\r\n".encode()
        if method == "HEAD":
            return (head,)
        return (head + body,) if len(body) <= MAX_JOINED else (head, body)

    def error(self, problem: Problem, method: str, path: str, connection: str | None, request_id: str) -> Pieces:
        """Returns the response to a request that does not reach the application."""
        return self.message(render_problem(problem, request_id, path), request_id, method, connection)

    def now(self) -> str:
        second = int(time.time())
        if second != self.second:
            self.second, self.date = second, build_http_date(second)
        return self.date
