"""Composition root: from settings to an application: model backend, wrappers, routes."""

from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from iris_wsgi import __version__
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model import golden
from iris_wsgi.model.latency import BLOCKING, measure
from iris_wsgi.model.predictor import ModelMetrics, measured, within_deadline
from iris_wsgi.model.run_timeout import RunWatchdog
from iris_wsgi.model.session import Graph, Model
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Info, Registry
from iris_wsgi.observability.trace_context import Fields, nothing
from iris_wsgi.patterns.web_single import page
from iris_wsgi.resilience.background import BackgroundTasks
from iris_wsgi.roles import ROLES
from iris_wsgi.services import ModelBackend, RoleContext, Sample, StartupContext, model_folder
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.wsgi import health_routes
from iris_wsgi.wsgi.allowed_hosts import AllowedHosts
from iris_wsgi.wsgi.application import App, Route
from iris_wsgi.wsgi.body import Environ
from iris_wsgi.wsgi.prefix import prefix_of
from iris_wsgi.wsgi.request_observer import RequestObserver

Kind = TypeVar("Kind")
CheckHost = Callable[[Environ], Problem | None]


def web_single(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.web_single import role

    return role.routes(context)


def synchronous(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.synchronous import role

    return role.routes(context)


def asynchronous(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.asynchronous import role

    return role.routes(context)


def worker(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.asynchronous import role

    return role.start_worker(context)


def sync_async(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.sync_async import role

    return role.routes(context)


def data_cache(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.data_cache import role

    return role.routes(context)


def prep(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.prep_pred import role

    return role.routes(context)


def split_model(start: StartupContext) -> ModelBackend:
    from iris_wsgi.patterns.prep_pred import role

    return role.split_model(start)


def gateway(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.horizontal import role

    return role.remote_ensemble(context)


def edge(context: RoleContext) -> list[Route]:
    from iris_wsgi.patterns.edge import role

    return role.routes(context)


def local_model(start: StartupContext) -> ModelBackend:
    """Loads the model and tests it. Raises BadModel."""
    model, pinned, self_test = golden.load_verified_model(model_folder(start.settings), start.settings.model_seal)
    first = pinned.cases[0]
    try:
        pace = measure(model, first.row)
    except Problem as problem:
        raise BadModel(f"{model_folder(start.settings)}: {problem.detail}") from None
    return ModelBackend(
        model,
        measured(within_deadline(model, RunWatchdog()), model, ModelMetrics(start.registry, model)),
        Sample(first.row, model.predict(np.array([first.row], np.float32))[0].tolist()),
        partial(golden.batch_difference, model, pinned.cases),
        pace,
        health_routes.Readiness(lambda: golden.passes(model, first, pinned.tolerance), pace.single_row),
        self_test,
    )


def member_model(start: StartupContext) -> ModelBackend:
    """Loads the model of one species. Raises BadModel if it is not the species of IRIS_MEMBER."""
    core, wanted = local_model(start), start.settings.member
    species = core.graph.identity.get("member")
    if species != wanted or core.graph.labels[1:] != (wanted,):
        raise BadModel(
            f"{model_folder(start.settings)} holds a model of {species or 'no species'} for {', '.join(core.graph.labels)};"
            f" IRIS_MEMBER={wanted} needs one of {wanted} for other, {wanted}"
        )
    return core


def second_half(settings: Settings, whole: Graph) -> Model:
    """Returns the model that role pred would serve. Raises BadModel, also if both models have the same name."""
    folder = Path(settings.model_dir) / ROLES["pred"].folder
    half, _, _ = golden.load_verified_model(folder)
    if half.name == whole.name:
        raise BadModel(f"{folder} holds a model of the name {half.name}, as the whole one has it")
    return half


def everything(context: RoleContext) -> list[Route]:
    """Returns the routes of all patterns in one process, with its own worker of jobs."""
    from iris_wsgi.patterns.asynchronous import role as asynchronous
    from iris_wsgi.patterns.data_cache import role as data_cache
    from iris_wsgi.patterns.horizontal import role as horizontal
    from iris_wsgi.patterns.sync_async import role as sync_async
    from iris_wsgi.patterns.synchronous import role as synchronous

    queue = asynchronous.create_queue(context)
    worker = asynchronous.create_worker(context, queue.metrics)
    context.background.add("worker", worker.run)
    queue = queue._replace(wake_worker=worker.wake)
    hybrids = where_there(context, "POST /predict/hybrid", lambda: sync_async.predict_routes(context, queue))
    ensemble = horizontal.remote_ensemble if context.settings.members else horizontal.local_ensemble
    ensembles = where_there(context, "POST /ensemble/predict", lambda: ensemble(context))
    # A server of role prep may use this server as its upstream.
    halves = where_there(context, "the other half of role prep", lambda: [second_half(context.settings, context.model)])
    return [
        *web_single(context),
        *synchronous.routes(context, halves),
        *asynchronous.job_routes(context, queue),
        *hybrids,
        *data_cache.routes(context),
        *ensembles,
    ]


def where_there(parts: RoleContext, what: str, make: Callable[[], list[Kind]]) -> list[Kind]:
    """What the models beside the whole one serve: one's own need not have any."""
    try:
        return make()
    except BadModel as error:
        parts.log.event("warning", f"{what} is not served: {error}")
        return []


Routes = Callable[[RoleContext], list[Route]]
Backend = Callable[[StartupContext], ModelBackend]
# A role loads only its own pattern: each function imports it.
ROUTES: dict[str, Routes] = {
    "all": everything,
    "web_single": web_single,
    "synchronous": synchronous,
    "asynchronous": asynchronous,
    "worker": worker,
    "sync_async": sync_async,
    "prediction_cache": web_single,
    "data_cache": data_cache,
    "prep": prep,
    "pred": synchronous,
    "gateway": gateway,
    "member": synchronous,
}
# Roles whose model is not loaded by `local_model`.
BACKENDS: dict[str, Backend] = {"prep": split_model, "member": member_model}
# A batch contains the rows that arrived during the run before. Waiting for more costs more than it gains (docs/benchmark.md).
BATCH_DELAY_SECONDS = 0.0


class Service(NamedTuple):
    """An application that is ready to be served, and what its start found."""

    app: App
    model: Graph
    sample: list[float]
    self_test: str
    readiness: health_routes.Readiness
    observer: RequestObserver
    background: BackgroundTasks


def build(settings: Settings, log: Log, registry: Registry | None = None, check_host: CheckHost | None = None) -> Service:
    """Loads and tests the model, and puts the role together. Raises BadModel, BadSetting, BadStore and BackendUnavailable.

    By default, `check_host` accepts the hosts that match the address of this server.
    """
    check_host = check_host or AllowedHosts(settings.allowed_hosts, settings.host).check
    registry, background = registry or Registry(), BackgroundTasks(log)
    app, credentials = guard(settings, background, log)
    start = StartupContext(settings, registry, background, log, credentials)
    core = BACKENDS.get(settings.role, local_model)(start)
    if settings.batch_rows:
        core = gathered(core, settings)
    routes = list[Route]()
    if settings.has_cache and may_be_cached(core, settings, log):
        core, routes = cached(core, settings, registry, background, log)
    graph, readiness = core.graph, core.readiness
    parts = RoleContext(settings, graph, core.predict, core.sample, registry, readiness, core.pace, background, log, credentials)
    routes = [*ROUTES[settings.role](parts), *routes, *(edge(parts) if settings.edge_dir else ())]
    table = health_routes.routes([*page.routes(), *routes], registry, readiness, background.problem, bool(settings.token_file))
    Info(registry, "iris_wsgi_info", "What this server is.", ("role", "version"), [[settings.role], [__version__]])
    observer = RequestObserver(log, registry, (route.path for route in table), graph.version)
    registry.join()
    deadline_seconds, prefix = settings.deadline_ms / 1000 or inf, prefix_of(settings.url_prefix)
    served = app(table, observer, settings.max_body_bytes, deadline_seconds, prefix, check_host)
    return Service(served, graph, core.sample.row, core.self_test, readiness, observer, background)


def guard(settings: Settings, background: BackgroundTasks, log: Log) -> tuple[Callable[..., App], Callable[[], Fields]]:
    """What makes the application, and what is shown to other servers: without tokens all are answered, and nothing is."""
    if not settings.token_file:
        return App, nothing
    from iris_wsgi.wsgi.bearer_auth import LOOK_SECONDS, AuthenticatedApp, Tokens

    tokens = Tokens(settings.token_file, log.event)
    background.repeat("look for other tokens", LOOK_SECONDS, tokens.look)
    return partial(AuthenticatedApp, tokens, health_routes.PUBLIC_PATHS), tokens.fields


def gathered(core: ModelBackend, settings: Settings) -> ModelBackend:
    """With rows of several requests in one run. Raises BadSetting."""
    from iris_wsgi.model.batcher import DynamicBatcher

    refuse_unequal(core.difference(), "IRIS_BATCH_ROWS", "leave it at 0")
    return core._replace(predict=DynamicBatcher(core.predict, settings.batch_rows, BATCH_DELAY_SECONDS), pace=BLOCKING)


def cached(
    core: ModelBackend, settings: Settings, registry: Registry, background: BackgroundTasks, log: Log
) -> tuple[ModelBackend, list[Route]]:
    """Returns the model backend with a prediction cache, and the routes of the cache. Raises BadSetting."""
    from iris_wsgi.patterns.prediction_cache import routes as operating
    from iris_wsgi.patterns.prediction_cache.role import SYNC_SECONDS, create_cache

    cache = create_cache(core.predict, core.graph, settings, registry, core.pace, log)
    background.repeat("look whether the cache was cleared", SYNC_SECONDS, cache.sync)
    core = core._replace(predict=cache, pace=BLOCKING if cache.tier else core.pace)
    return core, operating.routes(cache, core.graph.digest)


def may_be_cached(core: ModelBackend, settings: Settings, log: Log) -> bool:
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
