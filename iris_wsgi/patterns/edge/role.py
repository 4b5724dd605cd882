"""Pattern edge AI: the server sends a bundle to browsers and devices, and collects their reports."""

import json
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.errors import JSON, BadModel
from iris_wsgi.model.artifact import manifest_digest, read_file, read_labels, sha256
from iris_wsgi.model.session import Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Counter
from iris_wsgi.patterns.edge.bundle import MANIFEST, parse_manifest, read_checked
from iris_wsgi.patterns.edge.telemetry import KEY, MAX_COUNT, MAX_COUNTS, ReportDeduplicator, decode_report
from iris_wsgi.services import RoleContext
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import NO_STORE, Handler, Request, Response, Route, RouteDoc
from iris_wsgi.wsgi.body import negotiate
from iris_wsgi.wsgi.browser_security import content_security_policy, security_headers
from iris_wsgi.wsgi.conditional import NO_CACHE, matches, requested_range

Labels = tuple[str, ...]

# Equals the <meta> element of the page, for static servers. Only the header can forbid frames.
POLICY = content_security_policy(
    script="'self' 'wasm-unsafe-eval'", style="'self'", connect="'self'", img="'self' data:", worker="'self'"
)
# The content at a URL with its digest never changes.
FOREVER = ("Cache-Control", "public, max-age=31536000, immutable")
VARY = ("Vary", "Accept-Encoding")
TAG = "edge", "The bundle that predicts in a browser or on a device, and the reports of devices."

INDEX = "index.html"
# Each process keeps the files and their compressed versions in memory.
MAX_BYTES = 67_108_864
MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": JSON,
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "wasm": "application/wasm",
    "webmanifest": "application/manifest+json",
}

digest_in = re.compile(r"(?:\A|&)sha256=([0-9a-f]{64})(?:&|\Z)").search


class StaticFile(NamedTuple):
    """Content of a file, its SHA-256, its media type, and the gzip version if the bundle has one."""

    content: bytes
    digest: str
    media: str
    gzip: bytes | None


def routes(context: RoleContext) -> list[Route]:
    """Returns the routes of the bundle in IRIS_EDGE_DIR. Raises BadSetting if the bundle is required and unusable."""
    settings = context.settings
    try:
        if context.outputs.kind != CLASSIFIER:
            raise BadSetting(f"the pattern edge is for classifiers with probabilities; this model gives {context.outputs.name}")
        bundle = read_bundle(Path(settings.edge_dir))
        labels = bundle_labels(bundle, context.model, settings)
    except BadSetting as error:
        if settings.edge_required == "yes":
            raise
        context.log.event("warning", f"/edge/ is not served: {error}")
        return []
    reported = context.registry.counter(
        "edge_predictions_total", "Predictions reported by edge devices, by label.", "label", labels
    )
    receive = receiver(labels, reported, ReportDeduplicator(context.registry.memory.reports), context.log)
    report = report_schema(labels)
    table = [
        # A relative reference is valid with any URL prefix.
        Route("GET", "/edge", lambda _: Response(b"", "text/plain", 308, (("Location", "edge/"),)),
              RouteDoc("Redirects to the edge page", openapi.TEXT, "text/plain", (308,), example=str, returns=("Location",))),
        file_route("/edge/", bundle[INDEX]),
        *(file_route(f"/edge/{path}", file) for path, file in bundle.items()),
        Route("POST", "/edge/telemetry", receive,
              RouteDoc("Receives counts of predictions from edge devices", openapi.TEXT, "text/plain", (204,),
                       request=lambda: report_example(labels), returns=("Cache-Control",)), report),
    ]  # fmt: skip
    return openapi.tagged(*TAG, table)


def file_route(path: str, file: StaticFile) -> Route:
    """Returns a route that never accesses the file system. The I/O loop handles it, because the file is in memory."""
    is_json = file.media == JSON
    doc = RouteDoc(
        f"A file of the edge bundle: {path.removeprefix('/edge/') or 'its page'}",
        openapi.DOCUMENT if is_json else openapi.TEXT if file.media.startswith("text/") else openapi.BYTES,
        file.media,
        (200, 206, 304),
        (416,),
        example=(lambda: json.loads(bytes(file.content))) if is_json else None,
        accepts=("If-None-Match", "Range"),
        returns=("ETag", "Cache-Control", "Accept-Ranges", "Content-Range", "Vary"),
    )
    return Route("GET", path, file_handler(file), doc)


