"""The windows of load that one server is put under, one after another, by the load generator's process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench import Bench, Failed
from environments import BENCH
from servers import Server

CONNECTIONS = (1, 16, 256)
Windows = Sequence[tuple[str, int, dict[str, Any]]]


def planned(server: Server, bench: Bench, port: int, pid: int, first: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Kind, connections (of the kind `idle`: idle ones) and what the load generator is told, of each window."""
    effort = bench.effort
    common = {"port": port, "pid": pid, "kind": "label", "path": server.label_path, "first": first, "warm": 300, "idle": 0}
    common |= {"requests": effort.requests, "seconds": effort.seconds}
    for at in CONNECTIONS:
        yield "label", at, common | {"connections": at, "first": first + 401 * at}
    if server.batch_path:
        batches = {"kind": "batch", "path": server.batch_path, "connections": 4, "warm": 8, "requests": 300}
        yield "batch", 4, common | batches
    if server.idle:
        for idle in (0, effort.idle):
            yield "idle", idle, common | {"connections": 16, "idle": idle, "first": first + 9 * idle}


def loaded(server: Server, bench: Bench, port: int, pid: int, first: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Puts a server under all its windows. Raises Failed."""
    return driven(list(planned(server, bench, port, pid, first)), bench, server.workers)


def driven(windows: Windows, bench: Bench, workers: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Runs the load generator: kind, connections and findings of each window. Raises Failed."""
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
        raise Failed(f"the load generator failed: {(done.stderr.strip().splitlines() or ['no reason told'])[-1]}")
    for (kind, at, _), found in zip(windows, json.loads(done.stdout), strict=True):
        yield kind, at, found


def taken(windows: Iterable[tuple[str, int, dict[str, Any]]]) -> tuple[dict[str, float], list[str]]:
    """All figures of the windows that went well, and what went wrong."""
    figures: dict[str, float] = {}
    complaints = []
    for kind, at, found in windows:
        complaint = wrong(found)
        complaints += [f"{kind} at {at}: {complaint}"] if complaint else []
        if "gave_up" not in found and not found["failures"]:
            figures |= {f"{kind}_{name}_{at}": value for name, value in found.items()}
    return figures, complaints


def wrong(found: dict[str, Any]) -> str:
    """What is wrong with a window; empty where nothing is."""
    if "gave_up" in found:
        return f"the load generator could not go on: {found['gave_up']}"
    if found["failures"]:
        return f"{found['failures']} of {found['requests']} requests failed"
    return f"{found['unanswered']} connections got no response" if found["unanswered"] else ""
