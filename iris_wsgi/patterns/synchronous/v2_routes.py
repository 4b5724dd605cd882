"""The Open Inference Protocol v2: health, metadata and inference, with Triton's configuration, statistics and index."""

import json
from collections.abc import Callable, Mapping, Sequence

from iris_wsgi import __version__
from iris_wsgi.codec.v2_request import HEADER, TensorSpec, decode_infer
from iris_wsgi.codec.v2_response import encode_infer
from iris_wsgi.errors import JSON, NotFound, ServiceUnavailable
from iris_wsgi.model.latency import LatencyProfile
from iris_wsgi.patterns.synchronous import schemas
from iris_wsgi.patterns.synchronous.served_model import Servable
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Handler, Request, Response, Route, RouteDoc, Schedule

Models = Mapping[str, Servable]

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
HEADER_VARIABLE = "HTTP_" + HEADER.upper().replace("-", "_")
# Some 250 rows in binary, which may be answered in JSON: half a millisecond of the loop.
INLINE_BYTES = 4096
# A row of one FP32 value, and what describes the tensors beside them.
ROW_BYTES, BESIDE_BYTES = 4, 512
LIVE, READY = Response(b'{"live":true}'), Response(b'{"ready":true}')
OF_SERVER = {"name": "iris_wsgi", "version": __version__, "extensions": EXTENSIONS}
PLACES = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


def routes(models: Models, why_not_ready: Callable[[], str | None], max_rows: int, pace: LatencyProfile) -> list[Route]:
    """All of them, for the models by name; `max_rows` of them in a request, and by their `pace` small bodies in the I/O loop."""
    inline = pace.inline_bytes(INLINE_BYTES, ROW_BYTES, BESIDE_BYTES)

    def ready(answer: Handler) -> Handler:
        def answer_if_ready(request: Request) -> Response:
            if why := why_not_ready():
                raise ServiceUnavailable(why)
            return answer(request)

        return answer_if_ready

    def of_model(document: Callable[[Servable], object]) -> Handler:
        """What is fixed is made once for each model."""
        answers = {name: Response(encoded(document(one))) for name, one in models.items()}
        return lambda request: answers[find(models, request).served.name]

    def infer(request: Request) -> Response:
        return inferred(find(models, request), request, max_rows)

    def statistics(request: Request) -> Response:
        asked = [find(models, request)] if "model" in request.parameters else list(models.values())
        return Response(encoded({"model_stats": [statistics_of(one) for one in asked]}))

    server, names = Response(encoded(OF_SERVER)), Response(encoded({"models": list(models)}))
    index = Response(encoded([index_entry(one) for one in models.values()]))
    model_ready = ready(of_model(lambda one: {"name": one.served.name, "ready": True}))
    metadata, config = of_model(metadata_of), of_model(lambda one: configuration_of(one, max_rows))

    def get(path: str, handler: Handler, summary: str, schema: openapi.Schema, failures: tuple[int, ...] = ()) -> Route:
        return Route("GET", path, handler, RouteDoc(summary, schema, failures=failures))

    table = [
        get("/v2/health/live", lambda _: LIVE, "Whether the server answers", openapi.OBJECT),
        get("/v2/health/ready", ready(lambda _: READY), "Whether traffic may come", openapi.OBJECT, (503,)),
        *(get(path, lambda _: server, "Name, version and extensions", schemas.SERVER) for path in ("/v2", "/v2/")),
        get("/v2/models", lambda _: names, "The names of the models", openapi.OBJECT),
        get("/v2/models/stats", statistics, "The statistics of all models", schemas.STATISTICS),
        Route(
            "POST", "/v2/repository/index", lambda _: index, RouteDoc("The models with their versions and states", schemas.INDEX)
        ),
    ]
    for path in PLACES:
        table += [
            get(path, metadata, "Inputs and outputs of a model", schemas.METADATA, (404,)),
            get(f"{path}/ready", model_ready, "Whether a model may be asked", openapi.OBJECT, (404, 503)),
            get(f"{path}/config", config, "The configuration of a model, as Triton tells it", schemas.CONFIG, (404,)),
            get(f"{path}/stats", statistics, "The statistics of a model", schemas.STATISTICS, (404,)),
            Route("POST", f"{path}/infer", infer, RouteDoc("Outputs of a model", schemas.ANSWER, failures=(404,), binary=True),
                  schemas.REQUEST, Schedule(inline), any_content_type=True),
        ]  # fmt: skip
    return table


def find(models: Models, request: Request) -> Servable:
    """The model that the path names; NotFound (404) if it is not served, or not in that version."""
    one = models.get(request.parameters["model"])
    if one is None:
        raise NotFound(f"No model of this name is served; there are {', '.join(models)}.")
    if request.parameters.get("version", one.served.version) != one.served.version:
        raise NotFound(f"The model is not served in this version; there is version {one.served.version}.")
    return one


def inferred(one: Servable, request: Request, max_rows: int) -> Response:
    """The answer to an infer request, counted and timed; the outputs come from one run of the model."""
    with one.tally.watch(request.arrived) as watch:
        inference = decode_infer(request.body, request.environ.get(HEADER_VARIABLE), one.served, max_rows)
        watch.lap()
        outputs = one.infer(inference.inputs, sooner(request, inference.timeout))
        watch.lap()
        body, json_bytes = encode_infer(inference, one.served, outputs)
        watch.lap()
        watch.rows = len(inference.inputs[one.served.inputs[0].name])
    digest = ("X-Model-Digest", one.digest)
    if json_bytes is None:
        return Response(body, JSON, headers=(digest,), rows=watch.rows)
    return Response(body, openapi.OCTETS, headers=(digest, (HEADER, str(json_bytes))), rows=watch.rows)


def sooner(request: Request, timeout: int | None) -> float:
    """Until when the answer is wanted: as the fields and the server have it, or by its own parameter in µs if that is less."""
    return request.deadline if timeout is None else min(request.deadline, request.arrived + timeout / 1e6)


def metadata_of(one: Servable) -> object:
    def tensors(specs: Sequence[TensorSpec]) -> object:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]

    name, version, inputs, outputs, _ = one.served
    return {
        "name": name,
        "versions": [version],
        "platform": "onnx_onnxv1",
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
    }


def configuration_of(one: Servable, max_rows: int) -> object:
    """What Triton's own ONNX backend would tell of this model, as far as it is so here; perf_analyzer cannot do without it."""

    def tensors(specs: Sequence[TensorSpec]) -> object:
        return [{"name": spec.name, "data_type": data_type(spec.datatype), **dims(spec.shape[1:])} for spec in specs]

    name, _, inputs, outputs, _ = one.served
    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        "input": tensors(inputs),
        "output": tensors(outputs),
        "parameters": {name: {"string_value": value} for name, value in one.told.items()},
    }


def data_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def dims(shape: Sequence[int]) -> dict[str, object]:
    """Dimensions beside the rows; Triton has no empty ones, and says of a list of single values that it is reshaped."""
    return {"dims": list(shape)} if shape else {"dims": [1], "reshape": {"shape": []}}


def statistics_of(one: Servable) -> object:
    return {"name": one.served.name, "version": one.served.version, **one.tally.figures()}


def index_entry(one: Servable) -> object:
    return {"name": one.served.name, "version": one.served.version, "state": "READY", "reason": ""}


def encoded(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
