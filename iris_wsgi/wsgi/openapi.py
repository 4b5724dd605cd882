"""OpenAPI 3.1 document of the routes, and the JSON schemas that they share."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from iris_wsgi.codec.model_schema import INTEGER_TYPES, REGRESSOR, Array, Feature, OutputSchema
from iris_wsgi.errors import JSON, MAX_FIELD_ERRORS, PHRASES, error_media_type
from iris_wsgi.model.session import Graph
from iris_wsgi.wsgi.application import NO_CONTENT, Route, RouteDoc
from iris_wsgi.wsgi.routing import names_of

Schema = dict[str, object]


class Component(dict[str, object]):
    """A JSON schema with a name. The document has it once, and refers to it."""

    def __init__(self, name: str, schema: Mapping[str, object]) -> None:
        super().__init__(schema)
        self.name = name


VERSION, TITLE = "3.1.0", "iris_wsgi"
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TRUE: Schema = {"type": "boolean", "enum": [True]}
TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
VALUE: Schema = {"type": ["number", "string", "boolean", "null"]}
FIELD_ERROR = Component(
    "FieldError", {"type": "object", "required": ["pointer", "detail"], "properties": {"pointer": TEXT, "detail": TEXT}}
)
PROBLEM = Component(
    "Problem",
    {
        "type": "object",
        "required": ["title", "status", "detail", "request_id"],
        "properties": {
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
            "request_id": TEXT,
            "errors": {"type": "array", "maxItems": MAX_FIELD_ERRORS, "items": FIELD_ERROR},
        },
    },
)
ERROR = Component("Error", {"type": "object", "required": ["error"], "properties": {"error": TEXT}})
DOCUMENT = Component(
    "Document",
    {
        "type": "object",
        "description": "A document whose members another specification or the model defines.",
        "additionalProperties": True,
    },
)
BYTES: Schema = {"type": "string", "format": "binary"}
OCTETS = "application/octet-stream"
HTML = "text/html"
# Failures of every route, and of routes with a body. A route for any content type has no 422.
ALWAYS = (500,)
BODY_FAILURES = (400, 413, 415, 422)
ANY_TYPE_FAILURES = (400, 413, 415)
# A longer example of one operation is stored once for all operations. A still longer one is left out.
MAX_INLINE_EXAMPLE, MAX_EXAMPLE = 2000, 100_000
EXAMPLE_DAY, EXAMPLE_TIME, EXAMPLE_ID = "2026-01-31", "2026-01-31T12:00:00.000Z", "0123456789abcdef0123456789abcdef"
# Headers of requests. They have no `example`, because pages such as Swagger UI would send it.
ACCEPTS: dict[str, tuple[str, Schema]] = {
    "X-Request-ID": (
        "Id of the request for the log and the response. The server makes an id for a missing or invalid one.",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    ),
    "Prefer": ("`wait=N`: the client waits at most N seconds for the response (RFC 7240).", TEXT),
    "Idempotency-Key": (
        "Any key of the client. A repeated request with this key does not submit another job.",
        {"type": "string", "minLength": 1, "maxLength": 255},
    ),
    "Cache-Control": (
        "`no-cache` bypasses the cache, `no-store` does not fill it, `only-if-cached` never computes (RFC 9111).",
        TEXT,
    ),
    "If-None-Match": ("The ETag of a stored response. The server sends 304 if it is still valid.", TEXT),
    "Range": ("`bytes=FIRST-LAST` requests a part of the file.", TEXT),
    "Inference-Header-Content-Length": ("Length of the JSON part of a body with binary tensors, in bytes.", COUNT),
}
RETURNS: dict[str, tuple[str, Schema]] = {
    "X-Request-ID": ("Id of the request, as in the log.", {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}),
    "X-Model-Digest": ("Digest of the model that predicted.", {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}),
    "Location": ("Path of the job or of the item.", TEXT),
    "Retry-After": ("Seconds until a retry is useful.", COUNT),
    "Cache-Status": ("Hit or miss of each row (RFC 9211).", TEXT),
    "Cache-Control": ("`no-store`, or `no-cache` for a response with an ETag.", TEXT),
    "Age": ("Age of a stale response in seconds.", COUNT),
    "ETag": ("Tag of this response for If-None-Match.", TEXT),
    "Preference-Applied": ("The preference of the client that the server respected.", TEXT),
    "WWW-Authenticate": ("The challenge of RFC 6750.", TEXT),
    "Accept-Ranges": ("`bytes`: the server sends parts of this file.", TEXT),
    "Content-Range": ("The part of the file, or its size.", TEXT),
    "Vary": ("Request headers that select the representation.", TEXT),
    "Inference-Header-Content-Length": ("Length of the JSON part of a body with binary tensors, in bytes.", COUNT),
}
# Headers of failures, by status.
FAILURE_RETURNS = {401: ("WWW-Authenticate",), 416: ("Content-Range",), 503: ("Retry-After",)}


def closed(**properties: object) -> Schema:
    """Returns the schema of an object with exactly these properties."""
    return {**required(**properties), "additionalProperties": False}


def required(**properties: object) -> Schema:
    """Returns the schema of an object with at least these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


