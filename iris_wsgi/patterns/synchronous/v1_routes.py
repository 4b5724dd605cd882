"""KServe's first protocol, for clients that still speak it: instances in, predictions out."""

from collections.abc import Callable, Mapping

from iris_wsgi.codec.v1 import decode_v1, encode_v1
from iris_wsgi.errors import ServiceUnavailable
from iris_wsgi.model.latency import LatencyProfile
from iris_wsgi.patterns.synchronous import schemas
from iris_wsgi.patterns.synchronous.served_model import Servable
from iris_wsgi.patterns.synchronous.v2_routes import encoded, find
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

PLACES = ("/v1/models/{model}", "/v1/models/{model}/versions/{version}")
INLINE_BYTES, ROW_BYTES = 16384, 4
SUMMARY = "Probabilities of rows, a list for each, as /predict/batch gives them"


def routes(
    models: Mapping[str, Servable], why_not_ready: Callable[[], str | None], max_rows: int, pace: LatencyProfile
) -> list[Route]:
    """All of them, for the models by name; `max_rows` of them in a request, and by their `pace` small bodies in the I/O loop."""
    inline = pace.inline_bytes(INLINE_BYTES, ROW_BYTES)
    names = Response(encoded({"models": list(models)}))

    def ready(request: Request) -> Response:
        one = find(models, request)
        if why := why_not_ready():
            raise ServiceUnavailable(why)
        return Response(encoded({"name": one.served.name, "ready": True}))

    def predict(request: Request) -> Response:
        return predicted(find(models, request), request, max_rows)

    table = [Route("GET", "/v1/models", lambda _: names, RouteDoc("The names of the models", openapi.OBJECT))]
    for path in PLACES:
        table += [
            Route("GET", path, ready, RouteDoc("Whether a model may be asked", openapi.OBJECT, failures=(404, 503))),
            Route("POST", f"{path}:predict", predict, RouteDoc(SUMMARY, schemas.PREDICTIONS, failures=(404,)),
                  schemas.INSTANCES, Schedule(inline), any_content_type=True),
        ]  # fmt: skip
    return table


def predicted(one: Servable, request: Request, max_rows: int) -> Response:
    """Returns the response to a prediction, counted and timed like those of v2."""
    (taken,) = one.served.inputs
    with one.tally.watch(request.arrived) as watch:
        rows = decode_v1(request.body, taken.shape[1], max_rows)
        watch.lap()
        outputs = one.infer({taken.name: rows}, request.deadline)
        watch.lap()
        body = encode_v1(outputs[one.probabilities])
        watch.lap()
        watch.rows = len(rows)
    return Response(body, headers=(("X-Model-Digest", one.digest),), rows=watch.rows)
