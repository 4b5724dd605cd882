"""JSON schemas of the Open Inference Protocol v2 and KServe v1, for OpenAPI; other properties are allowed."""

from collections.abc import Iterable

from iris_wsgi.codec.model_schema import Feature
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.openapi import COUNT, TEXT, TRUE, Component, Schema, array_of, closed, map_of, required, with_optional

SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": -1}}
ROWS: Schema = {"type": "array", "minItems": 1, "items": {"type": "array", "items": {"type": "number"}}}
PARAMETERS = Component("Parameters", map_of({"type": ["string", "number", "boolean"]}))

TENSOR = required(name=TEXT, datatype=TEXT, shape=SHAPE)
# Elements of any data type, flat or nested. Code generators reject an array schema without `items`.
DATA: Schema = {"type": "array", "items": {}}
# With the parameter binary_data_size, the data follow the JSON part.
TENSOR_DATA = Component("Tensor", with_optional(TENSOR, parameters=PARAMETERS, data=DATA))
TENSOR_METADATA = Component("TensorMetadata", TENSOR)
REQUESTED_OUTPUT = Component("RequestedOutput", with_optional(required(name=TEXT), parameters=PARAMETERS))
REQUEST = Component(
    "InferenceRequest",
    with_optional(required(inputs=array_of(TENSOR_DATA, 1)), id=TEXT, parameters=PARAMETERS, outputs=array_of(REQUESTED_OUTPUT)),
)
RESPONSE = Component(
    "InferenceResponse",
    with_optional(required(model_name=TEXT, model_version=TEXT, outputs=array_of(TENSOR_DATA, 1)), id=TEXT),
)

LIVE = Component("Live", closed(live=TRUE))
READY = Component("Ready", closed(ready=TRUE))
MODEL_READY = Component("ModelReady", closed(name=TEXT, ready=TRUE))
NAMES = Component("ModelNames", closed(models=array_of(TEXT, 1)))
SERVER = Component("Server", required(name=TEXT, version=TEXT, extensions=array_of(TEXT)))
METADATA = Component(
    "ModelMetadata",
    required(
        name=TEXT,
        versions=array_of(TEXT, 1),
        platform=TEXT,
        inputs=array_of(TENSOR_METADATA, 1),
        outputs=array_of(TENSOR_METADATA, 1),
    ),
)
CONFIG_TENSOR = Component("ConfiguredTensor", required(name=TEXT, data_type=TEXT, dims=SHAPE))
CONFIG = Component(
    "ModelConfiguration",
    required(
        name=TEXT,
        platform=TEXT,
        backend=TEXT,
        max_batch_size=COUNT,
        input=array_of(CONFIG_TENSOR, 1),
        output=array_of(CONFIG_TENSOR, 1),
        parameters=map_of(required(string_value=TEXT)),
    ),
)
ENTRY = Component("RepositoryEntry", required(name=TEXT, version=TEXT, state=TEXT, reason=TEXT))
INDEX = array_of(ENTRY)

STAGE = Component("Stage", required(count=COUNT, ns=COUNT))
MODEL_STATISTICS = Component(
    "ModelStatistics",
    required(name=TEXT, version=TEXT, inference_count=COUNT, execution_count=COUNT, inference_stats=map_of(STAGE)),
)
STATISTICS = Component("Statistics", required(model_stats=array_of(MODEL_STATISTICS)))


def instances(features: Iterable[Feature]) -> Schema:
    """Returns the schema of rows of models with these features: lists, or objects by name."""
    row = Component("Instance", {"type": "array", "items": openapi.any_of([openapi.value(feature) for feature in features])})
    by_name = Component("InstanceByName", map_of(openapi.VALUE))
    return Component("Instances", required(instances=array_of({"anyOf": [row, by_name]}, 1)))


PREDICTIONS = Component("InstancePredictions", required(predictions=ROWS))
