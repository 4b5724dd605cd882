"""The one module that speaks WSGI (PEP 3333): an environ comes in, a route answers, bytes go out."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from random import getrandbits
from typing import Any, NamedTuple, Protocol

from iris_wsgi import errors
from iris_wsgi.errors import PROBLEM_JSON, Problem

JSON = "application/json"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")
STATUS_LINES = {status: f"{status} {phrase}" for status, phrase in errors.PHRASES.items()}
UNMATCHED = "unmatched"
UNEXPECTED = "The server failed on this request; its log says more under this request id."

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]

request_id_of_caller = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
utf8_json = re.compile(r'application/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*)?;?[ \t]*', re.IGNORECASE).fullmatch


class Request(NamedTuple):
    """What a handler is given: the method, the path as the table knows it, and the body (empty unless the route takes one)."""

    method: str
    path: str
    body: bytes


class Response(NamedTuple):
    """What a handler gives: a body of `media` type, a status, further headers, and how many rows it predicted (for the log)."""

    body: bytes
    media: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    rows: int | None = None


class Route(NamedTuple):
    """One line of the table: what answers `method` on `path`, and the words and JSON schemas that OpenAPI shows of it.

    A route with a `body` schema takes JSON, and nothing else, in UTF-8. A request whose body has at most `inline_bytes` is
    answered in the server's I/O loop, where it holds up every other connection: a handler that may block declares -1, and
    like all larger bodies its requests go to the thread pool.
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


class Observer(Protocol):
    """Who is told of each request: the log and the metrics."""

    def started(self) -> None: ...
    def failed(self, request_id: str) -> None: ...
    def answered(self, method: str, path: str, route: str, response: Response, seconds: float, request_id: str) -> None: ...


class App:
    """A WSGI application over a list of routes."""

    def __init__(self, routes: Iterable[Route], observer: Observer, max_body_bytes: int) -> None:
        """Two routes for one method and path are a ValueError; `max_body_bytes` bounds what a request may carry."""
        self.table: dict[str, dict[str, Route]] = {}
        for route in routes:
            on_path = self.table.setdefault(route.path, {})
            if route.method in on_path:
                raise ValueError(f"two routes answer {route.method} {route.path}")
            on_path[route.method] = route
        self.allowed = {path: ", ".join(allowed_methods(on_path)) for path, on_path in self.table.items()}
        # OPTIONS * asks about the server as a whole (RFC 9110, section 9.3.7).
        self.allowed["*"] = ", ".join(allowed_methods({m for on_path in self.table.values() for m in on_path}))
        self.observer = observer
        self.max_body_bytes = max_body_bytes

    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """Answers one request of any WSGI server."""
        method = environ["REQUEST_METHOD"]
        response, request_id = self.answer(method, environ.get("PATH_INFO", ""), environ)
        headers = [*response.headers, ("X-Request-ID", request_id)]
        if response.status != 204:
            headers += (("Content-Type", response.media), ("Content-Length", str(len(response.body))))
        start_response(STATUS_LINES[response.status], headers)
        return [] if method == "HEAD" else [response.body]

    def answer(self, method: str, path: str, variables: Environ, body: bytes | None = None) -> tuple[Response, str]:
        """The response to a request with these CGI variables (RFC 3875), and its id. Nothing that a handler raises gets out.

        `body` is None where it must be read from variables["wsgi.input"].
        """
        started = time.perf_counter()
        self.observer.started()
        offered = variables.get("HTTP_X_REQUEST_ID")
        request_id = offered if offered and request_id_of_caller(offered) else new_request_id()
        try:
            response = self.respond(method, path, variables, body)
        except Exception as error:
            problem = error if isinstance(error, Problem) else Problem(UNEXPECTED)
            if problem.status == 500:
                self.observer.failed(request_id)
            response = rendered(problem, request_id)
        route = path if path in self.table else UNMATCHED
        self.observer.answered(method, path, route, response, time.perf_counter() - started, request_id)
        return response, request_id

    def inline(self, method: str, path: str, body_bytes: int) -> bool:
        """Whether the server should answer this request in its I/O loop."""
        route = self.route(method, path)
        return route is None or body_bytes <= route.inline_bytes

    def route(self, method: str, path: str) -> Route | None:
        on_path = self.table.get(path)
        return None if on_path is None else on_path.get("GET" if method == "HEAD" else method)

    def respond(self, method: str, path: str, variables: Environ, body: bytes | None) -> Response:
        """Finds the route and runs its handler; raises Problem where there is none."""
        route = self.route(method, path)
        if route is not None:
            if route.body is None:
                return route.handler(Request(method, path, b""))
            check_media(variables)
            return route.handler(Request(method, path, read_body(variables, self.max_body_bytes) if body is None else body))
        known = path in self.allowed
        allow = (("Allow", self.allowed[path]),) if known else ()
        if known and method == "OPTIONS":
            return Response(b"", status=204, headers=allow)
        if method not in METHODS:
            raise errors.MethodUnknown("This server does not know the request's method.", headers=allow)
        if known:
            raise errors.MethodNotAllowed(f"This path answers {self.allowed[path]}.", headers=allow)
        raise errors.NotFound("Nothing is served at this path; GET /openapi.json lists what is.")


