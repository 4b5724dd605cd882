"""Answers as the bytes of HTTP/1.1 messages (RFC 9112)."""

import time

from waitress.utilities import build_http_date

from iris_wsgi.errors import Problem
from iris_wsgi.wsgi.application import NO_CONTENT, STATUS_LINES, Response, render_problem

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# A longer body is not copied behind its head: it may be a file that many slow clients take at the same time.
MOST_JOINED = 65536

Pieces = tuple[bytes | memoryview, ...]


class Writer:
    """Writes answers, with the date made once a second."""

    def __init__(self) -> None:
        self.second, self.date = 0, ""

    def message(self, response: Response, request_id: str, method: str, connection: str | None) -> Pieces:
        """A whole answer, in one piece or two; `connection` is the field of that name.

        A line end within a field is a defect, and a ValueError.
        """
        status, body = response.status, response.body
        fields = "".join([f"{name}: {value}\r\n" for name, value in response.headers])
        if fields.count("\n") != len(response.headers):
            raise ValueError("a field of the answer has a line end in it")
        if connection is not None:
            fields += f"Connection: {connection}\r\n"
        if status not in NO_CONTENT:
            fields += f"Content-Type: {response.media_type}\r\nContent-Length: {len(body)}\r\n"
        head = f"HTTP/1.1 {STATUS_LINES[status]}\r\nDate: {self.now()}\r\nX-Request-ID: {request_id}\r\n{fields}\r\n".encode()
        if method == "HEAD":
            return (head,)
        return (head + body,) if len(body) <= MOST_JOINED else (head, body)

    def refusal(self, problem: Problem, method: str, path: str, connection: str | None, request_id: str) -> Pieces:
        """What the server itself answers to a request that does not reach the application."""
        return self.message(render_problem(problem, request_id, path), request_id, method, connection)

    def now(self) -> str:
        second = int(time.time())
        if second != self.second:
            self.second, self.date = second, build_http_date(second)
        return self.date
