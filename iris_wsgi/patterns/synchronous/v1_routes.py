"""Routes of KServe v1: `{"instances": [[…], …]}` to rows, and predictions to `{"predictions": [[…], …]}`."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from math import inf

from iris_wsgi.codec.json_documents import MAX_LEVELS, MIN_BYTES, decode_json, encode_json, levels, too_deep
from iris_wsgi.codec.model_schema import Array, RowSchema
from iris_wsgi.codec.rows import data_faults, encode_rows, rows_of, rows_of_numbers
from iris_wsgi.errors import BadRequest, ServiceUnavailable
from iris_wsgi.model.predictor import LatencyProfile
from iris_wsgi.patterns.synchronous import schemas
from iris_wsgi.patterns.synchronous.served_model import ServedModel, StageTimer, find
from iris_wsgi.patterns.synchronous.v2_routes import path_parameters, ready_document
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

PATHS = ("/v1/models/{model}", "/v1/models/{model}/versions/{version}")
INLINE_BYTES, ROW_BYTES = 16384, 4


def routes(
    models: Mapping[str, ServedModel], readiness_problem: Callable[[], str | None], max_rows: int, latency: LatencyProfile
) -> list[Route]:
    """Returns the routes over the models by name."""
    schedule = Schedule(latency.inline_bytes(INLINE_BYTES, ROW_BYTES))
    listed = {"models": list(models)}
    names, first, parameters = Response(encode_json(listed)), next(iter(models.values())), path_parameters(models)

    def ready(request: Request) -> Response:
        model = find(models, request)
        if problem := readiness_problem():
            raise ServiceUnavailable(problem)
        return Response(encode_json(ready_document(model)))

    def predict(request: Request) -> Response:
        return predict_v1(find(models, request), request, max_rows)

    ready_doc = RouteDoc(
        "Readiness of a model",
        schemas.MODEL_READY,
        failures=(404, 503),
        example=partial(ready_document, first),
        parameters=parameters,
    )
    predict_doc = RouteDoc(
        "Probabilities, scores, or values of rows, as a list per row",
        schemas.PREDICTIONS,
        failures=(404,),
        accepts=("Prefer",),
        returns=("X-Model-Digest", "Vary"),
        parameters=parameters,
    )
    instances = schemas.instances(feature for model in models.values() for feature in model.schema.features)
    table = [Route("GET", "/v1/models", lambda _: names, RouteDoc("Names of the models", schemas.NAMES, example=lambda: listed))]
    for path in PATHS:
        table += [
            Route("GET", path, ready, ready_doc),
            Route("POST", f"{path}:predict", predict, predict_doc, instances, schedule, any_content_type=True),
        ]
    return table


def response_example(model: ServedModel, rows: Array) -> object:
    """Returns the response to a request with these rows."""
    return json.loads(encode_v1(model.infer_rows(rows, inf)[model.values]))


def predict_v1(model: ServedModel, request: Request, max_rows: int) -> Response:
    """Predicts the instances of the body, and adds the request to the statistics of the model."""
    with StageTimer(model.statistics, request.arrived) as timer:
        rows = decode_v1(request.body, model.schema, max_rows)
        timer.end_stage()
        outputs = model.infer_rows(rows, request.deadline)
        timer.end_stage()
        body = encode_v1(outputs[model.values])
        timer.end_stage()
        timer.rows = len(rows)
    return Response(body, headers=(("X-Model-Digest", model.digest),), rows=timer.rows)


def decode_v1(body: bytes, schema: RowSchema, max_rows: int) -> Array:
    """Decodes the body of `POST /v1/models/M:predict` to an array [rows, features], with 1 to `max_rows` rows.

    An instance is a row: a list of values, or an object of values by feature. Other members are ignored. Raises BadRequest (400).
    """
    if len(body) >= MIN_BYTES and (matrix := rows_of_numbers(body, b"instances", schema, max_rows)) is not None:
        return matrix
    document = decode_json(body)
    if type(document) is not dict or "instances" not in document:
        raise BadRequest('# must be an object with the member "instances": {"instances": [[…], …]}.')
    data = document.pop("instances")
    rows = rows_of(data, schema, max_rows)
    if rows is None:
        fault = next(data_faults("#/instances", data, schema, max_rows, "send them in several requests"))
        raise BadRequest(f"{fault.pointer} {fault.detail}.")
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    return rows


def encode_v1(predictions: Array) -> bytes:
    """Encodes predictions [rows, columns], one list per row. Raises PredictionFailed (500) for non-finite values."""
    return b'{"predictions":%b}\n' % encode_rows(predictions)
