"""What roles are put together from, and the pieces that several of them have in common."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from iris_wsgi import golden
from iris_wsgi.asking import Ask
from iris_wsgi.breaker import Breaker
from iris_wsgi.cached import PredictionCache
from iris_wsgi.companions import Companions
from iris_wsgi.errors import BadModel
from iris_wsgi.items.cache import ItemCache, Times
from iris_wsgi.items.choice import open_items, open_shared
from iris_wsgi.items.marks import Marks
from iris_wsgi.items.metrics import ItemMetrics
from iris_wsgi.items.reader import Reader
from iris_wsgi.items.seed import seed
from iris_wsgi.items.texts import Texts
from iris_wsgi.job_metrics import JobMetrics, store_figures
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import Graph, load_model
from iris_wsgi.ops import Readiness
from iris_wsgi.pace import Pace
from iris_wsgi.predictors import Predict, within_deadline
from iris_wsgi.processes import Figure
from iris_wsgi.reports import Seen
from iris_wsgi.routes import cache, edge, hybrid, items, jobs
from iris_wsgi.routes.single import Sample
from iris_wsgi.served import read_bundle
from iris_wsgi.settings import Settings
from iris_wsgi.shelf import Shelf
from iris_wsgi.stores.choice import open_jobs
from iris_wsgi.stores.jobs import StoreDown
from iris_wsgi.sweeper import sweep
from iris_wsgi.watch import Watch
from iris_wsgi.worker import Rules, Worker
from iris_wsgi.wsgi import Route

# How long the store may take: to answer a request, which is to be told of a store that is down within a quarter of a second,
# and to answer a worker, which has time.
REQUEST_SECONDS, WORKER_SECONDS = 0.2, 2.0
# How long the second level of the items may take, which is there to save time.
SHARED_SECONDS = 0.05


class Parts(NamedTuple):
    """What roles are put together from."""

    settings: Settings
    model: Graph
    predict: Predict
    ask: Ask
    sample: Sample
    registry: Registry
    readiness: Readiness
    pace: Pace
    companions: Companions
    log: Log
    cache: PredictionCache | None = None


def cache_routes(parts: Parts) -> list[Route]:
    """None where there is no cache."""
    return cache.routes(parts.cache, parts.model.digest) if parts.cache else []


def edge_routes(parts: Parts) -> list[Route]:
    """None where no bundle is served. Raises BadSetting for what is no bundle."""
    if not parts.settings.edge_dir:
        return []
    bundle = read_bundle(Path(parts.settings.edge_dir))
    reported = parts.registry.counter(
        "edge_predictions_total", "Predictions that devices at the edge have reported, by label.", "label", parts.model.labels
    )
    return edge.routes(bundle, parts.model, reported, Seen(parts.registry.board.reports), parts.log)


def queue_of(parts: Parts) -> jobs.Queue:
    """The store of jobs as requests use it; the metrics tell how it is."""
    store = open_jobs(parts.settings, REQUEST_SECONDS)
    breaker = Breaker(parts.log.event, "jobs are refused", "jobs are taken again: the store is back")
    latest: list[Figure] = []

    def look() -> None:
        latest[:] = store_figures(partial(breaker.call, store.counts))

    # Each second, so that no scrape waits for it.
    parts.registry.sources.append(lambda: latest)
    parts.companions.repeat("look at the store", 1.0, look)
    return jobs.Queue(store, breaker, JobMetrics(parts.registry), lambda: None, parts.companions.is_ending)


def job_routes(parts: Parts, queue: jobs.Queue) -> list[Route]:
    return jobs.routes(parts.model, queue, parts.settings.max_rows, parts.settings.wait_seconds)


def fast_folder(settings: Settings) -> Path:
    """Where the fast model is: in the full one's folder, unless another is set."""
    return Path(settings.fast_model_dir or Path(settings.model_dir) / "fast")


def hybrid_routes(parts: Parts, queue: jobs.Queue) -> list[Route]:
    """Raises BadModel if the fast model cannot be served, or answers something else than the full one."""
    settings, full = parts.settings, parts.model
    folder = fast_folder(settings)
    fast, pinned = load_model(folder)
    golden.self_test(fast, pinned.cases, pinned.tolerance)
    if (fast.labels, fast.width) != (full.labels, full.width):
        raise BadModel(
            f"{folder} takes {fast.width} features for {', '.join(fast.labels)}; the full model takes {full.width}"
            f" for {', '.join(full.labels)}"
        )
    return hybrid.routes(fast, within_deadline(fast, Watch()), queue, parts.log, settings.escalate_below)


def worker_of(parts: Parts, metrics: JobMetrics) -> Worker:
    """With a connection of its own to the store, which may take longer to answer than one for requests."""
    settings = parts.settings
    rules = Rules(
        settings.jobs_claimed,
        settings.max_rows,
        settings.jobs_attempts,
        settings.lease_seconds,
        settings.job_seconds,
        settings.retry_seconds,
    )
    ending = parts.companions.is_ending
    store = open_jobs(settings, WORKER_SECONDS)
    parts.companions.add("remove expired jobs", partial(sweep, store, ending), finishes=False)
    return Worker(store, parts.model, parts.predict, rules, metrics, parts.log, ending)


def item_routes(parts: Parts) -> list[Route]:
    """The items of the database that the settings name, cached; raises BadSetting, BadStore, and StoreDown of an embedded one."""
    settings = parts.settings
    metrics = ItemMetrics(parts.registry)
    rows = seed(parts.model, Path(settings.model_dir), parts.log.event)
    database = open_items(settings, rows, REQUEST_SECONDS)
    words = "items that are not in memory are refused", "the database of the items is back"
    breaker = Breaker(parts.log.event, *words, count=partial(metrics.failures.add, ("database",)))
    shared = open_shared(settings, SHARED_SECONDS, parts.log.event, partial(metrics.failures.add, ("redis",)))
    times = Times(
        settings.items_seconds, settings.items_missing_seconds, settings.items_stale_seconds, settings.items_check_seconds
    )
    marks = Marks(parts.registry.board.marks)
    reader = Reader(database, breaker, shared, times.item, times.check, marks)
    texts = Texts(parts.model, parts.predict)
    cache = ItemCache(reader, texts.item, texts.prediction, marks, Shelf(settings.items_bytes), times, metrics)

    def look() -> None:
        # The breaker tells the log of a database that is down.
        with suppress(StoreDown):
            cache.check()

    # Twice in the time that a look counts, so that one may be late.
    parts.companions.repeat("look for changes of items", times.check / 2, look)
    return items.routes(parts.model, cache)
