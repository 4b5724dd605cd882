"""Composition root: builds the application of a role from the settings."""

from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from iris_wsgi import __version__
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model import golden
from iris_wsgi.model.artifact import GOLDEN, SELF, check_classifier, parse_golden, read_file
from iris_wsgi.model.predictor import (
    BLOCKING,
    ModelMetrics,
    RunWatchdog,
    bind_row,
    measure,
    measured,
    row_predictor,
    within_deadline,
)
from iris_wsgi.model.session import Graph, Model
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Info, Registry
from iris_wsgi.observability.trace_context import Headers, no_headers
from iris_wsgi.patterns.web_single import page
from iris_wsgi.resilience.background import BackgroundTasks
from iris_wsgi.roles import ROLES
from iris_wsgi.services import ModelBackend, RoleContext, Sample, StartupContext, model_folder
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.wsgi import health_routes, openapi
from iris_wsgi.wsgi.application import App, Route
from iris_wsgi.wsgi.body import Environ
from iris_wsgi.wsgi.browser_security import AllowedHosts
from iris_wsgi.wsgi.request_observer import RequestObserver
from iris_wsgi.wsgi.routing import prefix_of

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


def check_role(settings: Settings) -> None:
    """Raises BadModel if the role serves a part of the model in the folder, and this model is not a classifier."""
    role, whole = ROLES[settings.role], Path(settings.model_dir)
    if not role.folder:
        return
    # The folder may hold only the part.
    for folder in (whole, model_folder(settings)):
        if (folder / GOLDEN).exists():
            pattern = "horizontal" if settings.role == "member" else "prep-pred"
            check_classifier(pattern, parse_golden(read_file(folder / GOLDEN), str(folder / GOLDEN)).description.kind)


def local_model(start: StartupContext) -> ModelBackend:
    """Loads the model and tests it. Raises BadModel."""
    folder = model_folder(start.settings)
    model, pinned, self_test = golden.load_verified_model(folder, start.settings.model_seal)
    first = pinned.cases[0]
    row = golden.golden_array(model, [first])
    try:
        latency = measure(model, row)
    except Problem as problem:
        raise BadModel(f"{folder}: {problem.detail}") from None
    watchdog, metrics = RunWatchdog(), ModelMetrics(start.registry, model, model.outputs)
    bound = bind_row(model, golden.golden_array(model, pinned.cases))
    return ModelBackend(
        model,
        model.outputs,
        measured(within_deadline(model, watchdog), metrics),
        Sample(row, model.predict(row)),
        latency,
        health_routes.Readiness(lambda: golden.passes(model, pinned.cases, pinned.tolerance), latency.single_row),
        partial(golden.batch_difference, model, pinned.cases),
        self_test,
        row_predictor(bound, watchdog if model.has_control_flow else None, metrics) if bound else None,
    )


def member_model(start: StartupContext) -> ModelBackend:
    """Loads the model of one species. Raises BadModel if it is not the species of IRIS_MEMBER."""
    backend, member = local_model(start), start.settings.member
    species, labels = backend.model.identity.get("member"), backend.model.labels
    if species != member or labels[1:] != (member,):
        raise BadModel(
            f"{model_folder(start.settings)} has a model of {species or 'no species'} for {', '.join(labels)};"
            f" IRIS_MEMBER={member} requires a model of {member} for other, {member}"
        )
    return backend


def second_half(settings: Settings, full: Graph) -> Model:
    """Returns the model that role pred would serve. Raises BadModel if it does not belong to the full model."""
    from iris_wsgi.patterns.prep_pred.halves import load_pair

    check_classifier("prep-pred", full.description.kind)
    folder = Path(settings.model_dir)
    return load_pair(folder, full, parse_golden(read_file(folder / GOLDEN), str(folder / GOLDEN))).pred


def everything(context: RoleContext) -> list[Route]:
    """Returns the routes of all patterns in one process, and adds a job worker."""
    from iris_wsgi.patterns.asynchronous import role as asynchronous
    from iris_wsgi.patterns.data_cache import role as data_cache
    from iris_wsgi.patterns.horizontal import role as horizontal
    from iris_wsgi.patterns.sync_async import role as sync_async
    from iris_wsgi.patterns.synchronous import role as synchronous

    queue = asynchronous.create_queue(context)
    worker = asynchronous.create_worker(context, queue.metrics)
    context.background.add("worker", worker.run)
    queue = queue._replace(wake_worker=worker.wake)
    hybrid = if_model_exists(context, "POST /predict/hybrid", lambda: sync_async.predict_routes(context, queue))
    create_ensemble = horizontal.remote_ensemble if context.settings.members else horizontal.local_ensemble
    ensemble = if_model_exists(context, "POST /ensemble/predict", lambda: create_ensemble(context))
    # A server of role prep may use this server as its upstream.
    halves = if_model_exists(context, "the second half for role prep", lambda: [second_half(context.settings, context.model)])
    return [
        *web_single(context),
        *synchronous.routes(context, halves),
        *asynchronous.job_routes(context, queue),
        *hybrid,
        *data_cache.routes(context),
        *ensemble,
    ]


def if_model_exists(context: RoleContext, name: str, create: Callable[[], list[Kind]]) -> list[Kind]:
    """Returns an empty list if a companion model is missing or invalid: a model of a user may have no companions."""
    try:
        return create()
    except BadModel as error:
        context.log.event("warning", f"{name} is not served: {error}")
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
# The other roles use `local_model`.
BACKENDS: dict[str, Backend] = {"prep": split_model, "member": member_model}
# A batch contains the rows that arrived during the run before. Waiting for more costs more than it gains (docs/benchmark.md).
BATCH_DELAY_SECONDS = 0.0


