"""State machine of one HTTP/1.1 connection, from the request to the lingering close, and the serializer of its responses."""

import fcntl
import select
import socket
import sys
import termios
import time
from enum import Enum
from functools import lru_cache
from math import inf
from random import uniform
from typing import TYPE_CHECKING

from waitress.utilities import build_http_date

from iris_wsgi.errors import RETRY_AFTER, Problem, RequestTimeout, ServiceUnavailable
from iris_wsgi.http.request_head import HTTPParseError, RawRequest
from iris_wsgi.http.request_parser import RequestParser
from iris_wsgi.observability.trace_context import request_ids
from iris_wsgi.settings import Settings
from iris_wsgi.wsgi.application import NO_CONTENT, STATUS_LINES, Response, render_problem

if TYPE_CHECKING:
    from iris_wsgi.server.event_loop import EventLoop, PooledRequest

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# A longer body is not copied: it may be a file that many slow clients read at the same time.
MAX_JOINED = 65536

Pieces = tuple[bytes | memoryview, ...]
RECEIVE_BYTES, MAX_RECEIVE_BYTES = 16384, 262144
# The maximum size of one write. The kernel would copy megabytes of a large file at once, while other connections wait.
MAX_SEND_BYTES = 262144
# The head of a request is small, so a client that needs longer is broken or hostile. IRIS_REQUEST_SECONDS may be less.
HEADER_SECONDS = 10.0
# Longer than the pause between requests of common clients and proxies, which keep connections for a few seconds to a minute.
KEEP_ALIVE_SECONDS = 60.0
# Connections that were opened together do not end together.
MIN_AGE, MAX_AGE = 0.9, 1.1
# The time limit, after the age of a connection, for requests that follow each other without a pause.
PIPELINE_SECONDS = 10.0
# The time limit to read a response, or the next PROGRESS_BYTES of it.
SEND_SECONDS, PROGRESS_BYTES = 30.0, 16384
# The time limit between bytes of the client after the last response.
LINGER_SECONDS = 2.0
# After the server stops, the time limit for a request that its client is just sending.
SETTLE_SECONDS = 0.5
# The client has closed its half of the connection. Only Linux reports this event.
HALF_CLOSED = getattr(select, "POLLRDHUP", 0)
OVERLOADED = ServiceUnavailable("The server has more work than it can queue; try again soon.", headers=(RETRY_AFTER,))


def header_seconds(limits: Settings) -> float:
    """Returns the time limit of a request head, which counts from the same byte as the limit of the whole request."""
    return min(HEADER_SECONDS, limits.request_seconds)


def retirement_time(limits: Settings, now: float) -> float:
    """Returns the time after which a connection that is opened now closes with its next response."""
    if limits.connection_requests == 1:
        return now
    return now + limits.connection_seconds * uniform(MIN_AGE, MAX_AGE) if limits.connection_seconds else inf


