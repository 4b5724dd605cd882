"""Pattern prep-pred: the first half of a model runs in this process, and the second half on another server."""

from collections.abc import Callable
from functools import partial
from math import inf

import numpy as np

from iris_wsgi.client.endpoint import CallMetrics, Endpoint, address_of
from iris_wsgi.client.inference import remote_predictor
from iris_wsgi.client.prober import Prober
from iris_wsgi.client.v2_messages import RemoteModel
from iris_wsgi.codec.model_schema import Array, classifier_outputs
from iris_wsgi.errors import BadModel
from iris_wsgi.model import golden
from iris_wsgi.model.predictor import BLOCKING, ModelMetrics, PredictContext, Prediction, measured
from iris_wsgi.model.session import load
from iris_wsgi.patterns.prep_pred.halves import PRED, FirstHalf, JoinedModel, check_prepared
from iris_wsgi.patterns.web_single import role as web_single
from iris_wsgi.services import ModelBackend, RoleContext, Sample, StartupContext, model_folder
from iris_wsgi.wsgi.application import Route
from iris_wsgi.wsgi.health_routes import Readiness


def routes(context: RoleContext) -> list[Route]:
    """Returns the web-single routes over the first half of a model, which calls the other half upstream."""

    def asks(route: Route) -> Route:
        if not route.path.startswith("/predict"):
            return route
        doc = route.doc._replace(failures=(502, 503, 504))
        return route._replace(doc=doc, schedule=route.schedule._replace(calls_upstream=True))

    return [asks(route) for route in web_single.routes(context)]


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
        measured(predict, ModelMetrics(start.registry, prep, outputs)),
        Sample(rows[:1], np.array([pinned.cases[0].outputs], np.float32)),
        BLOCKING,
        readiness,
        lambda: 0.0,
        f"{len(rows)} golden rows prepared; the second half is tested once it responds",
    )


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
