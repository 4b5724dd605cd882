"""OpenAPI 3.1 document of the routes, and the JSON schemas that they share."""

import re
from collections.abc import Sequence

from iris_wsgi.codec.model_schema import INTEGER_TYPES, REGRESSOR, Feature, OutputSchema
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
# Failures of every route, and of routes with a body. A route for any content type has no 422.
ALWAYS = (500,)
BODY_FAILURES = (400, 413, 415, 422)
ANY_TYPE_FAILURES = (400, 413, 415)


def closed(**properties: object) -> Schema:
    """Returns the schema of an object with exactly these properties."""
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}


def listed(items: object, min_items: int, max_items: int) -> Schema:
    return {"type": "array", "minItems": min_items, "maxItems": max_items, "items": items}


def rows(model: Graph, max_rows: int) -> Schema:
    """Returns the schema of a request body with 1 to `max_rows` rows: lists in the order of the features, or objects by name."""
    unit = ", ".join(f"{f.name} ({f.unit})" if f.unit else f.name for f in model.features)
    kinds = [value(feature) for feature in model.features]
    same = all(kind == kinds[0] for kind in kinds)
    row = listed(kinds[0] if same else {"anyOf": distinct(kinds)}, model.width, model.width) | {"description": unit}
    by_name: Schema = {
        "type": "object",
        "properties": {feature.name: kind for feature, kind in zip(model.features, kinds, strict=True)},
    }
    return closed(data=listed({"anyOf": [row, by_name]}, 1, max_rows))


def value(feature: Feature) -> Schema:
    """Returns the schema of one value of a row."""
    kinds = {"string": "string", "bool": "boolean"} | dict.fromkeys(INTEGER_TYPES, "integer")
    kind = kinds.get(feature.type, "number")
    return {"type": [kind, "null"] if feature.missing else kind}


def distinct(schemas: Sequence[Schema]) -> list[Schema]:
    return [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]


def values(outputs: OutputSchema) -> Schema:
    """Returns the schema of the probabilities, scores, or values of one row."""
    return listed({"type": "number"}, len(outputs.columns), len(outputs.columns))


def label(outputs: OutputSchema) -> Schema:
    return {"type": "string", "enum": list(outputs.labels)}


def names(items: Sequence[str]) -> Schema:
    return listed({"type": "string", "enum": list(items)}, len(items), len(items))


def prediction(outputs: OutputSchema) -> dict[str, Schema]:
    """Returns the members that describe the prediction of one row."""
    if outputs.kind == REGRESSOR:
        return {"targets": names(outputs.columns), "values": values(outputs)}
    return {"classes": names(outputs.labels), "label": label(outputs), outputs.name: values(outputs)}


def document(routes: Sequence[Route], version: str, public_paths: Sequence[str] | None = None) -> Schema:
    """Returns the document of all routes. All paths except `public_paths` require a token; with None, no path does."""
    paths: dict[str, Schema] = {}
    for route in routes:
        requires_token = public_paths is not None and route.path not in public_paths
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route, requires_token)
    schemes = {} if public_paths is None else {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "iris_wsgi", "version": version},
        "paths": paths,
        "components": {"schemas": {"Problem": PROBLEM, "Error": ERROR}, **schemes},
    }


def with_server(document: bytes, prefix: str) -> bytes:
    """Adds the path prefix to the JSON document; without it, paths start at the root."""
    return b'{"servers":[{"url":"%b"}],%b' % (prefix.encode(), document[1:]) if prefix else document


def operation(route: Route, requires_token: bool) -> Schema:
    doc, error_type = route.doc, error_media_type(route.path)
    with_body = () if route.body is None else ANY_TYPE_FAILURES if route.any_content_type else BODY_FAILURES
    error = {error_type: {"schema": {"$ref": f"#/components/schemas/{'Error' if error_type == JSON else 'Problem'}"}}}
    responses: dict[str, object] = {
        str(status): {"description": PHRASES[status]}
        | ({} if status in NO_CONTENT else {"content": content(doc.media_type, doc.response, doc.binary, doc.html)})
        for status in doc.success
    }
    failures = sorted({*ALWAYS, *doc.failures, *with_body, *((401,) if requires_token else ())})
    responses |= {str(status): {"description": PHRASES[status], "content": error} for status in failures}
    found: Schema = {"operationId": operation_id(route), "summary": doc.summary, "responses": responses}
    if requires_token:
        found["security"] = [{"token": []}]
    if names := names_of(route.path):
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": content(JSON, route.body, doc.binary, html=False)}
    return found


def operation_id(route: Route) -> str:
    """Returns a name for generated code. Generators drop underscores at the end, so a final slash becomes a word."""
    path = f"{route.path}slash" if route.path.endswith("/") else route.path
    return re.sub(r"\W", "_", f"{route.method.lower()}{path}")


def content(media_type: str, schema: object, binary: bool, html: bool) -> Schema:
    others = {**({OCTETS: {"schema": BYTES}} if binary else {}), **({HTML: {"schema": TEXT}} if html else {})}
    return {media_type: {"schema": schema}, **others}
