"""Pattern prep-pred: the first half of a model runs in this process, and the second half on another server."""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import NamedTuple

import numpy as np

from iris_wsgi.client.endpoint import CallMetrics, Endpoint, address_of
from iris_wsgi.client.inference import remote_predictor
from iris_wsgi.client.prober import Prober
from iris_wsgi.client.v2_messages import RemoteModel
from iris_wsgi.codec.model_schema import CLASSIFIER, GRAPH, Array, OutputSchema, RowSchema, classifier_outputs
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model import golden
from iris_wsgi.model.artifact import ModelDescription
from iris_wsgi.model.predictor import BLOCKING, ModelMetrics, PredictContext, Prediction, measured
from iris_wsgi.model.session import Graph, ModelFiles, load, shaped
from iris_wsgi.patterns.web_single import role as web_single
from iris_wsgi.services import ModelBackend, RoleContext, Sample, StartupContext, model_folder
from iris_wsgi.wsgi.application import Route
from iris_wsgi.wsgi.health_routes import Readiness

# The name of the other half in metrics and in the log.
PRED = "pred"


def routes(context: RoleContext) -> list[Route]:
    """Returns the web-single routes over the first half of a model, which calls the other half upstream."""

    def asks(route: Route) -> Route:
        if not route.path.startswith("/predict"):
            return route
        doc = route.doc._replace(failures=(502, 503, 504))
        return route._replace(doc=doc, schedule=route.schedule._replace(calls_upstream=True))

    return [asks(route) for route in web_single.routes(context)]


class FirstHalf(Graph):
    """Converts raw rows to the input rows of the second half. `digest` is that of the pair of both halves."""

    def __init__(self, files: ModelFiles, description: ModelDescription) -> None:
        """Raises BadModel."""
        super().__init__(files, description)
        file, outputs = files.path, self.session.get_outputs()
        if description.kind != CLASSIFIER or description.label == GRAPH:
            raise BadModel(f"{file} is not the half of a classifier with probabilities; the pattern prep-pred serves only those")
        if len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
            raise BadModel(f"{file} must have one output, tensor(float) [N, features], for the second half of the model")
        if "pair" not in self.identity:
            raise BadModel(f"{file} has no metadata `pair`, which names the pair that this half belongs to")
        self.output, self.columns = outputs[0].name, outputs[0].shape[1]
        # Each half has a digest. Responses have that of the pair, because one half alone predicts nothing.
        self.identity["prep"], self.digest = self.digest, self.identity["pair"]

    def prepare(self, rows: Array) -> Array:
        """Converts rows [n, features] to rows [n, columns] of the second half. Raises InvalidOutput for another shape."""
        (output,) = self.run((self.output,), self.feeds(rows), None)
        prepared = np.asarray(output, np.float32)
        # If the file does not set the width, the second half validates the width of its input.
        return shaped(prepared, len(rows), self.columns if isinstance(self.columns, int) else prepared.shape[-1])


class JoinedModel(NamedTuple):
    """Both halves as one model, for the self-test with golden rows."""

    outputs: OutputSchema
    schema: RowSchema
    predict: Callable[[Array], Array]


def split_model(start: StartupContext) -> ModelBackend:
    """Loads the first half. Readiness reports whether the second half responds and belongs to it. Raises BadModel."""
    settings = start.settings
    prep, pinned = load(FirstHalf, model_folder(settings), settings.model_seal)
    rows, outputs = golden.golden_array(prep, pinned.cases), classifier_outputs(prep.labels)
    check_prepared(prep, rows)
    prepared = prep.prepare(rows)
    if not np.isfinite(prepared).all():
        raise BadModel(f"{model_folder(settings)} converts its golden rows to values that are not finite")
    metrics, timeout_seconds = CallMetrics(start.registry, [PRED]), settings.deadline_ms / 1000 or inf
    address = address_of(settings.pred_url)
    endpoint = Endpoint(PRED, address, metrics, start.log.event, timeout_seconds, start.credentials)

    def self_test(predict_second: Callable[[Array], Array]) -> str | None:
        joined = JoinedModel(outputs, prep.schema, lambda rows: predict_second(prep.prepare(rows)))
        try:
            golden.self_test(joined, pinned.cases, pinned.tolerance)
        except BadModel as error:
            return str(error)
        off = golden.batch_difference(joined, pinned.cases) if settings.cache == "on" else 0.0
        return (
            f"its probabilities of a row alone and in a batch differ by up to {off:.1e}, so they cannot be cached"
            if off
            else None
        )

    def matches(model: RemoteModel) -> str | None:
        if why := why_not_pair(prep, model, prepared.shape[1]):
            return why
        prep.identity["pred"] = model.digest
        return None

    prober = Prober(endpoint, prepared[:1], matches, self_test)
    start.background.add("probe pred", partial(prober.run, start.background.is_stopping), drains=False)
    upstream = remote_predictor(endpoint)

    def predict(rows: Array, context: PredictContext) -> Prediction:
        return upstream(prep.prepare(rows), context)

    readiness = Readiness(lambda: True)
    readiness.checks.append(endpoint.why_not)
    return ModelBackend(
        prep,
        outputs,
        measured(predict, prep, outputs, ModelMetrics(start.registry, prep)),
        Sample(rows[:1], np.array([pinned.cases[0].outputs], np.float32)),
        BLOCKING,
        readiness,
        lambda: 0.0,
        f"{len(rows)} golden rows prepared; the second half is tested once it responds",
    )


def check_prepared(prep: FirstHalf, rows: Array) -> None:
    """Runs the first half on one row, on two rows, and on all rows. Raises BadModel if an output has another shape."""
    for batch in (rows[:1], rows[[0, -1]], rows):
        try:
            prep.prepare(batch)
        except Problem as problem:
            raise BadModel(f"the first half of the model cannot be used: {problem.detail}") from None


def why_not_pair(prep: FirstHalf, model: RemoteModel, columns: int) -> str | None:
    """Returns why the model of the other server is not the second half for rows of `columns`, or None if it is."""
    pair = model.parameters.get("pair")
    if pair != prep.digest:
        return f"its model is of the pair {pair or 'none'}, and this half is of the pair {prep.digest}"
    if model.width != columns:
        return f"its model takes {model.width} columns, and this half returns {columns}"
    if model.classes != len(prep.labels):
        return f"its model has {model.classes} classes, not {len(prep.labels)}"
    return None
