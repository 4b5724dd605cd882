"""The catalogue of roles: one short function each, from parts to the routes a client sees."""

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import NamedTuple

from iris_wsgi import golden, ops
from iris_wsgi.asking import plainly, through
from iris_wsgi.caching import LOOK_SECONDS, cache_around, refuse_unequal, wanted
from iris_wsgi.companions import Companions
from iris_wsgi.errors import BadModel
from iris_wsgi.gather import Gatherer
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import Model, load_model
from iris_wsgi.observer import RequestObserver
from iris_wsgi.pace import BLOCKING, measure
from iris_wsgi.parts import Parts, cache_routes, hybrid_routes, item_routes, job_routes, queue_of, worker_of
from iris_wsgi.predictors import ModelMetrics, Predict, measured, within_deadline
from iris_wsgi.routes import single, v1, v2
from iris_wsgi.servable import classifier
from iris_wsgi.settings import Settings
from iris_wsgi.tally import Tallies, Tally
from iris_wsgi.watch import Watch
from iris_wsgi.wsgi import App, Route


def web_single(parts: Parts) -> list[Route]:
    return single.routes(parts.model, parts.ask, parts.sample, parts.settings.max_rows, parts.pace)


def prediction_cache(parts: Parts) -> list[Route]:
    """The web-single routes; that there is a cache around the predictor, and the routes of that, follow from the settings."""
    return web_single(parts)


def synchronous(parts: Parts) -> list[Route]:
    """The routes of v2 and v1 over each model under its own name; today there is one."""
    tallies = Tallies(parts.registry, [parts.model.name])
    one = classifier(parts.model, parts.predict, Tally(tallies, parts.model.name))
    models = {one.served.name: one}
    protocols = [family.routes(models, parts.readiness.why_not, parts.settings.max_rows, parts.pace) for family in (v2, v1)]
    return [route for table in protocols for route in table]


def asynchronous(parts: Parts) -> list[Route]:
    return job_routes(parts, queue_of(parts))


def sync_async(parts: Parts) -> list[Route]:
    """The fast model answers, and the routes of jobs tell the full one's answer."""
    queue = queue_of(parts)
    return [*hybrid_routes(parts, queue), *job_routes(parts, queue)]


def data_cache(parts: Parts) -> list[Route]:
    return item_routes(parts)


def worker(parts: Parts) -> list[Route]:
    """No routes of its own."""
    queue = queue_of(parts)
    parts.companions.add("worker", worker_of(parts, queue.metrics).run)
    return []


def everything(parts: Parts) -> list[Route]:
    queue = queue_of(parts)
    hand = worker_of(parts, queue.metrics)
    parts.companions.add("worker", hand.run)
    queue = queue._replace(tell=hand.wake)
    try:
        hybrids = hybrid_routes(parts, queue)
    except BadModel as error:
        # A model of one's own need not have a fast one beside it.
        parts.log.event("warning", f"POST /predict/hybrid is not served: {error}")
        hybrids = []
    return [*web_single(parts), *synchronous(parts), *job_routes(parts, queue), *hybrids, *item_routes(parts)]


ROLES: dict[str, Callable[[Parts], list[Route]]] = {
    "all": everything,
    "web_single": web_single,
    "synchronous": synchronous,
    "asynchronous": asynchronous,
    "worker": worker,
    "sync_async": sync_async,
    "prediction_cache": prediction_cache,
    "data_cache": data_cache,
}


class Service(NamedTuple):
    """An application that is ready to be served, and what its start found."""

    app: App
    model: Model
    sample: list[float]
    self_test: str
    readiness: ops.Readiness
    observer: RequestObserver
    companions: Companions


def build(settings: Settings, log: Log, registry: Registry | None = None) -> Service:
    """Loads and tests the model, and puts the role together. Raises BadModel, BadSetting, BadStore and StoreDown."""
    model, pinned = load_model(Path(settings.model_dir), settings.model_seal)
    self_test = golden.self_test(model, pinned.cases, pinned.tolerance)
    sample = pinned.cases[0]
    registry = registry or Registry()
    predict: Predict = measured(within_deadline(model, Watch()), model, ModelMetrics(registry, model))
    pace = measure(model, sample.row)
    if settings.batch_rows:
        refuse_unequal(golden.difference(model, pinned.cases), "IRIS_BATCH_ROWS", "leave it at 0")
        predict, pace = Gatherer(predict, settings.batch_rows, settings.batch_delay_ms / 1000), BLOCKING
    readiness = ops.Readiness(lambda: golden.holds(model, sample, pinned.tolerance), pace.alone)
    companions = Companions(log)
    cache, ask = None, plainly(predict)
    if wanted(settings, model, pinned.cases, log):
        predict = cache = cache_around(predict, model, settings, registry, pace, log)
        pace, ask = BLOCKING if cache.shared else pace, through(cache)
    parts = Parts(settings, model, predict, ask, sample.row, registry, readiness, pace, companions, log, cache)
    table = ops.routes([*ROLES[settings.role](parts), *cache_routes(parts)], registry, readiness, companions.why_not)
    if cache:
        companions.repeat("look whether the cache was cleared", LOOK_SECONDS, cache.keep_up)
    observer = RequestObserver(log, registry, (route.path for route in table), model.version)
    registry.join()
    return Service(
        App(table, observer, settings.max_body_bytes, settings.deadline_ms / 1000 or inf),
        model,
        sample.row,
        self_test,
        readiness,
        observer,
        companions,
    )
