"""Prediction cache: serves stored predictions instead of running the model again."""

from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import Array, RowSchema
from iris_wsgi.errors import NotCached
from iris_wsgi.http.cache_headers import (
    DEFAULT,
    NOT_CACHED,
    NOT_CACHED_STATUS,
    SHARED_CACHE,
    CacheDirectives,
    hit_status,
    miss_status,
)
from iris_wsgi.model.predictor import PIECE_ROWS, Predict, PredictContext, Prediction
from iris_wsgi.patterns.prediction_cache.store import CacheLookup, CacheStore, Values, array, values_of

if TYPE_CHECKING:
    from iris_wsgi.storage.redis_tier import ClearableTier


class CachedPrediction(NamedTuple):
    """Predictions [n, columns], and the number of rows by source: memory, another request, the second level, the model.

    `stored` is true if the cache stored all new rows. `ttl` is the time in seconds until the first entry expires, if all rows
    were hits. `too_old` is the number of entries that the age limit of the request excluded.
    """

    outputs: Array
    hits: int
    coalesced: int
    shared: int
    run: int
    stored: bool
    ttl: float
    too_old: int = 0


class PredictionCache:
    """Predictor that caches another predictor, by the values of a row; -0.0 and 0.0 are the same.

    The model must compute the same bits for a row alone and in a batch. A request of more than `chunk_rows` rows goes in chunks,
    which limits how long it holds the lock, and how long others wait for its rows.
    """

    def __init__(
        self,
        predict: Predict,
        schema: RowSchema,
        columns: int,
        store: CacheStore,
        tier: "ClearableTier | None" = None,
        chunk_rows: int = PIECE_ROWS,
    ) -> None:
        self.predict, self.schema, self.columns = predict, schema, columns
        self.store, self.tier, self.chunk_rows = store, tier, chunk_rows

    def __call__(self, rows: Array, context: PredictContext) -> Prediction:
        found = self.lookup(rows, context)
        return Prediction(found.outputs, (("Cache-Status", cache_status(found, context.cache.read)),))

    def lookup(self, rows: Array, context: PredictContext) -> CachedPrediction:
        """Runs the model on the misses. Raises NotCached (504) if the request forbids the run, and the errors of the model."""
        if context.cache.only_cached:
            return self.hits_only(rows, context)
        if len(rows) <= self.chunk_rows:
            return self.chunk(rows, context)
        chunks = [self.chunk(rows[i : i + self.chunk_rows], context) for i in range(0, len(rows), self.chunk_rows)]
        outputs, hits, coalesced, shared, run, stored, ttl, too_old = zip(*chunks, strict=True)
        counts = sum(hits), sum(coalesced), sum(shared), sum(run)
        return CachedPrediction(np.concatenate(outputs), *counts, all(stored), min(ttl), sum(too_old))

    def hits_only(self, rows: Array, context: PredictContext) -> CachedPrediction:
        rows, keys = self.schema.canonical(rows)
        min_ttl = self.min_ttl(context.cache)
        hits = list[tuple[bytes, float]]()
        for key in keys if context.cache.read else ():
            if (hit := self.store.get(key, context.deadline, min_ttl)) is None:
                break
            hits.append(hit)
        if not hits or len(hits) < len(keys):
            raise NotCached(NOT_CACHED, headers=(NOT_CACHED_STATUS,))
        values, ttls = zip(*hits, strict=True)
        return CachedPrediction(array(values, self.columns), len(keys), 0, 0, 0, True, min(ttls))

    def min_ttl(self, directives: CacheDirectives) -> float:
        """Returns the minimum time to live of an entry that the request allows. All entries have the same time at first."""
        return max(directives.min_fresh, self.store.ttl - directives.max_age) if directives.bounded else 0.0

    def chunk(self, rows: Array, context: PredictContext) -> CachedPrediction:
        rows, keys = self.schema.canonical(rows)
        deadline, directives = context.deadline, context.cache
        if not directives.read:
            return self.bypass(rows, keys, context)
        min_ttl = 0.0 if directives is DEFAULT else self.min_ttl(directives)
        if len(keys) == 1 and (hit := self.store.get(keys[0], deadline, min_ttl)):
            return CachedPrediction(array(hit[:1], self.columns), 1, 0, 0, 0, True, hit[1])
        found = self.store.lookup(keys, deadline, min_ttl)
        results: Values = {}
        shared = run = 0
        stored = True
        if found.owned:
            fetched, computed, stored = self.compute(found, context, use_tier=not directives.bounded)
            results, shared, run = fetched | computed, len(fetched), len(computed)
        for key, pending in found.pending.items():
            results[key] = pending.wait(deadline) or self.retry(key, context)
        hits = len(keys) - found.values.count(None)
        values = [results[key] if value is None else value for key, value in zip(keys, found.values, strict=True)]
        return CachedPrediction(
            array(values, self.columns), hits, len(keys) - hits - shared - run, shared, run, stored, found.ttl, found.too_old
        )

    def compute(self, found: CacheLookup, context: PredictContext, use_tier: bool = True) -> tuple[Values, Values, bool]:
        """Gets the owned rows from the second level or the model. Returns both, and whether the cache stored all of them.

        The age of a value in the second level is unknown, so a request that limits the age does not use it.
        """
        keys = list(found.owned)
        try:
            fetched = self.fetch(keys, context.deadline) if use_tier else {}
            computed, finite = self.run([key for key in keys if key not in fetched] if fetched else keys, context)
        except BaseException as error:
            # Another row may have caused the error.
            self.store.fail(found.owned, error if len(keys) == 1 else None)
            raise
        stored = self.store.put(found, fetched, computed, finite)
        self.share(finite, context.deadline)
        return fetched, computed, stored

    def fetch(self, keys: list[bytes], deadline: float) -> Values:
        if not self.tier or deadline - monotonic() < self.tier.max_seconds:
            return {}
        return {key: value for key, value in zip(keys, self.tier.get(keys), strict=True) if value is not None}

    def run(self, keys: list[bytes], context: PredictContext) -> tuple[Values, Values]:
        if not keys:
            return {}, {}
        return values_of(keys, self.predict(self.schema.from_keys(keys), context).outputs)

    def share(self, values: Values, deadline: float) -> None:
        if self.tier and values and deadline - monotonic() >= self.tier.max_seconds:
            self.tier.put(values)

    def bypass(self, rows: Array, keys: Sequence[bytes], context: PredictContext) -> CachedPrediction:
        """Runs the model on all rows."""
        generation, may_store = self.store.memory.generation(), context.cache.store
        output = self.predict(rows, context).outputs
        values, finite = values_of(keys, output) if may_store else ({}, {})
        stored = self.store.put_bypassed(len(keys), finite, generation) and may_store and len(finite) == len(values)
        self.share(finite, context.deadline)
        return CachedPrediction(output, 0, 0, 0, len(keys), stored, inf)

    def retry(self, key: bytes, context: PredictContext) -> bytes:
        """Retries after the computation of another request failed: waits for the next one, or becomes its leader."""
        while True:
            found = self.store.lookup([key], context.deadline)
            if found.owned:
                fetched, computed, _ = self.compute(found, context)
                return computed.get(key) or fetched[key]
            value = found.values[0] or found.pending[key].wait(context.deadline)
            if value:
                return value

    def sync(self) -> None:
        """Applies a clear by another process or pod at once, and not at the next request."""
        if self.tier:
            self.tier.sync()
        self.store.sync()

    def clear(self) -> None:
        """Clears all processes, and the second level for all pods. Raises BackendUnavailable if the second level is down."""
        try:
            if self.tier:
                self.tier.clear()
        finally:
            # Last, so that no process stores a value that it read from the second level before the clear.
            self.store.memory.next_generation()
            self.store.sync()


def cache_status(found: CachedPrediction, read: bool) -> str:
    """Returns the value of Cache-Status. Its members are the cache levels, the one closest to the model first (RFC 9211)."""
    rows = len(found.outputs)
    if not read:
        return miss_status("request", found.stored)
    if found.hits == rows:
        return hit_status(found.ttl)
    tier = f"{SHARED_CACHE}; {'fwd=partial' if found.run else 'hit'}, " if found.shared else ""
    collapsed = not (found.run or found.shared)
    reason = "partial" if found.hits else "request" if found.too_old else "miss"
    detail = f'"{found.hits} of {rows} rows"' if found.hits else ""
    return tier + miss_status(reason, found.stored and not collapsed, collapsed, detail)
