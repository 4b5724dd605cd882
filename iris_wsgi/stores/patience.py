"""A store that is down is waited for, by those who have time."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from iris_wsgi.companions import pause
from iris_wsgi.stores.jobs import Stop, StoreDown

T = TypeVar("T")

PAUSE_SECONDS = 0.25


class Patience:
    """How a worker asks a store. The log learns once that there is no answer, and once that there is one again."""

    def __init__(self, tell: Callable[[str, str], None], ending: Stop) -> None:
        """`tell` is given a level and a message."""
        self.tell, self.ending = tell, ending
        self.was_down = False

    def asked(self, ask: Callable[[], T]) -> T | None:
        """What the store answers, however long that takes; None if the worker is to end before."""
        while not self.ending():
            with suppress(StoreDown):
                return self.told(ask)
            pause(PAUSE_SECONDS)
        return None

    def written(self, write: Callable[[], T]) -> T:
        """The same for what was worked for, which is not given up: if its lease is over by then, the store says so."""
        while True:
            with suppress(StoreDown):
                return self.told(write)
            pause(PAUSE_SECONDS)

    def told(self, ask: Callable[[], T]) -> T:
        """One answer. Raises StoreDown."""
        try:
            answer = ask()
        except StoreDown as down:
            if not self.was_down:
                self.tell("error", f"the worker waits for the store: {down}")
            self.was_down = True
            raise
        if self.was_down:
            self.tell("info", "the store is back; the worker goes on")
        self.was_down = False
        return answer
