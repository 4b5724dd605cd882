"""Images of this project for tests: one build at a time, whose layers later builds use."""

import fcntl
import subprocess
import tempfile
from pathlib import Path

from project import ROOT

IMAGE = "model-in-image-pattern:v1.0"
FULL, EDGE = f"{IMAGE}-full", f"{IMAGE}-edge"
BIN = ROOT / "bin/image"


def build_image(tag: str, target: str) -> None:
    """Builds a target of the Dockerfile. Another test process may wait for this build, and then takes its layers."""
    with (Path(tempfile.gettempdir()) / "iris-wsgi-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([BIN, "build", "--target", target, "--tag", tag], check=True, stdout=subprocess.DEVNULL)
