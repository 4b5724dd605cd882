"""Head-of-line blocking: latency of small requests while another connection sends large ones, with one worker."""

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import environments
from bench import Bench, TrialFailed
from document import section_text
from protocol import BATCH, BINARY, FASTAPI
from report import format_value, markdown_table
from results import Results
from runner import run_trial
from server_trial import check_labels, running_server
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


class ConcurrentLoad(NamedTuple):
    """Large requests during the small ones; with `elsewhere` they go to another server."""

    name: str
    title: str
    server: Server
    kind: str | None = None
    path: str | None = None
    elsewhere: bool = False


LOADS = (
    ConcurrentLoad("alone", "none", ALL_ROLES),
    ConcurrentLoad("large", "JSON to /predict/batch", ALL_ROLES, BATCH.kind, BATCH.path),
    ConcurrentLoad("binary", "binary to /v2", ALL_ROLES, BINARY.kind, BINARY.path),
    ConcurrentLoad("elsewhere_large", "JSON to another server", ALL_ROLES, BATCH.kind, BATCH.path, True),
    ConcurrentLoad("elsewhere_binary", "binary to another server", ALL_ROLES, BINARY.kind, BINARY.path, True),
    ConcurrentLoad("alone", "none", UVICORN_SERVER),
    ConcurrentLoad("large", "JSON to its batch route", UVICORN_SERVER, FASTAPI.kind, FASTAPI.path),
)
MAX_ADDED_MS = (("large", "JSON", 8.0), ("binary", "binary", 5.0))


def measure_round(number: int, bench: Bench, results: Results) -> None:
    for server in (ALL_ROLES, UVICORN_SERVER):
        run_trial(server.name, number, results, functools.partial(trial, server, bench))


def trial(server: Server, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures all concurrent loads of a server in one start. Raises TrialFailed."""
    loads = [one for one in LOADS if one.server is server]
    with contextlib.ExitStack() as stack:
        port, *_ = stack.enter_context(running_server(server, bench))
        check_labels(server, port, bench)
        other = stack.enter_context(running_server(server, bench))[0] if any(one.elsewhere for one in loads) else port
        phases = [
            {"port": port, "large_port": other if one.elsewhere else port, "kind": one.kind, "path": one.path}
            | {"seconds": 2 * bench.effort.seconds}
            for one in loads
        ]
        answers = run_prober(phases)
    figures: dict[str, float] = {}
    complaints = []
    for one, found in zip(loads, answers, strict=True):
        figures |= {f"{name}_{one.name}": value for name, value in found.items()}
        figures[f"added_{one.name}"] = found["p99"] - answers[0]["p99"]
        complaints += [f"{one.title}: {found['failures']} requests failed"] if found["failures"] else []
    return figures, complaints


def run_prober(phases: list[dict]) -> list[dict[str, float]]:
    """Runs the prober in a separate process. Raises TrialFailed."""
    command = [sys.executable, "-B", str(environments.BENCH / "latency_prober.py")]
    limit = 60 + sum(phase["seconds"] + 10 for phase in phases)
    done = subprocess.run(command, input=json.dumps(phases), capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise TrialFailed(f"the prober failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return json.loads(done.stdout)


def text(results: Results) -> str:
    lines = []
    for one in LOADS:
        name = one.server.name
        cells = [format_value(results.value(name, f"{figure}_{one.name}"), "{:.2f}") for figure in FIGURES]
        added = format_value(results.value(name, f"added_{one.name}"), "{:.2f}") if one.kind else ""
        large = format_value(results.value(name, f"large_{one.name}"), "{:.0f}") if one.kind else ""
        lines.append([one.server.title, one.title, *cells, added, large])
    headings = ["server", "concurrent requests of 10,000 rows", *(f"{figure} ms" for figure in FIGURES)]
    return section_text(
        results,
        HEADING,
        markdown_table([*headings, "added to p99", "of these per second"], lines),
        METHOD,
        targets(results),
        USED,
    )


def targets(results: Results) -> Iterator[str]:
    for name, title, limit in MAX_ADDED_MS:
        added, machine = (results.value(ALL_ROLES.name, f"added_{one}") for one in (name, f"elsewhere_{name}"))
        if added is None:
            yield f"OPEN p99 of one row during {title}: not measured; target: at most {limit:g} ms more than alone"
            continue
        verdict = "PASS" if added <= limit else "MISS"
        yield f"{verdict} p99 of one row during {title}: {added:.2f} ms more than alone; target: at most {limit:g} ms"
        yield f"INFO the same during {title} to another server: {format_value(machine, '{:.2f} ms more')}"
    peer = format_value(results.value("uvicorn", "added_large"), "{:.2f} ms more")
    yield f"INFO p99 of one row during JSON with FastAPI: {peer}"
