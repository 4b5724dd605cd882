"""Role sync_async: the fast model responds at once, and the full model by a job."""

from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import FAST_FOLDER
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.predictor import RunWatchdog, within_deadline
from iris_wsgi.patterns.asynchronous.role import create_queue, job_routes
from iris_wsgi.patterns.asynchronous.routes import JobQueue
from iris_wsgi.patterns.sync_async import routes as sync_async
from iris_wsgi.services import RoleContext
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
    if (fast.labels, fast.width) != (full.labels, full.width):
        raise BadModel(
            f"{folder} takes {fast.width} features for {', '.join(fast.labels)}; the full model takes {full.width}"
            f" for {', '.join(full.labels)}"
        )
    return sync_async.routes(fast, within_deadline(fast, RunWatchdog()), queue, context.log, settings.escalate_below)
