"""Models on other servers: what the hop and the fan-out add to a request, what a broken member does, what hedges gain."""

import contextlib
import functools
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import faults
import hedging
import proxy
from bench import Bench, Failed
from cluster import ENSEMBLE, Running, gateway_to, members_of, up
from document import framed
from outcome import Outcome
from report import shown, table
from rounds import attempt
from trial import ask
from windows import driven, wrong

HEADING = "A model in two places, and an ensemble"
USED = ("ours",)
NAME = "hop"
CONNECTIONS = (1, 8)
WINDOWS = 4
LABEL = "/predict/label"
MOST_EXTRA = 0.1


class Way(NamedTuple):
    """Who is asked; `near` names the way that does the same without other servers."""

    name: str
    title: str
    path: str
    near: str | None = None


WAYS = (
    Way("direct", "`web_single`", LABEL),
    Way("hop", "`prep`, which asks `pred`", LABEL, "direct"),
    Way("here", "an ensemble in one process", ENSEMBLE),
    Way("fan", "`gateway`, which asks three `member`", ENSEMBLE, "here"),
)
METHOD = """\
* One row, `POST /predict/label` or `POST /ensemble/predict`, each with another row of 20,000, over 1 and 8 keep-alive
  connections, each of which has one request under way. All servers are on this machine, over loopback, with one worker each, and
  share two CPUs with the load; over a network a hop takes as much longer as that takes. `--pin` changes nothing here. The
  ensemble in one process is in the role `all`.
* The four take turns in windows of {seconds:g} s, {windows} of each in a round. What is added is the median over pairs of windows
  that follow each other; p99 is of single windows. CPU of all is with that of the servers that are asked in turn.
* 200 labels of `prep` are compared with onnxruntime's own first, and 200 answers of the gateway with those of the ensemble in one
  process, which must be the same.
* The faults: `IRIS_ENSEMBLE_MS={deadline}`, clients over {connections} connections, with pauses of {pause:g} ms after an answer.
  A fault lasts {lasts:g} s, and one gateway that is never restarted meets all of them. A proxy before one member, in a
  process of its own, answers 256 bytes that are no HTTP and leaves the connection open, answers nonsense, sends half of an answer
  and then closes its half of the connection, resets, drips, or passes requests on to another species' member. Another member,
  without a proxy, is killed and stopped. An answer that is neither complete nor partial without this very member is told.
* Less the deadline is the slowest answer from the begin of a fault until {after:g} s after its end; at most {allowed} ms wanted.
  Clients waited for the member until there was no answer that took nine tenths of the deadline any more. Asked again are retries.
  Complete after tells when the last partial answer came in, counted from when the fault is over; that of a killed member is over
  when the new process is ready.
* The machine is the most that a thread with nothing to do, which sleeps for 5 ms again and again, was woken late meanwhile: for
  as long as that, at least, processes here wait for a CPU.
* Hedges: the proxy holds back some answers of one member for {delay:g} ms, by chance. A gateway with
  `IRIS_HEDGE_PERCENTILE={percentile}` and one without take turns, {connections} connections with pauses of {hedge_pause:g} ms.
  Asked again are hedges and retries. These and calls are as `/metrics` tells them of that member; first requests are those that
  the proxy has seen, less these: with those by which a gateway looks at a member, which are no calls of its clients.
"""


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    for name, trial in {NAME: hops, faults.NAME: faults.trial, hedging.NAME: hedging.trial}.items():
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
    tables = table([*headings, "CPU µs of the asked", "of all", "ratio"], lines)
    tables += "\nWhat clients of a gateway see while one of its three members is broken:\n\n"
    tables += "![The slowest answers before, during and after each fault](remote.png)\n\n" + faults.text(outcome)
    tables += "\nWhat a second call gains where one member is late at times:\n\n" + hedging.text(outcome)
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
        delay=proxy.DELAY * 1e3,
        percentile=hedging.PERCENTILE,
        hedge_pause=hedging.PAUSE * 1e3,
    )


def cell(outcome: Outcome, figure: str, pattern: str, factor: float = 1.0) -> str:
    return shown(outcome.value(NAME, figure), pattern, factor)


def verdicts(outcome: Outcome) -> Iterator[str]:
    for name, title in (("hop", "the hop from prep to pred"), ("fan", "the fan-out to three members")):
        for at in CONNECTIONS:
            told = [cell(outcome, f"{name}_{p}_added_{at}", "{:,.0f} µs", 1e3) or "not measured" for p in ("p50", "p99")]
            yield f"INFO added by {title} at {at} connection{'s' * (at > 1)}: {told[0]} to p50, {told[1]} to p99"
    yield from faults.verdicts(outcome)
    for of in hedging.SHARES:
        extra = outcome.value(hedging.NAME, f"{of}_extra")
        if extra is not None:
            good = "PASS" if extra <= MOST_EXTRA else "FAIL"
            what = f"one of {of} answers is late: hedges and retries, of all first requests"
            yield f"{good} {what}: {extra:.3f}, at most {MOST_EXTRA:.2f} wanted"


def draw(folder: Path, outcome: Outcome, python: str) -> None:
    if faults.NAME in outcome.results:
        faults.draw(folder, outcome, python)
