"""Writes the bundle: the same bytes for the same model, page, and runtime. A complete bundle replaces an older one."""

import gzip
import json
import shutil
import tempfile
from pathlib import Path

from browser_model import BrowserModel
from npm import PackageFiles
from opsets import opsets

from iris_wsgi import __version__
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import sha256
from iris_wsgi.patterns.edge.bundle import MANIFEST, MODEL, ManifestEntry, bundle_digest, parse_manifest

# The smallest build of onnxruntime-web that runs the model: WebAssembly only, with its loader in one file.
RUNTIME = {
    "package/dist/ort.wasm.bundle.min.mjs": "ort/ort.wasm.bundle.min.mjs",
    "package/dist/ort-wasm-simd-threaded.wasm": "ort/ort-wasm-simd-threaded.wasm",
}
# The requirement of setup.cfg. The golden rows test the version on each device.
MIN_ONNXRUNTIME = "1.23"
# Suffixes of the files of this folder that go into the bundle.
BROWSER_SUFFIXES = {".css", ".html", ".js", ".mjs", ".svg", ".webmanifest"}
# A compressed file below this size saves no packet.
MIN_COMPRESSED_BYTES = 1024


def write(out: Path, model_dir: Path, sources: Path, runtime: PackageFiles) -> str:
    """Writes the bundle and returns a line about it. Raises BadModel, also if the model fails its golden rows."""
    # A symbolic link remains, and its target is replaced.
    out = out.resolve() if out.is_symlink() else out
    if out.exists() and not (out / MANIFEST).exists():
        raise BadModel(f"{out} exists and is not a bundle; choose another path or remove it")
    prepared = BrowserModel(model_dir)
    files = contents(prepared.files, sources, runtime)
    manifest = manifest_of(prepared, files, runtime.version)
    files[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for path, content in files.items():
            write_file(new / path, content)
        for folder in [new, *(path for path in new.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
        replace_folder(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    # The parser of the devices.
    bundle = parse_manifest(files[MANIFEST], f"{out}/{MANIFEST}").bundle
    return f"{out}: bundle {bundle}, {len(files)} files, {sum(map(len, files.values())):,} bytes"


def contents(model: dict[str, bytes], sources: Path, runtime: PackageFiles) -> dict[str, bytes]:
    """Returns the content of every file by its path in the bundle, sorted by path."""
    page = {path.name: path.read_bytes() for path in sources.iterdir() if path.suffix in BROWSER_SUFFIXES}
    return dict(sorted(({MODEL + name: content for name, content in model.items()} | page | runtime.files).items()))


def manifest_of(prepared: BrowserModel, files: dict[str, bytes], web_version: str) -> dict[str, object]:
    file = MODEL + prepared.golden.model
    entries = {path: ManifestEntry(sha256(content), len(content)) for path, content in files.items()}
    return {
        "bundle": f"{__version__}-{bundle_digest(entries)}",
        "model": model_metadata(prepared) | {"file": file},
        "opset": opsets(files[file]),
        "minimum": {"onnxruntime": MIN_ONNXRUNTIME, "onnxruntime-web": web_version},
        "files": {path: file._asdict() for path, file in entries.items()},
    }


def model_metadata(prepared: BrowserModel) -> dict[str, object]:
    """Returns the metadata that the page shows, with the names of `GET /metadata`.

    `source` is the digest of the model of the server, if the graph was rewritten for browsers.
    """
    model = prepared.model
    return {
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        **({} if prepared.source == model.digest else {"source": prepared.source}),
        "features": [feature._asdict() for feature in model.features],
        "labels": list(model.labels),
    }


def write_file(path: Path, content: bytes) -> None:
    """Writes a file, and its gzip version if that is sufficiently smaller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compressed = gzip.compress(content, 9, mtime=0) if len(content) >= MIN_COMPRESSED_BYTES else content
    files = {path: content}
    if len(compressed) < 0.9 * len(content):
        files[path.with_name(f"{path.name}.gz")] = compressed
    for file, data in files.items():
        file.write_bytes(data)
        file.chmod(0o644)


def replace_folder(new: Path, out: Path) -> None:
    """Replaces a folder by two renames, because a single rename cannot replace a folder with files."""
    old = new.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
