"""Pattern synchronous: the Open Inference Protocol v2, and KServe v1, over all models of the server."""

from collections.abc import Sequence
from functools import partial

from iris_wsgi.model.predictor import Prediction, RunWatchdog, within_deadline
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.synchronous import v1_routes, v2_routes
from iris_wsgi.patterns.synchronous.served_model import ModelStatistics, ServedModel, StatisticsMetrics, serve
from iris_wsgi.services import RoleContext, Sample
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Route

TAG = "synchronous", "The Open Inference Protocol v2, and KServe v1."


def routes(context: RoleContext, others: Sequence[Model] = ()) -> list[Route]:
    """Returns the routes of v2 and v1 over the model of the role and over `others`, each under its name."""
    # Only role prep has half a model, and it does not serve these routes.
    assert isinstance(context.model, Model)
    predicts = {context.model: context.predict} | {model: within_deadline(model, RunWatchdog()) for model in others}
    metrics = StatisticsMetrics(context.registry, [model.name for model in predicts])
    models = {m.name: serve(m, predict, ModelStatistics(metrics, m.name)) for m, predict in predicts.items()}
    arguments = models, context.readiness.problem, context.settings.max_rows, context.latency
    # A model that gives the sample prediction without a run.
    sampled = serve(context.model, lambda *_: Prediction(context.sample.outputs), models[context.model.name].statistics)
    table = [*v2_routes.routes(*arguments), *v1_routes.routes(*arguments)]
    return openapi.tagged(*TAG, [with_examples(route, sampled, context.sample) for route in table])


def with_examples(route: Route, model: ServedModel, sample: Sample) -> Route:
    """Adds the sample row and its prediction to the description of the routes that predict."""
    if route.path.endswith("/infer"):
        request = partial(v2_routes.request_example, model, sample.rows)
        response = partial(v2_routes.response_example, model, sample.rows)
        return route._replace(doc=route.doc._replace(request=request, example=response))
    if route.path.endswith(":predict"):
        return route._replace(doc=route.doc._replace(example=partial(v1_routes.response_example, model, sample.rows)))
    return route
