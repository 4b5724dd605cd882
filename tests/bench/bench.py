"""What all measurements of a run share: CPUs, environment, effort, and rows whose labels are known."""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from environments import ROOT, Unavailable, ensure, python
from servers import PEERS

MODEL = str(ROOT / "model")


class Failed(Exception):
    """A server that did not start or answered wrongly; the message is one line for the table."""


class Effort(NamedTuple):
    """How much is measured: requests and seconds at most of each window, and idle connections."""

    requests: int
    seconds: float
    idle: int


class Bench(NamedTuple):
    """The CPUs to use, a scratch folder, rows with the labels that onnxruntime gives them, which servers to compare."""

    cpus: Sequence[int]
    scratch: str
    rows: list[list[float]]
    labels: list[str]
    effort: Effort
    pin: bool
    servers: Sequence[str]
    model: str = MODEL

    def server_cpus(self, workers: int) -> Sequence[int]:
        """All of them, or with --pin the first one alone for a server of one worker."""
        return self.cpus[:1] if self.pin and workers == 1 else self.cpus

    def load_cpus(self, workers: int) -> Sequence[int]:
        return self.cpus[1:] if self.pin and workers == 1 and len(self.cpus) > 1 else self.cpus

    def of(self, model: str) -> "Bench":
        """The same with another model's folder, and the labels that onnxruntime gives with it."""
        return self._replace(model=model, labels=known(self.rows, self.scratch, model))


def needed(name: str) -> str:
    """The Python of an environment, which is made unless it stands. Raises Failed."""
    try:
        ensure(name)
    except Unavailable as error:
        raise Failed(f"its package is {error}") from None
    return python(name)


def known(rows: list[list[float]], scratch: str, model: str = MODEL) -> list[str]:
    """Labels as onnxruntime itself gives them."""
    command = [python("ours"), f"{PEERS}/classifier.py"]
    asked = {"input": json.dumps(rows), "capture_output": True, "text": True, "timeout": 60, "env": environ(scratch, model)}
    return json.loads(subprocess.run(command, check=True, **asked).stdout)


def environ(scratch: str, model: str = MODEL) -> dict[str, str]:
    """The same small environment for every server. Nothing of the caller's reaches in, and nobody reports home."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONPATH": PEERS,
        "BENCH_MODEL": model,
        "ORT_DISABLE_TELEMETRY": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": f"{scratch}/bentoml",
    }
