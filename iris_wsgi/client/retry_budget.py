"""What may be asked twice: a share of what is asked once, and when it is worth it."""

import threading
from collections import deque
from math import inf

SHARE = 0.1
# So many in a row at most, after a time without any.
MOST = 5.0
# As many answers are remembered, at least so many are needed, and after each so many it is reckoned anew.
REMEMBERED, ENOUGH, STEP = 256, 32, 16


class Budget:
    """Each call earns a tenth of a second one, so that retries and hedges never add more than that to what a target bears."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left = 0.0

    def earn(self) -> None:
        with self.lock:
            self.left = min(MOST, self.left + SHARE)

    def spend(self) -> bool:
        """Whether one more may be asked now."""
        with self.lock:
            # The tenths do not add up exactly.
            if self.left < 1 - 1e-9:
                return False
            self.left -= 1
            return True


class Hedge:
    """After how many `seconds` an answer is late: later than `percentile` of 100 lately; 0 is never."""

    def __init__(self, percentile: int) -> None:
        self.lock, self.percentile = threading.Lock(), percentile
        self.taken: deque[float] = deque(maxlen=REMEMBERED)
        self.seen = 0
        self.seconds = inf

    def answered(self, seconds: float) -> None:
        if not self.percentile:
            return
        with self.lock:
            self.taken.append(seconds)
            self.seen += 1
            if len(self.taken) >= ENOUGH and self.seen % STEP == 0:
                self.seconds = sorted(self.taken)[len(self.taken) * self.percentile // 100]