class Service(NamedTuple):
    """An application with its model and its background tasks, ready to be served."""

    app: App
    model: Graph
    sample: list[Any]
    self_test: str
    readiness: health_routes.Readiness
    observer: RequestObserver
    background: BackgroundTasks


def build(settings: Settings, log: Log, registry: Registry | None = None, check_host: CheckHost | None = None) -> Service:
    """Loads and tests the model, and builds the application. Raises BadModel, BadSetting, BadStore, and BackendUnavailable.

    By default, `check_host` accepts the hosts that match the address of this server.
    """
    check_host = check_host or AllowedHosts(settings.allowed_hosts, settings.host).check
    registry, background = registry or Registry(), BackgroundTasks(log)
    create_app, credentials = authentication(settings, background, log)
    start = StartupContext(settings, registry, background, log, credentials)
    check_role(settings)
    backend = BACKENDS.get(settings.role, local_model)(start)
    warn_if_unproven(backend.model, log)
    if settings.batch_rows:
        backend = batched(backend, settings)
    cache_routes = list[Route]()
    if settings.has_cache and can_cache(backend, settings, log):
        backend, cache_routes = cached(backend, start)
    model, readiness = backend.model, backend.readiness
    context = RoleContext(
        *start, model, backend.outputs, backend.predict, backend.sample, backend.latency, readiness, backend.predict_row
    )
    root = page.routes(lambda prefix: page.server_info(settings.role, table, prefix))
    routes = [*root, *ROUTES[settings.role](context), *cache_routes, *(edge(context) if settings.edge_dir else ())]
    examples = partial(openapi.examples, model, backend.outputs, *backend.sample)
    table = health_routes.routes(routes, registry, readiness, background.problem, bool(settings.token_file), examples)
    Info(registry, "iris_wsgi_info", "Role and version of the server.", ("role", "version"), [[settings.role], [__version__]])
    observer = RequestObserver(log, registry, (route.path for route in table), model.version)
    registry.join()
    deadline_seconds, prefix = settings.deadline_ms / 1000 or inf, prefix_of(settings.url_prefix)
    app = create_app(table, observer, settings.max_body_bytes, deadline_seconds, prefix, check_host)
    return Service(app, model, model.schema.to_values(backend.sample.rows)[0], backend.self_test, readiness, observer, background)


def warn_if_unproven(model: Graph, log: Log) -> None:
    """Logs a warning if only the graph itself gave the golden rows. A folder of an older version does not say."""
    if model.description.proof == SELF and model.description.runtime:
        log.event("warning", f"the model is not proven: {golden.proof_of(model.description)}", model=model.digest)


def authentication(settings: Settings, background: BackgroundTasks, log: Log) -> tuple[Callable[..., App], Callable[[], Headers]]:
    """Returns the constructor of the application, and the function for the headers of calls to other servers."""
    if not settings.token_file:
        return App, no_headers
    from iris_wsgi.wsgi.bearer_auth import RELOAD_SECONDS, AuthenticatedApp, Tokens

    tokens = Tokens(settings.token_file, log.event)
    background.repeat("reload tokens", RELOAD_SECONDS, tokens.reload)
    return partial(AuthenticatedApp, tokens, health_routes.PUBLIC_PATHS), tokens.headers


def batched(backend: ModelBackend, settings: Settings) -> ModelBackend:
    """Adds dynamic batching. Raises BadSetting."""
    from iris_wsgi.model.batcher import DynamicBatcher

    check_batch_difference(backend.batch_difference(), "IRIS_BATCH_ROWS", "leave it at 0")
    batcher = DynamicBatcher(backend.predict, settings.batch_rows, BATCH_DELAY_SECONDS)
    return backend._replace(predict=batcher, latency=BLOCKING, predict_row=None)


def cached(backend: ModelBackend, start: StartupContext) -> tuple[ModelBackend, list[Route]]:
    """Adds a prediction cache, and returns its routes too. Raises BadSetting."""
    from iris_wsgi.patterns.prediction_cache.role import SYNC_SECONDS, create_cache, routes

    model = backend.model
    cache = create_cache(backend.predict, model, backend.outputs, start.settings, start.registry, backend.latency, start.log)
    start.background.repeat("sync the prediction cache", SYNC_SECONDS, cache.sync)
    backend = backend._replace(predict=cache, latency=BLOCKING if cache.tier else backend.latency, predict_row=None)
    return backend, routes(cache, model.digest)


def can_cache(backend: ModelBackend, settings: Settings, log: Log) -> bool:
    """Returns False if predictions depend on the batch and the cache is optional. If it is required, raises BadSetting."""
    difference = backend.batch_difference()
    if difference and settings.cache == "auto" and settings.role == "all":
        log.event("warning", "there is no prediction cache: this model's predictions for a row alone and in a batch differ")
        return False
    name = "IRIS_ROLE=prediction_cache" if settings.cache == "auto" else "IRIS_CACHE=on"
    check_batch_difference(difference, name, "it cannot be cached")
    return True


def check_batch_difference(difference: float, name: str, advice: str) -> None:
    """Raises BadSetting if the prediction for a row depends on the other rows of its batch."""
    if difference:
        raise BadSetting(
            f"{name}: this model's predictions for a row alone and in a batch differ by up to {difference:.1e}; {advice}"
        )
