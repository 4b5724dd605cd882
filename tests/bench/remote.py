"""Models on other servers: what the hop and the fan-out add to a request, what a broken member does."""

import contextlib
import functools
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import faults
from bench import Bench, Failed
from cluster import ENSEMBLE, Running, gateway_to, members_of, up
from document import framed
from load_windows import driven, wrong
from report import shown, table
from results import Outcome
from runner import attempt
from server_trial import ask

HEADING = "A model in two places, and an ensemble"
USED = ("ours",)
NAME = "hop"
CONNECTIONS = (1, 8)
WINDOWS = 4
LABEL = "/predict/label"


class Way(NamedTuple):
    """Who is asked; `near` names the way that does the same without other servers."""

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


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    for name, trial in {NAME: hops, faults.NAME: faults.trial}.items():
        attempt(name, number, outcome, functools.partial(trial, bench))


def hops(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """All ways in turns. Raises Failed."""
    with contextlib.ExitStack() as stack:
        pred = up(stack, bench, "pred")
        members = members_of(stack, bench)
        servers = {
            "direct": up(stack, bench, "web_single"),
            "hop": up(stack, bench, "prep", IRIS_PRED_URL=pred.url),
            "here": up(stack, bench, "all"),
            "fan": gateway_to(stack, bench, {name: one.port for name, one in members.items()}),
        }
        check(servers, bench)
        beside = {"hop": [pred.process.pid], "fan": [one.process.pid for one in members.values()]}
        windows = []
        for number in range(WINDOWS):
            common = {"kind": "label", "first": 701 * number, "warm": 100, "requests": 1_000_000}
            common["seconds"] = bench.effort.seconds / 2
            for at in CONNECTIONS:
                for way in WAYS:
                    server = servers[way.name]
                    told = {"port": server.port, "pid": server.process.pid, "beside": beside.get(way.name, [])}
                    windows.append((way.name, at, common | told | {"path": way.path, "connections": at}))
        return compared(driven(windows, bench, 1))


def check(servers: dict[str, Running], bench: Bench) -> None:
    """Compares what is answered with other servers' help and without. Raises Failed."""
    connections = {name: http.client.HTTPConnection("127.0.0.1", one.port, timeout=10) for name, one in servers.items()}
    for row, label in zip(bench.rows, bench.labels, strict=True):
        body = json.dumps({"data": [row]}).encode()
        answers = {way.name: ask(connections[way.name], way.path, body) for way in WAYS}
        if answers["hop"] != answers["direct"] or json.loads(answers["hop"][1]) != {"prediction": label}:
            raise Failed(f"prep answered {answers['hop']} where the label is {label}")
        if answers["fan"] != answers["here"] or answers["fan"][0] != 200:
            raise Failed(f"the gateway answered {answers['fan']}, and the ensemble in one process {answers['here']}")
    for connection in connections.values():
        connection.close()


def compared(windows: Iterator[tuple[str, int, dict[str, Any]]]) -> tuple[dict[str, float], list[str]]:
    """Medians of the windows, and of the differences and ratios of those that follow each other."""
    taken: dict[str, list[float]] = {}
    complaints = []
    last: dict[str, dict[str, Any]] = {}
    near = {way.name: way.near for way in WAYS}
    for name, at, found in windows:
        if complaint := wrong(found):
            complaints.append(f"{name} at {at}: {complaint}")
            last.pop(name, None)
            continue
        last[name] = found | {"all": found["cpu"] + found["beside"]}
        for figure in ("p50", "p99", "cpu", "all"):
            value, other = last[name][figure], last.get(near[name] or "")
            taken.setdefault(f"{name}_{figure}_{at}", []).append(value)
            if other:
                taken.setdefault(f"{name}_{figure}_added_{at}", []).append(value - other[figure])
                taken.setdefault(f"{name}_{figure}_ratio_{at}", []).append(value / other[figure])
    return {name: median(values) for name, values in taken.items()}, complaints


def text(outcome: Outcome) -> str:
    lines = []
    for at in CONNECTIONS:
        for way in WAYS:
            told = [way.title, str(at)]
            for figure in ("p50", "p99"):
                told.append(cell(outcome, f"{way.name}_{figure}_{at}", "{:.2f}"))
                told.append(cell(outcome, f"{way.name}_{figure}_added_{at}", "{:,.0f}", 1e3))
                told.append(cell(outcome, f"{way.name}_{figure}_ratio_{at}", "{:.1f}"))
            told += [cell(outcome, f"{way.name}_{name}_{at}", "{:,.0f}") for name in ("cpu", "all")]
            lines.append([*told, cell(outcome, f"{way.name}_all_ratio_{at}", "{:.1f}")])
    headings = ["one row to", "connections"]
    headings += [word for p in ("p50", "p99") for word in (f"{p} ms", "added µs", "ratio")]
    tables = table([*headings, "CPU µs of the server", "of all", "ratio"], lines)
    tables += "\nResponses to clients of a gateway while one of its three members is broken:\n\n"
    tables += "![The slowest responses before, during, and after each fault](remote.png)\n\n" + faults.text(outcome)
    return framed(outcome, HEADING, tables, method(outcome), verdicts(outcome), USED)


def method(outcome: Outcome) -> str:
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


def cell(outcome: Outcome, figure: str, pattern: str, factor: float = 1.0) -> str:
    return shown(outcome.value(NAME, figure), pattern, factor)


def verdicts(outcome: Outcome) -> Iterator[str]:
    for name, title in (("hop", "the hop from prep to pred"), ("fan", "the fan-out to three members")):
        for at in CONNECTIONS:
            told = [cell(outcome, f"{name}_{p}_added_{at}", "{:,.0f} µs", 1e3) or "not measured" for p in ("p50", "p99")]
            yield f"INFO added by {title} at {at} connection{'s' * (at > 1)}: {told[0]} to p50, {told[1]} to p99"
    yield from faults.verdicts(outcome)


def draw(folder: Path, outcome: Outcome, python: str) -> None:
    if faults.NAME in outcome.results:
        faults.draw(folder, outcome, python)
