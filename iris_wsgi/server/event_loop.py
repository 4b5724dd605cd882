"""Event loop over waitress: accepts connections, dispatches requests, enforces deadlines and limits, and drains at the end."""

import errno
import logging
import select
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from socket import socket
from time import monotonic
from typing import Protocol

from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from iris_wsgi.errors import RETRY_AFTER, Problem, ServiceUnavailable
from iris_wsgi.http.request_head import RawRequest, RequestHead
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.shared_memory import WorkerGroup
from iris_wsgi.observability.trace_context import RequestIds, new_request_id, request_ids
from iris_wsgi.server.connection import SETTLE_SECONDS, HTTPConnection, Pieces, ResponseWriter, State
from iris_wsgi.server.fast_path import FastPath
from iris_wsgi.server.listener import MAX_UPSTREAM_CALLS, Poll, connection_limits, drop_new_connections
from iris_wsgi.settings import Settings
from iris_wsgi.wsgi.application import App, Executor, never

SWEEP_SECONDS = 0.25
# The maximum number of events in a turn of the loop. Then new connections are accepted, even if more connections are ready.
# A larger number gains nothing: a turn costs a few microseconds, and a request costs more.
TURN_EVENTS = 32
# The maximum number of connections that a turn accepts before it serves the existing ones. Each of them has a second event when
# its client closes it. If a turn accepted more than it serves, closed connections would pile up to the limit of connections.
TURN_ACCEPTS = TURN_EVENTS // 2
# The maximum number of requests of a process that wait for jobs, each in a dedicated thread; further ones get 503.
MAX_LONG_POLLS = 64
ACCEPT_PAUSE_SECONDS = 0.2
# How long a process with more connections than another one leaves new connections to the other processes.
ACCEPT_YIELD_SECONDS = 0.001
# The time limit for a handshake that began before the kernel dropped new connections.
HANDSHAKE_SECONDS = 0.25
# The pause before log lines are written again to a slow reader.
LOG_RETRY_SECONDS = 0.01
WARNING_SECONDS = 10.0
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
TOO_MANY_CONNECTIONS = ServiceUnavailable("The connection limit is reached; try again soon.", headers=(RETRY_AFTER,))


class ServerObserver(Protocol):
    """Receives rejected requests, which never reach the application, and the load of the server."""

    def rejected(self, status: int, ids: RequestIds) -> None: ...
    def record_load(self, connections: int, queued: int, requests: int, responses: int) -> None: ...
    def flush(self) -> None: ...


class PooledRequest:
    """A request in a thread pool. It arrived when this object was created."""

    def __init__(self, server: "EventLoop", connection: HTTPConnection, request: RawRequest) -> None:
        self.server, self.connection, self.request, self.arrived = server, connection, request, server.now
        # The client has closed its half of the connection and may be gone, so a long poll ends at once.
        self.client_gone = False

    def service(self) -> None:
        """Answers the request. A thread of the pool calls this method."""
        data, close = self.server.answer(self.connection, self.request, self.arrived, lambda: self.client_gone)
        self.server.long_polls.discard(self)
        self.server.done.append((self.connection, data, close))
        self.server.pull_trigger()

    def cancel(self) -> None:
        """Does nothing: when the pool shuts down and calls this method, the connection is already closed."""


def create_pool() -> ThreadedTaskDispatcher:
    """Returns a thread pool that does not log the length of its queue, which is a metric."""
    pool = ThreadedTaskDispatcher()
    pool.queue_logger = logging.Logger("silent", logging.CRITICAL)
    return pool


