"""The OpenAPI 3.1 document, from the route table, and the JSON schemas that its routes share."""

from collections.abc import Sequence

from iris_wsgi.errors import MOST_FAULTS, PHRASES, PROBLEM_JSON
from iris_wsgi.model import Model
from iris_wsgi.wsgi import JSON, Route

Schema = dict[str, object]

OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
PROBLEM: Schema = {
    "type": "object",
    "required": ["title", "status", "detail", "request_id"],
    "properties": {
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "request_id": TEXT,
        "errors": {
            "type": "array",
            "maxItems": MOST_FAULTS,
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": TEXT, "detail": TEXT},
            },
        },
    },
}
# What any route may answer, and what those that take a body may answer besides.
ALWAYS = (500,)
WITH_BODY = (400, 413, 415, 422)


def closed(**properties: object) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}


def listed(items: object, least: int, most: int) -> Schema:
    return {"type": "array", "minItems": least, "maxItems": most, "items": items}


def rows(model: Model, most: int) -> Schema:
    """The body of a prediction: 1 to `most` rows."""
    unit = ", ".join(f"{f.name} ({f.unit})" if f.unit else f.name for f in model.features)
    row = listed({"type": "number"}, model.width, model.width) | {"description": unit}
    return closed(data=listed(row, 1, most))


def row_answer(model: Model) -> Schema:
    return closed(prediction=probabilities(model))


def probabilities(model: Model) -> Schema:
    return listed({"type": "number"}, len(model.labels), len(model.labels))


def label(model: Model) -> Schema:
    return {"type": "string", "enum": list(model.labels)}


def label_answer(model: Model) -> Schema:
    return closed(prediction=label(model))


def proba_answer(model: Model) -> Schema:
    pair = closed(label=label(model), probability={"type": "number"})
    return closed(prediction=listed(pair, len(model.labels), len(model.labels)))


def batch_answer(model: Model) -> Schema:
    many = {"type": "array", "minItems": 1}
    return closed(
        classes=listed(label(model), len(model.labels), len(model.labels)),
        labels=many | {"items": label(model)},
        probabilities=many | {"items": probabilities(model)},
    )


def document(routes: Sequence[Route], title: str, version: str) -> Schema:
    """The whole document; every route of the table is in it, and nothing else."""
    paths: dict[str, Schema] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": {"Problem": PROBLEM}},
    }


def operation(route: Route) -> Schema:
    statuses = sorted({*ALWAYS, *route.failures, *(WITH_BODY if route.body is not None else ())})
    problem = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: dict[str, object] = {"200": {"description": "OK", "content": {route.media: {"schema": route.answer}}}}
    responses |= {str(status): {"description": PHRASES[status], "content": problem} for status in statuses}
    found: Schema = {
        "operationId": f"{route.method.lower()}{route.path.replace('/', '_')}",
        "summary": route.summary,
        "responses": responses,
    }
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": route.body}}}
    return found
