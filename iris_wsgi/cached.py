"""The prediction cache: what the model said of a row it says again without a run."""

import threading
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from iris_wsgi.cache_metrics import CacheMetrics
from iris_wsgi.flights import Flight
from iris_wsgi.payload import Array
from iris_wsgi.predictors import Predict
from iris_wsgi.shelf import Shelf

# The one float32 that has another spelling of the same number: the sign of a zero.
SIGN = b"\x80"


class Shared(Protocol):
    """The second level, which other processes and machines have too. It never fails: what it cannot do it leaves."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...
    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None: ...
    def clear(self) -> None: ...


class Wishes(NamedTuple):
    """What a request allows: that an answer is taken from the cache, and that it is kept there."""

    use: bool = True
    keep: bool = True


class Answer(NamedTuple):
    """Probabilities [n, classes], and how many of the rows were there, were worked out by somebody else meanwhile, or were run;
    `left` is for how many more seconds the answer counts that will expire first, None if none was there."""

    probabilities: Array
    hits: int
    waited: int
    run: int
    left: float | None


ANYTHING = Wishes()


class PredictionCache:
    """Around a predictor of one model; a row is known by its float32, in which -0.0 is 0.0.

    Answers are right as long as the model gives a row the same bits alone and in company.
    """

    def __init__(
        self, predict: Predict, classes: int, shelf: Shelf, seconds: float, metrics: CacheMetrics, shared: Shared | None = None
    ) -> None:
        self.predict, self.classes, self.shelf, self.seconds = predict, classes, shelf, seconds
        self.metrics, self.shared = metrics, shared
        self.lock = threading.Lock()
        self.flights: dict[bytes, Flight] = {}

    def __call__(self, rows: Array, until: float = inf) -> Array:
        return self.ask(rows, until, ANYTHING).probabilities

    def ask(self, rows: Array, until: float, wishes: Wishes) -> Answer:
        """Only rows that are not there are run, all of them at once. Raises what the predictor raises."""
        rows, keys = canonical(rows)
        if not wishes.use:
            return self.anew(rows, keys, until, wishes.keep)
        values, mine, others, left = self.look(keys)
        if not mine and not others:
            self.metrics.rows.add(("hit",), len(keys))
            return Answer(self.array(values), len(keys), 0, 0, left)
        landed = self.work_out(mine, until) if mine else {}
        for key, flight in others.items():
            landed[key] = flight.wait(until) or self.again(key, until)
        found = [landed[key] if value is None else value for key, value in zip(keys, values, strict=True)]
        hits = len(keys) - values.count(None)
        self.metrics.rows.add(("hit",), hits)
        self.metrics.rows.add(("waited",), len(others))
        return Answer(self.array(found), hits, len(others), len(mine), left if hits else None)

    def look(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], dict[bytes, Flight], dict[bytes, Flight], float]:
        """What is there; what is not and nobody works out, which is ours from now on; what others do; seconds that are left."""
        values: list[bytes | None] = []
        mine: dict[bytes, Flight] = {}
        others: dict[bytes, Flight] = {}
        first = inf
        with self.lock:
            now = monotonic()
            for key in keys:
                entry = self.shelf.get(key, now)
                values.append(None if entry is None else entry.value)
                if entry is not None:
                    first = min(first, entry.until)
                elif key not in mine:
                    flight = self.flights.get(key)
                    if flight is None:
                        mine[key] = self.flights[key] = Flight()
                    else:
                        others[key] = flight
        return values, mine, others, first - now

    def work_out(self, mine: dict[bytes, Flight], until: float) -> dict[bytes, bytes]:
        """Runs what nobody else does, and lets those who wait for it know; a failure is told to them and kept by nobody."""
        try:
            values = self.run(list(mine), until)
        except BaseException as error:
            with self.lock:
                for key in mine:
                    del self.flights[key]
            for flight in mine.values():
                flight.land(None, error if isinstance(error, Exception) else None)
            raise
        with self.lock:
            self.keep(values)
            for key in mine:
                del self.flights[key]
        for key, flight in mine.items():
            flight.land(values[key])
        return values

    def run(self, keys: Sequence[bytes], until: float) -> dict[bytes, bytes]:
        """From the second level what is there, from the model the rest."""
        found = dict(zip(keys, self.shared.get(keys), strict=True)) if self.shared else dict.fromkeys(keys)
        values = {key: value for key, value in found.items() if value is not None}
        missing = [key for key, value in found.items() if value is None]
        self.metrics.rows.add(("shared",), len(values))
        self.metrics.rows.add(("run",), len(missing))
        if missing:
            rows = np.frombuffer(b"".join(missing), np.float32).reshape(len(missing), -1)
            new = self.bytes_of(missing, self.predict(rows, until))
            if self.shared:
                self.shared.put(list(new.items()))
            values |= new
        return values

    def anew(self, rows: Array, keys: Sequence[bytes], until: float, keep: bool) -> Answer:
        """A run of all rows, whatever is there."""
        self.metrics.rows.add(("bypassed",), len(keys))
        probabilities = self.predict(rows, until)
        if keep:
            values = self.bytes_of(keys, probabilities)
            with self.lock:
                self.keep(values)
            if self.shared:
                self.shared.put(list(values.items()))
        return Answer(probabilities, 0, 0, len(keys), None)

    def again(self, key: bytes, until: float) -> bytes:
        """For who waited for somebody whose time was over before."""
        rows = np.frombuffer(key, np.float32).reshape(1, -1)
        return self.ask(rows, until, ANYTHING).probabilities.tobytes()

    def keep(self, values: dict[bytes, bytes]) -> None:
        """For who holds the lock."""
        evicted = self.shelf.evicted
        until = monotonic() + self.seconds
        for key, value in values.items():
            self.shelf.put(key, value, until)
        self.metrics.evicted.add((), self.shelf.evicted - evicted)

    def bytes_of(self, keys: Sequence[bytes], probabilities: Array) -> dict[bytes, bytes]:
        raw = probabilities.astype(np.float32, copy=False).tobytes()
        size = 4 * self.classes
        return {key: raw[i * size : (i + 1) * size] for i, key in enumerate(keys)}

    def array(self, values: Sequence[bytes | None]) -> Array:
        raw = values[0] if len(values) == 1 else b"".join(values)  # type: ignore[arg-type]
        return np.frombuffer(raw or b"", np.float32).reshape(-1, self.classes)

    def clear(self) -> None:
        with self.lock:
            self.shelf.clear()
        if self.shared:
            self.shared.clear()


def canonical(rows: Array) -> tuple[Array, list[bytes]]:
    """Rows without negative zeros, and the bytes of each."""
    raw = rows.tobytes()
    if SIGN in raw:
        rows = rows + np.float32(0.0)
        raw = rows.tobytes()
    if len(rows) == 1:
        return rows, [raw]
    size = len(raw) // len(rows)
    return rows, [raw[i : i + size] for i in range(0, len(raw), size)]
