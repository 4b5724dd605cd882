"""The catalogue of roles: one short function each, from parts to the routes a client sees."""

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

from iris_wsgi import golden, ops
from iris_wsgi.folder import Case
from iris_wsgi.gather import Gatherer
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import Model, load_model
from iris_wsgi.observer import RequestObserver
from iris_wsgi.pace import BLOCKING, Pace, measure
from iris_wsgi.predictors import ModelMetrics, Predict, measured, within_deadline
from iris_wsgi.routes import single, v1, v2
from iris_wsgi.servable import classifier
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.tally import Tallies, Tally
from iris_wsgi.watch import Watch
from iris_wsgi.wsgi import App, Route


class Parts(NamedTuple):
    """What roles are put together from."""

    settings: Settings
    model: Model
    predict: Predict
    sample: list[float]
    registry: Registry
    readiness: ops.Readiness
    pace: Pace


def web_single(parts: Parts) -> list[Route]:
    return single.routes(parts.model, parts.predict, parts.sample, parts.settings.max_rows, parts.pace)


def synchronous(parts: Parts) -> list[Route]:
    """The routes of v2 and v1 over each model under its own name; today there is one."""
    tallies = Tallies(parts.registry, [parts.model.name])
    one = classifier(parts.model, parts.predict, Tally(tallies, parts.model.name))
    models = {one.served.name: one}
    protocols = [family.routes(models, parts.readiness.why_not, parts.settings.max_rows, parts.pace) for family in (v2, v1)]
    return [route for table in protocols for route in table]


def everything(parts: Parts) -> list[Route]:
    return [*web_single(parts), *synchronous(parts)]


ROLES: dict[str, Callable[[Parts], list[Route]]] = {
    "all": everything,
    "web_single": web_single,
    "synchronous": synchronous,
}


def refuse_unequal(model: Model, cases: Sequence[Case]) -> None:
    """Raises BadSetting for a model whose answer to a row is another in company: with micro-batching it would come by chance."""
    if off := golden.difference(model, cases):
        raise BadSetting(
            f"IRIS_BATCH_ROWS: this model's answers to a row alone and in a batch differ by up to {off:.1e}; leave it at 0"
        )


class Service(NamedTuple):
    """An application that is ready to be served, and what its start found."""

    app: App
    model: Model
    sample: list[float]
    self_test: str
    readiness: ops.Readiness
    observer: RequestObserver


def build(settings: Settings, log: Log, registry: Registry | None = None) -> Service:
    """Loads and tests the model, and puts the role together. Raises BadModel."""
    model, pinned = load_model(Path(settings.model_dir), settings.model_seal)
    self_test = golden.self_test(model, pinned.cases, pinned.tolerance)
    sample = pinned.cases[0]
    registry = registry or Registry()
    predict: Predict = measured(within_deadline(model, Watch()), model, ModelMetrics(registry, model))
    pace = measure(model, sample.row)
    if settings.batch_rows:
        refuse_unequal(model, pinned.cases)
        predict, pace = Gatherer(predict, settings.batch_rows, settings.batch_delay_ms / 1000), BLOCKING
    readiness = ops.Readiness(lambda: golden.holds(model, sample, pinned.tolerance), pace.alone)
    parts = Parts(settings, model, predict, sample.row, registry, readiness, pace)
    table = ops.routes(ROLES[settings.role](parts), registry, readiness)
    observer = RequestObserver(log, registry, (route.path for route in table), model.version)
    registry.join()
    return Service(
        App(table, observer, settings.max_body_bytes, settings.deadline_ms / 1000 or inf),
        model,
        sample.row,
        self_test,
        readiness,
        observer,
    )
