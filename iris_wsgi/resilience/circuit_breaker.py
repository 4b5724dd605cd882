"""A store or a server that is down is not asked again and again: a breaker in front of it."""

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from iris_wsgi.errors import BackendUnavailable, JobError, OperationDenied

P = ParamSpec("P")
T = TypeVar("T")
Tell = Callable[[str, str], None]

# One call may fail by chance, on a busy disk. So many in a row do not. A disk that stands still for a moment fails as many at
# once, so the next trial is soon.
FAILURES = 3
PAUSE_SECONDS = 0.1


class CircuitBreaker:
    """After FAILURES calls in a row that found it down nobody else waits for it.

    Every call is refused at once, but one each `pause` seconds tries. Requests that wait for a thread behind those would have
    no part in what is wrong. One failure that only a person can remedy is enough. An operation that is denied stops no other.
    """

    def __init__(
        self, tell: Tell, down: str, back: str, pause: float = PAUSE_SECONDS, count: Callable[[], object] = lambda: None
    ) -> None:
        """`tell` gets a level and a message at each turn, which begins with `down` or is `back`; each failure is for `count`."""
        self.tell, self.down, self.back, self.pause, self.count = tell, down, back, pause, count
        self.lock = threading.Lock()
        self.failures = 0
        self.try_at = 0.0
        self.why = self.remedy = ""
        # Remedies by the names of operations that the store denies.
        self.denied: dict[str, str] = {}

    @property
    def up(self) -> bool:
        return self.failures < FAILURES

    def call(self, ask: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `ask` answers to what is given. Raises BackendUnavailable where it does, or where it is not asked."""
        with self.lock:
            now = time.monotonic()
            if not self.up and now < self.try_at:
                raise BackendUnavailable(self.why, self.remedy)
            self.try_at = now + self.pause
        operation: str = getattr(ask, "__name__", "")
        try:
            answer = ask(*given, **named)
        except OperationDenied as denied:
            self.refused(operation, denied)
            raise
        except BackendUnavailable as down:
            self.failed(str(down), down.remedy)
            raise
        except JobError:
            self.worked(operation)
            raise
        self.worked(operation)
        return answer

    def remedies(self, *operations: str) -> list[str]:
        """What a person must change for the store, or for these of its operations; for all of them if none is named."""
        with self.lock:
            down = [self.remedy] if self.remedy and not self.up else []
            denied = [remedy for name, remedy in self.denied.items() if name in operations or not operations]
        return list(dict.fromkeys(down + denied))

    def failed(self, why: str, remedy: str = "") -> None:
        with self.lock:
            was_up, before = self.up, self.remedy
            self.failures = FAILURES if remedy else self.failures + 1
            self.why, self.remedy = why, remedy
            told = not self.up and (was_up or remedy != before)
        self.count()
        if told:
            self.tell("error", f"{self.down}: {why}; {remedy}" if remedy else f"{self.down}: {why}")

    def refused(self, operation: str, denied: OperationDenied) -> None:
        with self.lock:
            told, self.denied[operation] = self.denied.get(operation) != denied.remedy, denied.remedy
        self.count()
        if told:
            self.tell("error", f"{denied}; {denied.remedy}")

    def worked(self, operation: str = "") -> None:
        with self.lock:
            was_down, self.failures, self.remedy = not self.up, 0, ""
            was_denied = self.denied.pop(operation, None) if self.denied else None
        if was_down:
            self.tell("info", self.back)
        if was_denied:
            self.tell("info", f"the store no longer refuses {operation}")
