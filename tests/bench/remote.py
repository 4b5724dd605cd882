"""Models on other servers: added time of a hop and of a fan-out, and effects of a broken member."""

import contextlib
import functools
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import faults
from bench import Bench, TrialFailed
from cluster import ENSEMBLE, RunningServer, start_gateway, start_members, start_server
from document import section_text
from load_windows import run_windows, window_problem
from report import format_value, markdown_table
from results import Results
from runner import run_trial
from server_trial import post

HEADING = "A model in two places, and an ensemble"
USED = ("ours",)
NAME = "hop"
CONNECTIONS = (1, 8)
WINDOWS = 4
LABEL = "/predict/label"


class Way(NamedTuple):
    """Server under test; `near` names the way with the same result without other servers."""

    name: str
    title: str
    path: str
    near: str | None = None


WAYS = (
    Way("direct", "`web_single`", LABEL),
    Way("hop", "`prep`, which calls `pred`", LABEL, "direct"),
    Way("here", "an ensemble in one process", ENSEMBLE),
    Way("fan", "`gateway`, which calls three `member`", ENSEMBLE, "here"),
)
METHOD = """\
* One row, `POST /predict/label` or `POST /ensemble/predict`, each with another row of 20,000, over 1 and 8 keep-alive
  connections, each of which has one request in progress. All servers are on this machine, over loopback, with one worker each,
  and share two CPUs with the load. Over a network, a hop takes longer by the time of the network. `--pin` changes nothing here.
  The ensemble in one process is in the role `all`.
* The four take turns in windows of {seconds:g} s, {windows} of each in a round. The added time is the median over pairs of
  windows that follow each other. p99 is of single windows. The CPU of all includes that of the servers that are called in turn.
* First, 200 labels of `prep` are compared with onnxruntime's own results. 200 responses of the gateway must equal those of the
  ensemble in one process.
* The faults: `IRIS_ENSEMBLE_MS={deadline}`, clients over {connections} connections, with pauses of {pause:g} ms after a
  response. A fault lasts {lasts:g} s, and one gateway that is never restarted meets all faults. A proxy in front of one member
  is a separate process. It sends 256 bytes that are not HTTP and leaves the connection open, or sends nonsense. It sends half
  of a response and then closes its half of the connection. It resets, drips, or forwards requests to the member of another
  species.
  Another member, without a proxy, is killed and stopped. A response is reported if it is neither complete nor partial without
  exactly this member.
* Less the deadline is the slowest response from the start of a fault until {after:g} s after its end, minus the deadline. The
  target is at most {allowed} ms. Clients waited for the member until no response took nine tenths of the deadline any more.
  Complete after is the time from the end of the fault to the last partial response. The fault of a killed member ends when the
  new process is ready.
* The machine is the longest delay of an idle thread that sleeps for 5 ms again and again. Processes here wait for a CPU at
  least this long.
"""


def measure_round(number: int, bench: Bench, results: Results) -> None:
    for name, trial in {NAME: hops, faults.NAME: faults.trial}.items():
        run_trial(name, number, results, functools.partial(trial, bench))


