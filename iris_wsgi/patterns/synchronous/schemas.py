"""JSON schemas of the Open Inference Protocol v2 and KServe v1, for OpenAPI; other properties are allowed."""

from collections.abc import Iterable

from iris_wsgi.codec.model_schema import Feature
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.openapi import OBJECT, TEXT, Schema

UNSIGNED: Schema = {"type": "integer", "minimum": 0}
SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": -1}}
ROWS: Schema = {"type": "array", "minItems": 1, "items": {"type": "array", "items": {"type": "number"}}}


def required(**properties: object) -> Schema:
    """Returns the schema of an object with at least these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


def with_optional(schema: Schema, **properties: object) -> Schema:
    """Adds optional properties to the schema of an object."""
    of_schema = schema["properties"]
    assert isinstance(of_schema, dict)
    return {**schema, "properties": {**of_schema, **properties}}


def array_of(items: object, min_items: int = 0) -> Schema:
    return {"type": "array", "minItems": min_items, "items": items}


TENSOR = required(name=TEXT, datatype=TEXT, shape=SHAPE)
# Elements of any data type, flat or nested. Code generators reject an array schema without `items`.
DATA: Schema = {"type": "array", "items": {}}
# With the parameter binary_data_size, the data follow the JSON part.
TENSOR_DATA = with_optional(TENSOR, parameters=OBJECT, data=DATA)
REQUESTED_OUTPUT = with_optional(required(name=TEXT), parameters=OBJECT)
REQUEST = with_optional(required(inputs=array_of(TENSOR_DATA, 1)), id=TEXT, parameters=OBJECT, outputs=array_of(REQUESTED_OUTPUT))
RESPONSE = with_optional(required(model_name=TEXT, model_version=TEXT, outputs=array_of(TENSOR_DATA, 1)), id=TEXT)

SERVER = required(name=TEXT, version=TEXT, extensions=array_of(TEXT))
METADATA = required(name=TEXT, versions=array_of(TEXT, 1), platform=TEXT, inputs=array_of(TENSOR, 1), outputs=array_of(TENSOR, 1))
CONFIG_TENSOR = required(name=TEXT, data_type=TEXT, dims=SHAPE)
CONFIG = required(
    name=TEXT,
    platform=TEXT,
    backend=TEXT,
    max_batch_size=UNSIGNED,
    input=array_of(CONFIG_TENSOR, 1),
    output=array_of(CONFIG_TENSOR, 1),
    parameters={"type": "object", "additionalProperties": required(string_value=TEXT)},
)
INDEX = array_of(required(name=TEXT, version=TEXT, state=TEXT, reason=TEXT))

STAGE = required(count=UNSIGNED, ns=UNSIGNED)
STATISTICS = required(
    model_stats=array_of(
        required(
            name=TEXT,
            version=TEXT,
            inference_count=UNSIGNED,
            execution_count=UNSIGNED,
            inference_stats={"type": "object", "additionalProperties": STAGE},
        )
    )
)


def instances(features: Iterable[Feature]) -> Schema:
    """Returns the schema of rows of models with these features: lists, or objects by name."""
    kinds = openapi.distinct([openapi.value(feature) for feature in features])
    row = {"type": "array", "items": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}
    return required(instances=array_of({"anyOf": [row, OBJECT]}, 1))


PREDICTIONS = required(predictions=ROWS)
