"""The OpenAPI 3.1 document, from the route table, and the JSON schemas that its routes share."""

import re
from collections.abc import Sequence

from iris_wsgi.errors import JSON, MAX_FIELD_ERRORS, PHRASES, error_media_type
from iris_wsgi.model.session import Graph
from iris_wsgi.wsgi.application import NO_CONTENT, Route
from iris_wsgi.wsgi.routing import names_of

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
            "maxItems": MAX_FIELD_ERRORS,
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": TEXT, "detail": TEXT},
            },
        },
    },
}
ERROR: Schema = {"type": "object", "required": ["error"], "properties": {"error": TEXT}}
BYTES: Schema = {"type": "string", "format": "binary"}
OCTETS = "application/octet-stream"
HTML = "text/html"
# What any route may answer, and what those that take a body may answer besides; a lenient one tells all that is wrong by 400.
ALWAYS = (500,)
BODY_FAILURES = (400, 413, 415, 422)
ANY_TYPE_FAILURES = (400, 413, 415)


def closed(**properties: object) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}


def listed(items: object, least: int, most: int) -> Schema:
    return {"type": "array", "minItems": least, "maxItems": most, "items": items}


def rows(model: Graph, most: int) -> Schema:
    """The body of a prediction: 1 to `most` rows."""
    unit = ", ".join(f"{f.name} ({f.unit})" if f.unit else f.name for f in model.features)
    row = listed({"type": "number"}, model.width, model.width) | {"description": unit}
    return closed(data=listed(row, 1, most))


def row_answer(model: Graph) -> Schema:
    return closed(prediction=probabilities(model))


def probabilities(model: Graph) -> Schema:
    return listed({"type": "number"}, len(model.labels), len(model.labels))


def label(model: Graph) -> Schema:
    return {"type": "string", "enum": list(model.labels)}


def label_answer(model: Graph) -> Schema:
    return closed(prediction=label(model))


def proba_answer(model: Graph) -> Schema:
    pair = closed(label=label(model), probability={"type": "number"})
    return closed(prediction=listed(pair, len(model.labels), len(model.labels)))


def batch_answer(model: Graph) -> Schema:
    many = {"type": "array", "minItems": 1}
    return closed(
        classes=listed(label(model), len(model.labels), len(model.labels)),
        labels=many | {"items": label(model)},
        probabilities=many | {"items": probabilities(model)},
    )


def document(routes: Sequence[Route], title: str, version: str, public_paths: Sequence[str] | None = None) -> Schema:
    """Returns the document of all routes. All paths except `public_paths` require a token; with None, no path does."""
    paths: dict[str, Schema] = {}
    for route in routes:
        guarded = public_paths is not None and route.path not in public_paths
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route, guarded)
    schemes = {} if public_paths is None else {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": {"Problem": PROBLEM, "Error": ERROR}, **schemes},
    }


def served_at(document: bytes, prefix: str) -> bytes:
    """The JSON of the document, whose server is at this prefix: without one paths are from the root."""
    return b'{"servers": [{"url": "%b"}], %b' % (prefix.encode(), document[1:]) if prefix else document


def operation(route: Route, guarded: bool) -> Schema:
    """What the document says of one route."""
    doc = route.doc
    with_body = () if route.body is None else ANY_TYPE_FAILURES if route.any_content_type else BODY_FAILURES
    media = error_media_type(route.path)
    told = {media: {"schema": {"$ref": f"#/components/schemas/{'Error' if media == JSON else 'Problem'}"}}}
    responses: dict[str, object] = {
        str(status): {"description": PHRASES[status]}
        | ({} if status in NO_CONTENT else {"content": content(doc.media_type, doc.response, doc.binary, doc.html)})
        for status in doc.success
    }
    failures = sorted({*ALWAYS, *doc.failures, *with_body, *((401,) if guarded else ())})
    responses |= {str(status): {"description": PHRASES[status], "content": told} for status in failures}
    found: Schema = {
        "operationId": operation_id(route),
        "summary": doc.summary,
        "responses": responses,
    }
    if guarded:
        found["security"] = [{"token": []}]
    if names := names_of(route.path):
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": content(JSON, route.body, doc.binary, html=False)}
    return found


def operation_id(route: Route) -> str:
    """A name for generated code; generators drop underscores at the end, so a final slash needs a word."""
    path = f"{route.path}slash" if route.path.endswith("/") else route.path
    return re.sub(r"\W", "_", f"{route.method.lower()}{path}")


def content(media: str, schema: object, binary: bool, html: bool) -> Schema:
    others = {**({OCTETS: {"schema": BYTES}} if binary else {}), **({HTML: {"schema": TEXT}} if html else {})}
    return {media: {"schema": schema}, **others}
