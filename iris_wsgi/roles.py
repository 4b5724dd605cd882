"""How a role of the catalogue is put together: the core, what wraps it, the routes around that."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from iris_wsgi import __version__, ops
from iris_wsgi.asking import Ask, plainly
from iris_wsgi.bodies import Environ
from iris_wsgi.catalogue import ROLES
from iris_wsgi.companions import Companions
from iris_wsgi.cores import Core, Start, second_half
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.hosts import Hosts
from iris_wsgi.log import Log
from iris_wsgi.metrics import Info, Registry
from iris_wsgi.model import Graph, Model
from iris_wsgi.observer import RequestObserver
from iris_wsgi.pace import BLOCKING
from iris_wsgi.parts import Parts
from iris_wsgi.predictors import within_deadline
from iris_wsgi.prefix import prefix_of
from iris_wsgi.routes import single, training
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.tracing import Fields, nothing
from iris_wsgi.watch import Watch
from iris_wsgi.wsgi import App, Route

Kind = TypeVar("Kind")
Refuses = Callable[[Environ], Problem | None]


def web_single(parts: Parts) -> list[Route]:
    answering = single.routes(parts.model, parts.ask, parts.sample, parts.settings.max_rows, parts.pace)
    return [*answering, *training.routes(parts.model, Path(parts.settings.model_dir), parts.log.event)]


def synchronous(parts: Parts, beside: Sequence[Model] = ()) -> list[Route]:
    """The routes of v2 and v1 over each model under its own name: that of the role, and those `beside` it."""
    from iris_wsgi.routes import v1, v2
    from iris_wsgi.servable import classifier
    from iris_wsgi.tally import Tallies, Tally

    # Half a model is in the role prep alone, which has no such routes.
    assert isinstance(parts.model, Model)
    predicts = {parts.model: parts.predict} | {model: within_deadline(model, Watch()) for model in beside}
    tallies = Tallies(parts.registry, [model.name for model in predicts])
    models = {model.name: classifier(model, predict, Tally(tallies, model.name)) for model, predict in predicts.items()}
    protocols = [family.routes(models, parts.readiness.why_not, parts.settings.max_rows, parts.pace) for family in (v2, v1)]
    return [route for table in protocols for route in table]


def prep(parts: Parts) -> list[Route]:
    """The web-single routes over the first half of a model, which asks the other half: what it answers may fail as that may."""

    def asks(route: Route) -> Route:
        return route._replace(waits=True, failures=(502, 503, 504)) if route.path.startswith("/predict") else route

    return [asks(route) for route in web_single(parts)]


def everything(parts: Parts) -> list[Route]:
    from iris_wsgi.ensembles import local_ensemble, remote_ensemble
    from iris_wsgi.items.parts import item_routes
    from iris_wsgi.queues import hybrid_routes, job_routes, queue_of, worker_of

    queue = queue_of(parts)
    hand = worker_of(parts, queue.metrics)
    parts.companions.add("worker", hand.run)
    queue = queue._replace(tell=hand.wake)
    hybrids = where_there(parts, "POST /predict/hybrid", lambda: hybrid_routes(parts, queue))
    panel = remote_ensemble if parts.settings.members else local_ensemble
    ensemble = where_there(parts, "POST /ensemble/predict", lambda: panel(parts))
    # So that a server of role prep may ask this one.
    halves = where_there(parts, "the other half of role prep", lambda: [second_half(parts.settings, parts.model)])
    protocols = synchronous(parts, halves)
    return [*web_single(parts), *protocols, *job_routes(parts, queue), *hybrids, *item_routes(parts), *ensemble]


def where_there(parts: Parts, what: str, make: Callable[[], list[Kind]]) -> list[Kind]:
    """What the models beside the whole one serve: one's own need not have any."""
    try:
        return make()
    except BadModel as error:
        parts.log.event("warning", f"{what} is not served: {error}")
        return []


def edge_files(parts: Parts) -> list[Route]:
    """The bundle that the settings name. Raises BadSetting where it is required, and is damaged or of another model."""
    from iris_wsgi.reports import Seen
    from iris_wsgi.routes import edge
    from iris_wsgi.served import labels_of, read_bundle

    settings = parts.settings
    try:
        bundle = read_bundle(Path(settings.edge_dir))
        labels = labels_of(bundle, parts.model, settings)
    except BadSetting as error:
        if settings.edge_required == "yes":
            raise
        parts.log.event("warning", f"/edge/ is not served: {error}")
        return []
    reported = parts.registry.counter(
        "edge_predictions_total", "Predictions that devices at the edge have reported, by label.", "label", labels
    )
    return edge.routes(bundle, labels, reported, Seen(parts.registry.board.reports), parts.log)