def with_optional(schema: Mapping[str, object], **properties: object) -> Schema:
    """Adds optional properties to the schema of an object."""
    of_schema = schema["properties"]
    assert isinstance(of_schema, dict)
    return {**schema, "properties": {**of_schema, **properties}}


def array_of(items: object, min_items: int = 0) -> Schema:
    return {"type": "array", "minItems": min_items, "items": items}


def listed(items: object, min_items: int, max_items: int) -> Schema:
    return {"type": "array", "minItems": min_items, "maxItems": max_items, "items": items}


def map_of(values: object) -> Schema:
    """Returns the schema of an object with any names."""
    return {"type": "object", "additionalProperties": values}


def any_of(schemas: Sequence[Schema]) -> Schema:
    """Returns the schema of values that one of these schemas describes."""
    kinds = list({json.dumps(schema): schema for schema in schemas}.values())
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def nullable(schema: Mapping[str, object]) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def rows(model: Graph, max_rows: int) -> Schema:
    """Returns the schema of a request body with 1 to `max_rows` rows: lists in the order of the features, or objects by name."""
    one_of = {"anyOf": list(row_schemas(tuple(model.features)))}
    return Component("OneRow" if max_rows == 1 else "Rows", closed(data=listed(one_of, 1, max_rows)))


# The routes of a role have the same features, except those of companion models.
@lru_cache(4)
def row_schemas(features: tuple[Feature, ...]) -> tuple[Component, Component]:
    """Returns the schemas of a row: a list of values, and an object of values by feature."""
    units = ", ".join(f"{f.name} ({f.unit})" if f.unit else f.name for f in features)
    kinds = [value(feature) for feature in features]
    width = len(features)
    row = listed(any_of(kinds), width, width)
    by_name: Schema = {"type": "object", "properties": {f.name: kind for f, kind in zip(features, kinds, strict=True)}}
    return Component("Row", row | {"description": units}), Component("RowByName", by_name)


def value(feature: Feature) -> Schema:
    """Returns the schema of one value of a row."""
    kinds = {"string": "string", "bool": "boolean"} | dict.fromkeys(INTEGER_TYPES, "integer")
    kind = kinds.get(feature.type, "number")
    return {"type": [kind, "null"] if feature.missing else kind}


def values(outputs: OutputSchema) -> Schema:
    """Returns the schema of the probabilities, scores, or values of one row."""
    columns = len(outputs.columns)
    return Component(outputs.name.capitalize(), listed({"type": "number"}, columns, columns))


def label(outputs: OutputSchema) -> Schema:
    return Component("Label", {"type": "string", "enum": list(outputs.labels)})


def names(outputs: OutputSchema) -> Schema:
    """Returns the schema of the names of the columns: the classes, or the targets of a regressor."""
    items = outputs.columns if outputs.kind == REGRESSOR else outputs.labels
    name: Schema = {"type": "string", "enum": list(items)}
    return Component("Targets" if outputs.kind == REGRESSOR else "Classes", listed(name, len(items), len(items)))


def prediction(outputs: OutputSchema) -> dict[str, Schema]:
    """Returns the members that describe the prediction of one row."""
    if outputs.kind == REGRESSOR:
        return {"targets": names(outputs), "values": values(outputs)}
    return {"classes": names(outputs), "label": label(outputs), outputs.name: values(outputs)}


def batch(outputs: OutputSchema) -> Schema:
    """Returns the schema of the predictions of several rows."""
    columns = array_of(values(outputs), 1)
    if outputs.kind == REGRESSOR:
        return Component("Predictions", closed(targets=names(outputs), values=columns))
    fields = {"labels": array_of(label(outputs), 1), outputs.name: columns}
    return Component("Predictions", closed(classes=names(outputs), **fields))


