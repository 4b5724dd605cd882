"""The prediction cache: what the model said of a row it says again without a run."""

from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import NamedTuple

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.predictor import PIECE_ROWS, Predict
from iris_wsgi.patterns.prediction_cache.keys import Values, array, canonical, values_of
from iris_wsgi.patterns.prediction_cache.redis_tier import SecondLevel
from iris_wsgi.patterns.prediction_cache.store import Found, Known
from iris_wsgi.wsgi.cache_control import ANYTHING, Wishes


class Answer(NamedTuple):
    """Probabilities [n, classes]; how many rows were there, were worked out for somebody else at the same time, came from the
    second level, or were run; whether what is new was kept; `left` is for how many more seconds the answer counts that will
    expire first, where all were there; how many stored answers were older than the request allows."""

    probabilities: Array
    hits: int
    coalesced: int
    shared: int
    run: int
    kept: bool
    left: float
    refused: int = 0


class PredictionCache:
    """Around a predictor of one model; a row is known by its float32, in which -0.0 is 0.0.

    Answers are right as long as the model gives a row the same bits alone and in company. Many rows go in pieces of
    `chunk_rows`, so that nobody has the lock, or a row that others wait for, for longer than that.
    """

    def __init__(
        self, predict: Predict, classes: int, known: Known, shared: SecondLevel | None = None, chunk_rows: int = PIECE_ROWS
    ) -> None:
        self.predict, self.classes, self.known, self.shared, self.chunk_rows = predict, classes, known, shared, chunk_rows

    def __call__(self, rows: Array, until: float = inf) -> Array:
        return self.found(rows, until, ANYTHING).probabilities

    def ask(self, rows: Array, until: float, wishes: Wishes) -> Answer | None:
        """Only rows that are not there are run; None where no row may be run. Raises what the predictor raises."""
        return self.stored(rows, until, wishes) if wishes.only_cached else self.found(rows, until, wishes)

    def stored(self, rows: Array, until: float, wishes: Wishes) -> Answer | None:
        """From the memory of this process alone."""
        rows, keys = canonical(rows)
        values, first = list[bytes](), inf
        for key in keys if wishes.use else ():
            hit = self.known.find(key, until, self.least_left(wishes))
            if hit is None:
                return None
            values.append(hit[0])
            first = min(first, hit[1])
        return Answer(array(values, self.classes), len(keys), 0, 0, 0, True, first) if values else None

    def least_left(self, wishes: Wishes) -> float:
        """For how many seconds a stored answer must still count. All of them count for equally long at first."""
        return max(wishes.min_fresh, self.known.seconds - wishes.max_age) if wishes.bounded else 0.0

    def found(self, rows: Array, until: float, wishes: Wishes) -> Answer:
        if len(rows) <= self.chunk_rows:
            return self.piece(rows, until, wishes)
        pieces = [self.piece(rows[i : i + self.chunk_rows], until, wishes) for i in range(0, len(rows), self.chunk_rows)]
        probabilities, hits, coalesced, shared, run, kept, left, refused = zip(*pieces, strict=True)
        counts = sum(hits), sum(coalesced), sum(shared), sum(run)
        return Answer(np.concatenate(probabilities), *counts, all(kept), min(left), sum(refused))

    def piece(self, rows: Array, until: float, wishes: Wishes) -> Answer:
        rows, keys = canonical(rows)
        if not wishes.use:
            return self.anew(rows, keys, until, wishes.keep)
        least = self.least_left(wishes)
        if len(keys) == 1 and (hit := self.known.find(keys[0], until, least)):
            return Answer(array(hit[:1], self.classes), 1, 0, 0, 0, True, hit[1])
        found = self.known.look(keys, until, least)
        landed: Values = {}
        shared = run = 0
        kept = True
        if found.mine:
            fetched, new, kept = self.work_out(found, until, use_shared=not wishes.bounded)
            landed, shared, run = fetched | new, len(fetched), len(new)
        for key, flight in found.others.items():
            landed[key] = flight.wait(until) or self.again(key, until)
        hits = len(keys) - found.values.count(None)
        values = [landed[key] if value is None else value for key, value in zip(keys, found.values, strict=True)]
        return Answer(
            array(values, self.classes), hits, len(keys) - hits - shared - run, shared, run, kept, found.left, found.refused
        )

    def work_out(self, found: Found, until: float, use_shared: bool = True) -> tuple[Values, Values, bool]:
        """What nobody else works out: from the second level what is there, from the model the rest; whether all was kept.

        Those who wait for it get to know it; a failure is told to them and kept by nobody. How old a value of the second level
        is cannot be seen there.
        """
        try:
            fetched = self.fetched(list(found.mine), until) if use_shared else {}
            new, sound = self.run([key for key in found.mine if key not in fetched] if fetched else list(found.mine), until)
        except BaseException as error:
            # What failed for several rows may go well for one of them.
            self.known.give_up(found.mine, error if len(found.mine) == 1 else None)
            raise
        kept = self.known.keep(found, fetched, new, sound)
        self.share(sound, until)
        return fetched, new, kept

    def fetched(self, keys: list[bytes], until: float) -> Values:
        if not self.shared or until - monotonic() < self.shared.slowest:
            return {}
        return {key: value for key, value in zip(keys, self.shared.get(keys), strict=True) if value is not None}

    def run(self, keys: list[bytes], until: float) -> tuple[Values, Values]:
        if not keys:
            return {}, {}
        return values_of(keys, self.predict(array(keys, len(keys[0]) // 4), until))

    def share(self, values: Values, until: float) -> None:
        if self.shared and values and until - monotonic() >= self.shared.slowest:
            self.shared.put(list(values.items()))

    def anew(self, rows: Array, keys: Sequence[bytes], until: float, keep: bool) -> Answer:
        """A run of all rows, whatever is there."""
        generation = self.known.board.generation()
        probabilities = self.predict(rows, until)
        values, sound = values_of(keys, probabilities) if keep else ({}, {})
        kept = self.known.keep_anew(len(keys), sound, generation) and keep and len(sound) == len(values)
        self.share(sound, until)
        return Answer(probabilities, 0, 0, 0, len(keys), kept, inf)

    def again(self, key: bytes, until: float) -> bytes:
        """For who waited for nothing: waits for the next who works it out, or is that one."""
        while True:
            found = self.known.look([key], until)
            if found.mine:
                fetched, new, _ = self.work_out(found, until)
                return new.get(key) or fetched[key]
            value = found.values[0] or found.others[key].wait(until)
            if value:
                return value

    def keep_up(self) -> None:
        """Does at once what the next request would do after a clear, by whichever process or pod."""
        if self.shared:
            self.shared.keep_up()
        self.known.keep_up()

    def clear(self) -> None:
        """In all processes, and the second level for all who share it; StoreDown where that is not to be reached."""
        try:
            if self.shared:
                self.shared.clear()
        finally:
            # Last: what was looked up in the second level before it was clear must not be kept.
            self.known.board.next_generation()
            self.known.keep_up()
