"""Several processes that serve on one socket: the parent starts them, replaces the dead, and never loads the model."""

import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

from iris_wsgi.board import Board, Company
from iris_wsgi.console import tell
from iris_wsgi.launch import CANNOT_START, Facts, serve_here
from iris_wsgi.log import Log
from iris_wsgi.settings import Settings

MOST_FAILED_STARTS = 3
# A worker that died younger than this is not replaced at once, or a fault at the start would keep the machine busy.
YOUNG_SECONDS = 1.0
PAUSE_SECONDS = 0.5
# What a worker may take beyond its grace and its drain before it is killed.
KILL_AFTER_SECONDS = 5.0
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Worker:
    """A process that serves, as its parent sees it."""

    def __init__(self, pid: int, slot: int, told: int) -> None:
        self.pid, self.slot, self.told = pid, slot, told
        self.began = time.monotonic()
        self.ready = self.retiring = False
        self.message = b""


class Supervisor:
    """Keeps `count` workers serving until SIGTERM or SIGINT; SIGHUP replaces them one by one."""

    def __init__(self, settings: Settings, bound: socket.socket, count: int, ready: Callable[[Facts], None]) -> None:
        self.settings, self.bound, self.count, self.ready = settings, bound, count, ready
        # A replacement starts before the old worker ends, so there are more slots than workers.
        self.board = Board(2 * count)
        self.log = Log(sys.stderr.fileno())
        self.workers: dict[int, Worker] = {}
        self.to_replace: deque[int] = deque()
        self.announced = False
        self.failed_starts = 0
        self.start_at = 0.0
        self.stopping = 0
        self.kill_at = 0.0
        self.status = 0
        self.poller = select.poll()

    def run(self) -> int:
        """Until all workers have ended; the exit status."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.poller.register(woken, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.end)
        signal.signal(signal.SIGHUP, self.replace_all)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.start()
        while self.workers or not self.stopping:
            for descriptor, _ in self.poller.poll(200):
                if descriptor == woken:
                    os.read(woken, 4096)
                else:
                    self.hear(descriptor)
            self.reap()
            self.keep_up()
        return self.status

    def keep_up(self) -> None:
        """Starts what is missing, and moves a replacement along."""
        now = time.monotonic()
        if self.stopping:
            if now >= self.kill_at:
                self.signal_all(signal.SIGKILL)
            return
        serving = [w for w in self.workers.values() if not w.retiring]
        # The first worker shows whether the model can be served at all; only then come the others.
        wanted = self.count if self.announced else 1
        if (len(serving) < wanted and now >= self.start_at) or (
            self.to_replace and len(serving) == self.count and all(w.ready for w in serving)
        ):
            self.start()
        elif len(serving) > self.count and all(w.ready for w in serving):
            self.retire()

    def start(self) -> None:
        """Forks a worker. The parent has one thread and no session, so there is nothing that a fork could break."""
        taken = {worker.slot for worker in self.workers.values()}
        free = [slot for slot in range(self.board.slots) if slot not in taken]
        if not free:
            return
        hears, tells = os.pipe()
        parent = os.getpid()
        # A signal between the fork and the note of it would not reach the new worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        pid = os.fork()
        if pid == 0:
            for descriptor in (hears, *(worker.told for worker in self.workers.values() if worker.told >= 0)):
                os.close(descriptor)
            self.work(parent, free[0], tells)
        self.workers[pid] = Worker(pid, free[0], hears)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        os.close(tells)
        self.poller.register(hears, select.POLLIN)

    def work(self, parent: int, slot: int, tells: int) -> None:
        """The life of a worker; it never returns to the parent's code."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # A hang-up of the terminal is for the parent to interpret.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)

            def ready(facts: Facts) -> None:
                os.write(tells, json.dumps(facts).encode() + b"\n")
                os.close(tells)

            status = serve_here(self.settings, self.bound, ready, Company(parent, self.board, slot))
        except CANNOT_START as error:
            tell(str(error))
        except BaseException:
            self.log.failure("a worker failed")
        finally:
            os._exit(status)

    def hear(self, descriptor: int) -> None:
        """A worker says that it is ready, or its pipe was closed by its death."""
        worker = next(w for w in self.workers.values() if w.told == descriptor)
        data = os.read(descriptor, 65536)
        worker.message += data
        if not data or worker.message.endswith(b"\n"):
            self.poller.unregister(descriptor)
            os.close(descriptor)
            worker.told = -1
        if worker.message.endswith(b"\n"):
            worker.ready = True
            self.failed_starts = 0
            if not self.announced:
                self.announced = True
                self.ready(Facts(*json.loads(worker.message)))

    def reap(self) -> None:
        """Takes note of the workers that have ended."""
        while self.workers:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self.workers.get(pid)
            if worker is None:
                continue
            if worker.told >= 0:
                # Its last word may be that it was ready.
                self.hear(worker.told)
            del self.workers[pid]
            self.board.leave(worker.slot, usage.ru_utime + usage.ru_stime)
            if not self.stopping and not worker.retiring:
                self.mourn(worker, os.waitstatus_to_exitcode(status))

    def mourn(self, worker: Worker, code: int) -> None:
        """A worker ended that should not have: says so, and decides whether and when another takes its place."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        if not self.announced:
            # Its own line has told why.
            self.stopping, self.status = 1, code if code > 0 else 1
            return
        self.log.event("error", "a worker died", pid=worker.pid, how=how, was_ready=worker.ready)
        if time.monotonic() - worker.began < YOUNG_SECONDS:
            self.start_at = time.monotonic() + PAUSE_SECONDS
        if worker.ready:
            return
        serving = sum(not w.retiring for w in self.workers.values())
        if self.to_replace and serving >= self.count:
            self.to_replace.clear()
            self.log.event("error", "the workers are not replaced: a new one does not start", how=how)
            return
        self.failed_starts += 1
        if self.failed_starts >= MOST_FAILED_STARTS:
            self.log.event("error", f"a worker died {MOST_FAILED_STARTS} times before it was ready; the service ends", how=how)
            self.status = 1
            self.end(signal.SIGTERM, None)

    def retire(self) -> None:
        """One of the workers that are to be replaced stops, now that its replacement is ready.

        If those are gone by now, or a hang-up came while one was retired and noted it once more, it is the oldest that stops.
        """
        serving = {pid: worker for pid, worker in self.workers.items() if not worker.retiring}
        while self.to_replace and self.to_replace[0] not in serving:
            self.to_replace.popleft()
        worker = serving[self.to_replace.popleft()] if self.to_replace else min(serving.values(), key=lambda one: one.began)
        worker.retiring = True
        os.kill(worker.pid, signal.SIGTERM)

    def replace_all(self, _number: int, _frame: FrameType | None) -> None:
        """SIGHUP: a new worker for each that serves now, one at a time."""
        if self.announced and not self.stopping and not self.to_replace:
            self.to_replace.extend(w.pid for w in self.workers.values() if not w.retiring)

    def end(self, number: int, _frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: all workers drain; a second one ends them at once."""
        if self.stopping:
            self.signal_all(signal.SIGKILL)
            os._exit(128 + number)
        self.stopping = number
        self.kill_at = time.monotonic() + self.settings.grace_seconds + self.settings.drain_seconds + KILL_AFTER_SECONDS
        # While anybody holds the socket the kernel lets clients in, whom nobody would serve.
        self.bound.close()
        self.signal_all(signal.SIGUSR2)

    def signal_all(self, number: int) -> None:
        for pid in list(self.workers):
            os.kill(pid, number)
