"""Pattern synchronous: the Open Inference Protocol v2, and KServe v1, over all models of the server."""

from collections.abc import Sequence

from iris_wsgi.model.predictor import RunWatchdog, within_deadline
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.synchronous import v1_routes, v2_routes
from iris_wsgi.patterns.synchronous.served_model import serve
from iris_wsgi.patterns.synchronous.statistics import ModelStatistics, StatisticsMetrics
from iris_wsgi.services import RoleContext
from iris_wsgi.wsgi.application import Route


def routes(context: RoleContext, others: Sequence[Model] = ()) -> list[Route]:
    """Returns the routes of v2 and v1 over the model of the role and over `others`, each under its name."""
    # Only role prep has half a model, and it does not serve these routes.
    assert isinstance(context.model, Model)
    predicts = {context.model: context.predict} | {model: within_deadline(model, RunWatchdog()) for model in others}
    metrics = StatisticsMetrics(context.registry, [model.name for model in predicts])
    models = {m.name: serve(m, predict, ModelStatistics(metrics, m.name)) for m, predict in predicts.items()}
    arguments = models, context.readiness.problem, context.settings.max_rows, context.latency
    return [*v2_routes.routes(*arguments), *v1_routes.routes(*arguments)]
