"""Terminates runs of the model whose deadline has passed."""

import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TypeVar

from iris_wsgi.errors import RAN_TOO_LONG, DeadlineExceeded
from iris_wsgi.model.session import RunOptions

T = TypeVar("T")


class RunWatchdog:
    """Terminates runs of the model at their deadlines, from one thread that sleeps until the next deadline."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[int, tuple[float, RunOptions]] = {}
        self.wakes_at = inf
        self.sooner = threading.Event()
        self.thread: threading.Thread | None = None

    def run(self, action: Callable[[RunOptions], T], deadline: float) -> T:
        """Calls `action` with run options that terminate its run at `deadline` (monotonic). Raises DeadlineExceeded."""
        options, key = RunOptions(), threading.get_ident()
        with self.lock:
            self.runs[key] = deadline, options
            if deadline < self.wakes_at:
                self.wake(deadline)
        try:
            return action(options)
        except Exception:
            if options.terminate:
                raise DeadlineExceeded(RAN_TOO_LONG) from None
            raise
        finally:
            with self.lock:
                del self.runs[key]

    def wake(self, at: float) -> None:
        """Makes the thread look at `at` (monotonic). The thread is started when it is first needed."""
        self.wakes_at = at
        if self.thread is None:
            self.thread = threading.Thread(target=self.watch, daemon=True, name="deadlines")
            self.thread.start()
        else:
            self.sooner.set()

    def watch(self) -> None:
        while True:
            now = monotonic()
            with self.lock:
                self.sooner.clear()
                for at, options in self.runs.values():
                    if at <= now:
                        options.terminate = True
                self.wakes_at = min((at for at, _ in self.runs.values() if at > now), default=inf)
                seconds = None if self.wakes_at == inf else self.wakes_at - now
            self.sooner.wait(seconds)
