"""waitress with its I/O loop and its connections replaced: strict, with deadlines, bounded, and nothing lost at the end."""

import errno
import logging
import select
import socket
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Protocol

from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from iris_wsgi.errors import RETRY_AFTER, Problem, ServiceUnavailable
from iris_wsgi.http.request_head import Head, Request
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.shared_memory import Company
from iris_wsgi.observability.trace_context import Ids, ids_of, new_request_id
from iris_wsgi.server.connection import SETTLE_SECONDS, Channel, State
from iris_wsgi.server.listener import MAX_UPSTREAM_CALLS, Poll, connection_limits, refuse_newcomers
from iris_wsgi.server.response_writer import Pieces, Writer
from iris_wsgi.settings import Settings
from iris_wsgi.wsgi.application import App, Executor, never

SWEEP_SECONDS = 0.25
# The events of a turn of the I/O loop, after which new connections have their turn, however many connections are ready.
# More than a few bring nothing: a turn costs some microseconds, and a request costs more.
TURN_EVENTS = 32
# The connections that a turn accepts, after which those that it has have their turn.
TURN_ACCEPTS = 64
# The maximum number of requests of a process that wait for jobs, each in a dedicated thread; further ones get 503.
MAX_LONG_POLLS = 64
ACCEPT_PAUSE_SECONDS = 0.2
# How long a process that has more connections than others leaves the next ones to them.
STEP_BACK_SECONDS = 0.001
# How long a client whose connection was begun before the kernel was told to drop newcomers has to complete it.
HANDSHAKE_SECONDS = 0.25
# How soon to try again to write lines that a reader of the log was too slow for.
LOG_SECONDS = 0.01
COMPLAINT_SECONDS = 10.0
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
CROWDED = ServiceUnavailable("The server has as many connections as it may have; try again soon.", headers=(RETRY_AFTER,))


class Observer(Protocol):
    """Who is told of requests that never reached the application, and of what the server holds."""

    def refused(self, status: int, ids: Ids) -> None: ...
    def record_load(self, connections: int, queued: int, requests: int, answers: int) -> None: ...


class Job:
    """A request on its way through the thread pool, which arrived when it was made."""

    def __init__(self, server: "Server", channel: Channel, request: Request) -> None:
        self.server, self.channel, self.request, self.arrived = server, channel, request, server.now
        # Its client has closed its half of the connection: it may be gone, so its answer is not held back any longer.
        self.client_gone = False

    def service(self) -> None:
        """Called by a thread of the pool."""
        data, close = self.server.answer(self.request, self.arrived, lambda: self.client_gone)
        self.server.waiting.discard(self)
        self.server.done.append((self.channel, data, close))
        self.server.pull_trigger()

    def cancel(self) -> None:
        """Called for what is still queued when the pool is shut down; its connection is closed by then."""


def silent_pool() -> ThreadedTaskDispatcher:
    """Threads that do not log how many wait for them: the metrics tell."""
    pool = ThreadedTaskDispatcher()
    pool.queue_logger = logging.Logger("silent", logging.CRITICAL)
    return pool


