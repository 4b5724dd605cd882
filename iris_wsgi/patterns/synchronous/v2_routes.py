"""Routes of the Open Inference Protocol v2, with Triton's configuration, statistics, and repository index."""

from collections.abc import Callable, Mapping, Sequence

from iris_wsgi import __version__
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.v2_request import HEADER, TensorSpec, decode_infer
from iris_wsgi.codec.v2_response import encode_infer
from iris_wsgi.errors import JSON, ServiceUnavailable
from iris_wsgi.model.predictor import LatencyProfile
from iris_wsgi.patterns.synchronous import schemas
from iris_wsgi.patterns.synchronous.served_model import ServedModel, find
from iris_wsgi.patterns.synchronous.statistics import StageTimer
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

    server, names = Response(encode_json(SERVER)), Response(encode_json({"models": list(models)}))
    index = Response(encode_json([index_entry(model) for model in models.values()]))
    model_ready = if_ready(constant(lambda model: {"name": model.signature.name, "ready": True}))
    metadata, config = constant(metadata_of), constant(lambda model: configuration_of(model, max_rows))

    def get(path: str, handler: Handler, summary: str, schema: openapi.Schema, failures: tuple[int, ...] = ()) -> Route:
        return Route("GET", path, handler, RouteDoc(summary, schema, failures=failures))

    infer_doc = RouteDoc("Outputs of a model", schemas.RESPONSE, failures=(404,), binary=True)
    index_doc = RouteDoc("Models with their versions and states", schemas.INDEX)
    table = [
        get("/v2/health/live", lambda _: LIVE, "Liveness", openapi.OBJECT),
        get("/v2/health/ready", if_ready(lambda _: READY), "Readiness for traffic", openapi.OBJECT, (503,)),
        *(get(path, lambda _: server, "Name, version, and extensions", schemas.SERVER) for path in ("/v2", "/v2/")),
        get("/v2/models", lambda _: names, "Names of the models", openapi.OBJECT),
        get("/v2/models/stats", statistics, "Statistics of all models", schemas.STATISTICS),
        Route("POST", "/v2/repository/index", lambda _: index, index_doc),
    ]
    for path in PATHS:
        table += [
            get(path, metadata, "Inputs and outputs of a model", schemas.METADATA, (404,)),
            get(f"{path}/ready", model_ready, "Readiness of a model", openapi.OBJECT, (404, 503)),
            get(f"{path}/config", config, "Configuration of a model, in Triton's format", schemas.CONFIG, (404,)),
            get(f"{path}/stats", statistics, "Statistics of a model", schemas.STATISTICS, (404,)),
            Route("POST", f"{path}/infer", infer, infer_doc, schemas.REQUEST, schedule, any_content_type=True),
        ]
    return table


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


def index_entry(model: ServedModel) -> object:
    return {"name": model.signature.name, "version": model.signature.version, "state": "READY", "reason": ""}
