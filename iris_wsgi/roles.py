"""The catalogue of roles: one short function each, from parts to the routes a client sees."""

from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

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
    worker_of,
)
from iris_wsgi.routes import single, training, v1, v2
from iris_wsgi.servable import classifier
from iris_wsgi.settings import Settings
from iris_wsgi.tally import Tallies, Tally
from iris_wsgi.tracing import Fields, nothing
from iris_wsgi.wsgi import App, Route


def web_single(parts: Parts) -> list[Route]:
    answering = single.routes(parts.model, parts.ask, parts.sample, parts.settings.max_rows, parts.pace)
    return [*answering, *training.routes(parts.model, Path(parts.settings.model_dir), parts.log.event)]


def prediction_cache(parts: Parts) -> list[Route]:
    """The web-single routes; that there is a cache around the predictor, and the routes of that, follow from the settings."""
    return web_single(parts)


def synchronous(parts: Parts) -> list[Route]:
    """The routes of v2 and v1 over each model under its own name; today there is one."""
    tallies = Tallies(parts.registry, [parts.model.name])
    # Half a model is in the role prep alone, which has no such routes.
    assert isinstance(parts.model, Model)
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
    try:
        hybrids = hybrid_routes(parts, queue)
    except BadModel as error:
        # A model of one's own need not have a fast one beside it.
        parts.log.event("warning", f"POST /predict/hybrid is not served: {error}")
        hybrids = []
    try:
        ensemble = remote_ensemble(parts) if parts.settings.members else local_ensemble(parts)
    except BadModel as error:
        # Nor need it have models of one class each.
        parts.log.event("warning", f"POST /ensemble/predict is not served: {error}")
        ensemble = []
    return [*web_single(parts), *synchronous(parts), *job_routes(parts, queue), *hybrids, *item_routes(parts), *ensemble]


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
    app, credentials = guard(settings, companions, log)
    core = CORES.get(settings.role, here)(Start(settings, registry, companions, log, credentials))
    graph, predict, pace = core.graph, core.predict, core.pace
    if settings.batch_rows:
        refuse_unequal(core.difference(), "IRIS_BATCH_ROWS", "leave it at 0")
        predict, pace = Gatherer(predict, settings.batch_rows, settings.batch_delay_ms / 1000), BLOCKING
    cache, ask = None, plainly(predict)
    if wanted(settings, core.difference, log):
        predict = cache = cache_around(predict, graph, settings, registry, pace, log)
        pace, ask = BLOCKING if cache.shared else pace, through(cache)
    ask = core.around(ask)
    parts = Parts(settings, graph, predict, ask, core.sample, registry, core.readiness, pace, companions, log, cache, credentials)
    routes = [*ROLES[settings.role](parts), *cache_routes(parts), *edge_routes(parts)]
    table = ops.routes(routes, registry, core.readiness, companions.why_not, bool(settings.token_file))
    if cache:
        companions.repeat("look whether the cache was cleared", LOOK_SECONDS, cache.keep_up)
    observer = RequestObserver(log, registry, (route.path for route in table), graph.version)
    registry.join()
    return Service(
        app(table, observer, settings.max_body_bytes, settings.deadline_ms / 1000 or inf),
        graph,
        core.sample.row,
        core.self_test,
        core.readiness,
        observer,
        companions,
    )


def guard(settings: Settings, companions: Companions, log: Log) -> tuple[Callable[..., App], Callable[[], Fields]]:
    """What makes the application, and what is shown to other servers: without tokens all are answered, and nothing is."""
    if not settings.token_file:
        return App, nothing
    # Imported only by who wants tokens.
    from iris_wsgi.bearer import LOOK_SECONDS as EVERY_SECONDS
    from iris_wsgi.bearer import Guarded, Tokens

    tokens = Tokens(settings.token_file, log.event)
    companions.repeat("look for other tokens", EVERY_SECONDS, tokens.look)
    return partial(Guarded, tokens, ops.DOORS), tokens.fields
