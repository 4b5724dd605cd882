"""Context of all measurements of a run: CPUs, environment, effort, and rows with known labels."""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from environments import ROOT, Unavailable, ensure, python
from servers import PEERS

MODEL = str(ROOT / "model")


class TrialFailed(Exception):
    """Server that does not start or returns wrong results; the message is one line for the table."""


class Effort(NamedTuple):
    """Maximum number of requests and seconds of a window, and the number of idle connections."""

    requests: int
    seconds: float
    idle: int


class Bench(NamedTuple):
    """CPUs to use, scratch folder, rows with the labels that onnxruntime computes, and servers to compare."""

    cpus: Sequence[int]
    scratch: str
    rows: list[list[float]]
    labels: list[str]
    effort: Effort
    pin: bool
    servers: Sequence[str]
    model: str = MODEL

    def server_cpus(self, workers: int) -> Sequence[int]:
        """Returns all CPUs, or with --pin only the first for a server of one worker."""
        return self.cpus[:1] if self.pin and workers == 1 else self.cpus

    def load_cpus(self, workers: int) -> Sequence[int]:
        return self.cpus[1:] if self.pin and workers == 1 and len(self.cpus) > 1 else self.cpus

    def with_model(self, model: str) -> "Bench":
        """Returns a copy with another model, and with its labels."""
        return self._replace(model=model, labels=expected_labels(self.rows, self.scratch, model))


def environment_python(name: str) -> str:
    """Returns the Python of an environment, which is created if necessary. Raises TrialFailed."""
    try:
        ensure(name)
    except Unavailable as error:
        raise TrialFailed(f"its package is {error}") from None
    return python(name)


def expected_labels(rows: list[list[float]], scratch: str, model: str = MODEL) -> list[str]:
    """Returns the labels that onnxruntime computes."""
    command = [python("ours"), f"{PEERS}/classifier.py"]
    asked = {"input": json.dumps(rows), "capture_output": True, "text": True, "timeout": 60, "env": environ(scratch, model)}
    return json.loads(subprocess.run(command, check=True, **asked).stdout)


def environ(scratch: str, model: str = MODEL) -> dict[str, str]:
    """Returns the environment variables of every server. It has no variables of the caller, and it disables telemetry."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONPATH": PEERS,
        "BENCH_MODEL": model,
        "ORT_DISABLE_TELEMETRY": "1",
        # In the current folder, so that each server starts with empty stores.
        "IRIS_STATE_DIR": "state",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": f"{scratch}/bentoml",
    }
