"""Creates the prediction cache from the settings."""

import platform

from iris_wsgi.codec.model_schema import OutputSchema
from iris_wsgi.model.artifact import sha256
from iris_wsgi.model.predictor import PIECE_ROWS, LatencyProfile, Predict
from iris_wsgi.model.session import RUNTIME_VERSION, Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.patterns.prediction_cache.cache import PredictionCache
from iris_wsgi.patterns.prediction_cache.store import CacheMetrics, CacheStore
from iris_wsgi.settings import Settings
from iris_wsgi.storage.lru import LRUCache

# How often an idle process looks for a clear by another process or, in the second level, by another pod.
SYNC_SECONDS = 1.0


def create_cache(
    predict: Predict, model: Graph, outputs: OutputSchema, settings: Settings, registry: Registry, pace: LatencyProfile, log: Log
) -> PredictionCache:
    """Raises BadSetting."""
    metrics, tier = CacheMetrics(registry), None
    if settings.cache_redis_url:
        from iris_wsgi.storage.redis_tier import ClearableTier, TierOptions

        options = TierOptions(
            settings.cache_redis_url, settings.cache_seconds, "prediction cache", log.event, metrics.failures.add
        )
        tier = ClearableTier(options, namespace_of(model, outputs), registry.memory.next_generation)
    store = CacheStore(LRUCache(settings.cache_bytes), settings.cache_seconds, metrics, registry.memory)
    return PredictionCache(predict, model.schema, outputs.width, store, tier, pace.chunk_rows(PIECE_ROWS))


def namespace_of(model: Graph, outputs: OutputSchema) -> bytes:
    """Returns all that the bits of a prediction depend on: the model, the runtime, and the CPU. 3 is the layout of the values.

    Folders with the same graph may serve other columns, in another order, for rows of other features.
    """
    columns = sha256(repr((*outputs, *((one.name, one.type) for one in model.features))).encode())[:16]
    return f"{{iris}}:predictions:3:{model.digest}:{columns}:{RUNTIME_VERSION}:{platform.machine()}".encode()
