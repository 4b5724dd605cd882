"""Role sync_async: the fast model responds at once, and the full model by a job."""

from pathlib import Path

from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.model.companions import load_fast
from iris_wsgi.model.predictor import RunWatchdog, within_deadline
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
    settings = context.settings
    fast = load_fast(Path(settings.model_dir), context.model, context.outputs)
    if settings.escalate_below < 1 and fast.outputs.kind != CLASSIFIER:
        raise BadSetting(f"IRIS_ESCALATE_BELOW: a model of {fast.outputs.name} has no probability to compare; leave it at 1")
    return sync_async.routes(fast, within_deadline(fast, RunWatchdog()), queue, context.log, settings.escalate_below)
