"""Admin routes of the prediction cache."""

import json

from iris_wsgi.errors import BackendUnavailable, ServiceUnavailable
from iris_wsgi.patterns.prediction_cache.cache import PredictionCache
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

NOT_CLEARED = (
    "The memory of this pod is cleared. The second level did not answer, so it and other pods may not be cleared. Retry."
)
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
    """`digest` is that of the cached model."""

    def state(_: Request) -> Response:
        found = {
            "model": digest,
            "limit_bytes": cache.store.entries.max_bytes,
            "seconds": cache.store.ttl,
            "second_level": cache.tier is not None,
        }
        return Response(json.dumps(found | dict(cache.store.metrics.totals())).encode())

    def clear(_: Request) -> Response:
        try:
            cache.clear()
        except BackendUnavailable:
            raise ServiceUnavailable(NOT_CLEARED) from None
        return Response(b'{"cleared":true}')

    return [
        Route("GET", "/cache", state, RouteDoc("State of the prediction cache, over all processes of this server", STATE)),
        Route(
            "DELETE",
            "/cache",
            clear,
            RouteDoc(
                "Clear the prediction cache in all processes, and in the second level if there is one",
                openapi.OBJECT,
                failures=(503,) if cache.tier else (),
            ),
            # The second level may block.
            schedule=Schedule(-1 if cache.tier else 0),
        ),
    ]
