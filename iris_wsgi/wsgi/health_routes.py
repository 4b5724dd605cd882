"""The routes that every role has: health, readiness, metrics, the description of the others, and the page."""

import json
from collections.abc import Callable, Sequence
from time import monotonic

from iris_wsgi import __version__
from iris_wsgi.errors import ServiceUnavailable
from iris_wsgi.model.latency import LOOP_SECONDS
from iris_wsgi.observability.metrics import MEDIA, Registry
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc

# Paths that need no token: liveness, readiness, metrics, and the root path with its static page.
PUBLIC_PATHS = ("/", "/health", "/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")


class Readiness:
    """Whether traffic may come: not while the server stops, and not when the model no longer answers as it did at the start."""

    def __init__(self, answers_as_tested: Callable[[], bool], seconds: float = 0.0) -> None:
        """`seconds` is what the test of the model takes; where that is long its last answer counts for twenty times as long."""
        self.answers_as_tested = answers_as_tested
        self.stopping = False
        self.pause = 20 * seconds if seconds > LOOP_SECONDS else 0.0
        self.tested_until, self.answered = 0.0, True
        # What a role needs besides; none may block.
        self.others: list[Callable[[], str | None]] = []
        # What does not keep traffic away, and that a person should know; none may block.
        self.warnings: list[Callable[[], Sequence[str]]] = []

    def why_not(self) -> str | None:
        """A sentence while there must be no traffic, else None."""
        if self.stopping:
            return "The server is shutting down."
        now = monotonic()
        if now >= self.tested_until:
            self.answered = self.answers_as_tested()
            self.tested_until = now + self.pause
        if not self.answered:
            return "The model no longer answers its first golden row as it should."
        return next((why for ask in self.others if (why := ask())), None)


def routes(
    others: Sequence[Route], registry: Registry, readiness: Readiness, why_dead: Callable[[], str | None], guarded: bool = False
) -> list[Route]:
    """These routes and `others`: the whole table of a role; `why_dead` says what only a restart can mend.

    Where they are `guarded`, their description says which want a token.
    """

    def livez(_: Request) -> Response:
        if why := why_dead():
            raise ServiceUnavailable(why)
        return Response(b'{"live":true}')

    def readyz(_: Request) -> Response:
        if why := readiness.why_not():
            raise ServiceUnavailable(why)
        warnings = [one for ask in readiness.warnings for one in ask()]
        return Response(json.dumps({"ready": True, "warnings": warnings}).encode() if warnings else b'{"ready":true}')

    def metrics(_: Request) -> Response:
        return Response(registry.text(), media_type=MEDIA)

    def describe(request: Request) -> Response:
        return Response(openapi.served_at(description, request.prefix))

    table = [
        Route("GET", "/health", lambda _: Response(b'{"health":"ok"}'), RouteDoc("Whether the server answers", openapi.OBJECT)),
        Route("GET", "/livez", livez, RouteDoc("Liveness: fails only where a restart helps", openapi.OBJECT, failures=(503,))),
        Route("GET", "/readyz", readyz, RouteDoc("Readiness: whether traffic may come", openapi.OBJECT, failures=(503,))),
        Route("GET", "/metrics", metrics, RouteDoc("Metrics in the Prometheus text format", openapi.TEXT, MEDIA)),
        Route("GET", "/openapi.json", describe, RouteDoc("This document", openapi.OBJECT)),
        *others,
    ]
    description = json.dumps(openapi.document(table, "iris_wsgi", __version__, PUBLIC_PATHS if guarded else None)).encode()
    return table
