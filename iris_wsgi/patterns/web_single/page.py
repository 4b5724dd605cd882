"""Route of the root path: liveness as JSON, and a page for browsers."""

from pathlib import Path

from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.errors import JSON
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc
from iris_wsgi.wsgi.body import quality_values
from iris_wsgi.wsgi.browser_security import content_security_policy, hash_sources, security_headers
from iris_wsgi.wsgi.conditional import conditional

FILE = Path(__file__).with_name("page.html")
HTML = "text/html"
# Clients of KServe read liveness from this property of the root path.
ALIVE = encode_json({"status": "alive"})
STATUS: openapi.Schema = {"type": "string", "enum": ["alive"]}
# The representation depends on the Accept header.
VARY = ("Vary", "Accept")


def routes() -> list[Route]:
    content = FILE.read_bytes()
    text = content.decode()
    # The icon of the page is a data URL.
    script, style = hash_sources(text, "script"), hash_sources(text, "style")
    policy = content_security_policy(script=script, style=style, connect="'self'", img="data:")
    page = Response(content, f"{HTML}; charset=utf-8", headers=(VARY, *security_headers(policy)))
    alive = Response(ALIVE, headers=(VARY,))

    def root(request: Request) -> Response:
        return page if prefers_html(request.environ.get("HTTP_ACCEPT", "")) else alive

    return [
        conditional(Route("GET", "/", root, RouteDoc("Liveness; a page for browsers", openapi.closed(status=STATUS), html=True)))
    ]


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
