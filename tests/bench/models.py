"""Models of the batching section: this project's model and heavier ones, and their cost without a server."""

import functools
import hashlib
import json
import subprocess
from pathlib import Path

import environments
from bench import MODEL, Bench, environ
from runner import log

SEAL = Path(__file__).parents[1] / "support/sealed_models.py"
MODELS = {
    "svm": "the Iris SVM",
    "forest": "forest of 300 trees",
    "wide": "network, 4-2048-2048-3",
    "deep": "network of 200 small layers",
}


def folder_of(model: str, bench: Bench) -> str:
    return MODEL if model == "svm" else str(made(bench.scratch) / model)


def alone(model: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Returns the microseconds of a row, alone and in a run of many."""
    command = [environments.python("ours"), "-B", str(environments.BENCH / "inprocess_rows.py"), folder_of(model, bench)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environ(bench.scratch))
    return json.loads(done.stdout), []


@functools.cache
def made(scratch: str) -> Path:
    """Returns the folder of the heavier models. They are written once and sealed in each run."""
    folder = environments.HOME / "heavy"
    script = environments.BENCH / "heavy.py"
    digest = hashlib.sha256(script.read_bytes() + environments.REQUIREMENTS.read_bytes()).hexdigest()
    stamp = folder / "made"
    if not stamp.exists() or stamp.read_text() != digest:
        log("writing the heavier models, once")
        run = {"env": environ(scratch), "capture_output": True, "timeout": 300, "check": True}
        subprocess.run([environments.python("models"), "-B", str(script), str(folder)], **run)
        stamp.write_text(digest)
    for name in MODELS:
        if (folder / name).exists():
            command = [environments.python("ours"), str(SEAL), str(folder / name)]
            subprocess.run(command, env=environ(scratch), capture_output=True, timeout=60, check=True)
    return folder