class EventLoop(TcpWSGIServer):  # type: ignore[misc]
    """Serves an application on a bound socket until it is drained."""

    def __init__(
        self, app: App, sock: socket, limits: Settings, threads: int, observer: ServerObserver, log: Log, group: WorkerGroup
    ) -> None:
        """Shares the socket with the other processes of `group`, which continue when this one stops."""
        dispatcher = create_pool()
        dispatcher.set_thread_count(threads)
        # Long polls and calls to other servers have dedicated threads, which start with the first such request.
        self.long_poll_pool, self.long_polls = create_pool(), set[PooledRequest]()
        self.upstream_pool = create_pool()
        self.pools = (dispatcher, self.long_poll_pool, self.upstream_pool)
        adjustments = Adjustments(sockets=[sock], threads=threads, backlog=1024)
        self.limits, self.observer, self.event_log, self.group = limits, observer, log, group
        self.now = monotonic()
        self.poller = select.epoll() if hasattr(select, "epoll") else Poll()
        self.connections: dict[int, HTTPConnection] = {}
        self.done: deque[tuple[HTTPConnection, Pieces, bool]] = deque()
        self.max_connections, self.max_rejected = connection_limits(limits)
        self.listening, self.stopping, self.last_to_listen = True, False, True
        self.grace_ends_at = self.close_listener_at = self.end_at = self.accept_again_at = inf
        self.next_sweep = self.next_warning = 0.0
        self.buffered_request_bytes = self.unsent_bytes = 0
        super().__init__(
            app,
            {},
            _sock=sock,
            dispatcher=dispatcher,
            adj=adjustments,
            bind_socket=False,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
        )
        self.inline, self.schedule = app.inline, app.schedule
        self.app, self.writer = app, ResponseWriter()
        self.fast_path = FastPath(self)
        self.watch_listener()
        self.poller.register(self.trigger.socket.fileno(), select.POLLIN)
        self.tick: Callable[[], None] = lambda: None

    def watch_listener(self) -> None:
        # EPOLLEXCLUSIVE: a new connection wakes one of the processes that wait, and not all.
        self.listening, self.accept_again_at = True, inf
        self.poller.register(self.socket.fileno(), select.POLLIN | getattr(select, "EPOLLEXCLUSIVE", 0))

    def leave_listener(self) -> None:
        self.listening = False
        self.poller.unregister(self.socket.fileno())

    def run(self) -> int:
        """Runs the loop. Returns the number of requests that the end of the drain cut off."""
        listener, trigger = self.socket.fileno(), self.trigger.socket.fileno()
        while not self.drained():
            events = self.poller.poll(self.wait(), TURN_EVENTS)
            self.now = monotonic()
            self.writer.update_date()
            # The poller reports the oldest events first, so a full turn may lack the event of the listener.
            accepts = len(events) >= TURN_EVENTS
            for fd, event in events:
                connection = self.connections.get(fd)
                if connection is not None:
                    try:
                        connection.handle(event)
                    except Exception:
                        self.fail(connection)
                elif fd == listener:
                    accepts = True
                elif fd == trigger:
                    self.trigger.handle_read()
            while self.done:
                connection, data, close = self.done.popleft()
                self.dispatch(connection, connection.answered, data, close)
            if self.now >= self.next_sweep:
                self.sweep()
            if self.now >= self.accept_again_at:
                self.watch_listener()
            if accepts and self.listening:
                self.accept_waiting()
            self.observer.flush()
            self.event_log.flush()
        return self.end()

    def dispatch(self, connection: HTTPConnection | socket, act: Callable[..., None], *arguments: object) -> None:
        """Calls a method of a connection. A defect, or an error of the system, closes this connection and no other."""
        try:
            act(*arguments)
        except Exception:
            self.fail(connection)

    def fail(self, connection: HTTPConnection | socket) -> None:
        """Logs the current exception and closes the connection."""
        self.event_log.event("error", "a connection failed", traceback=traceback.format_exc())
        connection.close()

    def wait(self) -> float:
        """Returns the seconds until the next task of the loop itself."""
        if self.event_log.waiting:
            return LOG_RETRY_SECONDS
        return max(
            0.0, min(self.next_sweep, self.accept_again_at, self.grace_ends_at, self.close_listener_at, self.end_at) - self.now
        )

    def accept_waiting(self) -> None:
        """Accepts connections until none waits, this process has its share, or the turn has its maximum."""
        accepted = 0
        while accepted < TURN_ACCEPTS and self.handle_accept():
            accepted += 1
            if not self.stopping and self.group.memory.has_excess_connections(self.group.slot):
                break
        if accepted and self.listening and not self.stopping:
            self.yield_accept()

    def handle_accept(self) -> bool:
        """Accepts a connection. Returns False if none waits, or if no descriptor is free."""
        try:
            client, _ = self.socket.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in EXHAUSTED:
                # The connection stays in the backlog, and the poller would report it again at once.
                self.pause_accepting(error)
                return False
            return True
        self.dispatch(client, self.admit, client)
        self.publish_connections()
        return True

    def yield_accept(self) -> None:
        """Lets another process accept next.

        The kernel wakes the first idle waiter, so one process would get most connections. Registering again moves this process
        to the end of the queue. It waits a moment if it has more connections than another process. Registering again also
        reports connections that another process was woken for and did not accept.
        """
        self.leave_listener()
        if self.group.memory.has_excess_connections(self.group.slot):
            self.accept_again_at = self.now + ACCEPT_YIELD_SECONDS
        else:
            self.watch_listener()

    def publish_connections(self) -> None:
        self.group.memory.set_connections(self.group.slot, inf if self.stopping else len(self.connections))

    def admit(self, client: socket) -> None:
        client.setblocking(False)
        self.set_socket_options(client)
        if len(self.connections) < self.max_connections:
            connection = self.connections[client.fileno()] = HTTPConnection(self, client)
            # The first request has often arrived already, and would wait for all other ready connections.
            self.dispatch(connection, connection.read)
        else:
            self.reject(client)

    def pause_accepting(self, error: OSError) -> None:
        if self.listening:
            self.leave_listener()
            self.warn("connections wait to be accepted", reason=error.strerror)
        self.accept_again_at = self.now + ACCEPT_PAUSE_SECONDS

    def warn(self, message: str, reason: str | None) -> None:
        """Logs a warning, at most one in ten seconds."""
        if self.now >= self.next_warning:
            self.next_warning = self.now + WARNING_SECONDS
            self.event_log.event("warning", message, reason=reason)

    def reject(self, client: socket) -> None:
        """Answers 503 to a connection over the limit. A few of these connections may linger, so that the response is not lost."""
        if len(self.connections) < self.max_connections + self.max_rejected:
            connection = self.connections[client.fileno()] = HTTPConnection(self, client)
            connection.reject(TOO_MANY_CONNECTIONS)
            return
        with suppress(OSError):
            client.send(self.error(TOO_MANY_CONNECTIONS)[0])
        client.close()

    def remove(self, connection: HTTPConnection) -> None:
        """Removes a connection that is about to close."""
        self.connections.pop(connection.fd, None)
        self.poller.unregister(connection.fd)
        self.publish_connections()

    def shed_slow_readers(self) -> None:
        """Closes the connections with the oldest unread responses until the rest is within the limit.

        Files, which all responses share, do not count. The newest response always has room.
        """
        slow = sorted((c for c in self.connections.values() if c.unsent_bytes), key=lambda c: c.unsent_since)
        for connection in slow[:-1]:
            if self.unsent_bytes <= self.limits.pending_bytes:
                break
            connection.close()
            self.warn(
                "a response was dropped", reason="its client was too slow to read it, and there was no room for other responses"
            )

    def answer(
        self, connection: HTTPConnection, request: RawRequest, arrived: float, client_gone: Callable[[], bool] = never
    ) -> tuple[Pieces, bool]:
        """Returns the response of the application, and whether the connection closes. Runs in the loop or in a pool thread."""
        head, body = request
        try:
            response, request_id = self.app.answer(head.method, head.path, head.environ, body, arrived, client_gone)
            # The server may have begun to stop while the application computed the response.
            header = self.connection_header(connection, head)
            data = self.writer.message(response, request_id, head.method, header)
        except Exception:
            header, ids = self.connection_header(connection, head), request_ids(head.environ)
            self.event_log.failure(**ids.log_fields())
            data = self.error(Problem("The server failed on this request."), head.method, head.path, header, ids)
        return data, header == "close"

    def connection_header(self, connection: HTTPConnection, head: RequestHead) -> str | None:
        """Returns the value of the Connection header of the response."""
        if head.close or self.stopping or (self.now >= connection.retires_at and connection.retires()):
            return "close"
        return "keep-alive" if head.version == "1.0" else None

    def error(
        self,
        problem: Problem,
        method: str = "GET",
        path: str = "",
        connection: str | None = "close",
        ids: RequestIds | None = None,
    ) -> Pieces:
        """Returns the response to a request that does not reach the application. The path is empty if it is unknown."""
        ids = ids or RequestIds(new_request_id())
        self.observer.rejected(problem.status, ids)
        return self.writer.error(problem, method, path, connection, ids.request)

    def enqueue(self, connection: HTTPConnection, request: RawRequest, executor: Executor) -> PooledRequest | None:
        """Adds a request to the pool of its executor. Returns None if the queue is full."""
        job = PooledRequest(self, connection, request)
        if executor == "long_poll":
            if len(self.long_polls) >= MAX_LONG_POLLS:
                return None
            self.long_polls.add(job)
            self.long_poll_pool.set_thread_count(max(len(self.long_poll_pool.threads), len(self.long_polls)))
            self.long_poll_pool.add_task(job)
            return job
        pool = self.task_dispatcher
        if executor == "upstream":
            pool = self.upstream_pool
            pool.set_thread_count(MAX_UPSTREAM_CALLS)
        if len(pool.queue) >= self.limits.queue:
            return None
        pool.add_task(job)
        return job

    def cancel_queued(self, job: PooledRequest) -> bool:
        """Removes a request from its queue. Returns False if a thread has begun it."""
        for pool in self.pools:
            with pool.lock, suppress(ValueError):
                pool.queue.remove(job)
                self.long_polls.discard(job)
                return True
        return False

    def sweep(self) -> None:
        """Expires the connections that are past their deadline, and publishes the load."""
        self.next_sweep = self.now + SWEEP_SECONDS
        self.tick()
        if self.listening:
            self.yield_accept()
        queued = sum(len(pool.queue) for pool in self.pools)
        self.observer.record_load(len(self.connections), queued, self.buffered_request_bytes, self.unsent_bytes)
        for connection in [c for c in self.connections.values() if c.deadline <= self.now]:
            self.dispatch(connection, connection.expire)
        # The deadline of a request is more exact than that of a connection.
        self.next_sweep = min(self.next_sweep, *(c.deadline for c in self.connections.values() if c.state is State.BUSY), inf)

    def stop(self, others_go_on: bool = False) -> None:
        """Begins the end: responses close their connections, and after the grace no connection is accepted.

        If other processes continue to accept on the socket, there is no grace. A signal handler or another thread may call this.
        """
        if not self.stopping:
            self.grace_ends_at = monotonic() + (0 if others_go_on else self.limits.grace_seconds)
            self.last_to_listen = not others_go_on
            self.stopping = True
            # The loop may have ended by now, if another thread calls this.
            with suppress(OSError):
                self.pull_trigger()

    def drained(self) -> bool:
        """Advances the end. Returns whether all requests are answered, or the drain time is over."""
        if self.grace_ends_at <= self.now:
            self.grace_ends_at = inf
            self.publish_connections()
            self.end_at = self.now + self.limits.drain_seconds
            self.close_listener_at = self.now
            if self.last_to_listen:
                drop_new_connections(self.socket)
                self.close_listener_at = min(self.now + HANDSHAKE_SECONDS, self.end_at)
        if self.close_listener_at <= self.now:
            self.close_listener_at = inf
            self.close_listener()
        return self.end_at != inf and self.close_listener_at == inf and (not self.connections or self.end_at <= self.now)

    def close_listener(self) -> None:
        """Accepts the connections in the backlog, so that none is lost, and closes the socket."""
        if self.listening:
            self.leave_listener()
        # If other processes continue, they accept the waiting connections.
        while self.last_to_listen and self.handle_accept():
            pass
        self.socket.close()
        self.accept_again_at = inf
        settled = self.now + min(SETTLE_SECONDS, self.limits.drain_seconds)
        for connection in list(self.connections.values()):
            if connection.state in (State.NEW, State.IDLE):
                connection.deadline = min(connection.deadline, settled)

    def end(self) -> int:
        cut = sum(c.state in (State.BUSY, State.READING, State.SENDING) for c in self.connections.values())
        for connection in list(self.connections.values()):
            connection.close()
        for pool in self.pools:
            pool.shutdown(timeout=0 if cut else 5)
        self.trigger.close()
        self.poller.close()
        self.observer.flush()
        self.event_log.finish()
        return cut
