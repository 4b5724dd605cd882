"""One connection: reads requests, has them answered, writes the answers, and is gone when a deadline passes."""

import fcntl
import select
import socket
import sys
import termios
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from iris_wsgi.errors import RETRY_AFTER, Problem, RequestTimeout, ServiceUnavailable
from iris_wsgi.http.request_head import Refused, Request
from iris_wsgi.http.request_parser import Reader
from iris_wsgi.observability.trace_context import ids_of
from iris_wsgi.server.response_writer import CONTINUE, Pieces
from iris_wsgi.settings import Settings

if TYPE_CHECKING:
    from iris_wsgi.server.event_loop import Job, Server

RECEIVED = 16384
MOST_RECEIVED = 262144
SEND_PROGRESS = 16384
# What is handed to the kernel at once: of a large file it would take megabytes, and the others would wait.
MOST_SENT = 262144
# The head of a request is small, so a client that needs longer is broken or hostile. IRIS_REQUEST_SECONDS may be less.
HEADER_SECONDS = 10.0
# Longer than the pause between requests of common clients and proxies, which keep connections for a few seconds to a minute.
KEEP_ALIVE_SECONDS = 60.0
# How long a client may take for a response, or for the next SEND_PROGRESS bytes.
SEND_SECONDS = 30.0
# How long a connection may bring nothing more before it is closed behind its last answer.
LINGER_SECONDS = 2.0
# How long a connection may still bring the request that its client is just sending, when the server stops.
SETTLE_SECONDS = 0.5
# The client sends no more; elsewhere than on Linux this is not told.
HALF_CLOSED = getattr(select, "POLLRDHUP", 0)
OVERLOADED = ServiceUnavailable("The server has more work than it can queue; try again soon.", headers=(RETRY_AFTER,))


def header_seconds(limits: Settings) -> float:
    """Returns the time limit for the head of a request, which counts from the same first byte as that of the whole request."""
    return min(HEADER_SECONDS, limits.request_seconds)


class State(Enum):
    """What a connection waits for, and so what its deadline means."""

    NEW = "its first byte"
    READING = "the rest of a request"
    BUSY = "an answer of the thread pool"
    SENDING = "the client to take the answer"
    IDLE = "its next request"
    LINGERING = "the client to close as well"
    CLOSED = "nothing"


