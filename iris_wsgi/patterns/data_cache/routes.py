"""Routes of the data cache: items by id, their predictions, and writes."""

import re
from collections.abc import Callable
from math import ceil
from time import monotonic

from iris_wsgi import errors
from iris_wsgi.codec.model_schema import OutputSchema
from iris_wsgi.codec.rows import decode_rows
from iris_wsgi.errors import RETRY_AFTER, BackendUnavailable, NotCached
from iris_wsgi.http.cache_headers import (
    NOT_CACHED_STATUS,
    STALE_STATUS,
    CacheDirectives,
    cache_directives,
    hit_status,
    miss_status,
)
from iris_wsgi.model.predictor import NEVER
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.data_cache.cache import ITEM, PREDICTION, ItemCache, ItemLookup
from iris_wsgi.patterns.data_cache.item_store import ID_PATTERN
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import NO_STORE, Request, Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.body import Environ
from iris_wsgi.wsgi.routing import Parameters

NOT_READ = "The database of the items is unavailable, and this item is not in memory; retry soon."
NOT_WRITTEN = "The database of the items is unavailable, so it is unknown whether it wrote the item; send the request again."
WRITE = "Write the features of an item, and invalidate its cache entries"
# The remedy follows.
REFUSED = "The database of the items refuses this, and a retry does not help. "
UNKNOWN = "Item not found."
INVALID_ID = "Item not found: an id is 1 to 64 letters, digits, - and _."
TOO_MANY_ROWS = "send one row in a request"

TAG = "data cache", "Items by id, with a cache in front of their database."
RETURNS = ("Cache-Status", "Cache-Control")
VERSION: openapi.Schema = {"type": "integer", "minimum": 1}
# The first training row.
ITEM_ID = {"id": {"type": "string", "pattern": f"^{ID_PATTERN}$", "examples": ["0000"]}}

is_id = re.compile(ID_PATTERN).fullmatch
Header = tuple[str, str]


def routes(model: Graph, outputs: OutputSchema, cache: ItemCache) -> list[Route]:
    """Hits run in the event loop, because they do not block."""
    digest = ("X-Model-Digest", model.digest)

    def get(request: Request) -> Response:
        found, headers = look_up(request, cache.item)
        return Response(found.entry.body, headers=headers)

    def prediction(request: Request) -> Response:
        found, headers = look_up(request, cache.prediction)
        return Response(found.entry.body, headers=(digest, *headers), rows=1)

    def put(request: Request) -> Response:
        item_id = id_of(request)
        rows = decode_rows(request.body, model.schema, 1, TOO_MANY_ROWS)
        headers = (("Cache-Status", miss_status("method")), NO_STORE)
        try:
            version, body = cache.put(item_id, model.schema.pack(rows))
        except BackendUnavailable as down:
            raise unavailable(down, NOT_WRITTEN, headers) from None
        if version > 1:
            return Response(body, headers=headers, rows=1)
        return Response(body, status=201, headers=(("Location", f"{request.prefix}/items/{item_id}"), *headers), rows=1)

    def is_cached(kind: bytes) -> Callable[[Parameters, Environ], bool]:
        def look(parameters: Parameters, environ: Environ) -> bool:
            item_id = parameters["id"]
            return not is_id(item_id) or cache.is_cached(kind, item_id, cache_directives(environ.get("HTTP_CACHE_CONTROL")))

        return look

    path, row, item = "/items/{id}", openapi.rows(model, 1), item_schema(model)
    written = RouteDoc(WRITE, item, success=(200, 201), failures=(404, 503), returns=("Location", *RETURNS), parameters=ITEM_ID)
    read = RouteDoc(
        "Features of an item",
        item,
        failures=(404, 503, 504),
        accepts=("Cache-Control", "Prefer"),
        returns=("Age", *RETURNS),
        parameters=ITEM_ID,
    )
    predicted = read._replace(
        summary="Prediction of an item",
        response=prediction_schema(outputs),
        failures=(404, 409, 503, 504),
        returns=("X-Model-Digest", *read.returns),
    )
    table = [
        Route("GET", path, get, read, schedule=Schedule(NEVER, is_cached(ITEM))),
        Route("PUT", path, put, written, row, Schedule(NEVER)),
        Route("GET", f"{path}/prediction", prediction, predicted, schedule=Schedule(NEVER, is_cached(PREDICTION))),
    ]
    return openapi.tagged(*TAG, table)


def item_schema(model: Graph) -> openapi.Schema:
    # An item of an older model may have another number of features.
    kinds = [openapi.value(feature) for feature in model.features]
    row = openapi.listed(kinds[0] if all(kind == kinds[0] for kind in kinds) else openapi.VALUE, 1, 1_000_000)
    data = openapi.listed(openapi.Component("ItemRow", row), 1, 1)
    return openapi.Component("Item", openapi.closed(id=openapi.TEXT, version=VERSION, data=data))


def prediction_schema(outputs: OutputSchema) -> openapi.Schema:
    return openapi.Component("ItemPrediction", openapi.closed(id=openapi.TEXT, version=VERSION, **openapi.prediction(outputs)))


def id_of(request: Request) -> str:
    item_id = request.parameters["id"]
    if not is_id(item_id):
        raise errors.NotFound(INVALID_ID)
    return item_id


def look_up(
    request: Request, lookup: Callable[[str, float, CacheDirectives], ItemLookup]
) -> tuple[ItemLookup, tuple[Header, ...]]:
    """Returns the entry of the item in the path, and the cache headers."""
    directives = cache_directives(request.environ.get("HTTP_CACHE_CONTROL"))
    try:
        found = lookup(id_of(request), request.deadline, directives)
    except BackendUnavailable as down:
        status = miss_status("uri-miss" if directives.read else "request", detail="unavailable")
        raise unavailable(down, NOT_READ, (("Cache-Status", status), NO_STORE)) from None
    except NotCached as error:
        raise NotCached(error.detail, headers=(NOT_CACHED_STATUS, NO_STORE)) from None
    headers = cache_headers(found)
    if not found.entry.version:
        raise errors.NotFound(UNKNOWN, headers=headers)
    return found, headers


def unavailable(down: BackendUnavailable, detail: str, headers: tuple[Header, ...]) -> errors.ServiceUnavailable:
    """Returns the advice to retry, or the remedy if a retry does not help."""
    if down.remedy:
        return errors.ServiceUnavailable(REFUSED + down.remedy, headers=headers)
    return errors.ServiceUnavailable(detail, headers=(RETRY_AFTER, *headers))


def cache_headers(found: ItemLookup) -> tuple[Header, ...]:
    entry, now = found.entry, monotonic()
    if found.source == "stale":
        age = ("Age", str(ceil(max(0.0, now - entry.read_at))))
        return STALE_STATUS, age, NO_STORE
    if found.source in ("hit", "negative") and found.reason != "stale":
        return ("Cache-Status", hit_status(entry.expires - now) + ("" if entry.version else "; detail=negative")), NO_STORE
    detail = found.source if found.source in ("redis", "database") else ""
    status = miss_status(found.reason, found.stored, found.source == "collapsed", detail)
    return ("Cache-Status", status), NO_STORE
