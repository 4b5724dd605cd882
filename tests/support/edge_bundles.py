"""Bundles for tests: of any files, and of real models as bin/edge build writes them; run as a script, updates that are killed."""

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
from iris_wsgi.patterns.edge.device_store import Device
from iris_wsgi.patterns.edge.manifest import MANIFEST, File, mark
from iris_wsgi.patterns.edge.update import update

# What each has that is served: a file of each kind, in folders too.
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
# What Python tells of before it does it, as far as files are concerned.
STEPS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.scandir", "os.listdir", "fcntl.flock"}


def write_bundle(
    folder: Path, files: Mapping[str, bytes] = SMALL_BUNDLE, packed: tuple[str, ...] = ("ort/a.wasm",), digest: str = DIGEST
) -> str:
    """Whatever files it is to have, under a manifest that tells the truth of them; the `packed` ones have a .gz beside them.

    By its `digest` it is of the model that is here, as a server wants it.
    """
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        if path in packed:
            (folder / f"{path}.gz").write_bytes(gzip.compress(content))
    model = {"name": "iris_svc", "version": "1.0.0", "digest": digest, "features": [], "labels": []}
    return write_manifest(folder, {"bundle": "1-", "model": model, "minimum": {}, "files": manifest_entries(files)})


def build_bundle(out: Path, model_dir: Path, page: str = "<!doctype html>") -> Path:
    """One of a model, with a page and a runtime of a few bytes."""
    sources = out.with_name(f"{out.name}-sources")
    sources.mkdir(exist_ok=True)
    (sources / "index.html").write_text(page)
    bundle.write(out, model_dir, sources, RUNTIME)
    shutil.rmtree(sources)
    return out


def manifest_entries(files: Mapping[str, bytes]) -> dict[str, dict]:
    return {path: File(sha256(content), len(content))._asdict() for path, content in files.items()}


def write_manifest(folder: Path, document: dict) -> str:
    """Names the bundle as its files want it."""
    files = {path: File(**file) for path, file in document["files"].items()}
    document["bundle"] = f"{document['bundle'].rpartition('-')[0]}-{mark(files)}"
    (folder / MANIFEST).write_text(json.dumps(document))
    (folder / f"{MANIFEST}.gz").unlink(missing_ok=True)
    return document["bundle"]


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refresh_manifest(folder: Path) -> None:
    """Has the manifest say what the files are by now: who made them wrong meant to."""
    document = json.loads((folder / MANIFEST).read_text())
    document["files"] = manifest_entries({path: (folder / path).read_bytes() for path in document["files"]})
    write_manifest(folder, document)


def run_forked(work: Callable[[], object]) -> int:
    """How a forked process ends that does this: 0, 1 if it failed, or the negative of a signal."""
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
    """Does the work, and dies by SIGKILL when it is about to do its step of this number, from 1."""
    left = step

    def hook(event: str, _: tuple) -> None:
        nonlocal left
        if event in STEPS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()


def kill(place: str, *sources: str) -> None:
    """An update is killed before each of its steps, one after the other; what was wrong then, as JSON."""
    faults, answered, status = [], set(), -signal.SIGKILL
    start = Device(Path(place) / "start")
    for source in sources[:2]:
        assert run_forked(lambda source=source: update(start, source)) == 0
    before, step = start.state(), 0
    while status == -signal.SIGKILL:
        step += 1
        device = Device(Path(place) / str(step))
        shutil.copytree(start.folder, device.folder)
        status = run_forked(lambda device=device, step=step: kill_before_step(step, lambda: update(device, sources[2])))
        if run_forked(lambda device=device: device.current().test()) != 0:
            faults.append(f"after step {step} the bundle that answers does not work")
        answered.add(device.state() == before)
        # What it left behind is in nobody's way.
        if run_forked(lambda device=device: update(device, sources[2])) != 0 or len(list(device.bundles.iterdir())) != 2:
            faults.append(f"after step {step} the next update fails")
        shutil.rmtree(device.folder)
    print(json.dumps({"status": status, "faults": faults, "steps": step, "old": True in answered, "new": False in answered}))


if __name__ == "__main__":
    kill(*sys.argv[1:])
