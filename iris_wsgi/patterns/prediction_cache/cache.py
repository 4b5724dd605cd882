"""The prediction cache: what the model said of a row it says again without a run."""

from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import NamedTuple

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import NotCached
from iris_wsgi.http.cache_control import NOT_CACHED, CacheDirectives
from iris_wsgi.model.predictor import PIECE_ROWS, Predict, PredictContext, Prediction
from iris_wsgi.patterns.prediction_cache.keys import Values, array, canonical, values_of
from iris_wsgi.patterns.prediction_cache.redis_tier import SecondLevel
from iris_wsgi.patterns.prediction_cache.store import Found, Known

NAME, SECOND = "iris_wsgi", "iris_wsgi_shared"


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

    def __call__(self, rows: Array, context: PredictContext) -> Prediction:
        """Runs the model on uncached rows only. Raises NotCached (504) if the request forbids the run."""
        answer = self.ask(rows, context)
        if answer is None:
            raise NotCached(NOT_CACHED, headers=(("Cache-Status", f"{NAME}; detail=only-if-cached"),))
        return Prediction(answer.probabilities, (("Cache-Status", cache_status(answer, context.cache.read)),))

    def ask(self, rows: Array, context: PredictContext) -> Answer | None:
        """Returns None if the request forbids a run that it needs. Raises what the predictor raises."""
        return self.stored(rows, context) if context.cache.only_cached else self.found(rows, context)

    def stored(self, rows: Array, context: PredictContext) -> Answer | None:
        """From the memory of this process alone."""
        rows, keys = canonical(rows)
        values, first = list[bytes](), inf
        for key in keys if context.cache.read else ():
            hit = self.known.find(key, context.deadline, self.least_left(context.cache))
            if hit is None:
                return None
            values.append(hit[0])
            first = min(first, hit[1])
        return Answer(array(values, self.classes), len(keys), 0, 0, 0, True, first) if values else None

    def least_left(self, directives: CacheDirectives) -> float:
        """For how many seconds a stored answer must still count. All of them count for equally long at first."""
        return max(directives.min_fresh, self.known.seconds - directives.max_age) if directives.bounded else 0.0

    def found(self, rows: Array, context: PredictContext) -> Answer:
        if len(rows) <= self.chunk_rows:
            return self.piece(rows, context)
        pieces = [self.piece(rows[i : i + self.chunk_rows], context) for i in range(0, len(rows), self.chunk_rows)]
        probabilities, hits, coalesced, shared, run, kept, left, refused = zip(*pieces, strict=True)
        counts = sum(hits), sum(coalesced), sum(shared), sum(run)
        return Answer(np.concatenate(probabilities), *counts, all(kept), min(left), sum(refused))

    def piece(self, rows: Array, context: PredictContext) -> Answer:
        rows, keys = canonical(rows)
        deadline, directives = context.deadline, context.cache
        if not directives.read:
            return self.anew(rows, keys, context)
        least = self.least_left(directives)
        if len(keys) == 1 and (hit := self.known.find(keys[0], deadline, least)):
            return Answer(array(hit[:1], self.classes), 1, 0, 0, 0, True, hit[1])
        found = self.known.look(keys, deadline, least)
        landed: Values = {}
        shared = run = 0
        kept = True
        if found.mine:
            fetched, new, kept = self.work_out(found, context, use_shared=not directives.bounded)
            landed, shared, run = fetched | new, len(fetched), len(new)
        for key, flight in found.others.items():
            landed[key] = flight.wait(deadline) or self.again(key, context)
        hits = len(keys) - found.values.count(None)
        values = [landed[key] if value is None else value for key, value in zip(keys, found.values, strict=True)]
        return Answer(
            array(values, self.classes), hits, len(keys) - hits - shared - run, shared, run, kept, found.left, found.refused
        )

    def work_out(self, found: Found, context: PredictContext, use_shared: bool = True) -> tuple[Values, Values, bool]:
        """What nobody else works out: from the second level what is there, from the model the rest; whether all was kept.

        Those who wait for it get to know it; a failure is told to them and kept by nobody. How old a value of the second level
        is cannot be seen there.
        """
        try:
            fetched = self.fetched(list(found.mine), context.deadline) if use_shared else {}
            new, sound = self.run([key for key in found.mine if key not in fetched] if fetched else list(found.mine), context)
        except BaseException as error:
            # What failed for several rows may go well for one of them.
            self.known.give_up(found.mine, error if len(found.mine) == 1 else None)
            raise
        kept = self.known.keep(found, fetched, new, sound)
        self.share(sound, context.deadline)
        return fetched, new, kept

    def fetched(self, keys: list[bytes], until: float) -> Values:
        if not self.shared or until - monotonic() < self.shared.slowest:
            return {}
        return {key: value for key, value in zip(keys, self.shared.get(keys), strict=True) if value is not None}

    def run(self, keys: list[bytes], context: PredictContext) -> tuple[Values, Values]:
        if not keys:
            return {}, {}
        return values_of(keys, self.predict(array(keys, len(keys[0]) // 4), context).probabilities)

    def share(self, values: Values, until: float) -> None:
        if self.shared and values and until - monotonic() >= self.shared.slowest:
            self.shared.put(list(values.items()))

    def anew(self, rows: Array, keys: Sequence[bytes], context: PredictContext) -> Answer:
        """A run of all rows, whatever is there."""
        generation, keep = self.known.board.generation(), context.cache.store
        probabilities = self.predict(rows, context).probabilities
        values, sound = values_of(keys, probabilities) if keep else ({}, {})
        kept = self.known.keep_anew(len(keys), sound, generation) and keep and len(sound) == len(values)
        self.share(sound, context.deadline)
        return Answer(probabilities, 0, 0, 0, len(keys), kept, inf)

    def again(self, key: bytes, context: PredictContext) -> bytes:
        """For who waited for nothing: waits for the next who works it out, or is that one."""
        while True:
            found = self.known.look([key], context.deadline)
            if found.mine:
                fetched, new, _ = self.work_out(found, context)
                return new.get(key) or fetched[key]
            value = found.values[0] or found.others[key].wait(context.deadline)
            if value:
                return value

    def keep_up(self) -> None:
        """Does at once what the next request would do after a clear, by whichever process or pod."""
        if self.shared:
            self.shared.keep_up()
        self.known.keep_up()

    def clear(self) -> None:
        """In all processes, and the second level for all who share it; BackendUnavailable where that is not to be reached."""
        try:
            if self.shared:
                self.shared.clear()
        finally:
            # Last: what was looked up in the second level before it was clear must not be kept.
            self.known.board.next_generation()
            self.known.keep_up()


def cache_status(answer: Answer, read: bool) -> str:
    """Returns the value of Cache-Status. Its members are the cache levels, the one closest to the model first (RFC 9211)."""
    rows, stored = len(answer.probabilities), "; stored" if answer.kept else ""
    if not read:
        return f"{NAME}; fwd=request{stored}"
    if answer.hits == rows:
        return f"{NAME}; hit; ttl={int(answer.left)}"
    second = "" if not answer.shared else f"{SECOND}; {'fwd=partial' if answer.run else 'hit'}, "
    how = stored if answer.run or answer.shared else "; collapsed"
    if answer.hits == 0:
        return f"{second}{NAME}; fwd={'request' if answer.refused else 'miss'}{how}"
    return f'{second}{NAME}; fwd=partial{how}; detail="{answer.hits} of {rows} rows"'
