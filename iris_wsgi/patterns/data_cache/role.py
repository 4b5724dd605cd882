"""The items as a role serves them: a database behind a second level behind memory, and who looks for changes."""

from contextlib import suppress
from functools import partial
from pathlib import Path

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.data_cache import routes as item_routes
from iris_wsgi.patterns.data_cache.cache import ItemCache, Times
from iris_wsgi.patterns.data_cache.invalidation import Marks
from iris_wsgi.patterns.data_cache.metrics import ItemMetrics
from iris_wsgi.patterns.data_cache.read_through import Reader
from iris_wsgi.patterns.data_cache.responses import Texts
from iris_wsgi.patterns.data_cache.seed import seed
from iris_wsgi.patterns.data_cache.stores import open_items, open_shared
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.services import REQUEST_SECONDS, RoleContext
from iris_wsgi.storage.lru import Shelf
from iris_wsgi.wsgi.application import Route

# How long the second level of the items may take, which is there to save time.
SHARED_SECONDS = 0.05
# How long an unknown id is cached. An item may be created at any moment, so the time is short.
MISSING_SECONDS = 5.0
# How long expired items are kept and served, marked as stale, while the database is down.
STALE_SECONDS = 3600.0
# The maximum delay until a server sees the changes of another one.
CHECK_SECONDS = 1.0


def routes(parts: RoleContext) -> list[Route]:
    """Returns the routes of the items. Raises BadSetting, BadStore, and BackendUnavailable of an embedded store."""
    settings = parts.settings
    metrics = ItemMetrics(parts.registry)
    rows = seed(parts.model, Path(settings.model_dir), parts.log.event)
    database = open_items(settings, rows, REQUEST_SECONDS)
    words = "items that are not in memory are refused", "the database of the items is back"
    breaker = CircuitBreaker(parts.log.event, *words, count_failure=partial(metrics.failures.add, ("database",)))
    # Only the look itself can find out that they are mended while no traffic comes.
    parts.readiness.others.append(lambda: next(iter(breaker.remedies("changes", "identity")), None))
    parts.readiness.warnings.append(breaker.remedies)
    shared = open_shared(settings, SHARED_SECONDS, parts.log.event, partial(metrics.failures.add, ("redis",)))
    times = Times(settings.items_seconds, MISSING_SECONDS, STALE_SECONDS, CHECK_SECONDS)
    marks = Marks(parts.registry.board.marks)
    reader = Reader(database, breaker, shared, times.item, times.check, marks)
    texts = Texts(parts.model, parts.predict)
    cache = ItemCache(reader, texts.item, texts.prediction, marks, Shelf(settings.items_bytes), times, metrics)

    def look() -> None:
        # The breaker tells the log of a database that is down.
        with suppress(BackendUnavailable):
            cache.check()

    # Twice in the time that a look counts, so that one may be late.
    parts.background.repeat("look for changes of items", times.check / 2, look)
    return item_routes.routes(parts.model, cache)
