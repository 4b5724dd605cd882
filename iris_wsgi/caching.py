"""The prediction cache as the settings want it."""

import platform
from collections.abc import Callable

from iris_wsgi.cache_metrics import CacheMetrics
from iris_wsgi.cached import PredictionCache
from iris_wsgi.known import Known
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import RUNTIME_VERSION, Graph
from iris_wsgi.pace import Pace
from iris_wsgi.predictors import PIECE_ROWS, Predict
from iris_wsgi.settings import CACHED, BadSetting, Settings
from iris_wsgi.shared import SecondLevel
from iris_wsgi.shelf import Shelf
from iris_wsgi.stores.choice import with_redis

# How long the second level may take for a connection, and for an answer. A request that meets its failure waits for one or two.
SHARED_SECONDS = 0.05
# How often a process without requests looks whether another process, or by the second level another pod, has cleared the cache.
LOOK_SECONDS = 1.0


def wanted(settings: Settings, difference: Callable[[], float], log: Log) -> bool:
    """Whether there is to be a cache. By default there is none where a row's answer depends on its company; else BadSetting."""
    if settings.cache == "off" or (settings.cache == "auto" and settings.role not in CACHED):
        return False
    off = difference()
    if off and settings.cache == "auto" and settings.role == "all":
        log.event("warning", "there is no prediction cache: this model's answers to a row alone and in a batch differ")
        return False
    name = "IRIS_ROLE=prediction_cache" if settings.cache == "auto" else "IRIS_CACHE=on"
    refuse_unequal(off, name, "it cannot be cached")
    return True


def refuse_unequal(off: float, name: str, what: str) -> None:
    """Raises BadSetting for a model whose answer to a row is another in company: which one a client gets would be chance."""
    if off:
        raise BadSetting(f"{name}: this model's answers to a row alone and in a batch differ by up to {off:.1e}; {what}")


def cache_around(predict: Predict, model: Graph, settings: Settings, registry: Registry, pace: Pace, log: Log) -> PredictionCache:
    """Raises BadSetting."""
    metrics, classes = CacheMetrics(registry), len(model.labels)

    def connect() -> SecondLevel:
        from iris_wsgi.redis import Link

        link, cleared = Link(settings.cache_redis_url, SHARED_SECONDS), registry.board.next_generation
        about = space_of(model), 4 * classes, settings.cache_seconds
        return SecondLevel(link, SHARED_SECONDS, *about, log.event, cleared, metrics.failures.add)

    shared = with_redis("IRIS_CACHE_REDIS_URL", connect) if settings.cache_redis_url else None
    known = Known(Shelf(settings.cache_bytes), settings.cache_seconds, metrics, registry.board)
    return PredictionCache(predict, classes, known, shared, pace.piece_rows(PIECE_ROWS))


def space_of(model: Graph) -> bytes:
    """What the bits of an answer depend on: the model's own, and who computes with it where. 1 is the layout of the values."""
    return f"{{iris}}:predictions:1:{model.digest}:{RUNTIME_VERSION}:{platform.machine()}".encode()
