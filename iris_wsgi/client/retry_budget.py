"""Retry budget: limits retries to a share of the calls."""

import threading

SHARE = 0.1
# The maximum number of retries in a row, after a time without any.
MAX_RETRIES = 5.0


class Budget:
    """Each call earns a tenth of a retry, so that retries add no more than that to the load of a target."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left = 0.0

    def earn(self) -> None:
        with self.lock:
            self.left = min(MAX_RETRIES, self.left + SHARE)

    def spend(self) -> bool:
        """Returns whether a retry is allowed now."""
        with self.lock:
            # The tenths do not add up exactly.
            if self.left < 1 - 1e-9:
                return False
            self.left -= 1
            return True
