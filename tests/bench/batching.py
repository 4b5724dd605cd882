"""Micro-batching of one-row requests, off and on, for this project's model and for heavier ones."""

import functools
import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench import Bench, TrialFailed
from document import section_text
from load_windows import collect_figures, run_windows
from models import MODELS, alone, folder_of
from report import format_value, markdown_table
from results import Results
from runner import run_trial
from server_trial import check_labels, post, running_server
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
    """Model and variant of batching."""

    model: str
    variant: str

    @property
    def server(self) -> Server:
        words = (*OURS, "web_single", "--workers", "1", *VARIANTS[self.variant])
        return Server(f"{self.model} {self.variant}", MODELS[self.model], "ours", words, "")


KINDS = [Kind(model, variant) for model in MODELS for variant in VARIANTS]


def measure_round(number: int, bench: Bench, results: Results) -> None:
    for model in MODELS:
        run_trial(f"{model} alone", number, results, functools.partial(alone, model, bench))
    for kind in KINDS:
        run_trial(kind.server.name, number, results, functools.partial(trial, kind, bench))


def trial(kind: Kind, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures one start of a server. Raises TrialFailed."""
    server = kind.server
    bench = bench.with_model(folder_of(kind.model, bench))
    figures: dict[str, float] = {}
    with running_server(server, bench) as (port, pid, _):
        check_labels(server, port, bench)
        complaints = compared(kind, port, bench)
        for at in CONNECTIONS:
            window = {"port": port, "pid": pid, "kind": "label", "path": server.label_path, "first": 401 * at, "warm": 2 * at}
            window |= {"connections": at, "requests": bench.effort.requests, "seconds": bench.effort.seconds / 2}
            before = counted(port)
            found, problems = collect_figures(run_windows([("label", at, window)], bench, 1))
            rows, runs = (after - was for after, was in zip(counted(port), before, strict=True))
            figures |= found | {f"rows_{at}": rows / max(runs, 1)}
            complaints += problems
    return figures, complaints


def counted(port: int) -> tuple[float, float]:
    """Returns the number of rows that the model has received, and the number of its runs."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    rows, runs = (
        sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE))
        for name in ("model_rows_total", "model_runs_total")
    )
    return rows, runs


def compared(kind: Kind, port: int, bench: Bench) -> list[str]:
    """Compares the responses to concurrent requests with those without batching, which the first variant stores."""
    stored = Path(bench.scratch) / f"{kind.model}.json"

    def predict(row: list[float]) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        status, body = post(connection, "/predict", json.dumps({"data": [row]}).encode())
        connection.close()
        return f"{status} {body.decode()}"

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(predict, bench.rows))
    if kind.variant == "off":
        stored.write_text(json.dumps(responses))
    if not stored.exists():
        raise TrialFailed("no responses without batching to compare with")
    different = sum(a != b for a, b in zip(responses, json.loads(stored.read_text()), strict=True))
    return [f"{different} of {len(responses)} responses differ from those without batching"] if different else []


def text(results: Results) -> str:
    rates, delays = [], []
    for kind in KINDS:
        name, off = kind.server.name, Kind(kind.model, "off").server.name
        words = [MODELS[kind.model], kind.variant]
        rates.append([*words])
        delays.append([*words])
        for at in CONNECTIONS:
            rates[-1] += [format_value(results.value(name, f"label_rate_{at}"), "{:,.0f}")]
            rates[-1] += [format_value(results.ratio((name, f"label_rate_{at}"), (off, f"label_rate_{at}")), "{:.2f}")]
            delays[-1] += [format_value(results.value(name, f"label_{p}_{at}"), "{:.2f}") for p in ("p50", "p99")]
        rates[-1] += [format_value(results.value(name, f"rows_{CONNECTIONS[-1]}"), "{:.1f}")]
        rates[-1] += [format_value(results.value(name, f"label_cpu_{CONNECTIONS[-1]}"), "{:.0f}")]
    first = [word for at in CONNECTIONS for word in (f"requests/s at {at}", "to off")]
    second = [f"{p} at {at}" for at in CONNECTIONS for p in ("p50", "p99")]
    tables = markdown_table(["model", "batching", *first, "rows per run at 64", "CPU µs at 64"], rates)
    tables += "\nThe model alone, without a server:\n\n" + markdown_table(
        ["model", "µs of a row", "in a run of 32", "to alone"], costs(results)
    )
    tables += "\nLatency in ms by connections:\n\n" + markdown_table(["model", "batching", *second], delays)
    return section_text(results, HEADING, tables, METHOD, targets(results), USED)


def costs(results: Results) -> list[list[str]]:
    """Returns the cost of a row for each model, alone and in a run of many."""
    lines = []
    for model, title in MODELS.items():
        name = f"{model} alone"
        cells = [format_value(results.value(name, figure), "{:.1f}") for figure in ("row_in_1", "row_in_32")]
        lines.append([title, *cells, format_value(results.ratio((name, "row_in_32"), (name, "row_in_1")), "{:.2f}")])
    return lines


def targets(results: Results) -> Iterator[str]:
    """Yields the best gain at 16 and 64 connections. It has no target."""
    for model, title in MODELS.items():
        gains = []
        for at in CONNECTIONS[1:]:
            off = Kind(model, "off").server.name, f"label_rate_{at}"
            ratios = {
                variant: results.ratio((Kind(model, variant).server.name, off[1]), off)
                for variant in VARIANTS
                if variant != "off"
            }
            known = {variant: ratio for variant, ratio in ratios.items() if ratio is not None}
            best = max(known, key=known.__getitem__, default=None)
            gains.append(f"{known[best]:.2f} times at {at} ({best})" if best else f"not measured at {at}")
        yield f"INFO {title}: best requests/s with batching, relative to no batching: {', '.join(gains)}"
