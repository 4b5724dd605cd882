"""JSON schemas of the Open Inference Protocol and KServe's first one, for OpenAPI; members that are not told are tolerated."""

from iris_wsgi.wsgi.openapi import OBJECT, TEXT, Schema

UNSIGNED: Schema = {"type": "integer", "minimum": 0}
SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": -1}}
ROWS: Schema = {"type": "array", "minItems": 1, "items": {"type": "array", "items": {"type": "number"}}}


def having(**properties: object) -> Schema:
    """An object that has all these."""
    return {"type": "object", "required": list(properties), "properties": properties}


def optionally(schema: Schema, **properties: object) -> Schema:
    """The object that may have these as well."""
    of_schema = schema["properties"]
    assert isinstance(of_schema, dict)
    return {**schema, "properties": {**of_schema, **properties}}


def each(items: object, least: int = 0) -> Schema:
    return {"type": "array", "minItems": least, "items": items}


TENSOR = having(name=TEXT, datatype=TEXT, shape=SHAPE)
# Elements of any data type, flat or nested by the shape. Code generators refuse an array schema without `items`.
DATA: Schema = {"type": "array", "items": {}}
# With the parameter binary_data_size the data stand behind the JSON part.
GIVEN = optionally(TENSOR, parameters=OBJECT, data=DATA)
WANTED = optionally(having(name=TEXT), parameters=OBJECT)
REQUEST = optionally(having(inputs=each(GIVEN, 1)), id=TEXT, parameters=OBJECT, outputs=each(WANTED))
ANSWER = optionally(having(model_name=TEXT, model_version=TEXT, outputs=each(GIVEN, 1)), id=TEXT)

SERVER = having(name=TEXT, version=TEXT, extensions=each(TEXT))
METADATA = having(name=TEXT, versions=each(TEXT, 1), platform=TEXT, inputs=each(TENSOR, 1), outputs=each(TENSOR, 1))
CONFIGURED = having(name=TEXT, data_type=TEXT, dims=SHAPE)
CONFIG = having(
    name=TEXT,
    platform=TEXT,
    backend=TEXT,
    max_batch_size=UNSIGNED,
    input=each(CONFIGURED, 1),
    output=each(CONFIGURED, 1),
    parameters={"type": "object", "additionalProperties": having(string_value=TEXT)},
)
INDEX = each(having(name=TEXT, version=TEXT, state=TEXT, reason=TEXT))

STAGE = having(count=UNSIGNED, ns=UNSIGNED)
STATISTICS = having(
    model_stats=each(
        having(
            name=TEXT,
            version=TEXT,
            inference_count=UNSIGNED,
            execution_count=UNSIGNED,
            inference_stats={"type": "object", "additionalProperties": STAGE},
        )
    )
)

INSTANCES = having(instances=ROWS)
PREDICTIONS = having(predictions=ROWS)