class Channel:
    """A connection in the I/O loop. Every method runs in the loop's thread."""

    def __init__(self, server: "Server", connection: socket.socket) -> None:
        self.server, self.socket, self.fd = server, connection, connection.fileno()
        self.reader = Reader(server.limits.max_body_bytes)
        self.unsent: list[memoryview] = []
        self.sent, self.taken_before = 0, 0
        self.events = select.POLLIN
        self.close_after = False
        self.held, self.lingers_until = 0, 0.0
        # Of a computed answer that its client has not taken whole: its bytes, and since when it goes out.
        self.owed, self.owed_since = 0, 0.0
        self.job: Job | None = None
        self.wanted = RECEIVED
        self.state, self.deadline = State.NEW, server.now + header_seconds(server.limits)
        self.began = 0.0
        server.poller.register(self.fd, self.events)

    def handle(self, event: int) -> None:
        """What the poller reported."""
        if self.state is State.SENDING:
            if event & ~select.POLLIN:
                self.flush()
        elif self.state is State.LINGERING:
            self.discard()
        elif self.state is State.BUSY and event == HALF_CLOSED and self.job is not None:
            self.job.client_gone = True
            self.watch(0)
        elif self.state is State.BUSY:
            # Only an error or a hang-up is reported while reading is off.
            self.close()
        else:
            self.read()

    def read(self) -> None:
        try:
            data = self.socket.recv(self.wanted)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        self.reader.feed(data)
        self.advance()

    def advance(self) -> None:
        """Serves what is complete, until bytes are missing, the pool has it, or the client must read first."""
        self.wanted = RECEIVED
        while self.reader.started:
            try:
                request = self.reader.next()
            except Refused as refused:
                self.refuse(Problem(refused.detail, status=refused.status))
                return
            if request is None and self.reader.started:
                self.wait_for_more()
                return
            if request is None:
                # Only an empty line came, which begins no request.
                break
            self.began = 0.0
            if not self.serve(request):
                return
        self.state = State.IDLE
        self.deadline = self.server.now + (SETTLE_SECONDS if self.server.stopping else KEEP_ALIVE_SECONDS)
        if self.held:
            self.hold(0)

    def wait_for_more(self) -> None:
        """A part of a request is here."""
        limits, head = self.server.limits, self.reader.head
        # Whose body nobody wants is not asked for it.
        if head is not None and (problem := self.server.app.authorize(head.path, head.variables)):
            self.refuse(problem)
            return
        if not self.hold(self.reader.held):
            self.refuse(OVERLOADED)
            return
        if not self.began:
            self.began = self.server.now
        self.state = State.READING
        self.wanted = min(max(RECEIVED, self.reader.missing), MOST_RECEIVED)
        self.deadline = self.began + (header_seconds(limits) if head is None else limits.request_seconds)
        if self.reader.wants_continue():
            # A few bytes on a socket that owes nothing: they fit, or the connection is broken and reading will tell.
            try:
                self.socket.send(CONTINUE)
            except OSError:
                self.close()

    def serve(self, request: Request) -> bool:
        """Answers inline or hands over to the pool; whether the next request can be looked at."""
        head = request.head
        if self.server.inline(head.method, head.path, head.variables, len(request.body)):
            data, self.close_after = self.server.answer(request, self.server.now)
            return self.send(data)
        deadline, executor = self.server.schedule(head.method, head.path, head.variables, self.server.now)
        self.job = self.server.enqueue(self, request, executor) if self.hold(len(request.body)) else None
        if self.job is None:
            connection = self.server.connection(head)
            self.close_after = connection == "close"
            return self.send(self.server.refusal(OVERLOADED, head.method, head.path, connection, ids_of(head.variables)))
        self.state, self.deadline = State.BUSY, deadline
        self.server.next_sweep = min(self.server.next_sweep, self.deadline)
        self.watch(HALF_CLOSED if executor == "long_poll" else 0)
        return False

    def answered(self, data: Pieces, close: bool) -> None:
        """The pool's answer, back in the loop."""
        if self.state is State.BUSY:
            self.close_after = close
            self.watch(select.POLLIN)
            self.hold(0)
            if self.send(data):
                self.advance()
            elif self.unsent and not self.owe(sum(map(len, data))):
                self.server.make_room()

    def send(self, pieces: Pieces) -> bool:
        """Sends what the socket takes; whether all went out and the connection goes on."""
        first = pieces[0]
        try:
            sent = self.socket.send(first)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return False
        if sent == len(first) and len(pieces) == 1:
            return self.finished()
        self.unsent, self.sent = [memoryview(piece) for piece in pieces], sent
        self.unsent[0] = self.unsent[0][sent:]
        self.taken_before = self.taken()
        self.state, self.deadline = State.SENDING, self.server.now + SEND_SECONDS
        self.watch(select.POLLOUT)
        return False

    def flush(self) -> None:
        try:
            sent = self.socket.send(self.unsent[0][:MOST_SENT])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self.sent += sent
        rest = self.unsent[0][sent:]
        self.unsent[:1] = [rest] if rest else []
        if not self.unsent:
            self.watch(select.POLLIN)
            if self.finished():
                self.advance()

    def finished(self) -> bool:
        """An answer is out: whether the connection goes on."""
        if self.owed:
            self.owe(0)
        if not self.close_after:
            return True
        self.linger()
        return False

    def refuse(self, problem: Problem) -> None:
        """Answers a request that must not be served, and closes."""
        self.close_after = True
        # Its client may read nothing before it has sent the whole body, as proxies do: the body has the time of any other.
        self.lingers_until = (self.began or self.server.now) + self.server.limits.request_seconds
        self.send(self.server.refusal(problem, "HEAD" if self.reader.asks_head else "GET", self.reader.path))

    def linger(self) -> None:
        """Closes one half and takes in what still comes: closing with bytes unread would reset the connection, and the
        client could lose the answer (RFC 9112, section 9.6)."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.reader = Reader(0)
        self.hold(0)
        self.state, self.deadline = State.LINGERING, self.server.now + LINGER_SECONDS
        self.lingers_until = max(self.lingers_until, self.deadline)
        self.watch(select.POLLIN)

    def discard(self) -> None:
        try:
            data = self.socket.recv(MOST_RECEIVED)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self.server.stopping:
            self.deadline = min(self.server.now + LINGER_SECONDS, self.lingers_until)

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state is State.READING:
            self.refuse(RequestTimeout("The request did not arrive in time."))
            # Its time is over.
            self.lingers_until = min(self.lingers_until, self.server.now + LINGER_SECONDS)
        elif self.state is State.BUSY and self.job is not None:
            self.give_up(self.job)
        elif self.state is State.SENDING and self.taken() - self.taken_before >= SEND_PROGRESS:
            self.taken_before = self.taken()
            self.deadline = self.server.now + SEND_SECONDS
        else:
            self.close()

    def give_up(self, job: "Job") -> None:
        """The request in the pool is past its deadline: the application says so of one that no thread has begun."""
        self.deadline = inf
        if self.server.withdraw(job):
            self.answered(*self.server.answer(job.request, job.arrived))

    def taken(self) -> int:
        """How many bytes the client has taken: those sent, less those that the kernel still holds (it may hold megabytes)."""
        return self.sent - int.from_bytes(fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def hold(self, count: int) -> bool:
        """Tells how many bytes of unanswered requests this connection has; whether there is room for them."""
        self.server.pending += count - self.held
        self.held = count
        return self.server.pending <= self.server.limits.pending_bytes

    def owe(self, count: int) -> bool:
        """Tells how many bytes of a computed answer are kept for this connection's client; whether there is room for them."""
        self.server.owed += count - self.owed
        self.owed, self.owed_since = count, self.server.now
        return self.server.owed <= self.server.limits.pending_bytes

    def watch(self, events: int) -> None:
        if events != self.events:
            self.events = events
            self.server.poller.modify(self.fd, events)

    def close(self) -> None:
        if self.state is not State.CLOSED:
            self.state, self.deadline = State.CLOSED, inf
            self.hold(0)
            self.owe(0)
            self.server.forget(self)
            self.socket.close()
