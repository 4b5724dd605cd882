"""Writes the bundle: the same bytes for the same model, page, and runtime. A complete bundle replaces an older one."""

import gzip
import json
import shutil
import tempfile
from pathlib import Path

from npm import Taken
from opsets import opsets

from iris_wsgi import __version__
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_all, read_file, sha256
from iris_wsgi.model.golden import self_test
from iris_wsgi.model.session import Model, load_model
from iris_wsgi.patterns.edge.manifest import MANIFEST, MODEL, File, mark, parse_manifest

# The smallest build that runs the model: WebAssembly only, and one file that loads it.
RUNTIME = {
    "package/dist/ort.wasm.bundle.min.mjs": "ort/ort.wasm.bundle.min.mjs",
    "package/dist/ort-wasm-simd-threaded.wasm": "ort/ort-wasm-simd-threaded.wasm",
}
# The version in setup.cfg. The golden rows show on each device whether its version works.
LEAST_ONNXRUNTIME = "1.23"
# Files of this folder that are for browsers.
FOR_BROWSERS = {".css", ".html", ".js", ".mjs", ".svg", ".webmanifest"}
# A smaller file saves no packet under compression.
LEAST_BYTES = 1024


def write(out: Path, model_dir: Path, sources: Path, runtime: Taken) -> str:
    """Writes the bundle and returns one line about it. Raises BadModel, also for a model that fails its golden rows."""
    # Replaces the folder that a link names, and not the link.
    out = out.resolve() if out.is_symlink() else out
    if out.exists() and not (out / MANIFEST).exists():
        raise BadModel(f"{out} exists and is not a bundle; choose another path or remove it")
    files = contents(model_dir, sources, runtime)
    manifest = manifest_of(model_dir, files, runtime.version)
    files[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for path, content in files.items():
            put(new / path, content)
        for folder in [new, *(path for path in new.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
        put_in_place(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    # Reads the bundle like a device.
    bundle = parse_manifest(files[MANIFEST], f"{out}/{MANIFEST}").bundle
    return f"{out}: bundle {bundle}, {len(files)} files, {sum(map(len, files.values())):,} bytes"


def contents(model_dir: Path, sources: Path, runtime: Taken) -> dict[str, bytes]:
    """Returns every file by its path in the bundle, in order."""
    _, model = read_all(lambda name: read_file(model_dir / name), str(model_dir))
    page = {path.name: path.read_bytes() for path in sources.iterdir() if path.suffix in FOR_BROWSERS}
    return dict(sorted(({MODEL + name: content for name, content in model.items()} | page | runtime.files).items()))


def manifest_of(model_dir: Path, files: dict[str, bytes], web: str) -> dict[str, object]:
    model, golden = load_model(model_dir)
    self_test(model, golden.cases, golden.tolerance)
    if model.is_map:
        raise BadModel(f"{model_dir}/{golden.model} returns maps (a ZipMap), which no browser supports; convert it without")
    told = {path: File(sha256(content), len(content)) for path, content in files.items()}
    return {
        "bundle": f"{__version__}-{mark(told)}",
        "model": about(model) | {"file": MODEL + golden.model},
        "opset": opsets(files[MODEL + golden.model]),
        "minimum": {"onnxruntime": LEAST_ONNXRUNTIME, "onnxruntime-web": web},
        "files": {path: file._asdict() for path, file in told.items()},
    }


def about(model: Model) -> dict[str, object]:
    """Returns the metadata for the page, in the form of `GET /metadata`."""
    return {
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "features": [feature._asdict() for feature in model.features],
        "labels": list(model.labels),
    }


def put(path: Path, content: bytes) -> None:
    """Writes a file, and its gzip version next to it if that is smaller enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(content, 9, mtime=0) if len(content) >= LEAST_BYTES else content
    both = {path: content} | ({path.with_name(f"{path.name}.gz"): packed} if len(packed) < 0.9 * len(content) else {})
    for one, data in both.items():
        one.write_bytes(data)
        one.chmod(0o644)


def put_in_place(new: Path, out: Path) -> None:
    """Replaces a folder by two renames, because no single rename can."""
    old = new.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
