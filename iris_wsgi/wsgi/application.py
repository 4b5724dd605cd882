"""The one module that speaks WSGI (PEP 3333): an environ comes in, a route answers, bytes go out."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from typing import Any, Literal, NamedTuple, Protocol

from iris_wsgi import errors
from iris_wsgi.errors import JSON, Problem
from iris_wsgi.observability.trace_context import Ids, ids_of
from iris_wsgi.resilience import deadline
from iris_wsgi.wsgi.body import Environ, check_media, read_body
from iris_wsgi.wsgi.content_coding import packed, unpacked
from iris_wsgi.wsgi.prefix import Prefix, mounted
from iris_wsgi.wsgi.routing import Parameters, Paths

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")
STATUS_LINES = {status: f"{status} {phrase}" for status, phrase in errors.PHRASES.items()}
# Answers without content, of which no length is told (RFC 9110, sections 15.3.5 and 15.4.5).
BARE = (204, 304)
# Whatever is between this server and its clients keeps nothing: it would not hear of changes.
FRESH = ("Cache-Control", "no-store")
UNMATCHED = "unmatched"
UNEXPECTED = "The server failed on this request; its log says more under this request id."

# What a request that is not answered at once does: it computes, its answer is held back, or it calls other servers.
Work = Literal["compute", "hold", "call"]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


def never() -> bool:
    return False


def nothing_refused(_: Mapping[str, Any]) -> None:
    """Lets every request through to its route."""


class Request(NamedTuple):
    """What a handler is given: method, path, body (empty unless the route takes one), the values of the path's parameters by
    name, the CGI variables (RFC 3875), in which the fields are, when it arrived, until when its answer is wanted, what says
    that an answer that is held back should go out, as its client has gone, its ids, and the prefix of its path at the client."""

    method: str
    path: str
    body: bytes
    parameters: Parameters
    variables: Mapping[str, Any]
    arrived: float = 0.0
    until: float = inf
    hurry: Callable[[], bool] = never
    ids: Ids = Ids("")
    prefix: str = ""


class Response(NamedTuple):
    """What a handler gives: a body of `media` type, a status, further headers, and, for the log, how many rows and which job it
    was about."""

    body: bytes | memoryview
    media: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    rows: int | None = None
    job: str = ""


class Route(NamedTuple):
    """One line of the table: what answers `method` on `path`, and the words and JSON schemas that OpenAPI shows of it.

    A path may have parameters: /models/{model}/infer. A route with a `body` schema takes JSON, and nothing else, in UTF-8;
    a `lenient` one a body whatever its Content-Type says, packed by gzip or deflate too, and it packs answers for who accepts
    that: for protocols whose clients do so. A `binary` one has a form in application/octet-stream as well, both ways. An `html`
    route also has a page, for clients that prefer HTML.

    A request whose body has at most `inline_bytes` is answered in the server's I/O loop, where it holds up every other
    connection: a handler that may block declares -1, and like all larger or packed bodies its requests go to the thread pool.

    Where an answer may be held back, `holds` is for how many seconds at most: Prefer: wait=N (RFC 7240) then tells how long its
    client would have it held, and not when the answer is no longer wanted. `success` are the statuses that OpenAPI shows, the
    usual one first; where a route `revalidates`, it shows 304 as well. What goes to the pool by its `inline_bytes` is answered
    in the loop all the same while `at_hand` says of the path's parameters and the CGI variables that its handler will not block.
    One that `waits` asks other servers: its requests have threads of their own, so that others need not wait for those too.
    """

    method: str
    path: str
    handler: Callable[[Request], Response]
    summary: str
    answer: Mapping[str, object]
    body: Mapping[str, object] | None = None
    media: str = JSON
    failures: tuple[int, ...] = ()
    inline_bytes: int = 16384
    lenient: bool = False
    binary: bool = False
    html: bool = False
    holds: float = 0.0
    success: tuple[int, ...] = (200,)
    revalidates: bool = False
    at_hand: Callable[[Parameters, Environ], bool] | None = None
    waits: bool = False


class Place(NamedTuple):
    """What is at a path: how the log and the metrics call it, the routes by method, and the methods it answers for Allow."""

    label: str
    routes: Mapping[str, Route]
    allow: str = ""

    def route(self, method: str) -> Route | None:
        return self.routes.get("GET" if method == "HEAD" else method)


class Observer(Protocol):
    """Who is told of each request: the log and the metrics."""

    def started(self) -> None: ...
    def failed(self, ids: Ids) -> None: ...
    def answered(self, method: str, path: str, route: str, response: Response, seconds: float, ids: Ids) -> None: ...


class App:
    """A WSGI application over a list of routes."""

    def __init__(
        self,
        routes: Iterable[Route],
        observer: Observer,
        max_body_bytes: int,
        deadline_seconds: float = inf,
        prefix: Prefix = mounted,
        refuses: Callable[[Environ], Problem | None] = nothing_refused,
    ) -> None:
        """Two routes for one method and path are a ValueError; `max_body_bytes` bounds what a request may carry.

        Work on a request ends `deadline_seconds` after it arrived, unless its client asks for less. `prefix` is of its environ.
        `refuses` returns the failure for a request that no route may answer, by its CGI variables.
        """
        self.table: dict[str, dict[str, Route]] = {}
        for route in routes:
            on_path = self.table.setdefault(route.path, {})
            if route.method in on_path:
                raise ValueError(f"two routes answer {route.method} {route.path}")
            on_path[route.method] = route
        places = {path: Place(path, on_path, allowed_methods(on_path)) for path, on_path in self.table.items()}
        # OPTIONS * asks about the server as a whole (RFC 9110, section 9.3.7).
        places["*"] = Place(UNMATCHED, {}, allowed_methods({m for on_path in self.table.values() for m in on_path}))
        self.paths = Paths(places, Place(UNMATCHED, {}))
        self.observer = observer
        self.max_body_bytes = max_body_bytes
        self.deadline_seconds = deadline_seconds
        self.prefix, self.refuses = prefix, refuses

    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """Answers one request of any WSGI server."""
        method = environ["REQUEST_METHOD"]
        response, request_id = self.answer(method, environ.get("PATH_INFO", ""), environ)
        headers = [*response.headers, ("X-Request-ID", request_id)]
        if response.status not in BARE:
            headers += (("Content-Type", response.media), ("Content-Length", str(len(response.body))))
        start_response(STATUS_LINES[response.status], headers)
        return [] if method == "HEAD" else [bytes(response.body)]

    def answer(
        self,
        method: str,
        path: str,
        variables: Environ,
        body: bytes | None = None,
        arrived: float | None = None,
        hurry: Callable[[], bool] = never,
    ) -> tuple[Response, str]:
        """The response to a request with these CGI variables (RFC 3875), and its id. Nothing that a handler raises gets out.

        `body` is None where it must be read from variables["wsgi.input"]; `arrived` is the monotonic time at which the request
        was complete, None for now. `hurry` is for handlers that hold answers back.
        """
        started = time.perf_counter()
        self.observer.started()
        ids = ids_of(variables)
        place, parameters = self.paths.find(path)
        try:
            response = self.respond(method, path, variables, body, arrived, hurry, place, parameters, ids)
        except Exception as error:
            problem = error if isinstance(error, Problem) else Problem(UNEXPECTED)
            if problem.status == 500:
                self.observer.failed(ids)
            response = rendered(problem, ids.request, path)
        self.observer.answered(method, path, place.label, response, time.perf_counter() - started, ids)
        return response, ids.request

    def inline(self, method: str, path: str, variables: Environ, body_bytes: int) -> bool:
        """Whether the server should answer this request in its I/O loop."""
        place, parameters = self.paths.find(path)
        route = place.route(method)
        if route is None or (route.at_hand is not None and route.at_hand(parameters, variables)):
            return True
        # How large a packed body is nobody knows yet.
        small = body_bytes <= route.inline_bytes and not (route.lenient and "HTTP_CONTENT_ENCODING" in variables)
        return small or self.refusal(path, variables) is not None

    def refusal(self, path: str, variables: Environ) -> Problem | None:
        """Why a request with these fields is answered with a failure whatever its body is; None: it is not."""
        return self.refuses(variables)

    def patience(self, method: str, path: str, variables: Environ, arrived: float) -> tuple[float, Work]:
        """Until when the answer to a request that arrived then is wanted, as far as its fields tell (monotonic), and what it is
        that takes time.
        """
        route = self.paths.find(path)[0].route(method)
        work: Work = "compute" if route is None else "hold" if held(route, variables) else "call" if route.waits else "compute"
        return self.until(route, variables, arrived), work

    def until(self, route: Route | None, variables: Environ, arrived: float) -> float:
        if route is not None and route.holds:
            return arrived + held(route, variables) + self.deadline_seconds
        return deadline.deadline_of(arrived, self.deadline_seconds, variables.get("HTTP_PREFER"))

    def respond(
        self,
        method: str,
        path: str,
        variables: Environ,
        body: bytes | None,
        arrived: float | None,
        hurry: Callable[[], bool],
        place: Place,
        parameters: Parameters,
        ids: Ids,
    ) -> Response:
        """Runs the handler of the route; raises Problem where there is none, or where the request is refused by its fields."""
        if problem := self.refusal(path, variables):
            raise problem
        route = place.route(method)
        if route is not None:
            now = time.monotonic()
            arrived = now if arrived is None else arrived
            until = self.until(route, variables, arrived)
            if until <= now:
                raise errors.DeadlineExceeded(deadline.WAITED)
            # Before the handler, which may store something: an invalid one is refused.
            prefix = self.prefix(variables)
            content = b"" if route.body is None else self.content(route, variables, body)
            response = route.handler(Request(method, path, content, parameters, variables, arrived, until, hurry, ids, prefix))
            return coded(response, variables.get("HTTP_ACCEPT_ENCODING")) if route.lenient else response
        if not path and method in ("GET", "HEAD") and (mount := self.prefix(variables)):
            # The mount point itself: relative references of the page need the slash.
            return Response(b"", "text/plain", 308, (("Location", f"{mount}/"),))
        allow = (("Allow", place.allow),) if place.allow else ()
        if allow and method == "OPTIONS":
            return Response(b"", status=204, headers=allow)
        if method not in METHODS:
            raise errors.MethodNotImplemented("This server does not know the request's method.", headers=allow)
        if allow:
            raise errors.MethodNotAllowed(f"This path answers {place.allow}.", headers=allow)
        raise errors.NotFound(errors.NO_ROUTE)

    def content(self, route: Route, variables: Environ, body: bytes | None) -> bytes:
        """The body as the route takes it."""
        if not route.lenient:
            check_media(variables)
        if body is None:
            body = read_body(variables, self.max_body_bytes)
        return unpacked(body, variables.get("HTTP_CONTENT_ENCODING"), self.max_body_bytes) if route.lenient else body


def held(route: Route, variables: Environ) -> float:
    """For how many seconds the answer to a request with these fields may be held back."""
    return min(route.holds, deadline.preferred_wait(variables.get("HTTP_PREFER")) or 0)


def allowed_methods(on_path: Collection[str]) -> str:
    """The methods a path answers: HEAD comes with GET, and OPTIONS with every path."""
    return ", ".join(m for m in METHODS if m in on_path or m == "OPTIONS" or (m == "HEAD" and "GET" in on_path))


def rendered(problem: Problem, request_id: str, path: str) -> Response:
    """The one place where a failure becomes an answer, in the form of the protocol to which the path belongs."""
    media = errors.error_media_type(path)
    body = errors.error_document(problem) if media == JSON else errors.problem_document(problem, request_id)
    return Response(body, media, problem.status, tuple(problem.headers))


def coded(response: Response, accept: str | None) -> Response:
    """The answer in the content coding that this Accept-Encoding prefers."""
    body, coding = packed(response.body, accept)
    encoding = () if coding is None else (("Content-Encoding", coding),)
    return response._replace(body=body, headers=(*response.headers, ("Vary", "Accept-Encoding"), *encoding))