class Service(NamedTuple):
    """An application that is ready to be served, and what its start found."""

    app: App
    model: Graph
    sample: list[float]
    self_test: str
    readiness: ops.Readiness
    observer: RequestObserver
    companions: Companions


def build(settings: Settings, log: Log, registry: Registry | None = None, refuses: Refuses | None = None) -> Service:
    """Loads and tests the model, and puts the role together. Raises BadModel, BadSetting, BadStore and StoreDown.

    `refuses` is that of the application; by default it refuses hosts that do not go with the address of our server.
    """
    refuses = refuses or Hosts(settings.allowed_hosts, settings.host).refusal
    registry, companions = registry or Registry(), Companions(log)
    app, credentials = guard(settings, companions, log)
    role = ROLES[settings.role]
    core: Core = named(role.core)(Start(settings, registry, companions, log, credentials))
    if settings.batch_rows:
        core = gathered(core, settings)
    ask, routes = plainly(core.predict), list[Route]()
    if settings.has_cache and may_be_cached(core, settings, log):
        core, ask, routes = cached(core, settings, registry, companions, log)
    graph, readiness = core.graph, core.readiness
    ask, pace = core.around(ask), core.pace
    parts = Parts(settings, graph, core.predict, ask, core.sample, registry, readiness, pace, companions, log, credentials)
    routes = [*named(role.routes)(parts), *routes, *(edge_files(parts) if settings.edge_dir else ())]
    table = ops.routes(routes, registry, readiness, companions.why_not, bool(settings.token_file))
    Info(registry, "iris_wsgi_info", "What this server is.", ("role", "version"), [[settings.role], [__version__]])
    observer = RequestObserver(log, registry, (route.path for route in table), graph.version)
    registry.join()
    deadline_seconds, prefix = settings.deadline_ms / 1000 or inf, prefix_of(settings.url_prefix)
    served = app(table, observer, settings.max_body_bytes, deadline_seconds, prefix, refuses)
    return Service(served, graph, core.sample.row, core.self_test, readiness, observer, companions)


def named(place: str) -> Callable[..., Any]:
    """A function of the package by module:function, which is imported only now: other roles start without it."""
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"iris_wsgi.{module}"), name)
    return found


def guard(settings: Settings, companions: Companions, log: Log) -> tuple[Callable[..., App], Callable[[], Fields]]:
    """What makes the application, and what is shown to other servers: without tokens all are answered, and nothing is."""
    if not settings.token_file:
        return App, nothing
    from iris_wsgi.bearer import LOOK_SECONDS, Guarded, Tokens

    tokens = Tokens(settings.token_file, log.event)
    companions.repeat("look for other tokens", LOOK_SECONDS, tokens.look)
    return partial(Guarded, tokens, ops.DOORS), tokens.fields


def gathered(core: Core, settings: Settings) -> Core:
    """With rows of several requests in one run. Raises BadSetting."""
    from iris_wsgi.gather import Gatherer

    refuse_unequal(core.difference(), "IRIS_BATCH_ROWS", "leave it at 0")
    return core._replace(predict=Gatherer(core.predict, settings.batch_rows, settings.batch_delay_ms / 1000), pace=BLOCKING)


def cached(core: Core, settings: Settings, registry: Registry, companions: Companions, log: Log) -> tuple[Core, Ask, list[Route]]:
    """With the cache in front: how to ask through it, and its own routes. Raises BadSetting."""
    from iris_wsgi.cache_status import through
    from iris_wsgi.caching import LOOK_SECONDS, cache_around
    from iris_wsgi.routes import cache as operating

    cache = cache_around(core.predict, core.graph, settings, registry, core.pace, log)
    companions.repeat("look whether the cache was cleared", LOOK_SECONDS, cache.keep_up)
    core = core._replace(predict=cache, pace=BLOCKING if cache.shared else core.pace)
    return core, through(cache), operating.routes(cache, core.graph.digest)


def may_be_cached(core: Core, settings: Settings, log: Log) -> bool:
    """Not where a row's answer depends on its company: then role all goes without, and others raise BadSetting."""
    off = core.difference()
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
