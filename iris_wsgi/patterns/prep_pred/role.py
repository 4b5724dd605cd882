"""A model in two halves, of which the first is here, and the other on another server or beside it."""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import NamedTuple

import numpy as np

from iris_wsgi.client.endpoint import Target, place_of
from iris_wsgi.client.metrics import CallMetrics
from iris_wsgi.client.predictor import remote
from iris_wsgi.client.prober import Watcher
from iris_wsgi.client.v2_messages import Peer
from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model import golden
from iris_wsgi.model.latency import BLOCKING
from iris_wsgi.model.predictor import ModelMetrics, PredictContext, Prediction, measured
from iris_wsgi.model.session import Graph, load, shaped
from iris_wsgi.patterns.web_single import role as web_single
from iris_wsgi.services import ModelBackend, RoleContext, Sample, StartupContext, model_folder
from iris_wsgi.wsgi.application import Route
from iris_wsgi.wsgi.health_routes import Readiness

# The name of the other half, as metrics and the log have it.
PRED = "pred"


def routes(context: RoleContext) -> list[Route]:
    """Returns the web-single routes over the first half of a model, which calls the other half upstream."""

    def asks(route: Route) -> Route:
        if not route.path.startswith("/predict"):
            return route
        doc = route.doc._replace(failures=(502, 503, 504))
        return route._replace(doc=doc, schedule=route.schedule._replace(calls_upstream=True))

    return [asks(route) for route in web_single.routes(context)]


class Prep(Graph):
    """Raw rows to rows as the other half takes them; `digest` is that of both together, their pair."""

    def __init__(self, content: bytes, labels: tuple[str, ...], file: str) -> None:
        """Raises BadModel."""
        super().__init__(content, labels, file)
        outputs = self.session.get_outputs()
        if len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
            raise BadModel(f"{file} must have one output, tensor(float) [N, features], which the other half of the model takes")
        if "pair" not in self.identity:
            raise BadModel(f"{file} does not say in its metadata, under `pair`, whose first half it is")
        self.output, self.columns = outputs[0].name, outputs[0].shape[1]
        # The halves have digests of their own; what answers name is the pair, as one half alone answers nothing.
        self.identity["prep"], self.digest = self.digest, self.identity["pair"]

    def prepare(self, rows: Array) -> Array:
        """Rows [n, features] to as many, in the width of the other half. Raises InvalidOutput for another shape."""
        (output,) = self.run((self.output,), {self.input: rows}, None)
        prepared = np.asarray(output, np.float32)
        # Where the file leaves the width open, the other half checks the width of its input.
        return shaped(prepared, len(rows), self.columns if isinstance(self.columns, int) else prepared.shape[-1])


class Joined(NamedTuple):
    """Both halves as one model, as golden rows test it."""

    labels: tuple[str, ...]
    width: int
    predict: Callable[[Array], Array]


def split_model(start: StartupContext) -> ModelBackend:
    """Loads the first half; whether the other answers, and belongs to it, is for readiness to tell. Raises BadModel."""
    settings = start.settings
    prep, pinned = load(Prep, model_folder(settings), settings.model_seal)
    rows = np.array([case.row for case in pinned.cases], np.float32)
    check_prepared(prep, rows)
    prepared = prep.prepare(rows)
    if not np.isfinite(prepared).all():
        raise BadModel(f"{model_folder(settings)} makes values that are not finite of its golden rows")
    metrics, wait_seconds = CallMetrics(start.registry, [PRED]), settings.deadline_ms / 1000 or inf
    target = Target(PRED, place_of(settings.pred_url), metrics, start.log.event, wait_seconds, start.credentials)

    def proves(ask: Callable[[Array], Array]) -> str | None:
        joined = Joined(prep.labels, prep.width, lambda rows: ask(prep.prepare(rows)))
        try:
            golden.self_test(joined, pinned.cases, pinned.tolerance)
        except BadModel as error:
            return str(error)
        off = golden.batch_difference(joined, pinned.cases) if settings.cache == "on" else 0.0
        return f"its answers to a row alone and in a batch differ by up to {off:.1e}; they cannot be cached" if off else None

    def fits(peer: Peer) -> str | None:
        if wrong := why_no_pair(prep, peer, prepared.shape[1]):
            return wrong
        prep.identity["pred"] = peer.digest
        return None

    watcher = Watcher(target, prepared[:1], fits, proves)
    start.background.add("look at pred", partial(watcher.run, start.background.is_stopping), drains=False)
    upstream = remote(target)

    def predict(rows: Array, context: PredictContext) -> Prediction:
        return upstream(prep.prepare(rows), context)

    readiness = Readiness(lambda: True)
    readiness.others.append(target.why_not)
    return ModelBackend(
        prep,
        measured(predict, prep, ModelMetrics(start.registry, prep)),
        Sample(pinned.cases[0].row, pinned.cases[0].probabilities),
        lambda: 0.0,
        BLOCKING,
        readiness,
        f"{len(rows)} golden rows prepared; what they give is tested with the other half",
    )


def check_prepared(prep: Prep, rows: Array) -> None:
    """Runs the first half on one row, on two rows, and on all rows. Raises BadModel if an output has another shape."""
    for some in (rows[:1], rows[[0, -1]], rows):
        try:
            prep.prepare(some)
        except Problem as problem:
            raise BadModel(f"the first half of the model cannot be used: {problem.detail}") from None


def why_no_pair(prep: Prep, peer: Peer, columns: int) -> str | None:
    """Returns why the model of the other server is not the half that takes rows of so many `columns`."""
    pair = peer.told.get("pair")
    if pair != prep.digest:
        return f"its model is of the pair {pair or 'none'}, and this half is of the pair {prep.digest}"
    if peer.width != columns:
        return f"its model takes {peer.width} columns, and this half gives {columns}"
    if peer.classes != len(prep.labels):
        return f"its model has {peer.classes} classes, not {len(prep.labels)}"
    return None