def file_handler(file: StaticFile) -> Handler:
    plain_tag, gzip_tag = f'"{file.digest}"', f'"{file.digest}.gzip"'
    vary = () if file.gzip is None else (VARY,)

    def respond(request: Request) -> Response:
        environ, body, tag = request.environ, file.content, plain_tag
        named = digest_in(environ.get("QUERY_STRING", ""))
        cache_control = FOREVER if named is not None and named[1] == file.digest else NO_CACHE
        headers: tuple[tuple[str, str], ...] = (cache_control, *vary, ("Accept-Ranges", "bytes"), *security_headers(POLICY))
        if file.gzip is not None and negotiate(environ.get("HTTP_ACCEPT_ENCODING")) == "gzip":
            body, tag, headers = file.gzip, gzip_tag, (*headers, ("Content-Encoding", "gzip"))
        headers = (*headers, ("ETag", tag))
        if "HTTP_IF_NONE_MATCH" in environ and matches(environ["HTTP_IF_NONE_MATCH"], tag):
            return Response(b"", file.media, 304, headers)
        # Range applies to GET only (RFC 9110, section 14.2).
        part = requested_range(environ, len(body), tag) if request.method == "GET" else None
        if part is None:
            return Response(body, file.media, headers=headers)
        content_range = ("Content-Range", f"bytes {part.start}-{part.stop - 1}/{len(body)}")
        return Response(memoryview(body)[part], file.media, 206, (*headers, content_range))

    return respond


def receiver(labels: Labels, reported: Counter, deduplicator: ReportDeduplicator, log: Log) -> Handler:
    def receive(request: Request) -> Response:
        report = decode_report(request.body, labels)
        if deduplicator.add(report.key):
            for entry in report.counts:
                reported.add((entry.label,), entry.number)
            counts = [{"day": entry.day, "label": entry.label, "count": entry.number} for entry in report.counts]
            log.event("info", "predictions at the edge", counts=counts)
        return Response(b"", status=204, headers=(NO_STORE,))

    return receive


def report_schema(labels: Labels) -> openapi.Schema:
    count: openapi.Schema = {"type": "integer", "minimum": 1, "maximum": MAX_COUNT}
    day: openapi.Schema = {"type": "string", "format": "date"}
    label: openapi.Schema = {"type": "string", "enum": list(labels)}
    counts = openapi.listed(openapi.closed(day=day, label=label, count=count), 1, MAX_COUNTS)
    return openapi.Component("EdgeReport", openapi.closed(key={"type": "string", "pattern": f"^{KEY}$"}, counts=counts))


def report_example(labels: Labels) -> dict[str, object]:
    return {"key": openapi.EXAMPLE_ID, "counts": [{"day": openapi.EXAMPLE_DAY, "label": labels[0], "count": 3}]}


def read_bundle(folder: Path) -> dict[str, StaticFile]:
    """Reads the manifest and its files, by path. Raises BadSetting if a file differs from the manifest."""
    try:
        content = read_file(folder / MANIFEST)
        entries = parse_manifest(content, MANIFEST).files
        if INDEX not in entries:
            raise BadModel(f"{MANIFEST} does not list {INDEX}")
        if sum(entry.bytes for entry in entries.values()) > MAX_BYTES:
            raise BadModel(f"its files have more than {MAX_BYTES} bytes, which each process would keep in memory")
        return {MANIFEST: static_file(folder, MANIFEST, content)} | {
            path: static_file(folder, path, read_checked(lambda name, limit: read_file(folder / name, limit), path, entry))
            for path, entry in entries.items()
        }
    except BadModel as error:
        raise BadSetting(f"IRIS_EDGE_DIR={str(folder)!r} is not an edge bundle: {error}") from None


def bundle_labels(bundle: dict[str, StaticFile], model: Graph, settings: Settings) -> tuple[str, ...]:
    """Returns the labels of the bundle's model: the server's `model`, or the full model if the role serves a part of it.

    Raises BadSetting for a bundle of another model.
    """
    manifest = parse_manifest(bundle[MANIFEST].content, MANIFEST)
    if manifest.source == model.digest:
        return model.labels
    folder = Path(settings.model_dir)
    try:
        if manifest.source == manifest_digest(folder):
            return read_labels(read_file(folder / "label.json"), str(folder / "label.json"))
    except BadModel:
        # The folder may hold only the part.
        pass
    raise BadSetting(
        f"IRIS_EDGE_DIR={settings.edge_dir!r} is a bundle of the model {manifest.model} {manifest.source}, "
        f"and this server has {model.name} {model.version} {model.digest}: build a bundle of this model by "
        f"bin/edge build --model-dir {settings.model_dir}, or serve none by an empty IRIS_EDGE_DIR"
    )


def static_file(folder: Path, path: str, content: bytes) -> StaticFile:
    gzip_path = folder / f"{path}.gz"
    gzip = read_file(gzip_path) if gzip_path.is_file() and gzip_path.stat().st_size < len(content) else None
    if gzip is not None and not decompresses_to(gzip, content):
        raise BadModel(f"{path}.gz is not {path} compressed by gzip")
    return StaticFile(content, sha256(content), MEDIA_TYPES.get(path.rpartition(".")[2], "application/octet-stream"), gzip)


def decompresses_to(gzip: bytes, content: bytes) -> bool:
    """Compares without decompressing more than the length of the content."""
    stream = zlib.decompressobj(31)
    try:
        found = stream.decompress(gzip, len(content) + 1)
    except zlib.error:
        return False
    return found == content and stream.eof and not stream.unused_data
