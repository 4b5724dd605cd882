"""Micro-batching of one-row requests: off and on, for the project's model and for heavier ones."""

import functools
import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench import Bench, Failed
from document import framed
from load_windows import driven, taken
from models import MODELS, alone, folder_of
from report import shown, table
from results import Outcome
from runner import attempt
from server_trial import ask, check, started
from servers import OURS, Server

HEADING = "Micro-batching of one-row requests"
USED = ("ours", "models")
CONNECTIONS = (1, 16, 64)
VARIANTS = {
    "off": (),
    "32 rows": ("--batch-rows", "32"),
}
METHOD = """\
* One-row requests to `/predict/label`, one worker, a closed loop. Batching on means `IRIS_BATCH_ROWS`.
  Without batching the I/O loop serves requests to a model that takes less than a millisecond. With batching each request waits
  in a thread for its run, which costs more than the run of a light model.
* The possible gain depends on the model: the cost of a row in a run of 32, relative to its cost alone.
* The forest is scikit-learn's, over noisy Iris rows, with fully grown trees, as skl2onnx writes it. The networks are untrained.
  One has 16 MiB of weights. The other has many nodes of little work, as converters write them for pipelines and stacks.
* Rows per run are from `/metrics`: the number of waiting rows that the model got at once.
* 200 responses to requests that come 16 at a time are compared with those without batching, byte for byte.
"""


class Kind(NamedTuple):
    """A model and how its rows are gathered."""

    model: str
    variant: str

    @property
    def server(self) -> Server:
        words = (*OURS, "web_single", "--workers", "1", *VARIANTS[self.variant])
        return Server(f"{self.model} {self.variant}", MODELS[self.model], "ours", words, "")


KINDS = [Kind(model, variant) for model in MODELS for variant in VARIANTS]


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    for model in MODELS:
        attempt(f"{model} alone", number, outcome, functools.partial(alone, model, bench))
    for kind in KINDS:
        attempt(kind.server.name, number, outcome, functools.partial(trial, kind, bench))


def trial(kind: Kind, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """One start of a server. Raises Failed."""
    server = kind.server
    bench = bench.of(folder_of(kind.model, bench))
    figures: dict[str, float] = {}
    with started(server, bench) as (port, pid, _):
        check(server, port, bench)
        complaints = compared(kind, port, bench)
        for at in CONNECTIONS:
            told = {"port": port, "pid": pid, "kind": "label", "path": server.label_path, "first": 401 * at, "warm": 2 * at}
            told |= {"connections": at, "requests": bench.effort.requests, "seconds": bench.effort.seconds / 2}
            before = counted(port)
            found, wrong = taken(driven([("label", at, told)], bench, 1))
            given, runs = (after - was for after, was in zip(counted(port), before, strict=True))
            figures |= found | {f"rows_{at}": given / max(runs, 1)}
            complaints += wrong
    return figures, complaints


def counted(port: int) -> tuple[float, float]:
    """Rows that the model got so far, and its runs."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    told = connection.getresponse().read().decode()
    connection.close()
    given, runs = (
        sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", told, re.MULTILINE))
        for name in ("model_rows_total", "model_runs_total")
    )
    return given, runs


def compared(kind: Kind, port: int, bench: Bench) -> list[str]:
    """What is wrong with probabilities of rows that come at the same time; those of the server without batching are kept."""
    kept = Path(bench.scratch) / f"{kind.model}.json"

    def asked(row: list[float]) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        status, body = ask(connection, "/predict", json.dumps({"data": [row]}).encode())
        connection.close()
        return f"{status} {body.decode()}"

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(asked, bench.rows))
    if kind.variant == "off":
        kept.write_text(json.dumps(answers))
    if not kept.exists():
        raise Failed("there are no answers without batching to compare with")
    other = sum(a != b for a, b in zip(answers, json.loads(kept.read_text()), strict=True))
    return [f"{other} of {len(answers)} answers are not those without batching"] if other else []


def text(outcome: Outcome) -> str:
    rates, delays = [], []
    for kind in KINDS:
        name, off = kind.server.name, Kind(kind.model, "off").server.name
        words = [MODELS[kind.model], kind.variant]
        rates.append([*words])
        delays.append([*words])
        for at in CONNECTIONS:
            rates[-1] += [shown(outcome.value(name, f"label_rate_{at}"), "{:,.0f}")]
            rates[-1] += [shown(outcome.ratio((name, f"label_rate_{at}"), (off, f"label_rate_{at}")), "{:.2f}")]
            delays[-1] += [shown(outcome.value(name, f"label_{p}_{at}"), "{:.2f}") for p in ("p50", "p99")]
        rates[-1] += [shown(outcome.value(name, f"rows_{CONNECTIONS[-1]}"), "{:.1f}")]
        rates[-1] += [shown(outcome.value(name, f"label_cpu_{CONNECTIONS[-1]}"), "{:.0f}")]
    first = [word for at in CONNECTIONS for word in (f"requests/s at {at}", "to off")]
    second = [f"{p} at {at}" for at in CONNECTIONS for p in ("p50", "p99")]
    tables = table(["model", "batching", *first, "rows per run at 64", "CPU µs at 64"], rates)
    tables += "\nThe model alone, without a server:\n\n" + table(
        ["model", "µs of a row", "in a run of 32", "to alone"], costs(outcome)
    )
    tables += "\nLatency in ms by connections:\n\n" + table(["model", "batching", *second], delays)
    return framed(outcome, HEADING, tables, METHOD, targets(outcome), USED)


def costs(outcome: Outcome) -> list[list[str]]:
    """What a row costs each model alone and in a run of many."""
    lines = []
    for model, title in MODELS.items():
        name = f"{model} alone"
        told = [shown(outcome.value(name, figure), "{:.1f}") for figure in ("row_in_1", "row_in_32")]
        lines.append([title, *told, shown(outcome.ratio((name, "row_in_32"), (name, "row_in_1")), "{:.2f}")])
    return lines


def targets(outcome: Outcome) -> Iterator[str]:
    """No target, but where it pays: at 16 and 64 connections, requests/s of those without."""
    for model, title in MODELS.items():
        told = []
        for at in CONNECTIONS[1:]:
            off = Kind(model, "off").server.name, f"label_rate_{at}"
            ratios = {
                variant: outcome.ratio((Kind(model, variant).server.name, off[1]), off)
                for variant in VARIANTS
                if variant != "off"
            }
            known = {variant: ratio for variant, ratio in ratios.items() if ratio is not None}
            best = max(known, key=known.__getitem__, default=None)
            told.append(f"{known[best]:.2f} times at {at} ({best})" if best else f"not measured at {at}")
        yield f"INFO {title}: best requests/s with batching, relative to no batching: {', '.join(told)}"
