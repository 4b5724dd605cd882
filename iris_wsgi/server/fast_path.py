"""Fast path of usual requests, in one straight line from the bytes of the request to those of the response."""

from time import monotonic
from typing import TYPE_CHECKING

from iris_wsgi.errors import Problem
from iris_wsgi.http.request_head import MAX_CACHED_HEAD, HTTPParseError, cached_head
from iris_wsgi.observability.trace_context import RequestIds, new_request_id
from iris_wsgi.wsgi.application import PreparedRequest

if TYPE_CHECKING:
    from iris_wsgi.server.connection import HTTPConnection
    from iris_wsgi.server.event_loop import EventLoop

# Clients of one kind send equal heads.
MAX_HEADS = 256
END = b"\r\n\r\n"
# Only routes with a body are prepared.
WITH_BODY = (b"POST ", b"PUT ")


class FastPath:
    """Serves usual requests in the thread of the event loop, and remembers their heads.

    A request is usual if one read has all of it and nothing else, and if the strict parser has accepted its head before.
    Everything else takes the path of the state machine, with the same responses, log lines, and metrics.
    """

    def __init__(self, server: "EventLoop") -> None:
        self.server, self.app, self.observer, self.writer = server, server.app, server.app.observer, server.writer
        self.heads: dict[bytes, PreparedRequest] = {}

    def serve(self, connection: "HTTPConnection", data: bytes) -> bool:
        """Serves the request in `data`. Returns False, and has no effect, if it is not a usual one."""
        if not data.startswith(WITH_BODY):
            return False
        began = monotonic()
        body_start = data.find(END) + len(END)
        head = data[:body_start]
        known = self.heads.get(head) or self.prepare(head)
        if known is None or len(data) != body_start + known.body_bytes:
            return False
        server = self.server
        now = server.now
        deadline = now + known.timeout
        if deadline <= began or (known.is_authorized is not None and not known.is_authorized()):
            return False
        request_id = new_request_id()
        body = data[body_start:]
        try:
            response = known.inline(body, deadline) if known.inline else known.respond(body, deadline, request_id, now)
        except Exception as error:
            # An inline handler has had no effect, so the handler can explain an unexpected failure.
            if known.inline and not isinstance(error, Problem):
                return False
            response = self.app.failure(error, RequestIds(request_id), known.path)
        if response is None:
            return False
        self.observer.answered(known.method, known.path, known.route, response, began, request_id)
        # The server may have begun to stop while the application computed the response.
        close = server.stopping or (now >= connection.retires_at and connection.retires())
        pieces = self.writer.message(response, request_id, known.method, "close" if close else None)
        connection.close_after = close
        if connection.send(pieces):
            connection.wait_for_next()
        return True

    def prepare(self, head: bytes) -> PreparedRequest | None:
        """Returns the properties of requests with this head, and remembers them. None means that they are not usual."""
        if not 4 <= len(head) < MAX_CACHED_HEAD:
            return None
        try:
            parsed = cached_head(head)
        except HTTPParseError:
            return None
        if parsed.version != "1.1" or parsed.close or parsed.expects_continue:
            return None
        prepared = self.app.prepare(parsed)
        if prepared is not None:
            if len(self.heads) >= MAX_HEADS:
                self.heads.clear()
            self.heads[head] = prepared
        return prepared
