"""Writes the bundle: the same bytes for the same model, page and runtime, and in place of an older one only when it is whole."""

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

# The smallest build that runs the model: WebAssembly alone, and what loads it in one file.
RUNTIME = {
    "package/dist/ort.wasm.bundle.min.mjs": "ort/ort.wasm.bundle.min.mjs",
    "package/dist/ort-wasm-simd-threaded.wasm": "ort/ort-wasm-simd-threaded.wasm",
}
# What setup.cfg wants; the golden rows tell on each device whether its own can do it.
LEAST_ONNXRUNTIME = "1.23"
# What of the folder beside this file is for browsers.
FOR_BROWSERS = {".css", ".html", ".js", ".mjs", ".svg", ".webmanifest"}
# Below that a compressed file saves no packet.
LEAST_BYTES = 1024


def write(out: Path, model_dir: Path, sources: Path, runtime: Taken) -> str:
    """One line on what was written. Raises BadModel, for a model too that does not answer its golden rows."""
    # A link is not replaced, but the folder that it names.
    out = out.resolve() if out.is_symlink() else out
    if out.exists() and not (out / MANIFEST).exists():
        raise BadModel(f"{out} is there already and no bundle; it is left as it is")
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
    # As a device will read it.
    bundle = parse_manifest(files[MANIFEST], f"{out}/{MANIFEST}").bundle
    return f"{out}: bundle {bundle}, {len(files)} files, {sum(map(len, files.values())):,} bytes"


def contents(model_dir: Path, sources: Path, runtime: Taken) -> dict[str, bytes]:
    """Every file by its path in the bundle, in their order."""
    _, model = read_all(lambda name: read_file(model_dir / name), str(model_dir))
    page = {path.name: path.read_bytes() for path in sources.iterdir() if path.suffix in FOR_BROWSERS}
    return dict(sorted(({MODEL + name: content for name, content in model.items()} | page | runtime.files).items()))


def manifest_of(model_dir: Path, files: dict[str, bytes], web: str) -> dict[str, object]:
    model, golden = load_model(model_dir)
    self_test(model, golden.cases, golden.tolerance)
    if model.is_map:
        raise BadModel(f"{model_dir}/{golden.model} gives maps (a ZipMap), which no browser reads; convert it without")
    told = {path: File(sha256(content), len(content)) for path, content in files.items()}
    return {
        "bundle": f"{__version__}-{mark(told)}",
        "model": about(model) | {"file": MODEL + golden.model},
        "opset": opsets(files[MODEL + golden.model]),
        "minimum": {"onnxruntime": LEAST_ONNXRUNTIME, "onnxruntime-web": web},
        "files": {path: file._asdict() for path, file in told.items()},
    }


def about(model: Model) -> dict[str, object]:
    """What the page shows, as `GET /metadata` has it."""
    return {
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "features": [feature._asdict() for feature in model.features],
        "labels": list(model.labels),
    }


def put(path: Path, content: bytes) -> None:
    """Writes a file, and beside it the same under gzip where that is worth it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(content, 9, mtime=0) if len(content) >= LEAST_BYTES else content
    both = {path: content} | ({path.with_name(f"{path.name}.gz"): packed} if len(packed) < 0.9 * len(content) else {})
    for one, data in both.items():
        one.write_bytes(data)
        one.chmod(0o644)


def put_in_place(new: Path, out: Path) -> None:
    """A folder takes the place of another by two renames, as there is no one for that."""
    old = new.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
