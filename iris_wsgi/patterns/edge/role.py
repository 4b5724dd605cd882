"""Pattern edge AI: the routes that serve a bundle to devices and collect their reports."""

from pathlib import Path

from iris_wsgi.patterns.edge import routes as edge_routes
from iris_wsgi.patterns.edge.bundle_files import labels_of, read_bundle
from iris_wsgi.patterns.edge.telemetry import Seen
from iris_wsgi.services import RoleContext
from iris_wsgi.settings import BadSetting
from iris_wsgi.wsgi.application import Route


def routes(parts: RoleContext) -> list[Route]:
    """The bundle that the settings name. Raises BadSetting where it is required, and is damaged or of another model."""
    settings = parts.settings
    try:
        bundle = read_bundle(Path(settings.edge_dir))
        labels = labels_of(bundle, parts.model, settings)
    except BadSetting as error:
        if settings.edge_required == "yes":
            raise
        parts.log.event("warning", f"/edge/ is not served: {error}")
        return []
    reported = parts.registry.counter(
        "edge_predictions_total", "Predictions that devices at the edge have reported, by label.", "label", labels
    )
    return edge_routes.routes(bundle, labels, reported, Seen(parts.registry.board.reports), parts.log)
