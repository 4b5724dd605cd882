"""Edge bundles for tests: whatever files they are to have, under a manifest that tells the truth of them."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from iris_wsgi.edge.manifest import MANIFEST, File, mark
from iris_wsgi.folder import sha256

# What each has that is served: a file of each kind, in folders too.
SMALL = {
    "index.html": b"<!doctype html><title>x</title>",
    "edge.js": b"export {};",
    "sw.js": b"'use strict';",
    "edge.css": b"p { margin: 0 }",
    "model/a.onnx": bytes(range(256)) * 40,
    "model/golden.json": b'{"model": "a.onnx"}',
    "ort/a.wasm": b"\0asm" + bytes(100_000),
    "ort/a.mjs": b"export default 1;",
}


def write_bundle(folder: Path, files: Mapping[str, bytes] = SMALL, packed: tuple[str, ...] = ("ort/a.wasm",)) -> str:
    """Writes a bundle, and gives its name; the files that are `packed` have a .gz beside them."""
    told = {path: File(sha256(content), len(content)) for path, content in files.items()}
    document = {
        "bundle": f"1-{mark(told)}",
        "model": {"name": "iris_svc", "version": "1.0.0", "digest": "sha256:0", "features": [], "labels": []},
        "minimum": {},
        "files": {path: file._asdict() for path, file in told.items()},
    }
    for path, content in {**files, MANIFEST: json.dumps(document).encode()}.items():
        put(folder / path, content)
        if path in packed:
            put(folder / f"{path}.gz", gzip.compress(content))
    return document["bundle"]


def write_manifest(folder: Path, document: dict) -> str:
    """Names the bundle as its files want it."""
    told = {path: File(**file) for path, file in document["files"].items()}
    document["bundle"] = f"{document['bundle'].rpartition('-')[0]}-{mark(told)}"
    put(folder / MANIFEST, json.dumps(document).encode())
    (folder / f"{MANIFEST}.gz").unlink(missing_ok=True)
    return document["bundle"]


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
