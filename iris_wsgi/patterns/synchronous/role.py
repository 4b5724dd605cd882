"""Pattern synchronous: the Open Inference Protocol v2, and v1, over every model of the server."""

from collections.abc import Sequence

from iris_wsgi.model.predictor import within_deadline
from iris_wsgi.model.run_timeout import RunWatchdog
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.synchronous import v1_routes, v2_routes
from iris_wsgi.patterns.synchronous.served_model import classifier
from iris_wsgi.patterns.synchronous.statistics import Tallies, Tally
from iris_wsgi.services import RoleContext
from iris_wsgi.wsgi.application import Route


def routes(context: RoleContext, others: Sequence[Model] = ()) -> list[Route]:
    """Returns the routes of v2 and v1 over the model of the role and over `others`, each under its own name."""
    # Only role prep has half a model, and it does not serve these routes.
    assert isinstance(context.model, Model)
    predicts = {context.model: context.predict} | {model: within_deadline(model, RunWatchdog()) for model in others}
    tallies = Tallies(context.registry, [model.name for model in predicts])
    models = {model.name: classifier(model, predict, Tally(tallies, model.name)) for model, predict in predicts.items()}
    max_rows, pace, why_not = context.settings.max_rows, context.pace, context.readiness.why_not
    return [*v2_routes.routes(models, why_not, max_rows, pace), *v1_routes.routes(models, why_not, max_rows, pace)]
