"""Single-flight: one caller computes a value, and concurrent callers of the same key wait for the result."""

import threading
from collections.abc import Hashable, Mapping
from math import inf
from time import monotonic
from typing import TypeVar

from iris_wsgi.errors import RAN_TOO_LONG, DeadlineExceeded

K = TypeVar("K", bound=Hashable)


class PendingResult:
    """Result of a computation in progress: a value, an error, or neither if the waiters must retry."""

    __slots__ = ("error", "resolved", "value")

    def __init__(self) -> None:
        # A bare lock, released by resolve(). It costs a tenth of an Event, and most results have no waiters.
        self.resolved = threading.Lock()
        self.resolved.acquire()
        self.value: bytes | None = None
        self.error: BaseException | None = None

    def resolve(self, value: bytes | None, error: BaseException | None = None) -> None:
        """Wakes the waiters. DeadlineExceeded is not propagated: a waiter with a later deadline retries."""
        propagated = isinstance(error, Exception) and not isinstance(error, DeadlineExceeded)
        self.value, self.error = value, error if propagated else None
        self.resolved.release()

    def wait(self, deadline: float) -> bytes | None:
        """Returns None if the caller must retry. Raises the error of the computation, and DeadlineExceeded."""
        seconds = -1.0 if deadline == inf else min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)
        if not self.resolved.acquire(timeout=seconds):
            raise DeadlineExceeded(RAN_TOO_LONG)
        self.resolved.release()
        if self.error is not None:
            raise self.error
        return self.value


class SingleFlight(dict[K, PendingResult]):
    """Table of computations in progress. Callers must hold the lock of the cache that the results go to."""

    def join(self, key: K) -> tuple[PendingResult, bool]:
        """Returns the pending result, and whether the caller is the leader, who must compute and resolve it."""
        pending = self.get(key)
        if pending is not None:
            return pending, False
        self[key] = pending = PendingResult()
        return pending, True

    def leave(self, results: Mapping[K, PendingResult]) -> None:
        """Removes the results of a leader from the table, before the leader resolves them."""
        for key, result in results.items():
            if self.get(key) is result:
                del self[key]