def new_request_id() -> str:
    # The module's generator is seeded anew in each forked process.
    return f"{getrandbits(128):032x}"


def allowed_methods(on_path: Collection[str]) -> list[str]:
    """The methods a path answers: HEAD comes with GET, and OPTIONS with every path."""
    return [m for m in METHODS if m in on_path or m == "OPTIONS" or (m == "HEAD" and "GET" in on_path)]


def rendered(problem: Problem, request_id: str) -> Response:
    """The one place where a failure becomes an answer."""
    body = errors.problem_document(problem, request_id)
    return Response(body, PROBLEM_JSON, problem.status, tuple(problem.headers))


def check_media(variables: Environ) -> None:
    """Raises UnsupportedMedia for a body that does not claim to be plain JSON in UTF-8."""
    media = variables.get("CONTENT_TYPE", "")
    if media and media != JSON and not utf8_json(media):
        raise errors.UnsupportedMedia(
            "This route takes JSON in UTF-8: send Content-Type: application/json.", headers=(("Accept-Post", JSON),)
        )
    coding = variables.get("HTTP_CONTENT_ENCODING")
    if coding is not None and coding.strip().lower() != "identity":
        raise errors.UnsupportedMedia(
            "This route takes bodies as they are: send no Content-Encoding.", headers=(("Accept-Encoding", "identity"),)
        )


def read_body(environ: Environ, limit: int) -> bytes:
    """The body, `limit` bytes at most, whether its length is given or its end is marked by the server (wsgi.input_terminated)."""
    length = environ.get("CONTENT_LENGTH", "")
    if length:
        if not (length.isascii() and length.isdigit()):
            raise errors.NotDecodable("Content-Length is not a number.")
        # A length of more digits than the limit has is over it, and int() refuses thousands of them.
        if len(length.lstrip("0")) > len(str(limit)) or int(length) > limit:
            raise too_large(limit)
        body: bytes = environ["wsgi.input"].read(int(length))
        if len(body) != int(length):
            raise errors.NotDecodable("The body ended before its Content-Length.")
        return body
    if environ.get("wsgi.input_terminated"):
        body = environ["wsgi.input"].read(limit + 1)
        if len(body) > limit:
            raise too_large(limit)
        return body
    if "HTTP_TRANSFER_ENCODING" in environ:
        raise errors.LengthRequired("Send the body with a Content-Length.")
    return b""


def too_large(limit: int) -> Problem:
    return errors.BodyTooLarge(f"The body is over the limit of {limit} bytes; send fewer rows in a request.")
