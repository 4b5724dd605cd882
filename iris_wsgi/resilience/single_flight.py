"""One caller works something out, and those who want the same meanwhile wait for it."""

import threading
from math import inf
from time import monotonic

from iris_wsgi.errors import DeadlineExceeded
from iris_wsgi.resilience.deadline import RAN


class Flight:
    """What somebody is working out; `value` or `error` once it has landed, neither where that was for nothing."""

    __slots__ = ("error", "landed", "value")

    def __init__(self) -> None:
        # A bare lock, which is released when it has landed: it costs a tenth of an Event, and most flights nobody waits for.
        self.landed = threading.Lock()
        self.landed.acquire()
        self.value: bytes | None = None
        self.error: BaseException | None = None

    def land(self, value: bytes | None, error: BaseException | None = None) -> None:
        """Lets those who wait know. Who has more time than the one whose time was over may not fail, and is told of nothing."""
        told = isinstance(error, Exception) and not isinstance(error, DeadlineExceeded)
        self.value, self.error = value, error if told else None
        self.landed.release()

    def wait(self, until: float) -> bytes | None:
        """The value; None if that came to nothing for a reason of its own, so that somebody must try again.

        Raises its error, and DeadlineExceeded if `until` comes first.
        """
        seconds = -1.0 if until == inf else min(max(0.0, until - monotonic()), threading.TIMEOUT_MAX)
        if not self.landed.acquire(timeout=seconds):
            raise DeadlineExceeded(RAN)
        self.landed.release()
        if self.error is not None:
            raise self.error
        return self.value
