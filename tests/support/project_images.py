"""Images of this project for tests: one build at a time, whose layers later builds use."""

import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path

from project import ROOT

sys.path.insert(0, str(ROOT / "bin/image.d"))
import container_engine

IMAGE = "model-in-image-pattern:v1.0"
FULL, EDGE = f"{IMAGE}-full", f"{IMAGE}-edge"
BIN = ROOT / "bin/image"


def build_image(tag: str, target: str, unless_built: bool = False) -> None:
    """Builds a target of the Dockerfile, or uses the image that another test process has built from this commit.

    Another test process may wait for this build, and then takes its layers.
    """
    with (Path(tempfile.gettempdir()) / "iris-wsgi-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (unless_built and is_built(tag)):
            subprocess.run([BIN, "build", "--target", target, "--tag", tag], check=True, stdout=subprocess.DEVNULL)


def is_built(tag: str) -> bool:
    """Returns whether podman has the image of this commit, and no file differs from the commit."""
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    result = subprocess.run(["podman", "image", "inspect", "--format", label, tag], capture_output=True, text=True)
    revision = container_engine.revision(ROOT)
    return result.stdout.strip() == revision and not revision.endswith(("-changed", "unknown"))
