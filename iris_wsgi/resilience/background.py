"""Background threads that start and stop with the process."""

import threading
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from iris_wsgi.observability.log import Log

RESTART_SECONDS = 1.0


class Task(NamedTuple):
    """A named function for one thread. The shutdown waits for a task that `drains`."""

    name: str
    run: Callable[[], None]
    drains: bool


class BackgroundTasks:
    """Threads that start after the last fork.

    Once `stopping` is set, each task finishes its current work and starts nothing new.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.tasks: list[Task] = []
        self.threads: list[threading.Thread] = []
        # A plain flag: signal handlers set it, and they cannot take a lock.
        self.stopping = False

    def add(self, name: str, run: Callable[[], None], drains: bool = True) -> None:
        self.tasks.append(Task(name, run, drains))

    def repeat(self, name: str, interval_seconds: float, step: Callable[[], None]) -> None:
        """Adds a task that calls `step` with a pause of `interval_seconds` after each call."""

        def run() -> None:
            while not self.stopping:
                step()
                pause(interval_seconds)

        self.add(name, run, drains=False)

    def is_stopping(self) -> bool:
        return self.stopping

    def start(self) -> None:
        self.threads = [threading.Thread(target=self.run, args=(task,), name=task.name, daemon=True) for task in self.tasks]
        for thread in self.threads:
            thread.start()

    def run(self, task: Task) -> None:
        """Runs the task until it returns. Logs an exception and restarts the task."""
        while not self.stopping:
            try:
                task.run()
                return
            except Exception:
                self.log.failure(f"background task failed: {task.name}")
                pause(RESTART_SECONDS)

    def problem(self) -> str | None:
        """Returns a sentence if a task has returned too early, which only a restart repairs; otherwise None."""
        dead = [thread.name for thread in self.threads if not thread.is_alive()]
        return f"Background task {dead[0]!r} stopped unexpectedly; restart the process." if dead and not self.stopping else None

    def stop(self, deadline: float) -> list[str]:
        """Waits for the draining tasks until the monotonic `deadline`. Returns the names of the tasks that still run."""
        self.stopping = True
        draining = [thread for task, thread in zip(self.tasks, self.threads, strict=False) if task.drains]
        for thread in draining:
            thread.join(max(0.0, deadline - monotonic()))
        return [thread.name for thread in draining if thread.is_alive()]


def pause(seconds: float) -> None:
    """Sleeps by the monotonic clock, even where libfaketime shifts the other clocks."""
    threading.Event().wait(seconds)
