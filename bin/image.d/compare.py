"""Compares this image with that of the usual tutorial, on the same base: size, time to the first right response, memory."""

import json
import os
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import archive
import container_engine

TUTORIAL = "iris-wsgi-tutorial:latest"
URL = "http://127.0.0.1:8000/predict/label"
BODY = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
EXPECTED = {"prediction": "setosa"}
TIMEOUT_SECONDS = 60
REQUESTS = 300
# Maximum ratio to the tutorial.
TARGETS = {"start": 0.5, "memory": 0.65}
# One process each: the workers that ours would start on a machine of several CPUs are not a cost of the image.
LIMITS = (
    "--env",
    "IRIS_WORKERS=1",
    "--read-only",
    "--cap-drop",
    "all",
    "--security-opt",
    "no-new-privileges",
    "--network",
    "host",
)


class Trial(NamedTuple):
    """Figures of one start: seconds from the run command to the first right response, and MB of memory after some requests."""

    start: float
    memory: float


def main(tool: str, root: Path, ours: str, rounds: int) -> int:
    """Builds both images, starts them in turn, and prints the table. Returns 1 if a target is missed."""
    container_engine.build(tool, root, "default", ours)
    archive.normalize(tool, ours)
    subprocess.run(
        [tool, "build", "--tag", TUTORIAL, "--file", str(root / "bin/image.d/tutorial/Dockerfile"), str(root)], check=True
    )
    runner = container_engine.runner(tool)
    tags = (ours, TUTORIAL)
    trials: dict[str, list[Trial]] = {tag: [] for tag in tags}
    for i in range(rounds):
        for tag in tags if i % 2 == 0 else tags[::-1]:
            trials[tag].append(trial(runner, tag))
            print(f"round {i + 1} of {rounds}: {tag} {trials[tag][-1].start:.3f} s, {trials[tag][-1].memory:.1f} MB", flush=True)
    sizes = {tag: archive.read(tool, tag) for tag in tags}
    table = {
        "image, MB": [sizes[tag].bytes / 1e6 for tag in tags],
        "gzipped, MB": [sizes[tag].compressed / 1e6 for tag in tags],
        "first right response, s": [statistics.median(t.start for t in trials[tag]) for tag in tags],
        "memory, MB": [statistics.median(t.memory for t in trials[tag]) for tag in tags],
    }
    print(f"{'':<24}{'iris_wsgi':>12}{'tutorial':>12}{'ratio':>8}")
    for name, (mine, theirs) in table.items():
        print(f"{name:<24}{mine:>12.3f}{theirs:>12.3f}{mine / theirs:>8.2f}")
    return check_targets({"start": table["first right response, s"], "memory": table["memory, MB"]})


def check_targets(figures: dict[str, list[float]]) -> int:
    missed = 0
    for name, limit in TARGETS.items():
        ratio = figures[name][0] / figures[name][1]
        missed += ratio > limit
        print(f"{'PASS' if ratio <= limit else 'MISS'} {name}: {ratio:.2f} of the tutorial; target: at most {limit}")
    return 1 if missed else 0


def trial(runner: str, tag: str) -> Trial:
    began = time.monotonic()
    with container(runner, tag) as name:
        while not responds_correctly():
            if time.monotonic() - began > TIMEOUT_SECONDS:
                raise container_engine.EngineError(f"{tag} sent no right response within {TIMEOUT_SECONDS} s")
            time.sleep(0.002)
        start = time.monotonic() - began
        for _ in range(REQUESTS):
            responds_correctly()
        pid = subprocess.run([runner, "inspect", "--format", "{{.State.Pid}}", name], check=True, capture_output=True, text=True)
        return Trial(start, sum(memory_mb(p) for p in process_tree(int(pid.stdout))))


@contextmanager
def container(runner: str, tag: str) -> Iterator[str]:
    name = f"iris-wsgi-compare-{os.getpid()}"
    subprocess.run([runner, "run", "--detach", "--name", name, *LIMITS, tag], check=True, capture_output=True)
    try:
        yield name
    finally:
        subprocess.run(
            [runner, "rm", "--force", "--time", "0", name] if runner == "podman" else [runner, "rm", "--force", name],
            capture_output=True,
        )


def responds_correctly() -> bool:
    request = urllib.request.Request(URL, BODY, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(json.load(response) == EXPECTED)
    except (urllib.error.URLError, ConnectionError):
        return False


def process_tree(pid: int) -> list[int]:
    """Returns the process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in process_tree(int(child)))]


def memory_mb(pid: int) -> float:
    """Returns the proportional set size in MB: private memory, and the share of shared memory."""
    line = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024 / 1e6
