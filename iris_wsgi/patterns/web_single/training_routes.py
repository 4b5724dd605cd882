"""Route of the training rows, for the plot of the page."""

import json
from collections.abc import Callable
from pathlib import Path

from iris_wsgi.model.predictor import NEVER
from iris_wsgi.model.session import Graph
from iris_wsgi.model.training_data import FILE, read_training
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.conditional import conditional

MAX_ROWS = 1000
# Keeps the response below a megabyte for models with many features.
MAX_VALUES = 50_000


def training_routes(model: Graph, folder: Path, log_event: Callable[[str, str], None]) -> list[Route]:
    """Returns the route of the training rows. There is none without the file, or if it belongs to another model."""
    try:
        response = Response(json.dumps(training_document(model, folder), ensure_ascii=False).encode())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log_event("warning", f"GET /training is not served: {folder / FILE} is invalid: {reason}")
        return []
    doc = RouteDoc("Training rows with their classes", openapi.OBJECT)
    # The pool computes the ETag of this large response.
    return [conditional(Route("GET", "/training", lambda _: response, doc, schedule=Schedule(NEVER)))]


def training_document(model: Graph, folder: Path) -> dict[str, object]:
    """Raises OSError and ValueError."""
    rows, names = read_training(model, folder, min(MAX_ROWS, MAX_VALUES // model.width + 1))
    if not names:
        raise ValueError("it has no column for the label")
    if set(names) - set(model.labels):
        raise ValueError("it has classes that are not labels of the model")
    return {
        "features": [feature.name for feature in model.features],
        "labels": model.labels,
        # The shortest decimal numbers of the float32 values, as the file has them.
        "rows": [[float(str(value)) for value in row] for row in rows],
        "classes": [model.labels.index(name) for name in names],
    }
