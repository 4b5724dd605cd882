"""Route of the root path: liveness and links as JSON, and a page for browsers."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from iris_wsgi import __version__
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.errors import JSON
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc
from iris_wsgi.wsgi.body import compress, negotiate, quality_values
from iris_wsgi.wsgi.browser_security import content_security_policy, hash_sources, security_headers
from iris_wsgi.wsgi.conditional import conditional

FILE = Path(__file__).with_name("page.html")
# The references of page.html to its style sheet and its scripts. The response contains the files instead.
reference = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">|<script src="(\w+\.js)"></script>')
GZIP = "gzip"
HTML = "text/html"
# Clients of KServe read liveness from this property of the root path.
ALIVE = {"status": "alive"}
STATUS: openapi.Schema = {"type": "string", "enum": ["alive"]}
# Links of the root by name. A role shows those that it serves.
LINKS = {
    "health": "/health",
    "live": "/livez",
    "ready": "/readyz",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
    "docs": "/docs",
    "metadata": "/metadata",
    "predict": "/predict",
    "label": "/predict/label",
    "batch": "/predict/batch",
    "v2": "/v2",
    "v1": "/v1/models",
    "jobs": "/jobs",
    "hybrid": "/predict/hybrid",
    "item": "/items/{id}",
    "cache": "/cache",
    "ensemble": "/ensemble/predict",
    "edge": "/edge/",
}
LINKS_SCHEMA = openapi.closed(**dict.fromkeys(LINKS, openapi.TEXT)) | {
    "required": ["health", "live", "ready", "metrics", "openapi"]
}
INFO = openapi.closed(status=STATUS, name=openapi.TEXT, version=openapi.TEXT, role=openapi.TEXT, links=LINKS_SCHEMA)
# The representation depends on the Accept header.
VARY = ("Vary", "Accept")
PAGE_VARY = ("Vary", "Accept, Accept-Encoding")


def routes(info: Callable[[str], object]) -> list[Route]:
    """Returns the route of the root. `info` returns the JSON document for the path prefix of a client."""

    def root(request: Request) -> Response:
        if not prefers_html(request.environ.get("HTTP_ACCEPT", "")):
            return Response(encode_json(info(request.prefix)), headers=(VARY,))
        page, gzip_page = pages()
        return gzip_page if negotiate(request.environ.get("HTTP_ACCEPT_ENCODING")) == GZIP else page

    doc = RouteDoc("Liveness and links; a page for browsers", INFO, html=True, example=lambda: info(""))
    return [conditional(Route("GET", "/", root, doc))]


def server_info(role: str, table: Iterable[Route], prefix: str) -> dict[str, object]:
    """Returns the JSON document of the root. Its links begin with the path prefix of the client."""
    # A route without success only reports why the server does not serve the path.
    paths = {route.path for route in table if route.doc.success}
    links = {name: f"{prefix}{path}" for name, path in LINKS.items() if path in paths}
    return {**ALIVE, "name": "iris_wsgi", "version": __version__, "role": role, "links": links}


# At the first request of a browser, because most servers have none.
@lru_cache(1)
def pages() -> tuple[Response, Response]:
    """Returns the page, plain and as gzip. It allows its own elements, and its icon, which is a data URL."""
    text = page_text()
    script, style = hash_sources(text, "script"), hash_sources(text, "style")
    policy = content_security_policy(script=script, style=style, connect="'self'", img="data:")
    page = Response(text.encode(), f"{HTML}; charset=utf-8", headers=(PAGE_VARY, *security_headers(policy)))
    return page, page._replace(body=compress(page.body, GZIP)[0], headers=(*page.headers, ("Content-Encoding", GZIP)))


def page_text() -> str:
    """Returns the page as one document, with the text of its style sheet and of its scripts."""

    def inline(match: re.Match[str]) -> str:
        element, name = ("style", match[1]) if match[1] else ("script", match[2])
        text = FILE.with_name(name).read_text("utf-8")
        return f"<{element}>\n{text}</{element}>"

    return reference.sub(inline, FILE.read_text("utf-8"))


def prefers_html(accept: str) -> bool:
    """Returns whether this Accept header names HTML with at least the weight of JSON. Browsers send such headers."""
    weights: dict[str, float] = {}
    for member, weight in quality_values(accept).items():
        # Parameters of a media range do not matter here.
        media_range = member.partition(";")[0].rstrip(" \t")
        weights[media_range] = max(weights.get(media_range, 0.0), weight)

    def weight_of(media_type: str, default: float) -> float:
        return weights.get(media_type, weights.get(f"{media_type.partition('/')[0]}/*", default))

    html = weight_of(HTML, 0.0)
    return html > 0 and html >= weight_of(JSON, weights.get("*/*", 0.0))