def examples(model: Graph, outputs: OutputSchema, rows: Array, predictions: Array) -> dict[str, object]:
    """Returns the values of the named schemas for a row [1, features] and its prediction [1, columns]."""
    row = model.schema.to_values(rows)[0]
    found: dict[str, object] = {
        "Row": row,
        "Instance": row,
        "ItemRow": row,
        "RowByName": dict(zip([feature.name for feature in model.features], row, strict=True)),
        outputs.name.capitalize(): outputs.values(predictions)[0].tolist(),
        "Targets" if outputs.kind == REGRESSOR else "Classes": list(outputs.columns),
    }
    if outputs.kind != REGRESSOR:
        found |= {"Classes": list(outputs.labels), "Label": outputs.labels[outputs.best_of(predictions[0].tolist())]}
    return found


def tagged(name: str, description: str, routes: Sequence[Route]) -> list[Route]:
    """Returns the routes of a pattern with its name, by which the document groups them."""
    return [route._replace(doc=route.doc._replace(tag=(name, description))) for route in routes]


class Components:
    """The named parts of a document, which grow while its operations are written."""

    def __init__(self, examples: Mapping[str, object]) -> None:
        self.schemas: dict[str, object] = {}
        self.parameters: dict[str, object] = {}
        self.headers: dict[str, object] = {}
        self.responses: dict[str, object] = {}
        self.examples: dict[str, object] = {}
        self.values = examples
        self.named: dict[int, tuple[Component, Schema]] = {}

    def refer(self, schema: object) -> object:
        """Returns the schema with references in place of named schemas."""
        if isinstance(schema, Component):
            # Holding the component keeps its id.
            if id(schema) not in self.named:
                self.named[id(schema)] = schema, self.store(schema)
            return self.named[id(schema)][1]
        if isinstance(schema, dict):
            return {name: self.refer(item) for name, item in schema.items()}
        return [self.refer(item) for item in schema] if isinstance(schema, list) else schema

    def store(self, schema: Component) -> Schema:
        """Stores the schema under its name, or with a number if another one has this name."""
        content = {name: self.refer(item) for name, item in schema.items()}
        name, number = schema.name, 2
        while self.schemas.setdefault(name, content) != content:
            name, number = f"{schema.name}{number}", number + 1
        return {"$ref": f"#/components/schemas/{name}"}

    def parameter(self, name: str) -> Schema:
        description, schema = ACCEPTS[name]
        self.parameters[name] = {"name": name, "in": "header", "description": description, "schema": schema}
        return {"$ref": f"#/components/parameters/{name}"}

    def header(self, name: str) -> Schema:
        description, schema = RETURNS[name]
        self.headers[name] = {"description": description, "schema": schema}
        return {"$ref": f"#/components/headers/{name}"}

    def headers_of(self, names: Sequence[str]) -> dict[str, Schema]:
        return {name: self.header(name) for name in ("X-Request-ID", *names)}

    def failure(self, status: int, media_type: str) -> Schema:
        """Returns the reference to the response of a failure."""
        schema, name = (ERROR, f"Error{status}") if media_type == JSON else (PROBLEM, f"Problem{status}")
        if name not in self.responses:
            document = {"error": PHRASES[status]} if schema is ERROR else problem_example(status)
            content = {media_type: {"schema": self.refer(schema), "example": document}}
            headers = self.headers_of(FAILURE_RETURNS.get(status, ()))
            self.responses[name] = {"description": PHRASES[status], "headers": headers, "content": content}
        return {"$ref": f"#/components/responses/{name}"}

    def example(self, name: str, example: object) -> Schema:
        """Returns the members of a media type that show the example."""
        size = len(json.dumps(example))
        if size > MAX_EXAMPLE:
            return {}
        if size <= MAX_INLINE_EXAMPLE:
            return {"example": example}
        found = next((key for key, item in self.examples.items() if item == {"value": example}), name)
        self.examples[found] = {"value": example}
        return {"examples": {"sample": {"$ref": f"#/components/examples/{found}"}}}

    def sample(self, schema: object) -> object:
        """Returns a value that is valid for the schema: that of the named schemas in it, and otherwise the simplest one."""
        if isinstance(schema, Component) and schema.name in self.values:
            return self.values[schema.name]
        if not isinstance(schema, Mapping):
            return None
        if "enum" in schema:
            return schema["enum"][0]
        if "anyOf" in schema:
            return self.sample(schema["anyOf"][0])
        kind = schema.get("type", "null")
        kind = str(kind[0] if isinstance(kind, list) else kind)
        if kind == "object":
            properties = schema.get("properties", {})
            return {name: self.sample(properties[name]) for name in schema.get("required", properties)}
        if kind == "array":
            return [self.sample(schema["items"])] * max(1, schema.get("minItems", 1))
        if kind == "string":
            return {"date": EXAMPLE_DAY, "date-time": EXAMPLE_TIME}.get(str(schema.get("format")), "text")
        return {"integer": schema.get("minimum", 1), "number": 0.5, "boolean": True}.get(kind)

    def document(self) -> Schema:
        parts = {
            "schemas": self.schemas,
            "responses": self.responses,
            "parameters": self.parameters,
            "headers": self.headers,
            "examples": self.examples,
        }
        return {name: part for name, part in parts.items() if part}


