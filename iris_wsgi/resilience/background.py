"""What a process does beside answering requests: threads that begin and end with it."""

import threading
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from iris_wsgi.observability.log import Log

PAUSE_SECONDS = 1.0


class Companion(NamedTuple):
    """A name, and what its thread does until `Companions.ending`; whether it then `finishes` something that is waited for."""

    name: str
    run: Callable[[], None]
    finishes: bool


class Companions:
    """They are started once nothing forks any more; `ending` is their word to finish what they have begun, and begin nothing."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.all: list[Companion] = []
        self.threads: list[threading.Thread] = []
        # A plain flag: signal handlers set it, in which no lock can be taken.
        self.ending = False

    def add(self, name: str, run: Callable[[], None], finishes: bool = True) -> None:
        self.all.append(Companion(name, run, finishes))

    def repeat(self, name: str, seconds: float, do: Callable[[], None]) -> None:
        """Adds one that does it again and again, so many seconds after the last time, and is not waited for."""

        def run() -> None:
            while not self.ending:
                do()
                pause(seconds)

        self.add(name, run, finishes=False)

    def is_ending(self) -> bool:
        return self.ending

    def start(self) -> None:
        self.threads = [threading.Thread(target=self.keep, args=(one,), name=one.name, daemon=True) for one in self.all]
        for thread in self.threads:
            thread.start()

    def keep(self, one: Companion) -> None:
        """Whatever happens to it is logged, and it begins anew."""
        while not self.ending:
            try:
                one.run()
                return
            except Exception:
                self.log.failure(f"this failed: {one.name}")
                pause(PAUSE_SECONDS)

    def why_not(self) -> str | None:
        """A sentence when one has ended that should not have, which only a restart mends; else None."""
        dead = [thread.name for thread in self.threads if not thread.is_alive()]
        return f"The {dead[0]} of this process has ended." if dead and not self.ending else None

    def end(self, until: float) -> list[str]:
        """Waits for their ends until this monotonic time; the names of those that still have something to do."""
        self.ending = True
        last = [thread for one, thread in zip(self.all, self.threads, strict=False) if one.finishes]
        for thread in last:
            thread.join(max(0.0, until - monotonic()))
        return [thread.name for thread in last if thread.is_alive()]


def pause(seconds: float) -> None:
    """Sleeps by the monotonic clock alone, also where something makes believe that it is another time."""
    threading.Event().wait(seconds)
