"""Prediction cache over a predictor that counts its runs."""

import threading
from math import inf

import numpy as np
from iris_data import IRIS_ROWS

from iris_wsgi.model.predictor import PredictContext, Prediction
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.patterns.prediction_cache.cache import PredictionCache
from iris_wsgi.patterns.prediction_cache.store import CacheMetrics, CacheStore
from iris_wsgi.storage.lru import LRUCache

ROW = [5.1, 3.5, 1.4, 0.2]
ROWS = np.random.default_rng(3).uniform(0, 8, (64, 4)).astype(np.float32)


class CountingPredictor:
    """Predictor that records the number of rows of each run. A predictor that `waits` blocks in each run until its release."""

    def __init__(self, waits: bool = False) -> None:
        self.runs: list[int] = []
        self.started, self.released = threading.Event(), threading.Event()
        self.error: Exception | None = None
        if not waits:
            self.released.set()

    def __call__(self, rows, context):
        self.runs.append(len(rows))
        self.started.set()
        assert self.released.wait(60)
        if self.error:
            raise self.error
        return Prediction(expected_probabilities(rows))


def expected_probabilities(rows):
    return (rows[:, :3] * rows[:, 3:] + 1).astype(np.float32)


def build_cache(predict, max_bytes=1 << 20, seconds=3600.0, **options):
    registry = Registry()
    cache = PredictionCache(
        predict, IRIS_ROWS, 3, CacheStore(LRUCache(max_bytes), seconds, CacheMetrics(registry), registry.memory), **options
    )
    registry.join()
    return cache


def cached(cache, rows, deadline=inf):
    """Returns the probabilities of the rows, by the cache."""
    return cache(rows, PredictContext(deadline)).outputs


def row_counts(cache):
    return {result: count for result, count in cache.store.metrics.totals()["rows"].items() if count}
