"""What operators do with the prediction cache: look at it, and clear it."""

import json

from iris_wsgi.errors import BackendUnavailable, ServiceUnavailable
from iris_wsgi.patterns.prediction_cache.cache import PredictionCache
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

CLEARED = Response(b'{"cleared":true}')
HALF = "The memory of this pod is cleared; the second level did not answer, so it and other pods may not be. Ask again."
COUNT = {"type": "integer", "minimum": 0}
COUNTS = {"type": "object", "additionalProperties": COUNT}
STATE = openapi.closed(
    model=openapi.TEXT,
    limit_bytes=COUNT,
    seconds={"type": "number"},
    second_level={"type": "boolean"},
    entries=COUNT,
    bytes=COUNT,
    rows=COUNTS,
    evictions=COUNTS,
    shared_failures=COUNT,
)


def routes(cache: PredictionCache, digest: str) -> list[Route]:
    """`digest` is that of the model whose answers are kept."""

    def state(_: Request) -> Response:
        found = {
            "model": digest,
            "limit_bytes": cache.known.shelf.most_bytes,
            "seconds": cache.known.seconds,
            "second_level": cache.shared is not None,
        }
        return Response(json.dumps(found | dict(cache.known.metrics.totals())).encode())

    def clear(_: Request) -> Response:
        try:
            cache.clear()
        except BackendUnavailable:
            raise ServiceUnavailable(HALF) from None
        return CLEARED

    # A second level may keep it waiting.
    inline = -1 if cache.shared else 0
    return [
        Route("GET", "/cache", state, RouteDoc("The prediction cache: what is in it, over all processes of this server", STATE)),
        Route(
            "DELETE",
            "/cache",
            clear,
            RouteDoc(
                "Clear the prediction cache: all processes, and the second level where there is one",
                openapi.OBJECT,
                failures=(503,) if cache.shared else (),
            ),
            schedule=Schedule(inline),
        ),
    ]
