"""The prediction cache as the settings want it."""

import platform

from iris_wsgi.model.latency import LatencyProfile
from iris_wsgi.model.predictor import PIECE_ROWS, Predict
from iris_wsgi.model.session import RUNTIME_VERSION, Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.patterns.prediction_cache.cache import PredictionCache
from iris_wsgi.patterns.prediction_cache.metrics import CacheMetrics
from iris_wsgi.patterns.prediction_cache.redis_tier import SecondLevel
from iris_wsgi.patterns.prediction_cache.store import Known
from iris_wsgi.settings import Settings
from iris_wsgi.storage.lru import Shelf

# How long the second level may take for a connection, and for an answer. A request that meets its failure waits for one or two.
SHARED_SECONDS = 0.05
# How often a process without requests looks whether another process, or by the second level another pod, has cleared the cache.
LOOK_SECONDS = 1.0


def cache_around(
    predict: Predict, model: Graph, settings: Settings, registry: Registry, pace: LatencyProfile, log: Log
) -> PredictionCache:
    """Raises BadSetting."""
    metrics, classes = CacheMetrics(registry), len(model.labels)

    shared = None
    if settings.cache_redis_url:
        from iris_wsgi.storage.redis import RedisClient

        client = RedisClient(settings.cache_redis_url, SHARED_SECONDS, "IRIS_CACHE_REDIS_URL")
        about, cleared = (space_of(model), 4 * classes, settings.cache_seconds), registry.board.next_generation
        shared = SecondLevel(client, SHARED_SECONDS, *about, log.event, cleared, metrics.failures.add)
    known = Known(Shelf(settings.cache_bytes), settings.cache_seconds, metrics, registry.board)
    return PredictionCache(predict, classes, known, shared, pace.chunk_rows(PIECE_ROWS))


def space_of(model: Graph) -> bytes:
    """What the bits of an answer depend on: the model's own, and who computes with it where. 1 is the layout of the values."""
    return f"{{iris}}:predictions:1:{model.digest}:{RUNTIME_VERSION}:{platform.machine()}".encode()
