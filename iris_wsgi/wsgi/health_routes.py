"""Routes of every role: health, readiness, metrics, the OpenAPI document, and the page that shows this document."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from iris_wsgi import __version__
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.errors import NotFound, ServiceUnavailable
from iris_wsgi.model.predictor import LOOP_SECONDS, NEVER
from iris_wsgi.observability.metrics import MEDIA, Registry
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.body import GZIP, negotiate
from iris_wsgi.wsgi.browser_security import content_security_policy, hash_sources, security_headers
from iris_wsgi.wsgi.conditional import conditional

# The files of the page. The others are those of Swagger UI, with their media types.
SWAGGER_UI = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
DOCS_PATHS = ("/docs", *(f"/docs/{name}" for name in SWAGGER_UI))
# Paths that require no token: liveness, readiness, metrics, and static pages.
PUBLIC_PATHS = ("/", "/health", "/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", *DOCS_PATHS)
HTML = f"{openapi.HTML}; charset=utf-8"
# The package with the files of Swagger UI. It is not imported, because its module imports Flask.
SWAGGER_PACKAGE = "flask_swagger_ui"
NO_DOCS = (
    "The API page needs the files of Swagger UI, which are not installed. Run bin/setup or pip install --no-deps flask-swagger-ui"
    " and restart the server. GET /openapi.json has the same description."
)
DOCS_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API of iris_wsgi</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<style>
body { margin: 0 }
form { display: flex; flex-wrap: wrap; gap: .5rem; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1rem sans-serif }
form[hidden] { display: none }
form p { flex-basis: 100%; margin: 0 }
form input { flex: 1; min-width: 12rem; font: inherit }
</style>
<form id="authorize" hidden>
<p id="reason" role="status"></p>
<label for="token">Token</label> <input id="token" type="password" autocomplete="off" required> <button>Show the API</button>
</form>
<div id="swagger-ui"><p>Loading the API…</p></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>
const byId = id => document.getElementById(id);
async function load(token) {
  const response = await fetch("openapi.json", token ? { headers: { Authorization: `Bearer ${token}` } } : {});
  const spec = await response.json();
  byId("authorize").hidden = response.status !== 401;
  if (!response.ok) {
    byId("swagger-ui").textContent = response.status === 401 ? "" : spec.detail;
    byId("reason").textContent = token ? spec.detail : "This server requires a bearer token. The page keeps it in memory only.";
    byId("token").focus();
    return;
  }
  // The prefix of a proxy is part of the path of this page, also where the server does not know it.
  spec.servers = [{ url: new URL(".", location.href).pathname.slice(0, -1) || "/" }];
  const ui = SwaggerUIBundle({
    spec, dom_id: "#swagger-ui", deepLinking: true, displayRequestDuration: true, docExpansion: "list", filter: true,
    tryItOutEnabled: true, validatorUrl: null, defaultModelsExpandDepth: 0,
    onComplete: () => { if (token) ui.preauthorizeApiKey("token", token); },
  });
}
byId("authorize").addEventListener("submit", event => { event.preventDefault(); load(byId("token").value.trim()); });
load("");
</script>
"""
# Kubernetes removes a pod that ends from its Services by itself, so its probe need not fail. The name is that of its own servers.
EXCLUDE_SHUTDOWN = "exclude=shutdown"
HEALTH = openapi.Component("Health", openapi.closed(health={"type": "string", "enum": ["ok"]}))
LIVENESS = openapi.Component("Liveness", openapi.closed(live=openapi.TRUE))
READINESS = openapi.Component(
    "Readiness", openapi.with_optional(openapi.required(ready=openapi.TRUE), warnings=openapi.array_of(openapi.TEXT))
)
DESCRIPTION = openapi.Component(
    "OpenAPI",
    openapi.with_optional(
        openapi.required(
            openapi=openapi.TEXT,
            info=openapi.required(title=openapi.TEXT, version=openapi.TEXT),
            paths=openapi.map_of(openapi.DOCUMENT),
        ),
        servers=openapi.array_of(openapi.required(url=openapi.TEXT)),
        tags=openapi.array_of(openapi.required(name=openapi.TEXT)),
        components=openapi.DOCUMENT,
    ),
)


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
    examples: Callable[[], Mapping[str, object]] = dict,
) -> list[Route]:
    """Returns these routes and the `others` of a role. `liveness_problem` returns a sentence if only a restart helps.

    With `requires_token`, the OpenAPI document marks the routes that require a token. `examples` returns the values of named
    schemas in its examples.
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

    # Most servers never send the document, and for thousands of features it takes a tenth of a second.
    @lru_cache(1)
    def description() -> bytes:
        public_paths = PUBLIC_PATHS if requires_token else None
        return encode_json(openapi.document(table, __version__, public_paths, examples()))

    def summary() -> object:
        return {"openapi": openapi.VERSION, "info": {"title": openapi.TITLE, "version": __version__}, "paths": {}}

    def first_metric() -> str:
        return "\n".join(registry.text().decode().splitlines()[:3])

    def describe(request: Request) -> Response:
        return Response(openapi.with_server(description(), request.prefix))

    healthy = Response(encode_json({"health": "ok"}))
    table = [
        Route("GET", "/health", lambda _: healthy, RouteDoc("Server responds", HEALTH)),
        Route("GET", "/livez", livez, RouteDoc("Liveness: fails only if a restart helps", LIVENESS, failures=(503,))),
        Route(
            "GET",
            "/readyz",
            readyz,
            RouteDoc(f"Readiness for traffic; with ?{EXCLUDE_SHUTDOWN} also during a drain", READINESS, failures=(503,)),
        ),
        Route(
            "GET",
            "/metrics",
            metrics,
            RouteDoc("Metrics in the Prometheus text format", openapi.TEXT, MEDIA, example=first_metric),
        ),
        Route(
            "GET", "/openapi.json", describe, RouteDoc("This document", DESCRIPTION, example=summary), schedule=Schedule(NEVER)
        ),
        *docs_routes(),
        *others,
    ]
    return table


def docs_routes() -> list[Route]:
    """Returns the routes of the API page and its files. Without the files, the page is not found."""
    folder = swagger_folder()
    if folder is None:
        missing = RouteDoc("Not served: the files of the page are missing", openapi.TEXT, openapi.HTML, (), (404,))
        return [Route("GET", "/docs", no_docs, missing)]
    doc = RouteDoc("A page that shows this document and tries its routes", openapi.TEXT, HTML, example=lambda: "<!doctype html>")
    return [
        conditional(Route("GET", "/docs", lambda _: docs_page(), doc)),
        *(file_route(folder / name, media_type) for name, media_type in SWAGGER_UI.items()),
    ]


@lru_cache(1)
def docs_page() -> Response:
    """Returns the page, which allows its own elements and the files of this server."""
    script, style = (f"'self' {hash_sources(DOCS_PAGE, element)}" for element in ("script", "style"))
    policy = content_security_policy(script=script, style=style, connect="'self'", img="'self' data:")
    return Response(DOCS_PAGE.encode(), HTML, headers=security_headers(policy))


def no_docs(_: Request) -> Response:
    raise NotFound(NO_DOCS)


def swagger_folder() -> Path | None:
    """Returns the folder with the files of Swagger UI, plain or compressed, or None if they are not installed."""
    spec = find_spec(SWAGGER_PACKAGE)
    folders = [Path(place) / "dist" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((f for f in folders if all((f / name).exists() or (f / f"{name}.gz").exists() for name in SWAGGER_UI)), None)


def file_route(file: Path, media_type: str) -> Route:
    """Returns the route of a file of Swagger UI, which is read at its first request."""

    @lru_cache(1)
    def content() -> bytes:
        packed = file.with_name(f"{file.name}.gz")
        return packed.read_bytes() if packed.exists() else zlib.compress(file.read_bytes(), 9, GZIP)

    def respond(request: Request) -> Response:
        headers = (("Vary", "Accept-Encoding"), ("X-Content-Type-Options", "nosniff"))
        if negotiate(request.environ.get("HTTP_ACCEPT_ENCODING")) == "gzip":
            return Response(content(), media_type, headers=(*headers, ("Content-Encoding", "gzip")))
        return Response(zlib.decompress(content(), GZIP), media_type, headers=headers)

    doc = RouteDoc("A file of the page", openapi.TEXT, media_type, returns=("Vary",))
    # The pool compresses the file at its first request, and computes the ETag of this large response.
    return conditional(Route("GET", f"/docs/{file.name}", respond, doc, schedule=Schedule(NEVER)))