class Server(TcpWSGIServer):  # type: ignore[misc]
    """Serves one application on one bound socket: `run()` returns when it is drained."""

    def __init__(
        self, app: App, sock: socket.socket, limits: Settings, threads: int, observer: Observer, log: Log, company: Company
    ) -> None:
        """The other processes of `company` accept on the bound socket too, and go on when this one stops."""
        dispatcher = silent_pool()
        dispatcher.set_thread_count(threads)
        # Requests whose answers are held back wait in threads of their own, of which there are none before there are requests.
        self.waiters, self.waiting = silent_pool(), set[Job]()
        # Neither are there any for those that call other servers.
        self.callers = silent_pool()
        self.pools = (dispatcher, self.waiters, self.callers)
        adjustments = Adjustments(sockets=[sock], threads=threads, backlog=1024)
        self.limits, self.observer, self.logbook, self.company = limits, observer, log, company
        self.now = monotonic()
        self.poller = select.epoll() if hasattr(select, "epoll") else Poll()
        self.channels: dict[int, Channel] = {}
        self.done: deque[tuple[Channel, Pieces, bool]] = deque()
        self.most_connections, self.most_turned_away = connection_limits(limits)
        self.listening, self.stopping, self.last_to_listen = True, False, True
        self.grace_ends_at = self.close_listener_at = self.end_at = self.accept_again_at = inf
        self.next_sweep = self.next_complaint = 0.0
        # Bytes of requests that are not answered, and of computed answers that are not taken.
        self.pending = self.owed = 0
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
        self.app, self.writer = app, Writer()
        self.watch_listener()
        self.poller.register(self.trigger.socket.fileno(), select.POLLIN)
        self.tick: Callable[[], None] = lambda: None

    def watch_listener(self) -> None:
        # One of the processes that wait on a shared listener is woken by a connection, not all.
        self.listening, self.accept_again_at = True, inf
        self.poller.register(self.socket.fileno(), select.POLLIN | getattr(select, "EPOLLEXCLUSIVE", 0))

    def leave_listener(self) -> None:
        self.listening = False
        self.poller.unregister(self.socket.fileno())

    def run(self) -> int:
        """The I/O loop; the number of requests that were cut off at the end, which is 0 unless the drain's time was over."""
        listener, trigger = self.socket.fileno(), self.trigger.socket.fileno()
        while not self.drained():
            events = self.poller.poll(self.wait(), TURN_EVENTS)
            self.now = monotonic()
            # The poller reports what has been ready longest, so a turn that is full says nothing of the listener.
            accepts = len(events) >= TURN_EVENTS
            for fd, event in events:
                channel = self.channels.get(fd)
                if channel is not None:
                    self.attend(channel, channel.handle, event)
                elif fd == listener:
                    accepts = True
                elif fd == trigger:
                    self.trigger.handle_read()
            while self.done:
                channel, data, close = self.done.popleft()
                self.attend(channel, channel.answered, data, close)
            if self.now >= self.next_sweep:
                self.sweep()
            if self.now >= self.accept_again_at:
                self.watch_listener()
            if accepts and self.listening:
                self.accept_waiting()
            self.logbook.flush()
        return self.end()

    def attend(self, one: Channel | socket.socket, act: Callable[..., None], *given: object) -> None:
        """Lets a connection act; a defect of ours, or a system that refuses something, costs that one and not the others."""
        try:
            act(*given)
        except Exception:
            self.logbook.event("error", "a connection failed", traceback=traceback.format_exc())
            one.close()

    def wait(self) -> float:
        """Seconds until the loop has something to do of its own."""
        if self.logbook.waiting:
            return LOG_SECONDS
        return max(
            0.0, min(self.next_sweep, self.accept_again_at, self.grace_ends_at, self.close_listener_at, self.end_at) - self.now
        )

    def accept_waiting(self) -> None:
        """Accepts connections until none waits, this process has its share, or the turn has enough of them."""
        accepted = 0
        while accepted < TURN_ACCEPTS and self.handle_accept():
            accepted += 1
            if not self.stopping and self.company.board.is_ahead(self.company.slot):
                break
        if accepted and self.listening and not self.stopping:
            self.step_back()

    def handle_accept(self) -> bool:
        """Accepts a connection; False if none waits, or there is no descriptor for one."""
        try:
            connection, _ = self.socket.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in EXHAUSTED:
                # The connection stays in the backlog, and the poller would report it again at once.
                self.pause_accepting(error)
                return False
            return True
        self.attend(connection, self.welcome, connection)
        self.tell_company()
        return True

    def step_back(self) -> None:
        """Has other processes take the next connection: the kernel asks the first in the row that is not busy, which would get
        nearly all, so this one goes to its end, and a moment later where it has more than another.

        At the end of the row it sees as well what another was asked to take, and did not.
        """
        self.leave_listener()
        if self.company.board.is_ahead(self.company.slot):
            self.accept_again_at = self.now + STEP_BACK_SECONDS
        else:
            self.watch_listener()

    def tell_company(self) -> None:
        self.company.board.connected(self.company.slot, inf if self.stopping else len(self.channels))

    def welcome(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.set_socket_options(connection)
        if len(self.channels) < self.most_connections:
            channel = self.channels[connection.fileno()] = Channel(self, connection)
            # Its first request is often here already, and would wait behind all that is ready.
            self.attend(channel, channel.read)
        else:
            self.turn_away(connection)

    def pause_accepting(self, error: OSError) -> None:
        if self.listening:
            self.leave_listener()
            self.complain("connections wait to be accepted", reason=error.strerror)
        self.accept_again_at = self.now + ACCEPT_PAUSE_SECONDS

    def complain(self, what: str, reason: str | None) -> None:
        """Tells the log, now and then."""
        if self.now >= self.next_complaint:
            self.next_complaint = self.now + COMPLAINT_SECONDS
            self.logbook.event("warning", what, reason=reason)

    def turn_away(self, connection: socket.socket) -> None:
        """Answers 503 to a connection too many. A few of them at a time may linger, so that the answer is not lost."""
        if len(self.channels) < self.most_connections + self.most_turned_away:
            channel = self.channels[connection.fileno()] = Channel(self, connection)
            channel.refuse(CROWDED)
            return
        with suppress(OSError):
            connection.send(self.refusal(CROWDED)[0])
        connection.close()

    def forget(self, channel: Channel) -> None:
        """A connection is about to be closed."""
        self.channels.pop(channel.fd, None)
        self.poller.unregister(channel.fd)
        self.tell_company()

    def make_room(self) -> None:
        """Ends the connections whose clients take longest over an answer, until what is kept for the others has room.

        What is in memory once for all, as files are, does not count, and the newest answer always has room.
        """
        slow = sorted((c for c in self.channels.values() if c.owed), key=lambda c: c.owed_since)
        for channel in slow[:-1]:
            if self.owed <= self.limits.pending_bytes:
                break
            channel.close()
            self.complain("an answer was given up", reason="its client was too slow to take it, and there was no room for others")

    def answer(self, request: Request, arrived: float, client_gone: Callable[[], bool] = never) -> tuple[Pieces, bool]:
        """The application's answer to a request that arrived then, and whether the connection closes after it; in the loop or
        in a thread of the pool."""
        head, body = request
        try:
            response, request_id = self.app.answer(head.method, head.path, head.variables, body, arrived, client_gone)
            # Only now: it may have been a long time.
            connection = self.connection(head)
            data = self.writer.message(response, request_id, head.method, connection)
        except Exception:
            connection, ids = self.connection(head), ids_of(head.variables)
            self.logbook.failure(**ids.told())
            data = self.refusal(Problem("The server failed on this request."), head.method, head.path, connection, ids)
        return data, connection == "close"

    def connection(self, head: Head) -> str | None:
        """What an answer says of its connection."""
        return "close" if head.close or self.stopping else "keep-alive" if head.version == "1.0" else None

    def refusal(
        self, problem: Problem, method: str = "GET", path: str = "", connection: str | None = "close", ids: Ids | None = None
    ) -> Pieces:
        """The answer to a request that does not get to the application; the path is empty where none was read."""
        ids = ids or Ids(new_request_id())
        self.observer.refused(problem.status, ids)
        return self.writer.refusal(problem, method, path, connection, ids.request)

    def enqueue(self, channel: Channel, request: Request, executor: Executor) -> Job | None:
        """Gives a request to the threads that do such work; None where there is no room."""
        job = Job(self, channel, request)
        if executor == "long_poll":
            if len(self.waiting) >= MAX_LONG_POLLS:
                return None
            self.waiting.add(job)
            self.waiters.set_thread_count(max(len(self.waiters.threads), len(self.waiting)))
            self.waiters.add_task(job)
            return job
        pool = self.task_dispatcher
        if executor == "upstream":
            pool = self.callers
            pool.set_thread_count(MAX_UPSTREAM_CALLS)
        if len(pool.queue) >= self.limits.queue:
            return None
        pool.add_task(job)
        return job

    def withdraw(self, job: Job) -> bool:
        """Takes a request back from the thread pool; False where a thread has begun it."""
        for pool in self.pools:
            with pool.lock, suppress(ValueError):
                pool.queue.remove(job)
                self.waiting.discard(job)
                return True
        return False

    def sweep(self) -> None:
        """Ends what is past its deadline, and tells what there is."""
        self.next_sweep = self.now + SWEEP_SECONDS
        self.tick()
        if self.listening:
            self.step_back()
        self.observer.record_load(len(self.channels), sum(len(pool.queue) for pool in self.pools), self.pending, self.owed)
        for channel in [c for c in self.channels.values() if c.deadline <= self.now]:
            self.attend(channel, channel.expire)
        # The deadline of a request is kept more exactly than that of a connection.
        self.next_sweep = min(self.next_sweep, *(c.deadline for c in self.channels.values() if c.state is State.BUSY), inf)

    def stop(self, others_go_on: bool = False) -> None:
        """Begins the end: every answer says that the connection closes; after the grace nothing new is accepted.

        Where other processes go on to accept on the same socket there is no grace, as no traffic has to turn away.
        May be called by a signal handler, or by another thread.
        """
        if not self.stopping:
            self.grace_ends_at = monotonic() + (0 if others_go_on else self.limits.grace_seconds)
            self.last_to_listen = not others_go_on
            self.stopping = True
            self.pull_trigger()

    def drained(self) -> bool:
        """Moves the end along; whether all is done, or its time is over."""
        if self.grace_ends_at <= self.now:
            self.grace_ends_at = inf
            self.tell_company()
            self.end_at = self.now + self.limits.drain_seconds
            self.close_listener_at = self.now
            if self.last_to_listen:
                refuse_newcomers(self.socket)
                self.close_listener_at = min(self.now + HANDSHAKE_SECONDS, self.end_at)
        if self.close_listener_at <= self.now:
            self.close_listener_at = inf
            self.close_listener()
        return self.end_at != inf and self.close_listener_at == inf and (not self.channels or self.end_at <= self.now)

    def close_listener(self) -> None:
        """Empties the backlog, so that no client that was let in is lost, and closes."""
        if self.listening:
            self.leave_listener()
        # Where others go on, they take what waits.
        while self.last_to_listen and self.handle_accept():
            pass
        self.socket.close()
        self.accept_again_at = inf
        settled = self.now + min(SETTLE_SECONDS, self.limits.drain_seconds)
        for channel in list(self.channels.values()):
            if channel.state in (State.NEW, State.IDLE):
                channel.deadline = min(channel.deadline, settled)

    def end(self) -> int:
        cut = sum(channel.state in (State.BUSY, State.READING, State.SENDING) for channel in self.channels.values())
        for channel in list(self.channels.values()):
            channel.close()
        for pool in self.pools:
            pool.shutdown(timeout=0 if cut else 5)
        self.trigger.close()
        self.poller.close()
        self.logbook.finish()
        return cut
