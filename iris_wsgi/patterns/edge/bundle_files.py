"""Files of an edge bundle in memory, as the server sends them."""

import zlib
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.errors import JSON, BadModel
from iris_wsgi.model.artifact import manifest_digest, read_file, read_labels, sha256
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.edge.bundle import MANIFEST, parse_manifest, read_checked
from iris_wsgi.settings import BadSetting, Settings

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


class StaticFile(NamedTuple):
    """Content of a file, its SHA-256, its media type, and the gzip version if the bundle has one."""

    content: bytes
    digest: str
    media: str
    gzip: bytes | None


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
