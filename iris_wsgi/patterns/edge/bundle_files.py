"""The files of an edge bundle in memory, each as its manifest says, for whoever serves them."""

import zlib
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.errors import JSON, BadModel
from iris_wsgi.model.artifact import manifest_digest, read_file, read_labels, sha256
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.edge.manifest import MANIFEST, parse_manifest, read_checked
from iris_wsgi.settings import BadSetting, Settings

INDEX = "index.html"
# Each process holds them all, and those that are packed beside them.
MOST_BYTES = 67_108_864
MEDIA = {
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
UNKNOWN = "application/octet-stream"


class File(NamedTuple):
    """What is served at a path: its bytes, their SHA-256, their media type, and the same packed by gzip where that was there."""

    content: bytes
    digest: str
    media: str
    gzip: bytes | None


def read_bundle(folder: Path) -> dict[str, File]:
    """Every file that the manifest names, and the manifest itself, by path. Raises BadSetting where one is not as it says."""
    try:
        content = read_file(folder / MANIFEST)
        named = parse_manifest(content, MANIFEST).files
        if INDEX not in named:
            raise BadModel(f"{MANIFEST} names no {INDEX}")
        if sum(told.bytes for told in named.values()) > MOST_BYTES:
            raise BadModel(f"its files are more than {MOST_BYTES} bytes, which each process would hold in memory")
        return {MANIFEST: file_of(folder, MANIFEST, content)} | {
            path: file_of(folder, path, read_checked(lambda name, most: read_file(folder / name, most), path, told))
            for path, told in named.items()
        }
    except BadModel as error:
        raise BadSetting(f"IRIS_EDGE_DIR={str(folder)!r} is no edge bundle: {error}") from None


def labels_of(bundle: dict[str, File], model: Graph, settings: Settings) -> tuple[str, ...]:
    """The labels of the bundle's model, which must be the server's `model`, or the whole model of which the role serves a part.

    Raises BadSetting.
    """
    manifest = parse_manifest(bundle[MANIFEST].content, MANIFEST)
    if manifest.digest == model.digest:
        return model.labels
    whole = Path(settings.model_dir)
    try:
        if manifest.digest == manifest_digest(whole):
            return read_labels(read_file(whole / "label.json"), str(whole / "label.json"))
    except BadModel:
        # A folder may hold the part alone.
        pass
    raise BadSetting(
        f"IRIS_EDGE_DIR={settings.edge_dir!r} is a bundle of the model {manifest.name} {manifest.version} {manifest.digest}, "
        f"and this server has {model.name} {model.version} {model.digest}: build one of this model by "
        f"bin/edge build --model-dir {settings.model_dir}, or serve none by an empty IRIS_EDGE_DIR"
    )


def file_of(folder: Path, path: str, content: bytes) -> File:
    beside = folder / f"{path}.gz"
    packed = read_file(beside) if beside.is_file() and beside.stat().st_size < len(content) else None
    if packed is not None and not unpacks_to(packed, content):
        raise BadModel(f"{path}.gz is not {path} packed by gzip")
    return File(content, sha256(content), MEDIA.get(path.rpartition(".")[2], UNKNOWN), packed)


def unpacks_to(packed: bytes, content: bytes) -> bool:
    """Whether they are the same, without unpacking more than that."""
    stream = zlib.decompressobj(31)
    try:
        found = stream.decompress(packed, len(content) + 1)
    except zlib.error:
        return False
    return found == content and stream.eof and not stream.unused_data
