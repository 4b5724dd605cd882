"""The latency of a model, which decides which requests the I/O loop may answer itself."""

import time
from math import inf
from typing import NamedTuple

import numpy as np

from iris_wsgi.model.session import Model

# The time that one request may take in the I/O loop, where it blocks all other connections.
LOOP_SECONDS = 0.001
ROWS, TIMES = 64, 5
NEVER = -1


class LatencyProfile(NamedTuple):
    """Seconds of a run on one row, and of each row in a run on many."""

    single_row: float
    per_row: float

    def inline_bytes(self, max_bytes: int, row_bytes: int, other_bytes: int = 0) -> int:
        """Returns the largest body that the I/O loop may process, up to `max_bytes`, or NEVER if even one row takes too long.

        A row has at least `row_bytes`, and the rest of the body has `other_bytes`.
        """
        if self.single_row > LOOP_SECONDS:
            return NEVER
        return min(max_bytes, other_bytes + max(1, int(LOOP_SECONDS / self.per_row)) * row_bytes)

    def chunk_rows(self, max_rows: int) -> int:
        """Returns the number of rows, up to `max_rows`, whose run takes no longer than the I/O loop may be blocked.

        A model that the loop does not run itself has `max_rows`.
        """
        if self.single_row > LOOP_SECONDS:
            return max_rows
        return max(1, min(max_rows, int(LOOP_SECONDS / self.per_row)))


# For predictors that wait for other requests or servers: the I/O loop never runs them.
BLOCKING = LatencyProfile(inf, inf)


def measure(model: Model, row: list[float]) -> LatencyProfile:
    """Measures the medians of a few runs after a warm-up. It takes milliseconds, or one second for a very slow model."""
    single_row = timed(model, np.array([row], np.float32))
    if single_row > LOOP_SECONDS:
        return LatencyProfile(single_row, single_row)
    return LatencyProfile(single_row, max(timed(model, np.array([row] * ROWS, np.float32)) / ROWS, 1e-9))


def timed(model: Model, rows: np.ndarray) -> float:
    model.predict(rows)
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        model.predict(rows)
        taken.append(time.perf_counter() - began)
        if sum(taken) > 0.2:
            break
    return sorted(taken)[len(taken) // 2]
