"""A store or a server that is down is not asked again and again: a breaker in front of it."""

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from iris_wsgi.errors import JobError, StoreDown

P = ParamSpec("P")
T = TypeVar("T")
Tell = Callable[[str, str], None]

# One call may fail by chance, on a busy disk. So many in a row do not. A disk that stands still for a moment fails as many at
# once, so the next trial is soon.
FAILURES = 3
PAUSE_SECONDS = 0.1


class Breaker:
    """After FAILURES calls in a row that found it down nobody else waits for it.

    Every call is refused at once, but one each `pause` seconds tries. Requests that wait for a thread behind those would have
    no part in what is wrong.
    """

    def __init__(
        self, tell: Tell, down: str, back: str, pause: float = PAUSE_SECONDS, count: Callable[[], object] = lambda: None
    ) -> None:
        """`tell` gets a level and a message at each turn, which begins with `down` or is `back`; each failure is for `count`."""
        self.tell, self.down, self.back, self.pause, self.count = tell, down, back, pause, count
        self.lock = threading.Lock()
        self.failures = 0
        self.try_at = 0.0
        self.why = ""

    @property
    def up(self) -> bool:
        return self.failures < FAILURES

    def call(self, ask: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `ask` answers to what is given. Raises StoreDown where it does, or where it is not asked."""
        with self.lock:
            now = time.monotonic()
            if not self.up and now < self.try_at:
                raise StoreDown(self.why)
            self.try_at = now + self.pause
        try:
            answer = ask(*given, **named)
        except StoreDown as down:
            self.failed(str(down))
            raise
        except JobError:
            self.worked()
            raise
        self.worked()
        return answer

    def failed(self, why: str) -> None:
        with self.lock:
            self.failures, self.why = self.failures + 1, why
            told = self.failures == FAILURES
        self.count()
        if told:
            self.tell("error", f"{self.down}: {why}")

    def worked(self) -> None:
        with self.lock:
            was_down, self.failures = not self.up, 0
        if was_down:
            self.tell("info", self.back)
