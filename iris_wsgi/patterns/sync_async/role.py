"""Role sync_async: the fast model responds at once, and the full model by a job."""

from pathlib import Path

from iris_wsgi.codec.model_schema import CLASSIFIER, OutputSchema
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import FAST_FOLDER
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.predictor import RunWatchdog, within_deadline
from iris_wsgi.model.session import Graph, Model, listed
from iris_wsgi.patterns.asynchronous.role import create_queue, job_routes
from iris_wsgi.patterns.asynchronous.routes import JobQueue
from iris_wsgi.patterns.sync_async import routes as sync_async
from iris_wsgi.services import RoleContext
from iris_wsgi.settings import BadSetting
from iris_wsgi.wsgi.application import Route


def routes(context: RoleContext) -> list[Route]:
    """Returns the sync-async route, and the routes of the jobs of the full model."""
    queue = create_queue(context)
    return [*predict_routes(context, queue), *job_routes(context, queue)]


def predict_routes(context: RoleContext, queue: JobQueue) -> list[Route]:
    """Returns the sync-async route. Raises BadModel if the fast model is invalid, or differs in features or labels."""
    settings, full = context.settings, context.model
    folder = Path(settings.model_dir) / FAST_FOLDER
    fast, _, _ = load_verified_model(folder)
    if difference := difference_of(fast, full, context.outputs):
        raise BadModel(f"{folder} has a model that does not belong to the full one: {difference}")
    if settings.escalate_below < 1 and fast.outputs.kind != CLASSIFIER:
        raise BadSetting(f"IRIS_ESCALATE_BELOW: a model of {fast.outputs.name} has no probability to compare; leave it at 1")
    return sync_async.routes(fast, within_deadline(fast, RunWatchdog()), queue, context.log, settings.escalate_below)


def difference_of(fast: Model, full: Graph, outputs: OutputSchema) -> str:
    """Returns how the features or the outputs of both models differ, or an empty string."""
    pairs = (
        ("takes", [feature.type for feature in fast.features], [feature.type for feature in full.features]),
        ("gives", [fast.outputs.kind], [outputs.kind]),
        ("has the classes", fast.labels, full.labels),
        ("has the columns", fast.outputs.columns, outputs.columns),
    )
    return next((f"it {what} {listed(a)}; the full model {what} {listed(b)}" for what, a, b in pairs if list(a) != list(b)), "")
