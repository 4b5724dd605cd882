"""Edge bundles for tests: with any files, or built from real models. As a script, updates that are killed at each step."""

import gzip
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bin/edge.d"))
import bundle
import npm

from iris_wsgi.model.artifact import manifest_digest, sha256
from iris_wsgi.patterns.edge.bundle import MANIFEST, ManifestEntry, bundle_digest
from iris_wsgi.patterns.edge.device_store import DeviceStore
from iris_wsgi.patterns.edge.update import update

# Small bundle with a file of each media type.
SMALL_BUNDLE = {
    "index.html": b"<!doctype html><title>x</title>",
    "edge.js": b"export {};",
    "sw.js": b"'use strict';",
    "edge.css": b"p { margin: 0 }",
    "model/a.onnx": bytes(range(256)) * 40,
    "model/golden.json": b'{"model": "a.onnx"}',
    "ort/a.wasm": b"\0asm" + bytes(100_000),
    "ort/a.mjs": b"export default 1;",
}
DIGEST = manifest_digest(Path(__file__).parents[2] / "model")
RUNTIME = npm.PackageFiles("1.30.0", {"ort/ort.mjs": b"export {};\n", "ort/ort.wasm": bytes(2000)})
# Audit events of file operations. Python raises an event before the operation.
STEPS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.scandir", "os.listdir", "fcntl.flock"}


def write_bundle(
    folder: Path, files: Mapping[str, bytes] = SMALL_BUNDLE, packed: tuple[str, ...] = ("ort/a.wasm",), digest: str = DIGEST
) -> str:
    """Writes a bundle with these files and a matching manifest, and returns its name.

    Each of the `packed` files also has a compressed copy. The default `digest` is that of this project's model.
    """
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        if path in packed:
            (folder / f"{path}.gz").write_bytes(gzip.compress(content))
    model = {"name": "iris_svc", "version": "1.0.0", "digest": digest, "features": [], "labels": []}
    return write_manifest(folder, {"bundle": "1-", "model": model, "minimum": {}, "files": manifest_entries(files)})


def build_bundle(out: Path, model_dir: Path, page: str = "<!doctype html>") -> Path:
    """Builds the bundle of a model, with a small page and a small runtime."""
    sources = out.with_name(f"{out.name}-sources")
    sources.mkdir(exist_ok=True)
    (sources / "index.html").write_text(page)
    bundle.write(out, model_dir, sources, RUNTIME)
    shutil.rmtree(sources)
    return out


def manifest_entries(files: Mapping[str, bytes]) -> dict[str, dict]:
    return {path: ManifestEntry(sha256(content), len(content))._asdict() for path, content in files.items()}


def write_manifest(folder: Path, document: dict) -> str:
    """Writes the manifest with the name that belongs to the files, and returns the name."""
    files = {path: ManifestEntry(**file) for path, file in document["files"].items()}
    document["bundle"] = f"{document['bundle'].rpartition('-')[0]}-{bundle_digest(files)}"
    (folder / MANIFEST).write_text(json.dumps(document))
    (folder / f"{MANIFEST}.gz").unlink(missing_ok=True)
    return document["bundle"]


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refresh_manifest(folder: Path) -> None:
    """Updates the manifest for changed files, so that its digests and sizes match them."""
    document = json.loads((folder / MANIFEST).read_text())
    document["files"] = manifest_entries({path: (folder / path).read_bytes() for path in document["files"]})
    write_manifest(folder, document)


def run_forked(work: Callable[[], object]) -> int:
    """Does the work in a forked process. Returns 0, 1 after an exception, or the negative number of a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_before_step(step: int, work: Callable[[], object]) -> None:
    """Does the work, and kills this process before the file operation with this number, starting at 1."""
    remaining = step

    def hook(event: str, _: tuple) -> None:
        nonlocal remaining
        if event in STEPS:
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()


def kill(folder: str, *sources: str) -> None:
    """Kills an update before each of its steps in turn, and prints the faults as JSON."""
    faults, kept_old, status = [], set(), -signal.SIGKILL
    start = DeviceStore(Path(folder) / "start")
    for source in sources[:2]:
        assert run_forked(lambda source=source: update(start, source)) == 0
    before, step = start.state(), 0
    while status == -signal.SIGKILL:
        step += 1
        device = DeviceStore(Path(folder) / str(step))
        shutil.copytree(start.folder, device.folder)
        status = run_forked(lambda device=device, step=step: kill_before_step(step, lambda: update(device, sources[2])))
        if run_forked(lambda device=device: device.current().test()) != 0:
            faults.append(f"after step {step} the current bundle does not work")
        kept_old.add(device.state() == before)
        # The remains of the killed update do not disturb the next update.
        if run_forked(lambda device=device: update(device, sources[2])) != 0 or len(list(device.bundles.iterdir())) != 2:
            faults.append(f"after step {step} the next update fails")
        shutil.rmtree(device.folder)
    print(json.dumps({"status": status, "faults": faults, "steps": step, "old": True in kept_old, "new": False in kept_old}))


if __name__ == "__main__":
    kill(*sys.argv[1:])
