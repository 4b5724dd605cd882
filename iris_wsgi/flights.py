"""One caller works something out, and those who want the same meanwhile wait for it."""

import threading
from math import inf
from time import monotonic

from iris_wsgi.deadline import RAN
from iris_wsgi.errors import DeadlineExceeded


class Flight:
    """What somebody is working out; `value` or `error` once it has landed."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.value: bytes | None = None
        self.error: Exception | None = None

    def land(self, value: bytes | None, error: Exception | None = None) -> None:
        self.value, self.error = value, error
        self.landed.set()

    def wait(self, until: float) -> bytes | None:
        """The value; None if whoever worked it out had less time than there is here, so that somebody must try again.

        Raises its error, and DeadlineExceeded if `until` comes first.
        """
        if not self.landed.wait(None if until == inf else max(0.0, until - monotonic())):
            raise DeadlineExceeded(RAN)
        if self.error is not None and not isinstance(self.error, DeadlineExceeded):
            raise self.error
        return self.value
