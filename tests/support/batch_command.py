"""The batch command on the Iris model, and tables for it."""

import random
import subprocess
import sys
from pathlib import Path

from project import MODEL

from iris_wsgi.model.session import load_model

FEATURES = [feature.name for feature in load_model(MODEL)[0].features]
HEADER = ",".join(["id", *FEATURES])
GOOD, BAD_MODEL, BAD_ARGUMENTS, TOO_MANY_BAD, INTERRUPTED, STOPPED, MISCOUNTED = range(7)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "iris_wsgi", "batch", "--model-dir", str(MODEL), *map(str, arguments)]


def batch(*arguments: str | Path, status: int = GOOD, **options) -> subprocess.CompletedProcess:
    result = subprocess.run(command(*arguments), capture_output=True, timeout=300, **options)
    assert result.returncode == status, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    return result


def text_of(count: int, header: str = HEADER, seed: int = 7) -> str:
    """Returns CSV with this number of rows, the same each time."""
    chance = random.Random(seed)
    lines = [header]
    for i in range(count):
        values = (chance.uniform(4.3, 7.9), chance.uniform(2, 4.4), chance.uniform(1, 6.9), chance.uniform(0.1, 2.5))
        lines.append(f"r{i}," + ",".join(f"{value:.3f}" for value in values))
    return "\n".join(lines) + "\n"