def hops(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures all ways in turn. Raises TrialFailed."""
    with contextlib.ExitStack() as stack:
        pred = start_server(stack, bench, "pred")
        members = start_members(stack, bench)
        servers = {
            "direct": start_server(stack, bench, "web_single"),
            "hop": start_server(stack, bench, "prep", IRIS_PRED_URL=pred.url),
            "here": start_server(stack, bench, "all"),
            "fan": start_gateway(stack, bench, {name: one.port for name, one in members.items()}),
        }
        check(servers, bench)
        upstream = {"hop": [pred.process.pid], "fan": [one.process.pid for one in members.values()]}
        windows = []
        for number in range(WINDOWS):
            common = {"kind": "label", "first": 701 * number, "warm": 100, "requests": 1_000_000}
            common["seconds"] = bench.effort.seconds / 2
            for at in CONNECTIONS:
                for way in WAYS:
                    server = servers[way.name]
                    target = {"port": server.port, "pid": server.process.pid, "upstream": upstream.get(way.name, [])}
                    windows.append((way.name, at, common | target | {"path": way.path, "connections": at}))
        return compared(run_windows(windows, bench, 1))


def check(servers: dict[str, RunningServer], bench: Bench) -> None:
    """Compares the responses with and without other servers. Raises TrialFailed."""
    connections = {name: http.client.HTTPConnection("127.0.0.1", one.port, timeout=10) for name, one in servers.items()}
    for row, label in zip(bench.rows, bench.labels, strict=True):
        body = json.dumps({"data": [row]}).encode()
        responses = {way.name: post(connections[way.name], way.path, body) for way in WAYS}
        if responses["hop"] != responses["direct"] or json.loads(responses["hop"][1]) != {"prediction": label}:
            raise TrialFailed(f"prep responded with {responses['hop']}; the label is {label}")
        if responses["fan"] != responses["here"] or responses["fan"][0] != 200:
            raise TrialFailed(
                f"the gateway responded with {responses['fan']}, the ensemble in one process with {responses['here']}"
            )
    for connection in connections.values():
        connection.close()


def compared(windows: Iterator[tuple[str, int, dict[str, Any]]]) -> tuple[dict[str, float], list[str]]:
    """Returns the medians of the windows, and of the differences and ratios of consecutive windows."""
    taken: dict[str, list[float]] = {}
    complaints = []
    last: dict[str, dict[str, Any]] = {}
    near = {way.name: way.near for way in WAYS}
    for name, at, found in windows:
        if complaint := window_problem(found):
            complaints.append(f"{name} at {at}: {complaint}")
            last.pop(name, None)
            continue
        last[name] = found | {"all": found["cpu"] + found["upstream"]}
        for figure in ("p50", "p99", "cpu", "all"):
            value, other = last[name][figure], last.get(near[name] or "")
            taken.setdefault(f"{name}_{figure}_{at}", []).append(value)
            if other:
                taken.setdefault(f"{name}_{figure}_added_{at}", []).append(value - other[figure])
                taken.setdefault(f"{name}_{figure}_ratio_{at}", []).append(value / other[figure])
    return {name: median(values) for name, values in taken.items()}, complaints


def text(results: Results) -> str:
    lines = []
    for at in CONNECTIONS:
        for way in WAYS:
            cells = [way.title, str(at)]
            for figure in ("p50", "p99"):
                cells.append(cell(results, f"{way.name}_{figure}_{at}", "{:.2f}"))
                cells.append(cell(results, f"{way.name}_{figure}_added_{at}", "{:,.0f}", 1e3))
                cells.append(cell(results, f"{way.name}_{figure}_ratio_{at}", "{:.1f}"))
            cells += [cell(results, f"{way.name}_{name}_{at}", "{:,.0f}") for name in ("cpu", "all")]
            lines.append([*cells, cell(results, f"{way.name}_all_ratio_{at}", "{:.1f}")])
    headings = ["one row to", "connections"]
    headings += [word for p in ("p50", "p99") for word in (f"{p} ms", "added µs", "ratio")]
    tables = markdown_table([*headings, "CPU µs of the server", "of all", "ratio"], lines)
    tables += "\nResponses to clients of a gateway while one of its three members is broken:\n\n"
    tables += "![The slowest responses before, during, and after each fault](remote.png)\n\n" + faults.text(results)
    return section_text(results, HEADING, tables, method(results), verdicts(results), USED)


def method(results: Results) -> str:
    return METHOD.format(
        seconds=1,
        windows=WINDOWS,
        deadline=faults.DEADLINE_MS,
        connections=faults.CONNECTIONS,
        pause=faults.PAUSE * 1e3,
        lasts=8,
        after=faults.AFTER,
        allowed=faults.ALLOWED_MS,
    )


def cell(results: Results, figure: str, pattern: str, factor: float = 1.0) -> str:
    return format_value(results.value(NAME, figure), pattern, factor)


def verdicts(results: Results) -> Iterator[str]:
    for name, title in (("hop", "the hop from prep to pred"), ("fan", "the fan-out to three members")):
        for at in CONNECTIONS:
            added = [cell(results, f"{name}_{p}_added_{at}", "{:,.0f} µs", 1e3) or "not measured" for p in ("p50", "p99")]
            yield f"INFO added by {title} at {at} connection{'s' * (at > 1)}: {added[0]} to p50, {added[1]} to p99"
    yield from faults.verdicts(results)


def draw(folder: Path, results: Results, python: str) -> None:
    if faults.NAME in results.by_server:
        faults.draw(folder, results, python)
