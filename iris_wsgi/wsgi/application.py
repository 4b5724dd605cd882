"""WSGI application (PEP 3333): dispatches requests to routes, and renders responses and failures."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from time import monotonic
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from iris_wsgi import errors
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.errors import JSON, Problem
from iris_wsgi.http.request_head import RequestHead
from iris_wsgi.observability.trace_context import RequestIds, TraceContext, request_ids
from iris_wsgi.wsgi.body import Environ, check_content_type, compress, decompress, read_body
from iris_wsgi.wsgi.routing import Parameters, Prefix, Router, mounted, role_of

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")
STATUS_LINES = {status: f"{status} {phrase}" for status, phrase in errors.PHRASES.items()}
# Responses without content and without Content-Length (RFC 9110, sections 15.3.5 and 15.4.5).
NO_CONTENT = (204, 304)
NO_STORE = ("Cache-Control", "no-store")
# Headers whose values differ between the requests of one client.
OF_ONE_REQUEST = frozenset({"HTTP_X_REQUEST_ID", "HTTP_TRACEPARENT"})
UNMATCHED = "unmatched"
UNEXPECTED = "The server failed on this request; see its log for this request id."
wait_preference = re.compile(r"[ \t]*wait[ \t]*=[ \t]*\"?([0-9]{1,9})\"?[ \t]*(?:;.*)?", re.IGNORECASE).fullmatch
quoted = re.compile(r'"(?:[^"\\]|\\.)*"')

# The threads that run a handler: for computation, for responses that wait for a job, or for calls to other servers.
Executor = Literal["pool", "long_poll", "upstream"]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


def never() -> bool:
    return False


@dataclass(slots=True)
class Request:
    """Input of a handler. Times are monotonic, and `parameters` are the values of the path parameters by name."""

    method: str
    path: str
    # The environ of RFC 3875, which contains the headers.
    environ: Environ
    parameters: Parameters
    ids: RequestIds
    arrived: float
    # Returns whether the client has closed its half of the connection: a long poll ends then.
    client_gone: Callable[[], bool]
    deadline: float = inf
    # The path prefix of the client.
    prefix: str = ""
    # Empty unless the route has a body schema.
    body: bytes = b""


class Response(NamedTuple):
    """Output of a handler. The log line of the request contains the number of `rows` and the id of the `job`."""

    body: bytes | memoryview
    media_type: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    rows: int | None = None
    job: str = ""


Handler = Callable[[Request], Response]
# Handler of the I/O loop for usual bodies, with the deadline (monotonic). It returns None, and has no effect, for any other body.
InlineHandler = Callable[[bytes, float], Response | None]


class RouteDoc(NamedTuple):
    """OpenAPI description of a route: `response` is the JSON schema, and the usual status is the first of `success`.

    A `binary` route also has bodies of application/octet-stream. An `html` route also has a page, for browsers.
    `example` and `request` return an example of the response and of the request. `accepts` and `returns` are the names of
    headers of requests and of responses, and `parameters` are the schemas of path parameters by name. `tag` is the name
    and the description of the pattern.
    """

    summary: str
    response: Mapping[str, object]
    media_type: str = JSON
    success: tuple[int, ...] = (200,)
    failures: tuple[int, ...] = ()
    binary: bool = False
    html: bool = False
    example: Callable[[], object] | None = None
    request: Callable[[], object] | None = None
    accepts: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    parameters: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    tag: tuple[str, str] = ("server", "Health, readiness, metrics, and the description of the server.")


class Schedule(NamedTuple):
    """Selects where a handler runs: in the I/O loop, where it blocks all other connections, or in a thread.

    The loop runs requests whose body has up to `inline_bytes` (-1: none) and no content coding, and requests for which
    `is_cached` returns that the handler will not block.
    """

    inline_bytes: int = 16384
    is_cached: Callable[[Parameters, Environ], bool] | None = None
    # The handler may wait so long for a client that sends Prefer: wait=N (RFC 7240).
    max_wait_seconds: float = 0.0
    # Requests that call other servers run in separate threads.
    calls_upstream: bool = False


class Route(NamedTuple):
    """A method and a path template such as /models/{model}/infer, with their handler.

    With a `body` schema, the route takes JSON in UTF-8. With `any_content_type`, it ignores Content-Type, and supports
    gzip and deflate for request and response. `inline` gives the same responses as the handler, sooner.
    """

    method: str
    path: str
    handler: Handler
    doc: RouteDoc
    body: Mapping[str, object] | None = None
    schedule: Schedule = Schedule()
    any_content_type: bool = False
    inline: InlineHandler | None = None


class PreparedRequest(NamedTuple):
    """Properties of every request with the same head. Its deadline is `timeout` seconds after its arrival.

    `respond` calls the handler with the body, the deadline, the id, and the arrival. `inline` is that of the route.
    """

    method: str
    path: str
    environ: Environ
    body_bytes: int
    route: str
    timeout: float
    # Checks what can change after the first request with this head.
    is_authorized: Callable[[], bool] | None
    inline: InlineHandler | None
    respond: Callable[[bytes, float, str, float], Response]


class Resource(NamedTuple):
    """The routes of a path by method. Logs and metrics use the label, and `allow` is the value of the header Allow."""

    label: str
    routes: Mapping[str, Route]
    allow: str = ""


class Observer(Protocol):
    """Logs and counts requests. `started` and `ended` enclose a request that other threads may see in progress."""

    def started(self) -> None: ...
    def ended(self) -> None: ...
    def failed(self, ids: RequestIds) -> None: ...
    def answered(
        self,
        method: str,
        path: str,
        route: str,
        response: Response,
        began: float,
        request_id: str,
        context: TraceContext | None = None,
    ) -> None: ...


class App:
    """WSGI application over a list of routes."""

    def __init__(
        self,
        routes: Iterable[Route],
        observer: Observer,
        max_body_bytes: int,
        deadline_seconds: float = inf,
        prefix: Prefix = mounted,
        check_host: Callable[[Environ], Problem | None] = lambda _: None,
    ) -> None:
        """Raises ValueError if two routes have the same method and path.

        The deadline of a request is `deadline_seconds` after its arrival, or earlier if the client asks for that.
        `check_host` returns the failure of a request that no route may process.
        """
        self.table: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_method = self.table.setdefault(route.path, {})
            if route.method in by_method:
                raise ValueError(f"two routes answer {route.method} {route.path}")
            by_method[route.method] = route
        resources = {path: resource(path, by_method) for path, by_method in self.table.items()}
        # OPTIONS * is about the server as a whole (RFC 9110, section 9.3.7).
        methods = {method for by_method in self.table.values() for method in by_method}
        resources["*"] = Resource(UNMATCHED, {}, allowed_methods(methods))
        self.router = Router(resources, Resource(UNMATCHED, {}))
        self.observer = observer
        self.max_body_bytes = max_body_bytes
        self.deadline_seconds = deadline_seconds
        self.prefix, self.check_host = prefix, check_host

    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """Serves one request of any WSGI server."""
        method = environ["REQUEST_METHOD"]
        response, request_id = self.answer(method, environ.get("PATH_INFO", ""), environ)
        headers = [*response.headers, ("X-Request-ID", request_id)]
        if response.status not in NO_CONTENT:
            headers += (("Content-Type", response.media_type), ("Content-Length", str(len(response.body))))
        start_response(STATUS_LINES[response.status], headers)
        return [] if method == "HEAD" else [bytes(response.body)]

    def answer(
        self,
        method: str,
        path: str,
        environ: Environ,
        body: bytes | None = None,
        arrived: float | None = None,
        client_gone: Callable[[], bool] = never,
    ) -> tuple[Response, str]:
        """Returns the response to a request and the request id; an exception of the handler becomes a response.

        Without a `body`, the application reads environ["wsgi.input"]. `arrived` is the monotonic time at which the request
        was complete, now by default.
        """
        began = monotonic()
        self.observer.started()
        ids = request_ids(environ)
        resource, parameters = self.router.find(path)
        request = Request(method, path, environ, parameters, ids, began if arrived is None else arrived, client_gone)
        try:
            response = self.respond(request, resource, body)
        except Exception as error:
            response = self.failure(error, ids, path)
        self.observer.ended()
        self.observer.answered(method, path, resource.label, response, began, ids.request, ids.context)
        return response, ids.request

    def failure(self, error: Exception, ids: RequestIds, path: str) -> Response:
        """Returns the response to a request whose handler raised an exception."""
        problem = error if isinstance(error, Problem) else Problem(UNEXPECTED)
        if problem.status == 500:
            self.observer.failed(ids)
        return render_problem(problem, ids.request, path)

    def prepare(self, head: RequestHead) -> "PreparedRequest | None":
        """Returns the properties of every request with this head. None means that only answer() may serve it.

        It is for requests of one route with a body, which the I/O loop runs itself.
        """
        method, path, environ, length = head.method, head.path, head.environ, head.length
        resource, parameters = self.router.find(path)
        route = resource.routes.get(method)
        if route is None or route.body is None or length is None or not OF_ONE_REQUEST.isdisjoint(environ):
            return None
        if route.schedule.is_cached is not None or length > self.max_body_bytes or not is_small(route, environ, length):
            return None
        if self.check_host(environ) is not None:
            return None
        try:
            prefix, _ = self.prefix(environ), self.content(route, environ, b"")
        except Problem:
            return None
        timeout, accepted = self.deadline(route, environ, 0.0), environ.get("HTTP_ACCEPT_ENCODING")

        def respond(body: bytes, deadline: float, request_id: str, arrived: float) -> Response:
            ids = RequestIds(request_id)
            request = Request(method, path, environ, parameters, ids, arrived, never, deadline, prefix, body)
            response = route.handler(request)
            return encode_response(response, accepted) if route.any_content_type else response

        return PreparedRequest(method, path, environ, length, resource.label, timeout, None, route.inline, respond)

    def inline(self, method: str, path: str, environ: Environ, body_bytes: int) -> bool:
        """Returns whether the I/O loop of the server runs this request."""
        resource, parameters = self.router.find(path)
        route = resource.routes.get(method)
        if route is None:
            return True
        schedule = route.schedule
        if schedule.is_cached is not None and schedule.is_cached(parameters, environ):
            return True
        return is_small(route, environ, body_bytes) or self.authorize(path, environ) is not None

    def authorize(self, path: str, environ: Environ) -> Problem | None:
        """Returns the failure of a request that its headers alone reject, or None."""
        return self.check_host(environ)

    def schedule(self, method: str, path: str, environ: Environ, arrived: float) -> tuple[float, Executor]:
        """Returns the deadline (monotonic) of a request by its headers, and the threads that run it."""
        route = self.router.find(path)[0].routes.get(method)
        is_long_poll = route is not None and long_poll_seconds(route, environ) > 0
        calls_upstream = route is not None and route.schedule.calls_upstream
        executor: Executor = "long_poll" if is_long_poll else "upstream" if calls_upstream else "pool"
        return self.deadline(route, environ, arrived), executor

    def deadline(self, route: Route | None, environ: Environ, arrived: float) -> float:
        if "HTTP_PREFER" not in environ:
            return arrived + self.deadline_seconds
        if route is not None and route.schedule.max_wait_seconds:
            return arrived + long_poll_seconds(route, environ) + self.deadline_seconds
        return deadline_of(arrived, self.deadline_seconds, environ["HTTP_PREFER"])

    def respond(self, request: Request, resource: Resource, body: bytes | None) -> Response:
        """Runs the handler. Raises Problem if no route matches, or if the headers or the body are invalid."""
        environ = request.environ
        if problem := self.authorize(request.path, environ):
            raise problem
        route = resource.routes.get(request.method)
        if route is None:
            return self.respond_without_route(request, resource.allow)
        request.deadline = self.deadline(route, environ, request.arrived)
        if request.deadline <= monotonic():
            raise errors.DeadlineExceeded(errors.WAITED_TOO_LONG)
        # Before the handler, which may store something: an invalid prefix is a failure.
        request.prefix = self.prefix(environ)
        if route.body is not None:
            request.body = self.content(route, environ, body)
        response = route.handler(request)
        return encode_response(response, environ.get("HTTP_ACCEPT_ENCODING")) if route.any_content_type else response

    def respond_without_route(self, request: Request, allow: str) -> Response:
        """Raises Problem, except for OPTIONS and for the redirect of the mount point."""
        if not request.path and request.method in ("GET", "HEAD") and (mount := self.prefix(request.environ)):
            # The relative references of the page need the final slash.
            return Response(b"", "text/plain", 308, (("Location", f"{mount}/"),))
        headers = (("Allow", allow),) if allow else ()
        if allow and request.method == "OPTIONS":
            return Response(b"", status=204, headers=headers)
        if request.method not in METHODS:
            raise errors.MethodNotImplemented("The request method is unknown.", headers=headers)
        if allow:
            raise errors.MethodNotAllowed(f"This path supports {allow}.", headers=headers)
        raise self.no_route(request)

    def no_route(self, request: Request) -> errors.NotFound:
        """Returns the failure of a request whose path has no route. It names a similar path, or the role that has this path."""
        try:
            prefix = self.prefix(request.environ)
        except Problem:
            prefix = ""
        hint = ""
        if (similar := self.router.similar(request.path)) is not None:
            hint = f", but {prefix}{similar} is"
        elif role := role_of(request.path, self.table):
            hint = f" by this role, but by role {role}"
        return errors.NotFound(errors.NO_ROUTE.format(hint=hint, prefix=prefix))

    def content(self, route: Route, environ: Environ, body: bytes | None) -> bytes:
        """Returns the body without its content coding."""
        if not route.any_content_type:
            check_content_type(environ)
        if body is None:
            body = read_body(environ, self.max_body_bytes)
        if not route.any_content_type:
            return body
        return decompress(body, environ.get("HTTP_CONTENT_ENCODING"), self.max_body_bytes)


def is_small(route: Route, environ: Environ, body_bytes: int) -> bool:
    """Returns whether the I/O loop may run a request with a body of this size."""
    # The decompressed size is unknown at this point.
    return body_bytes <= route.schedule.inline_bytes and not (route.any_content_type and "HTTP_CONTENT_ENCODING" in environ)


def deadline_of(arrived: float, timeout_seconds: float, prefer: str | None) -> float:
    """Returns the monotonic deadline of a request: its timeout, or the shorter wait=N of its Prefer header (RFC 7240)."""
    return arrived + min(timeout_seconds, preferred_wait(prefer) or inf)


def preferred_wait(prefer: str | None) -> int | None:
    """Returns the N of wait=N in a Prefer header, or None."""
    if prefer is not None:
        for preference in quoted.sub(keep_number, prefer).split(","):
            if found := wait_preference(preference):
                return int(found[1])
    return None


def keep_number(found: re.Match[str]) -> str:
    """Removes a quoted string that is not a number: it may contain commas."""
    return found[0] if found[0][1:-1].isdigit() else ""


def long_poll_seconds(route: Route, environ: Environ) -> float:
    """Returns how long the response to this request may wait for a job."""
    return min(route.schedule.max_wait_seconds, preferred_wait(environ.get("HTTP_PREFER")) or 0)


def resource(path: str, by_method: Mapping[str, Route]) -> Resource:
    heads = {"HEAD": by_method["GET"]} if "GET" in by_method else {}
    return Resource(path, {**heads, **by_method}, allowed_methods(by_method))


def allowed_methods(methods: Collection[str]) -> str:
    """Returns the value of Allow: HEAD comes with GET, and OPTIONS with every path."""
    return ", ".join(m for m in METHODS if m in methods or m == "OPTIONS" or (m == "HEAD" and "GET" in methods))


def render_problem(problem: Problem, request_id: str, path: str) -> Response:
    """Returns the response of a failure, in the format of the protocol of the path."""
    media_type = errors.error_media_type(path)
    document = errors.error_document(problem) if media_type == JSON else errors.problem_document(problem, request_id)
    return Response(encode_json(document), media_type, problem.status, tuple(problem.headers))


def encode_response(response: Response, accept_encoding: str | None) -> Response:
    """Applies the content coding that the client prefers."""
    body, coding = compress(response.body, accept_encoding)
    encoding = () if coding is None else (("Content-Encoding", coding),)
    return response._replace(body=body, headers=(*response.headers, ("Vary", "Accept-Encoding"), *encoding))
