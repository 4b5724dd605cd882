"""The root path: whether the server is alive, as JSON, and for browsers a page that shows the service to a person."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from iris_wsgi.errors import JSON
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc
from iris_wsgi.wsgi.conditional import revalidated

FILE = Path(__file__).with_name("page.html")
HTML = "text/html"
MEDIA = f"{HTML}; charset=utf-8"
# Its one image is its icon.
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# KServe's clients read this member of the root path as liveness.
ALIVE = b'{"status":"alive"}'
STATUS: openapi.Schema = {"type": "string", "enum": ["alive"]}
# The Accept field selects the representation.
VARY = ("Vary", "Accept")

# A media range with its weight (RFC 9110, section 12.5.1); other parameters do not matter here.
ranged = re.compile(r"([^\s;]+)(?:.*;[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?").match


def routes() -> list[Route]:
    content = FILE.read_bytes()
    page = Response(content, MEDIA, headers=(VARY, *guards(content.decode())))
    alive = Response(ALIVE, headers=(VARY,))

    def root(request: Request) -> Response:
        return page if prefers_html(request.environ.get("HTTP_ACCEPT", "")) else alive

    summary = "Whether the server is alive; for browsers a page"
    return [revalidated(Route("GET", "/", root, RouteDoc(summary, openapi.closed(status=STATUS), html=True)))]


def guards(page: str) -> tuple[tuple[str, str], ...]:
    """The fields that keep the page to itself: it runs its own script and style alone, and talks to its own server alone."""
    return (
        ("Content-Security-Policy", POLICY.format(script=hashes(page, "script"), style=hashes(page, "style"))),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    )


def hashes(page: str, element: str) -> str:
    """The sources of the elements of this name, each by its hash (CSP level 3, section 2.3.1)."""
    texts = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


def prefers_html(accept: str) -> bool:
    """Whether this Accept field names HTML and gives it at least the weight of JSON, as a browser's does."""
    weights: dict[str, float] = {}
    for member in accept.lower().split(","):
        if found := ranged(member.strip(" \t")):
            weights[found[1]] = max(weights.get(found[1], 0.0), float(found[2] or 1))

    def weight(media: str, default: float) -> float:
        return weights.get(media, weights.get(f"{media.partition('/')[0]}/*", default))

    html = weight(HTML, 0.0)
    return html > 0 and html >= weight(JSON, weights.get("*/*", 0.0))
