"""Pattern web single: one model behind its own routes."""

from pathlib import Path

from iris_wsgi.patterns.web_single import routes as predict_routes
from iris_wsgi.patterns.web_single import training_routes
from iris_wsgi.services import RoleContext
from iris_wsgi.wsgi.application import Route


def routes(context: RoleContext) -> list[Route]:
    settings = context.settings
    return [
        *predict_routes.routes(context.model, context.predict, context.sample, settings.max_rows, context.pace),
        *training_routes.routes(context.model, Path(settings.model_dir), context.log.event),
    ]
