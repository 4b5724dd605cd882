"""Pattern prediction cache: creates the cache from the settings, and its admin routes."""

import platform

from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.model_schema import OutputSchema
from iris_wsgi.errors import BackendUnavailable, ServiceUnavailable
from iris_wsgi.model.artifact import sha256
from iris_wsgi.model.predictor import PIECE_ROWS, LatencyProfile, Predict
from iris_wsgi.model.session import RUNTIME_VERSION, Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.patterns.prediction_cache.cache import PredictionCache
from iris_wsgi.patterns.prediction_cache.store import CacheMetrics, CacheStore
from iris_wsgi.settings import Settings
from iris_wsgi.storage.lru import LRUCache
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

NOT_CLEARED = (
    "The memory of this pod is cleared. The second level did not answer, so it and other pods may not be cleared. Retry."
)
COUNTS = openapi.map_of(openapi.COUNT)
STATE = openapi.Component(
    "CacheState",
    openapi.closed(
        model=openapi.TEXT,
        limit_bytes=openapi.COUNT,
        seconds={"type": "number"},
        second_level=openapi.FLAG,
        entries=openapi.COUNT,
        bytes=openapi.COUNT,
        rows=COUNTS,
        evictions=COUNTS,
        shared_failures=openapi.COUNT,
    ),
)
CLEARED = openapi.Component("CacheCleared", openapi.closed(cleared=openapi.TRUE))
TAG = "prediction cache", "A cache in front of the model, whose hits and misses are in Cache-Status."
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


def routes(cache: PredictionCache, digest: str) -> list[Route]:
    """`digest` is that of the cached model."""

    def totals() -> dict[str, object]:
        found = {
            "model": digest,
            "limit_bytes": cache.store.entries.max_bytes,
            "seconds": cache.store.ttl,
            "second_level": cache.tier is not None,
        }
        return found | dict(cache.store.metrics.totals())

    def state(_: Request) -> Response:
        return Response(encode_json(totals()))

    def clear(_: Request) -> Response:
        try:
            cache.clear()
        except BackendUnavailable:
            raise ServiceUnavailable(NOT_CLEARED) from None
        return Response(encode_json({"cleared": True}))

    summary = "State of the prediction cache, over all processes of this server"
    table = [
        Route("GET", "/cache", state, RouteDoc(summary, STATE, example=totals)),
        Route(
            "DELETE",
            "/cache",
            clear,
            RouteDoc(
                "Clear the prediction cache in all processes, and in the second level if there is one",
                CLEARED,
                failures=(503,) if cache.tier else (),
            ),
            # The second level may block.
            schedule=Schedule(-1 if cache.tier else 0),
        ),
    ]
    return openapi.tagged(*TAG, table)
