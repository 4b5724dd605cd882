"""Routes of the Open Inference Protocol v2, with Triton's configuration, statistics, and repository index."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf

from iris_wsgi import __version__
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.model_schema import Array
from iris_wsgi.codec.v2_request import HEADER, TensorSpec, decode_infer
from iris_wsgi.codec.v2_response import encode_infer
from iris_wsgi.errors import JSON, ServiceUnavailable
from iris_wsgi.model.predictor import LatencyProfile
from iris_wsgi.patterns.synchronous import schemas
from iris_wsgi.patterns.synchronous.served_model import STAGES, ServedModel, StageTimer, find
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Handler, Request, Response, Route, RouteDoc, Schedule

Models = Mapping[str, ServedModel]

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
HEADER_VARIABLE = "HTTP_" + HEADER.upper().replace("-", "_")
# About 250 rows in binary, whose response may be JSON: half a millisecond of the I/O loop.
INLINE_BYTES = 4096
# A row of one FP32 value, and the description of the tensors.
ROW_BYTES, DESCRIPTION_BYTES = 4, 512
LIVE, READY = Response(encode_json({"live": True})), Response(encode_json({"ready": True}))
SERVER = {"name": "iris_wsgi", "version": __version__, "extensions": EXTENSIONS}
PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


def routes(models: Models, readiness_problem: Callable[[], str | None], max_rows: int, latency: LatencyProfile) -> list[Route]:
    """Returns the routes over the models by name."""
    schedule = Schedule(latency.inline_bytes(INLINE_BYTES, ROW_BYTES, DESCRIPTION_BYTES))

    def if_ready(handler: Handler) -> Handler:
        def checked(request: Request) -> Response:
            if problem := readiness_problem():
                raise ServiceUnavailable(problem)
            return handler(request)

        return checked

    def constant(document: Callable[[ServedModel], object]) -> Handler:
        """Returns the handler that responds with the document of the model in the path, encoded at the start."""
        responses = {name: Response(encode_json(document(model))) for name, model in models.items()}
        return lambda request: responses[find(models, request).signature.name]

    def infer(request: Request) -> Response:
        return infer_v2(find(models, request), request, max_rows)

    def statistics(request: Request) -> Response:
        found = [find(models, request)] if "model" in request.parameters else list(models.values())
        return Response(encode_json({"model_stats": [statistics_of(model) for model in found]}))

    listed, entries = {"models": list(models)}, [index_entry(model) for model in models.values()]
    server, names, index = Response(encode_json(SERVER)), Response(encode_json(listed)), Response(encode_json(entries))
    model_ready = if_ready(constant(ready_document))
    metadata, config = constant(metadata_of), constant(lambda model: configuration_of(model, max_rows))

    first, parameters = next(iter(models.values())), path_parameters(models)

    def get(
        path: str, handler: Handler, summary: str, schema: openapi.Schema, example: Callable[[], object], *failures: int
    ) -> Route:
        return Route("GET", path, handler, RouteDoc(summary, schema, failures=failures, example=example, parameters=parameters))

    infer_doc = RouteDoc(
        "Outputs of a model",
        schemas.RESPONSE,
        failures=(404,),
        binary=True,
        accepts=("Prefer", HEADER),
        returns=("X-Model-Digest", HEADER, "Vary"),
        parameters=parameters,
    )
    index_doc = RouteDoc("Models with their versions and states", schemas.INDEX, example=lambda: entries)
    stats = partial(statistics_example, first)
    table = [
        get("/v2/health/live", lambda _: LIVE, "Liveness", schemas.LIVE, lambda: {"live": True}),
        get("/v2/health/ready", if_ready(lambda _: READY), "Readiness for traffic", schemas.READY, lambda: {"ready": True}, 503),
        *(
            get(path, lambda _: server, "Name, version, and extensions", schemas.SERVER, lambda: SERVER)
            for path in ("/v2", "/v2/")
        ),
        get("/v2/models", lambda _: names, "Names of the models", schemas.NAMES, lambda: listed),
        get("/v2/models/stats", statistics, "Statistics of all models", schemas.STATISTICS, stats),
        Route("POST", "/v2/repository/index", lambda _: index, index_doc),
    ]
    described, configured = partial(metadata_of, first), partial(configuration_of, first, max_rows)
    for path in PATHS:
        table += [
            get(path, metadata, "Inputs and outputs of a model", schemas.METADATA, described, 404),
            get(
                f"{path}/ready",
                model_ready,
                "Readiness of a model",
                schemas.MODEL_READY,
                partial(ready_document, first),
                404,
                503,
            ),
            get(f"{path}/config", config, "Configuration of a model, in Triton's format", schemas.CONFIG, configured, 404),
            get(f"{path}/stats", statistics, "Statistics of a model", schemas.STATISTICS, stats, 404),
            Route("POST", f"{path}/infer", infer, infer_doc, schemas.REQUEST, schedule, any_content_type=True),
        ]
    return table


def path_parameters(models: Models) -> dict[str, openapi.Schema]:
    """Returns the schemas of the parameters in paths. Their examples are the first model and its version."""
    versions = sorted({model.signature.version for model in models.values()})
    model: openapi.Schema = {"type": "string", "examples": list(models)}
    version: openapi.Schema = {"type": "string", "examples": versions}
    return {"model": model, "version": version}


def request_example(model: ServedModel, rows: Array) -> dict[str, object]:
    """Returns an inference request with the first of the rows [n, features]."""
    values = model.schema.to_values(rows)[0]
    inputs = []
    for spec in model.signature.inputs:
        width = spec.shape[1] if len(spec.shape) > 1 else 1
        data, values = values[:width], values[width:]
        inputs.append({"name": spec.name, "datatype": spec.datatype, "shape": [1, *spec.shape[1:]], "data": data})
    return {"inputs": inputs}


def response_example(model: ServedModel, rows: Array) -> object:
    """Returns the response to this request."""
    body = json.dumps(request_example(model, rows)).encode()
    inference = decode_infer(body, None, model.signature, 1)
    return json.loads(encode_infer(inference, model.signature, model.infer(inference.inputs, inf))[0])


def infer_v2(model: ServedModel, request: Request, max_rows: int) -> Response:
    """Runs the model once on an inference request, and adds the request to the statistics of the model."""
    with StageTimer(model.statistics, request.arrived) as timer:
        inference = decode_infer(request.body, request.environ.get(HEADER_VARIABLE), model.signature, max_rows)
        timer.end_stage()
        outputs = model.infer(inference.inputs, deadline_of(request, inference.timeout))
        timer.end_stage()
        body, json_bytes = encode_infer(inference, model.signature, outputs)
        timer.end_stage()
        timer.rows = len(inference.inputs[model.signature.inputs[0].name])
    digest = ("X-Model-Digest", model.digest)
    if json_bytes is None:
        return Response(body, JSON, headers=(digest,), rows=timer.rows)
    return Response(body, openapi.OCTETS, headers=(digest, (HEADER, str(json_bytes))), rows=timer.rows)


def deadline_of(request: Request, timeout: int | None) -> float:
    """Returns the deadline of the request, or an earlier one by the parameter timeout in microseconds."""
    return request.deadline if timeout is None else min(request.deadline, request.arrived + timeout / 1e6)


def metadata_of(model: ServedModel) -> object:
    def tensors(specs: Sequence[TensorSpec]) -> object:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]

    name, version, inputs, outputs, _ = model.signature
    return {
        "name": name,
        "versions": [version],
        "platform": "onnx_onnxv1",
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
    }


def configuration_of(model: ServedModel, max_rows: int) -> object:
    """Returns the configuration as the ONNX backend of Triton shows it; perf_analyzer requires it."""

    def tensors(specs: Sequence[TensorSpec]) -> object:
        return [{"name": spec.name, "data_type": data_type(spec.datatype), **dims(spec.shape[1:])} for spec in specs]

    name, _, inputs, outputs, _ = model.signature
    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        "input": tensors(inputs),
        "output": tensors(outputs),
        "parameters": {name: {"string_value": value} for name, value in model.parameters.items()},
    }


def data_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def dims(shape: Sequence[int]) -> dict[str, object]:
    """Returns the dimensions without rows. Triton does not allow empty ones, and describes single values by a reshape."""
    return {"dims": list(shape)} if shape else {"dims": [1], "reshape": {"shape": []}}


def statistics_of(model: ServedModel) -> object:
    return {"name": model.signature.name, "version": model.signature.version, **model.statistics.document()}


def statistics_example(model: ServedModel) -> object:
    """Returns the statistics of a model that has predicted one row."""
    stages = {stage: {"count": 1, "ns": 100_000} for stage in STAGES}
    counts = {"inference_count": 1, "execution_count": 1, "inference_stats": stages}
    return {"model_stats": [{"name": model.signature.name, "version": model.signature.version, **counts}]}


def ready_document(model: ServedModel) -> object:
    return {"name": model.signature.name, "ready": True}


def index_entry(model: ServedModel) -> object:
    return {"name": model.signature.name, "version": model.signature.version, "state": "READY", "reason": ""}
