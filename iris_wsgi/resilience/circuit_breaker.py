"""Circuit breaker for stores and upstream servers."""

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from iris_wsgi.errors import BackendUnavailable, JobError, OperationDenied

P = ParamSpec("P")
T = TypeVar("T")
LogEvent = Callable[[str, str], None]

# A single call may fail by chance, for example on a busy disk; consecutive failures are an outage. A disk that stalls for a
# moment fails several concurrent calls, so the next trial follows soon.
FAILURES = 3
PAUSE_SECONDS = 0.1


class CircuitBreaker:
    """Rejects calls after FAILURES consecutive failures, except for one trial each `pause_seconds`.

    Without it, calls to a backend that is down would occupy the threads that other requests need.
    A failure with a remedy opens the circuit at once: only an operator can repair it.
    A denied operation does not affect other operations.
    """

    def __init__(
        self,
        log_event: LogEvent,
        down: str,
        back: str,
        pause_seconds: float = PAUSE_SECONDS,
        count_failure: Callable[[], object] = lambda: None,
    ) -> None:
        """`log_event` gets a level and a message for each change of state; the message starts with `down` or is `back`."""
        self.log_event, self.down, self.back = log_event, down, back
        self.pause_seconds, self.count_failure = pause_seconds, count_failure
        self.lock = threading.Lock()
        self.failures = 0
        self.try_at = 0.0
        self.reason = self.remedy = ""
        # Remedies by the names of the denied operations.
        self.denied: dict[str, str] = {}

    @property
    def up(self) -> bool:
        return self.failures < FAILURES

    def call(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns the result of `operation`. Raises BackendUnavailable if it does, or if the circuit is open."""
        with self.lock:
            now = time.monotonic()
            if not self.up and now < self.try_at:
                raise BackendUnavailable(self.reason, self.remedy)
            self.try_at = now + self.pause_seconds
        name: str = getattr(operation, "__name__", "")
        try:
            result = operation(*args, **kwargs)
        except OperationDenied as denied:
            self.record_denial(name, denied)
            raise
        except BackendUnavailable as down:
            self.record_failure(str(down), down.remedy)
            raise
        except JobError:
            self.record_success(name)
            raise
        self.record_success(name)
        return result

    def remedies(self, *operations: str) -> list[str]:
        """Returns the actions that repair the backend, or the denied ones of these operations; without names, of all."""
        with self.lock:
            down = [self.remedy] if self.remedy and not self.up else []
            denied = [remedy for name, remedy in self.denied.items() if name in operations or not operations]
        return list(dict.fromkeys(down + denied))

    def record_failure(self, reason: str, remedy: str = "") -> None:
        with self.lock:
            was_up, previous = self.up, self.remedy
            self.failures = FAILURES if remedy else self.failures + 1
            self.reason, self.remedy = reason, remedy
            is_change = not self.up and (was_up or remedy != previous)
        self.count_failure()
        if is_change:
            self.log_event("error", f"{self.down}: {reason}; {remedy}" if remedy else f"{self.down}: {reason}")

    def record_denial(self, operation: str, denied: OperationDenied) -> None:
        with self.lock:
            is_change, self.denied[operation] = self.denied.get(operation) != denied.remedy, denied.remedy
        self.count_failure()
        if is_change:
            self.log_event("error", f"{denied}; {denied.remedy}")

    def record_success(self, operation: str = "") -> None:
        with self.lock:
            was_down, self.failures, self.remedy = not self.up, 0, ""
            was_denied = self.denied.pop(operation, None) if self.denied else None
        if was_down:
            self.log_event("info", self.back)
        if was_denied:
            self.log_event("info", f"the store no longer denies {operation}")
