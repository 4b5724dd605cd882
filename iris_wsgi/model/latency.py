"""How long a model takes, and so which requests the I/O loop may answer itself."""

import time
from math import inf
from typing import NamedTuple

import numpy as np

from iris_wsgi.model.session import Model

# What one request may cost the loop, in which it holds up every other connection.
LOOP_SECONDS = 0.001
ROWS, TIMES = 64, 5
NEVER = -1


class LatencyProfile(NamedTuple):
    """Seconds of a run on one row, and of one row more in a run on many."""

    single_row: float
    per_row: float

    def inline_bytes(self, most: int, row_bytes: int, beside: int = 0) -> int:
        """How large a body may be for the loop, `most` at most, where a row has `row_bytes` at least and the rest of it `beside`.

        NEVER where a run on one row takes too long already.
        """
        if self.single_row > LOOP_SECONDS:
            return NEVER
        return min(most, beside + max(1, int(LOOP_SECONDS / self.per_row)) * row_bytes)

    def chunk_rows(self, most: int) -> int:
        """How many rows hold up who waits for them no longer than the loop may be; `most` where it does not wait for them."""
        if self.single_row > LOOP_SECONDS:
            return most
        return max(1, min(most, int(LOOP_SECONDS / self.per_row)))


# Of what waits for other requests: nothing of it is for the loop.
BLOCKING = LatencyProfile(inf, inf)


def measure(model: Model, row: list[float]) -> LatencyProfile:
    """The medians of a few runs, after one that does not count; they take milliseconds, or one second of a very slow model."""
    alone = timed(model, np.array([row], np.float32))
    if alone > LOOP_SECONDS:
        return LatencyProfile(alone, alone)
    return LatencyProfile(alone, max(timed(model, np.array([row] * ROWS, np.float32)) / ROWS, 1e-9))


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
