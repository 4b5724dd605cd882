"""The routes of the edge: the files of the bundle that runs in a browser, and what such browsers report."""

import re

from iris_wsgi.errors import JSON
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Counter
from iris_wsgi.patterns.edge.bundle_files import INDEX, File
from iris_wsgi.patterns.edge.telemetry import KEY, MOST_COUNT, MOST_COUNTS, Seen, decode_report
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import NO_STORE, Handler, Request, Response, Route, RouteDoc
from iris_wsgi.wsgi.conditional import NO_CACHE, names
from iris_wsgi.wsgi.content_coding import negotiate
from iris_wsgi.wsgi.ranges import requested_range

Labels = tuple[str, ...]

# The same as in the page's own <meta>, which static servers rely on; that one cannot forbid frames.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'"
)
SECURITY = (
    ("Content-Security-Policy", f"{POLICY}; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
# A URL that names the digest of what is there can never mean anything else.
FOREVER = ("Cache-Control", "public, max-age=31536000, immutable")
VARY = ("Vary", "Accept-Encoding")

digest_in = re.compile(r"(?:\A|&)sha256=([0-9a-f]{64})(?:&|\Z)").search


def routes(bundle: dict[str, File], labels: Labels, reported: Counter, seen: Seen, log: Log) -> list[Route]:
    """One for each file: what stands in a request never touches the file system. `labels` are those of the bundle's model."""
    files = [file_route(f"/edge/{path}", file) for path, file in bundle.items()]
    return [
        # A relative reference, which is right behind any prefix.
        Route("GET", "/edge", lambda _: Response(b"", "text/plain", 308, (("Location", "edge/"),)),
              RouteDoc("Leads to the edge page", openapi.TEXT, "text/plain", (308,))),
        file_route("/edge/", bundle[INDEX]),
        *files,
        Route("POST", "/edge/telemetry", receiver(labels, reported, seen, log),
              RouteDoc("Takes counts of predictions at the edge", openapi.TEXT, "text/plain", (204,)), report_schema(labels)),
    ]  # fmt: skip


def file_route(path: str, file: File) -> Route:
    """Answered in the I/O loop, whatever its size: it is in memory, and goes out as its client takes it."""
    schema = openapi.OBJECT if file.media == JSON else openapi.BYTES
    summary = f"A file of the edge bundle: {path.removeprefix('/edge/') or 'its page'}"
    return Route("GET", path, handler(file), RouteDoc(summary, schema, file.media, (200, 206, 304), (416,)))


def handler(file: File) -> Handler:
    plain_tag, packed_tag = f'"{file.digest}"', f'"{file.digest}.gzip"'
    vary = () if file.gzip is None else (VARY,)

    def answer(request: Request) -> Response:
        environ, body, tag = request.environ, file.content, plain_tag
        named = digest_in(environ.get("QUERY_STRING", ""))
        keep = FOREVER if named is not None and named[1] == file.digest else NO_CACHE
        headers: tuple[tuple[str, str], ...] = (keep, *vary, ("Accept-Ranges", "bytes"), *SECURITY)
        if file.gzip is not None and negotiate(environ.get("HTTP_ACCEPT_ENCODING")) == "gzip":
            body, tag, headers = file.gzip, packed_tag, (*headers, ("Content-Encoding", "gzip"))
        headers = (*headers, ("ETag", tag))
        if "HTTP_IF_NONE_MATCH" in environ and names(environ["HTTP_IF_NONE_MATCH"], tag):
            return Response(b"", file.media, 304, headers)
        # Only GET has ranges (RFC 9110, section 14.2).
        part = requested_range(environ, len(body), tag) if request.method == "GET" else None
        if part is None:
            return Response(body, file.media, headers=headers)
        told = ("Content-Range", f"bytes {part.start}-{part.stop - 1}/{len(body)}")
        return Response(memoryview(body)[part], file.media, 206, (*headers, told))

    return answer


def receiver(labels: Labels, reported: Counter, seen: Seen, log: Log) -> Handler:
    def receive(request: Request) -> Response:
        report = decode_report(request.body, labels)
        if seen.first(report.key):
            for one in report.counts:
                reported.add((one.label,), one.times)
            counts = [{"day": one.day, "label": one.label, "count": one.times} for one in report.counts]
            log.event("info", "predictions at the edge", counts=counts)
        return Response(b"", status=204, headers=(NO_STORE,))

    return receive


def report_schema(labels: Labels) -> openapi.Schema:
    count: openapi.Schema = {"type": "integer", "minimum": 1, "maximum": MOST_COUNT}
    day: openapi.Schema = {"type": "string", "format": "date"}
    label: openapi.Schema = {"type": "string", "enum": list(labels)}
    counts = openapi.listed(openapi.closed(day=day, label=label, count=count), 1, MOST_COUNTS)
    return openapi.closed(key={"type": "string", "pattern": f"^{KEY}$"}, counts=counts)
