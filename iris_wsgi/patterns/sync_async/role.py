"""Pattern sync-async: the fast model answers at once, and the full one by a job."""

from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import FAST_FOLDER
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.predictor import within_deadline
from iris_wsgi.model.run_timeout import RunWatchdog
from iris_wsgi.patterns.asynchronous.role import job_routes, queue_of
from iris_wsgi.patterns.asynchronous.routes import JobQueue
from iris_wsgi.patterns.sync_async import routes as hybrid
from iris_wsgi.services import RoleContext
from iris_wsgi.wsgi.application import Route


def routes(context: RoleContext) -> list[Route]:
    """Returns the hybrid route, and the routes of jobs, which return the full model's answer."""
    queue = queue_of(context)
    return [*hybrid_routes(context, queue), *job_routes(context, queue)]


def hybrid_routes(parts: RoleContext, queue: JobQueue) -> list[Route]:
    """Raises BadModel if the fast model cannot be served, or answers something else than the full one."""
    settings, full = parts.settings, parts.model
    folder = Path(settings.model_dir) / FAST_FOLDER
    fast, _, _ = load_verified_model(folder)
    if (fast.labels, fast.width) != (full.labels, full.width):
        raise BadModel(
            f"{folder} takes {fast.width} features for {', '.join(fast.labels)}; the full model takes {full.width}"
            f" for {', '.join(full.labels)}"
        )
    return hybrid.routes(fast, within_deadline(fast, RunWatchdog()), queue, parts.log, settings.escalate_below)
