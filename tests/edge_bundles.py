"""Bundles for tests: of real models, with a page and a runtime of a few bytes; run as a script, updates that are killed."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "bin/edge.d"))
import bundle
import npm

from iris_wsgi.edge.device import Device
from iris_wsgi.edge.manifest import MANIFEST, File, mark
from iris_wsgi.edge.update import update
from iris_wsgi.folder import sha256

RUNTIME = npm.Taken("1.30.0", {"ort/ort.mjs": b"export {};\n", "ort/ort.wasm": bytes(2000)})
# What Python tells of before it does it, as far as files are concerned.
STEPS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.scandir", "os.listdir", "fcntl.flock"}


def write_bundle(out: Path, model_dir: Path, page: str = "<!doctype html>") -> Path:
    """A bundle as bin/edge build writes it."""
    sources = out.with_name(f"{out.name}-sources")
    sources.mkdir(exist_ok=True)
    (sources / "index.html").write_text(page)
    bundle.write(out, model_dir, sources, RUNTIME)
    shutil.rmtree(sources)
    return out


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def tell_the_truth(folder: Path) -> None:
    """Has the manifest say what the files are by now: who made them wrong meant to."""

    def change(document: dict) -> None:
        contents = {path: (folder / path).read_bytes() for path in document["files"]}
        files = {path: File(sha256(content), len(content)) for path, content in contents.items()}
        document["files"] = {path: file._asdict() for path, file in files.items()}
        document["bundle"] = f"{document['bundle'].rpartition('-')[0]}-{mark(files)}"

    change_manifest(folder, change)


def forked(work: Callable[[], object]) -> int:
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


def killed_before(step: int, work: Callable[[], object]) -> None:
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
        assert forked(lambda source=source: update(start, source)) == 0
    before, step = start.state(), 0
    while status == -signal.SIGKILL:
        step += 1
        device = Device(Path(place) / str(step))
        shutil.copytree(start.folder, device.folder)
        status = forked(lambda device=device, step=step: killed_before(step, lambda: update(device, sources[2])))
        if forked(lambda device=device: device.current().test()) != 0:
            faults.append(f"after step {step} the bundle that answers does not work")
        answered.add(device.state() == before)
        # What it left behind is in nobody's way.
        if forked(lambda device=device: update(device, sources[2])) != 0 or len(list(device.bundles.iterdir())) != 2:
            faults.append(f"after step {step} the next update fails")
        shutil.rmtree(device.folder)
    print(json.dumps({"status": status, "faults": faults, "steps": step, "old": True in answered, "new": False in answered}))


if __name__ == "__main__":
    kill(*sys.argv[1:])
