"""How long small requests take while large ones are under way: one connection beside another, one worker."""

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import environments
from bench import Bench, Failed
from document import framed
from protocol import BATCH, BINARY, FASTAPI
from report import shown, table
from results import Outcome
from runner import attempt
from server_trial import check, started
from servers import ALL_ROLES, UVICORN_SERVER, Server

HEADING = "One-row requests during requests of 10,000 rows"
USED = ("ours", "fastapi")
FIGURES = ("p50", "p90", "p99", "max")
METHOD = """\
* One connection sends `POST /predict/label` with one row, and the next request a millisecond after the response. Another
  connection, in another process, sends requests of 10,000 rows back to back to the same worker.
* The server and both clients share two CPUs, so all of them wait for a CPU at times. The lines in which the large requests go
  to another server of the same kind show this cost alone, because only the CPUs are shared then.
* FastAPI's handlers are async functions, as in its tutorial, so its event loop parses, runs, and writes each request in one go.
* The added time is the p99 with large requests minus the p99 of the same start without them. p99 and maximum are of some
  thousand requests a round.
"""


class Beside(NamedTuple):
    """What goes on beside the small requests; `elsewhere`: on another server."""

    name: str
    title: str
    server: Server
    kind: str | None = None
    path: str | None = None
    elsewhere: bool = False


BESIDES = (
    Beside("alone", "none", ALL_ROLES),
    Beside("large", "JSON to /predict/batch", ALL_ROLES, BATCH.kind, BATCH.path),
    Beside("binary", "binary to /v2", ALL_ROLES, BINARY.kind, BINARY.path),
    Beside("elsewhere_large", "JSON to another server", ALL_ROLES, BATCH.kind, BATCH.path, True),
    Beside("elsewhere_binary", "binary to another server", ALL_ROLES, BINARY.kind, BINARY.path, True),
    Beside("alone", "none", UVICORN_SERVER),
    Beside("large", "JSON to its batch route", UVICORN_SERVER, FASTAPI.kind, FASTAPI.path),
)
ALLOWED = (("large", "JSON", 8.0), ("binary", "binary", 5.0))


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    for server in (ALL_ROLES, UVICORN_SERVER):
        attempt(server.name, number, outcome, functools.partial(trial, server, bench))


def trial(server: Server, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """All that goes on beside the small requests of one start of a server. Raises Failed."""
    besides = [one for one in BESIDES if one.server is server]
    with contextlib.ExitStack() as stack:
        port, *_ = stack.enter_context(started(server, bench))
        check(server, port, bench)
        other = stack.enter_context(started(server, bench))[0] if any(one.elsewhere for one in besides) else port
        phases = [
            {"port": port, "large_port": other if one.elsewhere else port, "kind": one.kind, "path": one.path}
            | {"seconds": 2 * bench.effort.seconds}
            for one in besides
        ]
        answers = probes(phases)
    figures: dict[str, float] = {}
    complaints = []
    for one, found in zip(besides, answers, strict=True):
        figures |= {f"{name}_{one.name}": value for name, value in found.items()}
        figures[f"added_{one.name}"] = found["p99"] - answers[0]["p99"]
        complaints += [f"{one.title}: {found['failures']} requests failed"] if found["failures"] else []
    return figures, complaints


def probes(phases: list[dict]) -> list[dict[str, float]]:
    """Runs the prober, which is a process of its own as the load generator is. Raises Failed."""
    command = [sys.executable, "-B", str(environments.BENCH / "latency_prober.py")]
    limit = 60 + sum(phase["seconds"] + 10 for phase in phases)
    done = subprocess.run(command, input=json.dumps(phases), capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise Failed(f"the prober failed: {(done.stderr.strip().splitlines() or ['no reason told'])[-1]}")
    return json.loads(done.stdout)


def text(outcome: Outcome) -> str:
    lines = []
    for one in BESIDES:
        name = one.server.name
        told = [shown(outcome.value(name, f"{figure}_{one.name}"), "{:.2f}") for figure in FIGURES]
        added = shown(outcome.value(name, f"added_{one.name}"), "{:.2f}") if one.kind else ""
        large = shown(outcome.value(name, f"large_{one.name}"), "{:.0f}") if one.kind else ""
        lines.append([one.server.title, one.title, *told, added, large])
    headings = ["server", "concurrent requests of 10,000 rows", *(f"{figure} ms" for figure in FIGURES)]
    return framed(
        outcome, HEADING, table([*headings, "added to p99", "of these per second"], lines), METHOD, targets(outcome), USED
    )


def targets(outcome: Outcome) -> Iterator[str]:
    for name, title, most in ALLOWED:
        added, machine = (outcome.value(ALL_ROLES.name, f"added_{one}") for one in (name, f"elsewhere_{name}"))
        if added is None:
            yield f"OPEN p99 of one row during {title}: not measured; target: at most {most:g} ms more than alone"
            continue
        verdict = "PASS" if added <= most else "MISS"
        yield f"{verdict} p99 of one row during {title}: {added:.2f} ms more than alone; target: at most {most:g} ms"
        yield f"INFO the same during {title} to another server: {shown(machine, '{:.2f} ms more')}"
    yield f"INFO p99 of one row during JSON with FastAPI: {shown(outcome.value('uvicorn', 'added_large'), '{:.2f} ms more')}"
