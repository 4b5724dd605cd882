"""The rows that the model was trained on, for who draws them."""

import json
from collections.abc import Callable
from pathlib import Path

from iris_wsgi.model.latency import NEVER
from iris_wsgi.model.session import Graph
from iris_wsgi.model.training_data import FILE, read_training
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.conditional import revalidated

MOST_ROWS = 1000
# Rows of many features are fewer, so that the answer stays below a megabyte.
MOST_VALUES = 50_000


def routes(model: Graph, folder: Path, tell: Callable[[str, str], None]) -> list[Route]:
    """None where the file is not there; where it is not of this model `tell` is told, and there is none either."""
    try:
        response = Response(json.dumps(document(model, folder), ensure_ascii=False).encode())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        tell("warning", f"GET /training is not served: {folder / FILE} is not used: {why}")
        return []
    doc = RouteDoc("Rows of the training, with their classes", openapi.OBJECT)
    # The pool computes the ETag of a large response.
    route = Route("GET", "/training", lambda _: response, doc, schedule=Schedule(inline_bytes=NEVER))
    return [revalidated(route)]


def document(model: Graph, folder: Path) -> dict[str, object]:
    """Raises OSError and ValueError."""
    rows, names = read_training(model, folder, min(MOST_ROWS, MOST_VALUES // model.width + 1))
    if not names:
        raise ValueError("it does not tell the classes of its rows")
    if set(names) - set(model.labels):
        raise ValueError("it has classes that the model does not know")
    return {
        "features": [feature.name for feature in model.features],
        "labels": model.labels,
        # As they are in the file, not as the double next to a float32 is spelled.
        "rows": [[float(str(value)) for value in row] for row in rows],
        "classes": [model.labels.index(name) for name in names],
    }
