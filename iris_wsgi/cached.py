"""The prediction cache: what the model said of a row it says again without a run."""

import threading
from collections.abc import Sequence
from math import inf, isfinite
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from iris_wsgi.board import Board
from iris_wsgi.cache_metrics import CacheMetrics
from iris_wsgi.deadline import PARSED
from iris_wsgi.errors import DeadlineExceeded
from iris_wsgi.flights import Flight
from iris_wsgi.payload import Array
from iris_wsgi.predictors import PIECE_ROWS, Predict
from iris_wsgi.shelf import Shelf

# The one float32 that has another spelling of the same number: the sign of a zero.
SIGN = b"\x80"
ZERO = np.float32(0.0)

Values = dict[bytes, bytes]


class Shared(Protocol):
    """The second level, which other processes and machines have too. What get() and put() cannot do they leave."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...
    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None: ...
    def clear(self) -> None: ...
    def keep_up(self) -> None: ...


class Wishes(NamedTuple):
    """What a request allows: that an answer is taken from the cache, and that it is kept there."""

    use: bool = True
    keep: bool = True


class Answer(NamedTuple):
    """Probabilities [n, classes]; how many rows were there, were worked out for somebody else at the same time, came from the
    second level, or were run; whether what is new was kept; `left` is for how many more seconds the answer counts that will
    expire first, where all were there."""

    probabilities: Array
    hits: int
    coalesced: int
    shared: int
    run: int
    kept: bool
    left: float


class Found(NamedTuple):
    """What a look found: values of rows that are there; flights of those that are not, which are for this caller to work out,
    and of those that others do; the generation of the cache; seconds for which the first value counts."""

    values: list[bytes | None]
    mine: dict[bytes, Flight]
    others: dict[bytes, Flight]
    generation: float
    left: float


class Worked(NamedTuple):
    """Values that were fetched from the second level, that the model gave, and those of these that are numbers, which alone are
    kept."""

    fetched: Values
    new: Values
    sound: Values


ANYTHING = Wishes()


class PredictionCache:
    """Around a predictor of one model; a row is known by its float32, in which -0.0 is 0.0.

    Answers are right as long as the model gives a row the same bits alone and in company. Many rows go in pieces of
    `piece_rows`, so that nobody has the lock, or a row that others wait for, for longer than that. The generation of the `board`
    is what a clear changes, for all processes.
    """

    def __init__(
        self,
        predict: Predict,
        classes: int,
        shelf: Shelf,
        seconds: float,
        metrics: CacheMetrics,
        board: Board,
        shared: Shared | None = None,
        piece_rows: int = PIECE_ROWS,
    ) -> None:
        self.predict, self.classes, self.shelf, self.seconds = predict, classes, shelf, seconds
        self.metrics, self.cells, self.board, self.shared = metrics, metrics.cells, board, shared
        self.piece_rows = piece_rows
        self.lock = threading.Lock()
        self.flights: dict[bytes, Flight] = {}
        self.seen = board.generation()

    def __call__(self, rows: Array, until: float = inf) -> Array:
        return self.ask(rows, until, ANYTHING).probabilities

    def ask(self, rows: Array, until: float, wishes: Wishes) -> Answer:
        """Only rows that are not there are run. Raises what the predictor raises."""
        if len(rows) <= self.piece_rows:
            return self.piece(rows, until, wishes)
        pieces = [self.piece(rows[i : i + self.piece_rows], until, wishes) for i in range(0, len(rows), self.piece_rows)]
        probabilities, hits, coalesced, shared, run, kept, left = zip(*pieces, strict=True)
        return Answer(np.concatenate(probabilities), sum(hits), sum(coalesced), sum(shared), sum(run), all(kept), min(left))

    def piece(self, rows: Array, until: float, wishes: Wishes) -> Answer:
        rows, keys = canonical(rows)
        if not wishes.use:
            return self.anew(rows, keys, until, wishes.keep)
        if len(keys) == 1 and (at_once := self.hit(keys[0], until)):
            return at_once
        found = self.look(keys, until)
        if not found.mine and not found.others:
            return Answer(self.array(found.values), len(keys), 0, 0, 0, True, found.left)
        landed: Values = {}
        shared = run = 0
        kept = True
        if found.mine:
            (fetched, new, _), kept = self.work_out(found, until)
            landed, shared, run = fetched | new, len(fetched), len(new)
        for key, flight in found.others.items():
            landed[key] = flight.wait(until) or self.again(key, until)
        values = [landed[key] if value is None else value for key, value in zip(keys, found.values, strict=True)]
        hits = len(keys) - found.values.count(None)
        return Answer(self.array(values), hits, len(keys) - hits - shared - run, shared, run, kept, found.left)

    def hit(self, key: bytes, until: float) -> Answer | None:
        """What most requests are, with as little as it takes."""
        with self.lock:
            self.heed()
            now = in_time(until)
            entry = self.shelf.get(key, now)
            if entry is None:
                return None
            self.cells[self.metrics.hit] += 1
        return Answer(np.frombuffer(entry[0], np.float32).reshape(1, -1), 1, 0, 0, 0, True, entry[1] - now)

    def look(self, keys: Sequence[bytes], until: float) -> Found:
        values: list[bytes | None] = []
        mine: dict[bytes, Flight] = {}
        others: dict[bytes, Flight] = {}
        first, hits = inf, 0
        with self.lock:
            self.heed()
            now = in_time(until)
            for key in keys:
                entry = self.shelf.get(key, now)
                if entry is not None:
                    values.append(entry[0])
                    first = min(first, entry[1])
                    hits += 1
                    continue
                values.append(None)
                if key not in mine:
                    flight = self.flights.get(key)
                    if flight is None:
                        mine[key] = self.flights[key] = Flight()
                    else:
                        others[key] = flight
            self.cells[self.metrics.hit] += hits
            if hits < len(keys):
                self.cells[self.metrics.coalesced] += len(keys) - hits - len(mine)
            return Found(values, mine, others, self.seen, first - now)

    def work_out(self, found: Found, until: float) -> tuple[Worked, bool]:
        """Runs what nobody else does, and lets those who wait for it know; a failure is told to them and kept by nobody.

        Also whether all of it was kept.
        """
        mine = found.mine
        try:
            worked = self.run(list(mine), until)
        except BaseException as error:
            with self.lock:
                self.end(mine)
            # What failed for several rows may go well for one of them, and who has more time may not fail.
            theirs = isinstance(error, Exception) and not isinstance(error, DeadlineExceeded) and len(mine) == 1
            for flight in mine.values():
                flight.land(None, error if theirs else None)  # type: ignore[arg-type]
            raise
        fetched, new, sound = worked
        with self.lock:
            self.cells[self.metrics.shared] += len(fetched)
            self.cells[self.metrics.run] += len(new)
            kept = self.keep(fetched | sound if fetched else sound, found.generation) and len(sound) == len(new)
            self.end(mine)
        for key, flight in mine.items():
            flight.land(new[key] if key in new else fetched[key])
        if self.shared and sound:
            self.shared.put(list(sound.items()))
        return worked, kept

    def end(self, flights: dict[bytes, Flight]) -> None:
        """For who holds the lock."""
        for key in flights:
            del self.flights[key]

    def run(self, keys: list[bytes], until: float) -> Worked:
        """From the second level what is there, from the model the rest."""
        fetched: Values = {}
        if self.shared:
            found = zip(keys, self.shared.get(keys), strict=True)
            fetched = {key: value for key, value in found if value is not None}
            keys = [key for key in keys if key not in fetched]
        if not keys:
            return Worked(fetched, {}, {})
        rows = np.frombuffer(keys[0] if len(keys) == 1 else b"".join(keys), np.float32).reshape(len(keys), -1)
        new, sound = self.bytes_of(keys, self.predict(rows, until))
        return Worked(fetched, new, sound)

    def anew(self, rows: Array, keys: Sequence[bytes], until: float, keep: bool) -> Answer:
        """A run of all rows, whatever is there."""
        generation = self.board.generation()
        probabilities = self.predict(rows, until)
        values, sound = self.bytes_of(keys, probabilities) if keep else ({}, {})
        with self.lock:
            self.cells[self.metrics.bypassed] += len(keys)
            kept = keep and self.keep(sound, generation) and len(sound) == len(values)
        if self.shared and sound:
            self.shared.put(list(sound.items()))
        return Answer(probabilities, 0, 0, 0, len(keys), kept, inf)

    def again(self, key: bytes, until: float) -> bytes:
        """For who waited for nothing: waits for the next who works it out, or is that one."""
        while True:
            found = self.look([key], until)
            if found.mine:
                (fetched, new, _), _ = self.work_out(found, until)
                return new.get(key) or fetched[key]
            value = found.values[0] or found.others[key].wait(until)
            if value:
                return value

    def keep(self, values: Values, generation: float) -> bool:
        """Whether all of it was kept: nothing is that was looked up before a clear. For who holds the lock."""
        self.heed()
        if generation != self.seen:
            return False
        until = monotonic() + self.seconds
        kept = True
        for key, value in values.items():
            kept &= self.shelf.put(key, value, until)
        self.metrics.keep(self.shelf)
        return kept

    def heed(self) -> None:
        """Empties the shelf if it was cleared, by whichever process; for who holds the lock."""
        if (now := self.board.generation()) != self.seen:
            self.seen = now
            self.shelf.clear()
            self.metrics.keep(self.shelf)

    def keep_up(self) -> None:
        """Does at once what the next request would do after a clear."""
        if self.shared:
            self.shared.keep_up()
        with self.lock:
            self.heed()

    def clear(self) -> None:
        """In all processes, and the second level for all who share it; StoreDown where that is not to be reached."""
        try:
            if self.shared:
                self.shared.clear()
        finally:
            # Last: what was looked up in the second level before it was clear must not be kept.
            self.board.next_generation()
            with self.lock:
                self.heed()

    def bytes_of(self, keys: Sequence[bytes], probabilities: Array) -> tuple[Values, Values]:
        """The probabilities of each key, and of each whose probabilities are numbers."""
        if len(keys) == 1:
            one = {keys[0]: probabilities.tobytes()}
            return one, one if all(map(isfinite, probabilities[0].tolist())) else {}
        raw, size = probabilities.tobytes(), 4 * self.classes
        values = {key: raw[i * size : (i + 1) * size] for i, key in enumerate(keys)}
        if np.isfinite(probabilities).all():
            return values, values
        return values, {key: values[key] for key, row in zip(keys, probabilities, strict=True) if np.isfinite(row).all()}

    def array(self, values: Sequence[bytes | None]) -> Array:
        raw = values[0] if len(values) == 1 else b"".join(values)  # type: ignore[arg-type]
        return np.frombuffer(raw or b"", np.float32).reshape(-1, self.classes)


def in_time(until: float) -> float:
    """The time (monotonic). Raises DeadlineExceeded as the predictor would: what comes too late is no answer, wherever from."""
    if (now := monotonic()) >= until:
        raise DeadlineExceeded(PARSED)
    return now


def canonical(rows: Array) -> tuple[Array, list[bytes]]:
    """Rows without negative zeros, and the bytes of each."""
    raw = rows.tobytes()
    if SIGN in raw:
        rows = rows + ZERO
        raw = rows.tobytes()
    if len(rows) == 1:
        return rows, [raw]
    size = 4 * rows.shape[1]
    return rows, [raw[i : i + size] for i in range(0, len(raw), size)]