def problem_example(status: int) -> Schema:
    found: Schema = {
        "title": PHRASES[status],
        "status": status,
        "detail": "What happened, the limit, and what to do.",
        "request_id": EXAMPLE_ID,
    }
    if status == 422:
        found["errors"] = [{"pointer": "#/data/0/2", "detail": "must be a number"}]
    return found


def document(
    routes: Sequence[Route], version: str, public_paths: Sequence[str] | None = None, examples: Mapping[str, object] | None = None
) -> Schema:
    """Returns the document of all routes. All paths except `public_paths` require a token; with None, no path does."""
    paths: dict[str, Schema] = {}
    components = Components(examples or {})
    for route in routes:
        requires_token = public_paths is not None and route.path not in public_paths
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route, requires_token, components)
    schemes = {} if public_paths is None else {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    tags = dict(route.doc.tag for route in routes)
    return {
        "openapi": VERSION,
        "info": {"title": TITLE, "version": version},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in tags.items()],
        "paths": paths,
        "components": {**components.document(), **schemes},
    }


def with_server(document: bytes, prefix: str) -> bytes:
    """Replaces the server of the JSON document by the path prefix of the client."""
    return document.replace(b'"servers":[{"url":"/"}]', b'"servers":[{"url":"%b"}]' % prefix.encode(), 1) if prefix else document


def operation(route: Route, requires_token: bool, components: Components) -> Schema:
    doc, error_type, name = route.doc, error_media_type(route.path), operation_id(route)
    with_body = () if route.body is None else ANY_TYPE_FAILURES if route.any_content_type else BODY_FAILURES
    responses: dict[str, object] = {
        str(status): {"description": PHRASES[status], "headers": components.headers_of(doc.returns)}
        | ({} if status in NO_CONTENT else {"content": response_content(doc, f"{name}.response", components)})
        for status in doc.success
    }
    failures = sorted({*ALWAYS, *doc.failures, *with_body, *((401,) if requires_token else ())})
    responses |= {str(status): components.failure(status, error_type) for status in failures}
    parameters = [path_parameter(each, doc.parameters.get(each, TEXT)) for each in names_of(route.path)]
    found: Schema = {
        "operationId": name,
        "summary": doc.summary,
        "tags": [doc.tag[0]],
        "parameters": parameters + [components.parameter(each) for each in ("X-Request-ID", *doc.accepts)],
        "responses": responses,
    }
    if requires_token:
        found["security"] = [{"token": []}]
    if route.body is not None:
        example = doc.request() if doc.request else components.sample(route.body)
        shown = {"schema": components.refer(route.body), **components.example(f"{name}.request", example)}
        others = {OCTETS: {"schema": BYTES}} if doc.binary else {}
        found["requestBody"] = {"required": True, "content": {JSON: shown, **others}}
    return found


def path_parameter(name: str, schema: Mapping[str, object]) -> Schema:
    """Returns the parameter. The first of the `examples` of its schema is the value that pages propose."""
    proposed = schema.get("examples")
    example = {"example": proposed[0]} if isinstance(proposed, list) else {}
    return {"name": name, "in": "path", "required": True, "schema": schema, **example}


def operation_id(route: Route) -> str:
    """Returns a name for generated code. Generators drop underscores at the end, so a final slash becomes a word."""
    path = f"{route.path}slash" if route.path.endswith("/") else route.path
    return re.sub(r"\W", "_", f"{route.method.lower()}{path}")


def response_content(doc: RouteDoc, name: str, components: Components) -> Schema:
    """Returns the media types of a response. Bytes have no example, because JSON cannot express them."""
    schema = doc.response
    if schema.get("type") == "object" and not isinstance(schema, Component):
        schema = Component("".join(map(str.capitalize, re.split(r"[._]", name))), schema)
    found: Schema = {"schema": components.refer(schema)}
    if doc.response is not BYTES:
        found |= components.example(name, doc.example() if doc.example else components.sample(doc.response))
    others = {**({OCTETS: {"schema": BYTES}} if doc.binary else {}), **({HTML: {"schema": TEXT}} if doc.html else {})}
    return {doc.media_type: found, **others}
