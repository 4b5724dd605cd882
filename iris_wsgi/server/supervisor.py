"""The supervisor: the parent starts the workers that serve on one socket, replaces the dead, and never loads the model."""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from iris_wsgi.console import tell
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.shared_memory import Board, Company
from iris_wsgi.server.serve import CANNOT_START, RETIRE, Facts, serve_here
from iris_wsgi.settings import BadSetting, Settings

# The delay after a failed start. Each further failed start doubles it, up to the maximum.
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 30.0
# A worker that died younger than this is not replaced at once, or a fault at the start would keep the machine busy.
YOUNG_SECONDS = 1.0
# What a worker may take beyond its grace and its drain before it is killed.
KILL_AFTER_SECONDS = 5.0
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Worker:
    """A process that serves, as its parent sees it.

    `told` is the descriptor from which the parent reads the messages of the worker, or -1. `generation` is the number of
    hang-ups before the start of the worker.
    """

    def __init__(self, pid: int, slot: int, told: int, generation: int = 0) -> None:
        self.pid, self.slot, self.told, self.generation = pid, slot, told, generation
        self.began = time.monotonic()
        self.ready = self.retiring = False
        self.message = b""


class Supervisor:
    """Keeps `count` workers serving until SIGTERM or SIGINT; SIGHUP replaces them one by one.

    Once a worker was ready, the supervisor ends on no failure: it starts workers again and again, with growing delays.
    """

    def __init__(self, settings: Settings, bound: socket.socket, count: int, ready: Callable[[Facts], None]) -> None:
        self.settings, self.bound, self.count, self.ready = settings, bound, count, ready
        # A replacement starts before the old worker ends, so there are more slots than workers.
        self.board = Board(2 * count)
        self.log = Log(sys.stderr.fileno())
        self.workers: dict[int, Worker] = {}
        self.wakeup: tuple[int, ...] = ()
        self.generation = 0
        self.announced = False
        self.failed_starts = 0
        self.start_at = 0.0
        self.stopping = 0
        self.kill_at = 0.0
        self.status = 0
        self.poller = select.poll()

    def run(self) -> int:
        """Until all workers have ended; the exit status."""
        self.wakeup = woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.poller.register(woken, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.end)
        signal.signal(signal.SIGHUP, self.replace_all)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while self.workers or not self.stopping:
            self.keep_up()
            for descriptor, _ in self.poller.poll(200):
                if descriptor == woken:
                    os.read(woken, 4096)
                else:
                    self.hear(descriptor)
            self.reap()
        return self.status

    def keep_up(self) -> None:
        """Starts what is missing, and moves a replacement along."""
        now = time.monotonic()
        if self.stopping:
            if now >= self.kill_at:
                self.signal_all(signal.SIGKILL)
            return
        serving = self.serving()
        all_ready = all(worker.ready for worker in serving)
        # The first worker shows whether the model can be served at all; only then come the others.
        wanted = self.count if self.announced else 1
        # While starts fail, there is only one at a time.
        is_missing = len(serving) < wanted and (all_ready or not self.failed_starts)
        is_old = len(serving) == self.count and all_ready and any(one.generation < self.generation for one in serving)
        if (is_missing or is_old) and now >= self.start_at:
            self.start()
        elif len(serving) > self.count and all_ready:
            self.retire()

    def serving(self) -> Sequence[Worker]:
        return [worker for worker in self.workers.values() if not worker.retiring]

    def start(self) -> None:
        """Forks a worker. The parent has one thread and no session, so there is nothing that a fork could break."""
        taken = {worker.slot for worker in self.workers.values()}
        free = [slot for slot in range(self.board.slots) if slot not in taken]
        if not free:
            return
        # A signal between the fork and the note of it would not reach the new worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        try:
            # That call has run the handlers of earlier signals.
            if not self.stopping:
                self.fork(free[0])
        except OSError as error:
            self.cannot_start(error)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)

    def fork(self, slot: int) -> None:
        hears, tells = os.pipe()
        os.set_blocking(hears, False)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(hears)
            os.close(tells)
            raise
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (hears, *self.wakeup, *(worker.told for worker in self.workers.values() if worker.told >= 0)):
                os.close(descriptor)
            self.work(parent, slot, tells)
        self.workers[pid] = Worker(pid, slot, hears, self.generation)
        os.close(tells)
        self.poller.register(hears, select.POLLIN)

    def work(self, parent: int, slot: int, tells: int) -> None:
        """The life of a worker; it never returns to the parent's code."""
        status = 1
        try:
            # These are for the parent to interpret: a terminal or an init system may send them to all processes.
            for number in HEARD:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)

            def send(message: bytes) -> None:
                # A parent that was killed reads nothing; the worker notices its end by itself.
                with suppress(OSError):
                    os.write(tells, message + b"\n")

            status = serve_here(
                self.settings,
                self.bound,
                Company(parent, self.board, slot),
                ready=lambda facts: send(json.dumps(facts).encode()),
                ask_replacement=lambda: send(b"replace"),
            )
        except CANNOT_START as error:
            tell(str(error))
        except BaseException:
            self.log.failure("a worker failed")
        finally:
            os._exit(status)

    def hear(self, descriptor: int) -> None:
        """Reads the lines of a worker: the first says that it is ready, any other asks for a replacement. Its death ends them."""
        worker = next(w for w in self.workers.values() if w.told == descriptor)
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            # A dead worker whose pipe another process still has.
            data = b""
        if not data:
            self.poller.unregister(descriptor)
            os.close(descriptor)
            worker.told = -1
        *lines, worker.message = (worker.message + data).split(b"\n")
        for line in lines:
            if worker.ready:
                worker.generation = -1
            else:
                self.is_up(worker, Facts(*json.loads(line)))

    def is_up(self, worker: Worker, facts: Facts) -> None:
        worker.ready = True
        self.failed_starts = 0
        if not self.announced:
            self.announced = True
            self.ready(facts)

    def reap(self) -> None:
        """Takes note of the workers that have ended, and of orphans, which PID 1 inherits."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self.workers.get(pid)
            if worker is None:
                continue
            while worker.told >= 0:
                # Its last word may be that it was ready.
                self.hear(worker.told)
            del self.workers[pid]
            self.board.leave(worker.slot, usage.ru_utime + usage.ru_stime)
            if not self.stopping and not worker.retiring:
                self.mourn(worker, os.waitstatus_to_exitcode(status))

    def mourn(self, worker: Worker, code: int) -> None:
        """A worker ended that should not have: logs it, and decides whether and when another takes its place."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        if not self.announced:
            if code < 0:
                # Of any other end the worker has said why.
                tell(f"the first worker was ended by {how} before it was ready; is there enough memory?")
            self.stopping, self.status = 1, code if code > 0 else 1
            return
        self.log.event("error", "a worker died", pid=worker.pid, how=how, was_ready=worker.ready)
        if not worker.ready:
            self.start_failed(worker.generation)
        elif time.monotonic() - worker.began < YOUNG_SECONDS:
            self.start_at = time.monotonic() + FIRST_DELAY_SECONDS

    def cannot_start(self, error: OSError) -> None:
        """The system refuses another process, or a pipe to it. Raises BadSetting if there was no worker yet."""
        if not self.announced:
            raise BadSetting(f"the system starts no worker: {error.strerror}; are there too many processes?") from None
        self.log.event("error", "the system starts no worker", reason=error.strerror)
        self.start_failed(self.generation)

    def start_failed(self, generation: int) -> None:
        if len(self.serving()) >= self.count:
            self.keep_old(generation)
        else:
            self.back_off()

    def keep_old(self, generation: int) -> None:
        """A replacement of this generation did not start: the workers that serve count as replaced until the next hang-up."""
        for worker in self.serving():
            worker.generation = max(worker.generation, generation)
        self.log.event("error", "the workers are not replaced: a new one does not start; send SIGHUP to try again")

    def back_off(self) -> None:
        """A start failed while a worker is missing: delays the next one, twice as long as before."""
        delay = min(FIRST_DELAY_SECONDS * 2.0**self.failed_starts, MAX_DELAY_SECONDS)
        self.failed_starts += 1
        self.start_at = time.monotonic() + delay
        serving = sum(worker.ready for worker in self.serving())
        message = "a worker does not start; the next try is after a delay, or on SIGHUP"
        self.log.event("error", message, failed_starts=self.failed_starts, delay_seconds=delay, workers_serving=serving)

    def retire(self) -> None:
        """Lets a worker stop, now that its replacement is ready: one of before the last hang-up, the oldest of these."""
        worker = min(self.serving(), key=lambda one: (one.generation, one.began))
        worker.retiring = True
        os.kill(worker.pid, RETIRE)

    def replace_all(self, _number: int, _frame: FrameType | None) -> None:
        """SIGHUP: a new worker for each that serves now, one at a time. What failed before is tried again at once."""
        self.generation += 1
        self.failed_starts, self.start_at = 0, 0.0

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
