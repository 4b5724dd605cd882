"""The catalogue of roles: one short function each, from parts to the routes a client sees."""

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeVar

from iris_wsgi import ops
from iris_wsgi.asking import plainly, through
from iris_wsgi.caching import LOOK_SECONDS, cache_around, refuse_unequal, wanted
from iris_wsgi.companions import Companions
from iris_wsgi.cores import CORES, Start, here
from iris_wsgi.ensembles import local_ensemble, remote_ensemble
from iris_wsgi.errors import BadModel
from iris_wsgi.gather import Gatherer
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import Graph, Model
from iris_wsgi.observer import RequestObserver
from iris_wsgi.pace import BLOCKING
from iris_wsgi.parts import (
    Parts,
    cache_routes,
    edge_routes,
    hybrid_routes,
    item_routes,
    job_routes,
    queue_of,
    second_half,
    worker_of,
)
from iris_wsgi.predictors import within_deadline
from iris_wsgi.routes import single, training, v1, v2
from iris_wsgi.servable import classifier
from iris_wsgi.settings import Settings
from iris_wsgi.tally import Tallies, Tally
from iris_wsgi.watch import Watch
from iris_wsgi.wsgi import App, Route

Kind = TypeVar("Kind")


def web_single(parts: Parts) -> list[Route]:
    answering = single.routes(parts.model, parts.ask, parts.sample, parts.settings.max_rows, parts.pace)
    return [*answering, *training.routes(parts.model, Path(parts.settings.model_dir), parts.log.event)]


def prediction_cache(parts: Parts) -> list[Route]:
    """The web-single routes; that there is a cache around the predictor, and the routes of that, follow from the settings."""
    return web_single(parts)


def synchronous(parts: Parts, beside: Sequence[Model] = ()) -> list[Route]:
    """The routes of v2 and v1 over each model under its own name: that of the role, and those `beside` it."""
    # Half a model is in the role prep alone, which has no such routes.
    assert isinstance(parts.model, Model)
    predicts = {parts.model: parts.predict} | {model: within_deadline(model, Watch()) for model in beside}
    tallies = Tallies(parts.registry, [model.name for model in predicts])
    models = {model.name: classifier(model, predict, Tally(tallies, model.name)) for model, predict in predicts.items()}
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


def prep(parts: Parts) -> list[Route]:
    """The web-single routes over the first half of a model, which asks the other half: what it answers may fail as that may."""

    def asks(route: Route) -> Route:
        return route._replace(waits=True, failures=(502, 503, 504)) if route.path.startswith("/predict") else route

    return [asks(route) for route in web_single(parts)]


def pred(parts: Parts) -> list[Route]:
    """The other half, over v2."""
    return synchronous(parts)


def member(parts: Parts) -> list[Route]:
    return synchronous(parts)


def everything(parts: Parts) -> list[Route]:
    queue = queue_of(parts)
    hand = worker_of(parts, queue.metrics)
    parts.companions.add("worker", hand.run)
    queue = queue._replace(tell=hand.wake)
    hybrids = where_there(parts, "POST /predict/hybrid", lambda: hybrid_routes(parts, queue))
    ensemble = where_there(
        parts, "POST /ensemble/predict", lambda: remote_ensemble(parts) if parts.settings.members else local_ensemble(parts)
    )
    # So that a server of role prep may ask this one.
    protocols = synchronous(parts, where_there(parts, "the other half of role prep", lambda: [second_half(parts)]))
    return [*web_single(parts), *protocols, *job_routes(parts, queue), *hybrids, *item_routes(parts), *ensemble]


def where_there(parts: Parts, what: str, make: Callable[[], list[Kind]]) -> list[Kind]:
    """What the models beside the whole one serve: one's own need not have any."""
    try:
        return make()
    except BadModel as error:
        parts.log.event("warning", f"{what} is not served: {error}")
        return []


ROLES: dict[str, Callable[[Parts], list[Route]]] = {
    "all": everything,
    "web_single": web_single,
    "synchronous": synchronous,
    "asynchronous": asynchronous,
    "worker": worker,
    "sync_async": sync_async,
    "prediction_cache": prediction_cache,
    "data_cache": data_cache,
    "prep": prep,
    "pred": pred,
    "gateway": remote_ensemble,
    "member": member,
}


class Service(NamedTuple):
    """An application that is ready to be served, and what its start found."""

    app: App
    model: Graph
    sample: list[float]
    self_test: str
    readiness: ops.Readiness
    observer: RequestObserver
    companions: Companions


def build(settings: Settings, log: Log, registry: Registry | None = None) -> Service:
    """Loads and tests the model, and puts the role together. Raises BadModel, BadSetting, BadStore and StoreDown."""
    registry, companions = registry or Registry(), Companions(log)
    core = CORES.get(settings.role, here)(Start(settings, registry, companions, log))
    graph, predict, pace = core.graph, core.predict, core.pace
    if settings.batch_rows:
        refuse_unequal(core.difference(), "IRIS_BATCH_ROWS", "leave it at 0")
        predict, pace = Gatherer(predict, settings.batch_rows, settings.batch_delay_ms / 1000), BLOCKING
    cache, ask = None, plainly(predict)
    if wanted(settings, core.difference, log):
        predict = cache = cache_around(predict, graph, settings, registry, pace, log)
        pace, ask = BLOCKING if cache.shared else pace, through(cache)
    ask = core.around(ask)
    parts = Parts(settings, graph, predict, ask, core.sample, registry, core.readiness, pace, companions, log, cache)
    routes = [*ROLES[settings.role](parts), *cache_routes(parts), *edge_routes(parts)]
    table = ops.routes(routes, registry, core.readiness, companions.why_not)
    if cache:
        companions.repeat("look whether the cache was cleared", LOOK_SECONDS, cache.keep_up)
    observer = RequestObserver(log, registry, (route.path for route in table), graph.version)
    registry.join()
    return Service(
        App(table, observer, settings.max_body_bytes, settings.deadline_ms / 1000 or inf),
        graph,
        core.sample.row,
        core.self_test,
        core.readiness,
        observer,
        companions,
    )
