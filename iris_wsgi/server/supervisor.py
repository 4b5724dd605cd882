"""Supervisor process: forks the workers that share one socket, replaces dead ones, and never loads the model."""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from iris_wsgi.console import print_error
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.shared_memory import SharedMemory, WorkerGroup
from iris_wsgi.server.serve import RETIRE, START_ERRORS, ReadyInfo, announce, serve_here
from iris_wsgi.settings import BadSetting, Settings

# The delay after a failed start. Each further failed start doubles it, up to the maximum.
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 30.0
# A worker that died at a lower age is not replaced at once. Otherwise a fault at the start would keep the machine busy.
YOUNG_SECONDS = 1.0
# The time beyond grace and drain after which the parent kills a worker.
KILL_AFTER_SECONDS = 5.0
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class WorkerProcess:
    """A worker process in the parent.

    `ready_fd` is the descriptor of its messages, or -1. `generation` is the number of SIGHUPs before its start.
    """

    def __init__(self, pid: int, slot: int, ready_fd: int, generation: int = 0) -> None:
        self.pid, self.slot, self.ready_fd, self.generation = pid, slot, ready_fd, generation
        self.began = time.monotonic()
        self.ready = self.retiring = False
        self.message = b""


class Supervisor:
    """Keeps `count` workers running until SIGTERM or SIGINT. SIGHUP replaces them one by one.

    After the first worker was ready, no failure ends the supervisor. It starts workers again, with increasing delays.
    """

    def __init__(self, settings: Settings, bound: socket.socket, count: int) -> None:
        self.settings, self.bound, self.count = settings, bound, count
        # A replacement starts before the old worker ends, so there are more slots than workers.
        self.memory = SharedMemory(2 * count)
        self.log = Log(sys.stderr.fileno())
        self.workers: dict[int, WorkerProcess] = {}
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
        """Runs until all workers have ended. Returns the exit status."""
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
            self.reconcile()
            for descriptor, _ in self.poller.poll(200):
                if descriptor == woken:
                    os.read(woken, 4096)
                else:
                    self.read_ready_pipe(descriptor)
            self.reap()
        return self.status

    def reconcile(self) -> None:
        """Starts missing workers, and advances the replacement of old ones."""
        now = time.monotonic()
        if self.stopping:
            if now >= self.kill_at:
                self.signal_all(signal.SIGKILL)
            return
        serving = self.serving()
        all_ready = all(worker.ready for worker in serving)
        # The first worker proves that the model can be served. The others start after it.
        wanted = self.count if self.announced else 1
        # While starts fail, only one worker starts at a time.
        is_missing = len(serving) < wanted and (all_ready or not self.failed_starts)
        is_old = len(serving) == self.count and all_ready and any(worker.generation < self.generation for worker in serving)
        if (is_missing or is_old) and now >= self.start_at:
            self.start()
        elif len(serving) > self.count and all_ready:
            self.retire()

    def serving(self) -> Sequence[WorkerProcess]:
        return [worker for worker in self.workers.values() if not worker.retiring]

    def start(self) -> None:
        """Forks a worker. The parent has one thread and no model, so a fork is safe."""
        taken = {worker.slot for worker in self.workers.values()}
        free = [slot for slot in range(self.memory.slots) if slot not in taken]
        if not free:
            return
        # A signal between the fork and its record in `workers` would not reach the new worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            # The call above has run the handlers of earlier signals.
            if not self.stopping:
                self.fork(free[0])
        except OSError as error:
            self.cannot_start(error)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)

    def fork(self, slot: int) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(read_end)
            os.close(write_end)
            raise
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (
                read_end,
                *self.wakeup,
                *(worker.ready_fd for worker in self.workers.values() if worker.ready_fd >= 0),
            ):
                os.close(descriptor)
            self.work(parent, slot, write_end)
        self.workers[pid] = WorkerProcess(pid, slot, read_end, self.generation)
        os.close(write_end)
        self.poller.register(read_end, select.POLLIN)

    def work(self, parent: int, slot: int, write_end: int) -> None:
        """Runs the worker in the child process. Never returns."""
        status = 1
        try:
            # Only the parent handles these signals. A terminal or an init system may send them to all processes.
            for number in HANDLED_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)

            def send(message: bytes) -> None:
                # A killed parent reads nothing. The worker notices its end elsewhere.
                with suppress(OSError):
                    os.write(write_end, message + b"\n")

            status = serve_here(
                self.settings,
                self.bound,
                WorkerGroup(parent, self.memory, slot),
                ready=lambda info: send(json.dumps(info).encode()),
                request_replacement=lambda: send(b"replace"),
            )
        except START_ERRORS as error:
            print_error(str(error))
        except BaseException:
            self.log.failure("a worker failed")
        finally:
            os._exit(status)

    def read_ready_pipe(self, descriptor: int) -> None:
        """Reads the messages of a worker: the first one is its ReadyInfo, each other one requests a replacement."""
        worker = next(w for w in self.workers.values() if w.ready_fd == descriptor)
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            # The worker is dead, and another process still has its pipe open.
            data = b""
        if not data:
            self.poller.unregister(descriptor)
            os.close(descriptor)
            worker.ready_fd = -1
        *lines, worker.message = (worker.message + data).split(b"\n")
        for line in lines:
            if worker.ready:
                worker.generation = -1
            else:
                self.on_ready(worker, ReadyInfo(*json.loads(line)))

    def on_ready(self, worker: WorkerProcess, info: ReadyInfo) -> None:
        worker.ready = True
        self.failed_starts = 0
        if not self.announced:
            self.announced = True
            announce(self.settings, info, self.log)

    def reap(self) -> None:
        """Collects the exit statuses of workers, and of orphans, which PID 1 inherits."""
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
            while worker.ready_fd >= 0:
                # The last message may state that it was ready.
                self.read_ready_pipe(worker.ready_fd)
            del self.workers[pid]
            self.memory.leave(worker.slot, usage.ru_utime + usage.ru_stime)
            if not self.stopping and not worker.retiring:
                self.on_worker_exit(worker, os.waitstatus_to_exitcode(status))

    def on_worker_exit(self, worker: WorkerProcess, code: int) -> None:
        """Logs an unexpected exit, and decides when to start another worker."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        if not self.announced:
            if code < 0:
                # In all other cases the worker has printed the reason.
                print_error(f"the first worker was ended by {how} before it was ready; is there enough memory?")
            self.stopping, self.status = 1, code if code > 0 else 1
            return
        self.log.event("error", "a worker died", pid=worker.pid, how=how, was_ready=worker.ready)
        if not worker.ready:
            self.start_failed(worker.generation)
        elif time.monotonic() - worker.began < YOUNG_SECONDS:
            self.start_at = time.monotonic() + FIRST_DELAY_SECONDS

    def cannot_start(self, error: OSError) -> None:
        """Handles a failed fork or pipe. Raises BadSetting if no worker was ever ready."""
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
        """Keeps the current workers after a failed replacement. They count as replaced until the next SIGHUP."""
        for worker in self.serving():
            worker.generation = max(worker.generation, generation)
        self.log.event("error", "the workers are not replaced: a new one does not start; send SIGHUP to try again")

    def back_off(self) -> None:
        """Delays the next start after a failed one, twice as long as before."""
        delay = min(FIRST_DELAY_SECONDS * 2.0**self.failed_starts, MAX_DELAY_SECONDS)
        self.failed_starts += 1
        self.start_at = time.monotonic() + delay
        serving = sum(worker.ready for worker in self.serving())
        message = "a worker does not start; the next try is after a delay, or on SIGHUP"
        self.log.event("error", message, failed_starts=self.failed_starts, delay_seconds=delay, workers_serving=serving)

    def retire(self) -> None:
        """Stops the oldest worker of the oldest generation, because its replacement is ready."""
        worker = min(self.serving(), key=lambda worker: (worker.generation, worker.began))
        worker.retiring = True
        os.kill(worker.pid, RETIRE)

    def replace_all(self, _number: int, _frame: FrameType | None) -> None:
        """Handles SIGHUP: replaces all workers, one at a time, and retries failed starts at once."""
        self.generation += 1
        self.failed_starts, self.start_at = 0, 0.0

    def end(self, number: int, _frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT: all workers drain. A second signal kills them."""
        if self.stopping:
            self.signal_all(signal.SIGKILL)
            os._exit(128 + number)
        self.stopping = number
        self.kill_at = time.monotonic() + self.settings.grace_seconds + self.settings.drain_seconds + KILL_AFTER_SECONDS
        # While a process has the socket open, the kernel accepts clients that no worker would serve.
        self.bound.close()
        self.signal_all(signal.SIGUSR2)

    def signal_all(self, number: int) -> None:
        for pid in list(self.workers):
            os.kill(pid, number)
