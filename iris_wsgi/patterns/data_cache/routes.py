"""The routes of items: features by id, what the model says of them, and new ones."""

import re
from collections.abc import Callable
from math import ceil
from time import monotonic

from iris_wsgi import errors
from iris_wsgi.codec.rows import decode_rows
from iris_wsgi.errors import RETRY_AFTER, BackendUnavailable, NotCached
from iris_wsgi.http.cache_control import CacheDirectives, cache_directives
from iris_wsgi.model.latency import NEVER
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.data_cache.cache import ITEM, PREDICTION, Found, ItemCache
from iris_wsgi.patterns.data_cache.item_store import ID_PATTERN
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import NO_STORE, Request, Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.body import Environ
from iris_wsgi.wsgi.routing import Parameters

DOWN = "The database of the items does not answer now, and this item is not in memory; try again soon."
NOT_WRITTEN = "The database of the items does not answer now; whether the item was written is not known. Send it again."
# Followed by what a person must change.
WRITES = "Writes the features of an item, which is in no cache any more then"
REFUSED = "The database of the items refuses this, and a retry does not help. "
UNKNOWN = "There is no such item."
NO_ID = "There is no such item: an id is 1 to 64 letters, digits, - and _."
MORE = "send one at a time"

CACHE = "iris_wsgi"

is_id = re.compile(ID_PATTERN).fullmatch
Header = tuple[str, str]
Look = Callable[[str, float, CacheDirectives], Found]


def routes(model: Graph, cache: ItemCache) -> list[Route]:
    """All of them. What is in memory is answered in the I/O loop, since nobody is asked for it."""
    digest = ("X-Model-Digest", model.digest)

    def get(request: Request) -> Response:
        found, headers = find(request, cache.item)
        return Response(found.entry.body, headers=headers)

    def prediction(request: Request) -> Response:
        found, headers = find(request, cache.prediction)
        return Response(found.entry.body, headers=(digest, *headers), rows=1)

    def put(request: Request) -> Response:
        item_id = id_of(request)
        rows = decode_rows(request.body, model.width, 1, MORE)
        headers = (("Cache-Status", f"{CACHE}; fwd=method"), NO_STORE)
        try:
            version, body = cache.put(item_id, rows.astype("<f4", copy=False).tobytes())
        except BackendUnavailable as down:
            raise unavailable(down, NOT_WRITTEN, headers) from None
        if version > 1:
            return Response(body, headers=headers, rows=1)
        return Response(body, status=201, headers=(("Location", f"{request.prefix}/items/{item_id}"), *headers), rows=1)

    def is_cached(kind: bytes) -> Callable[[Parameters, Environ], bool]:
        def look(parameters: Parameters, environ: Environ) -> bool:
            item_id = parameters["id"]
            return not is_id(item_id) or cache.at_hand(kind, item_id, cache_directives(environ.get("HTTP_CACHE_CONTROL")))

        return look

    one, row = "/items/{id}", openapi.rows(model, 1)
    item, told = item_answer(model), prediction_answer(model)
    return [
        Route("GET", one, get, RouteDoc("The features of an item", item, failures=(404, 503, 504)),
              schedule=Schedule(NEVER, is_cached(ITEM))),
        Route("PUT", one, put, RouteDoc(WRITES, item, success=(200, 201), failures=(404, 503)), row, Schedule(NEVER)),
        Route("GET", f"{one}/prediction", prediction,
              RouteDoc("What the model says of an item", told, failures=(404, 409, 503, 504)),
              schedule=Schedule(NEVER, is_cached(PREDICTION))),
    ]  # fmt: skip


def item_answer(model: Graph) -> openapi.Schema:
    row = openapi.listed({"type": "number"}, 1, 1_000_000)
    return openapi.closed(id=openapi.TEXT, version={"type": "integer", "minimum": 1}, data=openapi.listed(row, 1, 1))


def prediction_answer(model: Graph) -> openapi.Schema:
    return openapi.closed(
        id=openapi.TEXT,
        version={"type": "integer", "minimum": 1},
        classes=openapi.listed(openapi.label(model), len(model.labels), len(model.labels)),
        label=openapi.label(model),
        probabilities=openapi.probabilities(model),
    )


def id_of(request: Request) -> str:
    item_id = request.parameters["id"]
    if not is_id(item_id):
        raise errors.NotFound(NO_ID)
    return item_id


def find(request: Request, look: Look) -> tuple[Found, tuple[Header, ...]]:
    """What there is about the item in the path, and the headers about where it came from."""
    wishes = cache_directives(request.environ.get("HTTP_CACHE_CONTROL"))
    try:
        found = look(id_of(request), request.deadline, wishes)
    except BackendUnavailable as down:
        status = ("Cache-Status", f"{CACHE}; fwd={'uri-miss' if wishes.read else 'request'}; detail=unavailable")
        raise unavailable(down, DOWN, (status, NO_STORE)) from None
    except NotCached as error:
        status = ("Cache-Status", f"{CACHE}; detail=only-if-cached")
        raise NotCached(error.detail, headers=(status, NO_STORE)) from None
    headers = told(found, wishes.read and not found.refused)
    if not found.entry.version:
        raise errors.NotFound(UNKNOWN, headers=headers)
    return found, headers


def unavailable(down: BackendUnavailable, why: str, headers: tuple[Header, ...]) -> errors.ServiceUnavailable:
    """With `why` and the time of a retry, unless only a person can remedy it."""
    if down.remedy:
        return errors.ServiceUnavailable(REFUSED + down.remedy, headers=headers)
    return errors.ServiceUnavailable(why, headers=(RETRY_AFTER, *headers))


def told(found: Found, use: bool) -> tuple[Header, ...]:
    """Cache-Status (RFC 9211): from memory, for how long it counts; else why not, whether it is kept now, or who else asked."""
    entry, now = found.entry, monotonic()
    if found.source == "stale":
        age = ("Age", str(ceil(max(0.0, now - entry.read_at))))
        return ("Cache-Status", f"{CACHE}; hit; detail=stale"), age, NO_STORE
    if found.source in ("hit", "negative") and not found.outdated and not found.kept:
        detail = "; detail=negative" if not entry.version else ""
        return ("Cache-Status", f"{CACHE}; hit; ttl={max(0, int(entry.until - now))}{detail}"), NO_STORE
    why = "request" if not use else "stale" if found.outdated else "uri-miss"
    parts = [CACHE, f"fwd={why}"]
    parts += ["stored"] if found.kept else []
    parts += ["collapsed"] if found.source == "collapsed" else []
    parts += [f"detail={found.source}"] if found.source in ("redis", "database") else []
    return ("Cache-Status", "; ".join(parts)), NO_STORE
