"""Routes of KServe v1: instances in, predictions out."""

from collections.abc import Callable, Mapping

from iris_wsgi.codec.v1 import decode_v1, encode_v1
from iris_wsgi.errors import ServiceUnavailable
from iris_wsgi.model.predictor import LatencyProfile
from iris_wsgi.patterns.synchronous import schemas
from iris_wsgi.patterns.synchronous.served_model import ServedModel, find
from iris_wsgi.patterns.synchronous.statistics import StageTimer
from iris_wsgi.patterns.synchronous.v2_routes import encoded
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

PATHS = ("/v1/models/{model}", "/v1/models/{model}/versions/{version}")
INLINE_BYTES, ROW_BYTES = 16384, 4


def routes(
    models: Mapping[str, ServedModel], readiness_problem: Callable[[], str | None], max_rows: int, latency: LatencyProfile
) -> list[Route]:
    """Returns the routes over the models by name."""
    schedule = Schedule(latency.inline_bytes(INLINE_BYTES, ROW_BYTES))
    names = Response(encoded({"models": list(models)}))

    def ready(request: Request) -> Response:
        model = find(models, request)
        if problem := readiness_problem():
            raise ServiceUnavailable(problem)
        return Response(encoded({"name": model.signature.name, "ready": True}))

    def predict(request: Request) -> Response:
        return predict_v1(find(models, request), request, max_rows)

    ready_doc = RouteDoc("Readiness of a model", openapi.OBJECT, failures=(404, 503))
    predict_doc = RouteDoc("Probabilities, scores, or values of rows, as a list per row", schemas.PREDICTIONS, failures=(404,))
    instances = schemas.instances(feature for model in models.values() for feature in model.schema.features)
    table = [Route("GET", "/v1/models", lambda _: names, RouteDoc("Names of the models", openapi.OBJECT))]
    for path in PATHS:
        table += [
            Route("GET", path, ready, ready_doc),
            Route("POST", f"{path}:predict", predict, predict_doc, instances, schedule, any_content_type=True),
        ]
    return table


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
