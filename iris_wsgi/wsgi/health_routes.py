"""Routes of every role: health, readiness, metrics, and the OpenAPI document."""

from collections.abc import Callable, Sequence
from time import monotonic

from iris_wsgi import __version__
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.errors import ServiceUnavailable
from iris_wsgi.model.predictor import LOOP_SECONDS
from iris_wsgi.observability.metrics import MEDIA, Registry
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc

# Paths that require no token: liveness, readiness, metrics, and the static page at the root.
PUBLIC_PATHS = ("/", "/health", "/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
# Kubernetes removes a pod that ends from its Services by itself, so its probe need not fail. The name is that of its own servers.
EXCLUDE_SHUTDOWN = "exclude=shutdown"


class Readiness:
    """Reports whether the server can process requests: the server is not stopping, and the model passes its self-test."""

    def __init__(self, self_test: Callable[[], bool], seconds: float = 0.0) -> None:
        """If the self-test takes many `seconds`, its result stays valid for twenty times as long."""
        self.self_test = self_test
        self.stopping = False
        self.pause = 20 * seconds if seconds > LOOP_SECONDS else 0.0
        self.next_test, self.passed = 0.0, True
        # Further conditions of a role, and warnings that do not affect readiness. They must not block.
        self.checks: list[Callable[[], str | None]] = []
        self.warnings: list[Callable[[], Sequence[str]]] = []

    def problem(self, exclude_shutdown: bool = False) -> str | None:
        """Returns a sentence if the server is not ready, or None. With `exclude_shutdown`, a server that drains is ready."""
        if self.stopping and not exclude_shutdown:
            return "The server is shutting down."
        now = monotonic()
        if now >= self.next_test:
            self.passed = self.self_test()
            self.next_test = now + self.pause
        if not self.passed:
            return "The model no longer passes its self-test on the first golden row."
        return next((problem for check in self.checks if (problem := check())), None)


def routes(
    others: Sequence[Route],
    registry: Registry,
    readiness: Readiness,
    liveness_problem: Callable[[], str | None],
    requires_token: bool = False,
) -> list[Route]:
    """Returns these routes and the `others` of a role. `liveness_problem` returns a sentence if only a restart helps.

    With `requires_token`, the OpenAPI document marks the routes that require a token.
    """

    def livez(_: Request) -> Response:
        if problem := liveness_problem():
            raise ServiceUnavailable(problem)
        return Response(encode_json({"live": True}))

    def readyz(request: Request) -> Response:
        if problem := readiness.problem(request.environ.get("QUERY_STRING") == EXCLUDE_SHUTDOWN):
            raise ServiceUnavailable(problem)
        warnings = [warning for source in readiness.warnings for warning in source()]
        return Response(encode_json({"ready": True, "warnings": warnings} if warnings else {"ready": True}))

    def metrics(_: Request) -> Response:
        return Response(registry.text(), MEDIA)

    def describe(request: Request) -> Response:
        return Response(openapi.with_server(description, request.prefix))

    healthy = Response(encode_json({"health": "ok"}))
    table = [
        Route("GET", "/health", lambda _: healthy, RouteDoc("Server responds", openapi.OBJECT)),
        Route("GET", "/livez", livez, RouteDoc("Liveness: fails only if a restart helps", openapi.OBJECT, failures=(503,))),
        Route(
            "GET",
            "/readyz",
            readyz,
            RouteDoc(f"Readiness for traffic; with ?{EXCLUDE_SHUTDOWN} also during a drain", openapi.OBJECT, failures=(503,)),
        ),
        Route("GET", "/metrics", metrics, RouteDoc("Metrics in the Prometheus text format", openapi.TEXT, MEDIA)),
        Route("GET", "/openapi.json", describe, RouteDoc("This document", openapi.OBJECT)),
        *others,
    ]
    description = encode_json(openapi.document(table, __version__, PUBLIC_PATHS if requires_token else None))
    return table
