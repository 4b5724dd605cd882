"""Windows of load on a server, which the process of the load generator runs in turn."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench import Bench, TrialFailed
from environments import BENCH
from servers import Server

CONNECTIONS = (1, 16, 256)
MANY = 2_000
Windows = Sequence[tuple[str, int, dict[str, Any]]]


def plan_windows(server: Server, bench: Bench, port: int, pid: int, first: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yields the kind, the number of connections (for `idle` of idle ones), and the parameters of each window."""
    effort = bench.effort
    common = {"port": port, "pid": pid, "kind": "label", "path": server.label_path, "first": first, "warm": 300, "idle": 0}
    common |= {"requests": effort.requests, "seconds": effort.seconds}
    for at in CONNECTIONS:
        # In 20,000 requests, 256 connections have 78 turns, so that a single pause of the machine would decide the p99.
        double = {"requests": 2 * effort.requests, "seconds": 2 * effort.seconds} if at == max(CONNECTIONS) else {}
        yield "label", at, common | double | {"connections": at, "first": first + 401 * at}
    if server.many:
        # Some servers accept few connections while they are busy, so all connections exist before the load.
        many = {"requests": max(2 * effort.requests, 10 * MANY), "seconds": 2 * effort.seconds, "one_by_one": True}
        yield "label", MANY, common | many | {"connections": MANY, "first": first + MANY}
    if server.batch_path:
        batches = {"kind": "batch", "path": server.batch_path, "connections": 4, "warm": 8, "requests": 300}
        yield "batch", 4, common | batches
    if server.idle:
        for idle in (0, effort.idle):
            yield "idle", idle, common | {"connections": 16, "idle": idle, "first": first + 9 * idle}


def run_server_windows(
    server: Server, bench: Bench, port: int, pid: int, first: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Runs all windows of a server. Raises TrialFailed."""
    return run_windows(list(plan_windows(server, bench, port, pid, first)), bench, server.workers)


def run_windows(windows: Windows, bench: Bench, workers: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Runs the load generator, and yields the kind, the connections, and the figures of each window. Raises TrialFailed."""
    cpus = bench.load_cpus(workers)
    done = subprocess.run(
        [sys.executable, "-B", str(BENCH / "load.py")],
        input=json.dumps([phase for _, _, phase in windows]),
        capture_output=True,
        text=True,
        timeout=30 + len(windows) * (bench.effort.seconds + 20),
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        check=False,
    )
    if done.returncode:
        raise TrialFailed(f"the load generator failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    for (kind, at, _), found in zip(windows, json.loads(done.stdout), strict=True):
        yield kind, at, found


def collect_figures(windows: Iterable[tuple[str, int, dict[str, Any]]]) -> tuple[dict[str, float], list[str]]:
    """Returns the figures of all successful windows, and the complaints about the others."""
    figures: dict[str, float] = {}
    complaints = []
    for kind, at, found in windows:
        complaint = window_problem(found)
        complaints += [f"{kind} at {at}: {complaint}"] if complaint else []
        if "gave_up" not in found and not found["failures"]:
            figures |= {f"{kind}_{name}_{at}": value for name, value in found.items()}
    return figures, complaints


def window_problem(found: dict[str, Any]) -> str:
    """Returns the problem of a window, or an empty string."""
    if "gave_up" in found:
        return f"the load generator stopped: {found['gave_up']}"
    if found["failures"]:
        return f"{found['failures']} of {found['requests']} requests failed"
    return f"{found['unanswered']} connections got no response" if found["unanswered"] else ""