@lru_cache(1024)
def headers_of(
    status: int, media_type: str, headers: tuple[tuple[str, str], ...], length: int, connection: str | None
) -> tuple[str, str]:
    """Returns the status line, and all headers but Date and X-Request-ID with the empty line.

    `connection` is the value of the Connection header. Raises ValueError for a line end within a header, which is a defect.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if text.count("\n") != len(headers):
        raise ValueError("a header of the response contains a line end")
    if connection is not None:
        text += f"Connection: {connection}\r\n"
    if status not in NO_CONTENT:
        text += f"Content-Type: {media_type}\r\nContent-Length: {length}\r\n"
    return f"HTTP/1.1 {STATUS_LINES[status]}\r\n", f"{text}\r\n"


class ResponseWriter:
    """Serializes responses. The event loop updates the Date header at each turn."""

    def __init__(self) -> None:
        self.second, self.date = 0, ""
        self.update_date()

    def message(self, response: Response, request_id: str, method: str, connection: str | None) -> Pieces:
        """Returns a response in one or two pieces. `connection` is the value of the Connection header.

        Raises ValueError for a line end within a header, which is a defect.
        """
        body, media_type, status, headers, _, _ = response
        line, rest = headers_of(status, media_type, headers, len(body), connection)
        head = f"{line}Date: {self.date}\r\nX-Request-ID: {request_id}\r\n{rest}".encode()
        if method == "HEAD":
            return (head,)
        return (head + body,) if len(body) <= MAX_JOINED else (head, body)

    def error(self, problem: Problem, method: str, path: str, connection: str | None, request_id: str) -> Pieces:
        """Returns the response to a request that does not reach the application."""
        return self.message(render_problem(problem, request_id, path), request_id, method, connection)

    def update_date(self) -> None:
        second = int(time.time())
        if second != self.second:
            self.second, self.date = second, build_http_date(second)


class State(Enum):
    """State of a connection, by the event for which it waits until its deadline."""

    NEW = "the first byte"
    READING = "the rest of a request"
    BUSY = "the response of the thread pool"
    SENDING = "the client to read the response"
    IDLE = "the next request"
    LINGERING = "the client to close its half"
    CLOSED = "no event"


class HTTPConnection:
    """A connection of the event loop. Every method runs in the thread of the loop."""

    def __init__(self, server: "EventLoop", client: socket.socket) -> None:
        self.server, self.socket, self.fd = server, client, client.fileno()
        self.parser = RequestParser(server.limits.max_body_bytes)
        self.output: list[memoryview] = []
        self.sent, self.progress = 0, 0
        self.events = select.POLLIN
        self.close_after = False
        self.reserved_bytes, self.linger_deadline = 0, 0.0
        # The bytes of a computed response that the client has not read, and the time when its transfer began.
        self.unsent_bytes, self.unsent_since = 0, 0.0
        self.job: PooledRequest | None = None
        self.receive_bytes = RECEIVE_BYTES
        self.state, self.deadline = State.NEW, server.now + header_seconds(server.limits)
        self.began = 0.0
        self.retires_at, self.requests_left = retirement_time(server.limits, server.now), server.limits.connection_requests
        server.poller.register(self.fd, self.events)

    def handle(self, event: int) -> None:
        """Handles an event of the poller."""
        if self.state is State.IDLE:
            self.read()
        elif self.state is State.SENDING:
            if event & ~select.POLLIN:
                self.flush()
        elif self.state is State.LINGERING:
            self.discard()
        elif self.state is State.BUSY and event == HALF_CLOSED and self.job is not None:
            self.job.client_gone = True
            self.watch(0)
        elif self.state is State.BUSY:
            # While reading is off, the poller reports only an error or a hang-up.
            self.close()
        else:
            self.read()

    def read(self) -> None:
        try:
            data = self.socket.recv(self.receive_bytes)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        if self.state is not State.READING and not self.parser.skipped and self.server.fast_path.serve(self, data):
            return
        self.parser.feed(data)
        self.advance()

    def advance(self) -> None:
        """Serves the complete requests, until bytes are missing, a request is in the pool, or a response is unread."""
        self.receive_bytes = RECEIVE_BYTES
        while self.parser.started:
            try:
                request = self.parser.next()
            except HTTPParseError as error:
                self.reject(Problem(error.detail, status=error.status))
                return
            if request is None and self.parser.started:
                self.wait_for_more()
                return
            if request is None:
                # Only an empty line has arrived, which does not begin a request.
                break
            self.began = 0.0
            if not self.serve(request):
                return
        if self.reserved_bytes:
            self.reserve(0)
        self.wait_for_next()

    def wait_for_next(self) -> None:
        """Waits for the next request."""
        self.state = State.IDLE
        self.deadline = self.server.now + (SETTLE_SECONDS if self.server.stopping else KEEP_ALIVE_SECONDS)

    def wait_for_more(self) -> None:
        """Waits for the rest of a request."""
        limits, head = self.server.limits, self.parser.head
        # Do not send 100 Continue if the request will be rejected anyway.
        if head is not None and (problem := self.server.app.authorize(head.path, head.environ)):
            self.reject(problem)
            return
        if not self.reserve(self.parser.buffered):
            self.reject(OVERLOADED)
            return
        if not self.began:
            self.began = self.server.now
        self.state = State.READING
        self.receive_bytes = min(max(RECEIVE_BYTES, self.parser.missing), MAX_RECEIVE_BYTES)
        self.deadline = self.began + (header_seconds(limits) if head is None else limits.request_seconds)
        if self.parser.wants_continue():
            # The socket has room for these few bytes, unless the connection is broken. Then the next read reports it.
            try:
                self.socket.send(CONTINUE)
            except OSError:
                self.close()

    def serve(self, request: RawRequest) -> bool:
        """Answers inline or passes the request to the pool. Returns whether the next request can be served."""
        head = request.head
        if self.server.inline(head.method, head.path, head.environ, len(request.body)):
            data, self.close_after = self.server.answer(self, request, self.server.now)
            return self.send(data)
        deadline, executor = self.server.schedule(head.method, head.path, head.environ, self.server.now)
        self.job = self.server.enqueue(self, request, executor) if self.reserve(len(request.body)) else None
        if self.job is None:
            connection = self.server.connection_header(self, head)
            self.close_after = connection == "close"
            return self.send(self.server.error(OVERLOADED, head.method, head.path, connection, request_ids(head.environ)))
        self.state, self.deadline = State.BUSY, deadline
        self.server.next_sweep = min(self.server.next_sweep, self.deadline)
        self.watch(HALF_CLOSED if executor == "long_poll" else 0)
        return False

    def answered(self, data: Pieces, close: bool) -> None:
        """Sends the response of the pool."""
        if self.state is State.BUSY:
            self.close_after = close
            self.watch(select.POLLIN)
            self.reserve(0)
            if self.send(data):
                self.advance()
            elif self.output and not self.track_unsent(sum(map(len, data))):
                self.server.shed_slow_readers()

    def send(self, pieces: Pieces) -> bool:
        """Sends a response as far as the socket has room. Returns whether all is sent and the connection stays open."""
        first = pieces[0]
        try:
            sent = self.socket.send(first)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return False
        if sent == len(first) and len(pieces) == 1:
            return self.finish_response()
        self.output, self.sent = [memoryview(piece) for piece in pieces], sent
        self.output[0] = self.output[0][sent:]
        self.progress = self.delivered()
        self.state, self.deadline = State.SENDING, self.server.now + SEND_SECONDS
        self.watch(select.POLLOUT)
        return False

    def flush(self) -> None:
        try:
            sent = self.socket.send(self.output[0][:MAX_SEND_BYTES])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self.sent += sent
        rest = self.output[0][sent:]
        self.output[:1] = [rest] if rest else []
        if not self.output:
            self.watch(select.POLLIN)
            if self.finish_response():
                self.advance()

    def finish_response(self) -> bool:
        """Ends a response. Returns whether the connection stays open."""
        if self.unsent_bytes:
            self.track_unsent(0)
        if self.close_after:
            self.linger()
            return False
        if self.requests_left:
            self.count_request()
        return True

    def count_request(self) -> None:
        """Counts an answered request. The response to the last one of the connection closes it."""
        self.requests_left -= 1
        if self.requests_left == 1:
            self.retires_at = min(self.retires_at, self.server.now)

    def retires(self) -> bool:
        """Returns whether the next response closes this connection, which is past its age or has its last request.

        A close would lose the requests that have already arrived, so they get their responses before. A pool thread may call
        this method, because nothing else reads while a request is in the pool.
        """
        return self.server.now >= self.retires_at + PIPELINE_SECONDS or not self.has_unread_bytes()

    def has_unread_bytes(self) -> bool:
        """Returns whether a part of the next request has arrived."""
        try:
            return self.parser.started or bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def reject(self, problem: Problem) -> None:
        """Answers a request that is not served, and closes."""
        self.close_after = True
        # The client may read only after it has sent the whole body, as proxies do. So the body has the usual time.
        self.linger_deadline = (self.began or self.server.now) + self.server.limits.request_seconds
        self.send(self.server.error(problem, "HEAD" if self.parser.is_head_request else "GET", self.parser.path))

    def linger(self) -> None:
        """Closes one half and discards further bytes. A close with unread bytes would reset the connection, and the client
        could lose the response (RFC 9112, section 9.6)."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.parser = RequestParser(0)
        self.reserve(0)
        if self.server.now >= self.retires_at:
            # The client expects no close, and may read only after it has sent all the requests that it pipelines.
            self.linger_deadline = max(self.linger_deadline, self.server.now + self.server.limits.request_seconds)
        self.state, self.deadline = State.LINGERING, self.server.now + LINGER_SECONDS
        self.linger_deadline = max(self.linger_deadline, self.deadline)
        self.watch(select.POLLIN)

    def discard(self) -> None:
        try:
            data = self.socket.recv(MAX_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self.server.stopping:
            self.deadline = min(self.server.now + LINGER_SECONDS, self.linger_deadline)

    def expire(self) -> None:
        """Handles the end of the deadline."""
        if self.state is State.READING:
            self.reject(RequestTimeout("The request did not arrive in time."))
            self.linger_deadline = min(self.linger_deadline, self.server.now + LINGER_SECONDS)
        elif self.state is State.BUSY and self.job is not None:
            self.cancel(self.job)
        elif self.state is State.SENDING and self.delivered() - self.progress >= PROGRESS_BYTES:
            self.progress = self.delivered()
            self.deadline = self.server.now + SEND_SECONDS
        else:
            self.close()

    def cancel(self, job: "PooledRequest") -> None:
        """Answers a late request that is still queued: the application rejects it. A running request answers by itself."""
        self.deadline = inf
        if self.server.cancel_queued(job):
            self.answered(*self.server.answer(self, job.request, job.arrived))

    def delivered(self) -> int:
        """Returns the bytes that the client has read: the sent bytes without those in the buffer of the kernel."""
        return self.sent - int.from_bytes(fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def reserve(self, count: int) -> bool:
        """Records the bytes of unanswered requests of this connection. Returns whether the server has room for them."""
        self.server.buffered_request_bytes += count - self.reserved_bytes
        self.reserved_bytes = count
        return self.server.buffered_request_bytes <= self.server.limits.pending_bytes

    def track_unsent(self, count: int) -> bool:
        """Records the unread bytes of a computed response. Returns whether the server has room for them."""
        self.server.unsent_bytes += count - self.unsent_bytes
        self.unsent_bytes, self.unsent_since = count, self.server.now
        return self.server.unsent_bytes <= self.server.limits.pending_bytes

    def watch(self, events: int) -> None:
        if events != self.events:
            self.events = events
            self.server.poller.modify(self.fd, events)

    def close(self) -> None:
        if self.state is not State.CLOSED:
            self.state, self.deadline = State.CLOSED, inf
            self.reserve(0)
            self.track_unsent(0)
            self.server.remove(self)
            self.socket.close()
