"""What all measurements of a run share: CPUs, environment, effort, and rows whose labels are known."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from environments import ROOT
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
    """The CPUs to use, a scratch folder, and rows with the labels that onnxruntime gives them."""

    cpus: Sequence[int]
    scratch: str
    rows: list[list[float]]
    labels: list[str]
    effort: Effort
    pin: bool

    def server_cpus(self, workers: int) -> Sequence[int]:
        """All of them, or with --pin the first one alone for a server of one worker."""
        return self.cpus[:1] if self.pin and workers == 1 else self.cpus

    def load_cpus(self, workers: int) -> Sequence[int]:
        return self.cpus[1:] if self.pin and workers == 1 and len(self.cpus) > 1 else self.cpus


def environ(scratch: str) -> dict[str, str]:
    """The same small environment for every server. Nothing of the caller's reaches in, and nobody reports home."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONPATH": PEERS,
        "BENCH_MODEL": MODEL,
        "ORT_DISABLE_TELEMETRY": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": f"{scratch}/bentoml",
    }
