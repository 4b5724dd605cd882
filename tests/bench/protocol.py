"""Requests of 10,000 rows: the inference protocol in binary and JSON, FastAPI, and the model alone without a server."""

import functools
import http.client
import json
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import environments
import rows
from bench import Bench, TrialFailed, environ
from document import section_text
from load_windows import collect_figures, run_windows
from report import format_value, markdown_table
from results import Results
from runner import run_trial
from server_trial import running_server
from servers import ALL_ROLES, UVICORN_SERVER, Server
from targets import at_least

CONNECTIONS = (1, 4)
INFER = "/v2/models/iris_svc/infer"
ALONE = "the model alone"
HEADING = "Requests of 10,000 rows"
USED = ("ours", "fastapi")
METHOD = """\
* Each server has one worker and returns everything that the model computes, over 1 and 4 keep-alive connections, each of which
  has one request in progress. Four requests take turns. Limits are the defaults. Our server has no prediction cache, as in the
  role `synchronous`.
* The model alone is `session.run` of the same arrays, repeated in one thread of a separate process, with the session options of
  our server. A server may run one request per thread at the same time. Here it shares two CPUs with the load generator.
* First, the probabilities of one response of each kind are compared with those of the model alone, bit for bit.
* CPU is that of the server for one request over 1 connection.
"""


class Way(NamedTuple):
    """Request of 10,000 rows; `kind` is the load generator's name of the body."""

    title: str
    server: Server
    kind: str
    path: str


BINARY = Way("iris_wsgi, /v2, binary in and out", ALL_ROLES, "binary", INFER)
V2 = Way("iris_wsgi, /v2, JSON in and out", ALL_ROLES, "v2", INFER)
BATCH = Way("iris_wsgi, /predict/batch, JSON", ALL_ROLES, "large", "/predict/batch")
FASTAPI = Way("FastAPI on uvicorn, its batch route, JSON", UVICORN_SERVER, "large", "/predict/batch")
WAYS = (BINARY, V2, BATCH, FASTAPI)
SERVERS = tuple(dict.fromkeys(way.server for way in WAYS))


def measure_round(number: int, bench: Bench, results: Results) -> None:
    run_trial(ALONE, number, results, functools.partial(alone, bench))
    for server in SERVERS:
        run_trial(server.name, number, results, functools.partial(trial, server, bench))


def trial(server: Server, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures all ways of one server. Raises TrialFailed."""
    expected = (Path(bench.scratch) / "wanted").read_bytes()
    common = {"first": 0, "warm": 8, "requests": 1_000_000, "seconds": bench.effort.seconds}
    with running_server(server, bench) as (port, pid, _):
        windows = []
        for way in WAYS:
            if way.server is server:
                check(way, port, expected)
                window = common | {"port": port, "pid": pid, "kind": way.kind, "path": way.path}
                windows += [(way.kind, at, window | {"connections": at}) for at in CONNECTIONS]
        return collect_figures(run_windows(windows, bench, server.workers))


def alone(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures the model in a separate process, and stores its probabilities for the comparison."""
    command = [environments.python("ours"), "-B", str(environments.BENCH / "inprocess_model.py")]
    command += [bench.model, str(bench.effort.seconds), f"{bench.scratch}/wanted"]
    # The script imports the rows from this folder and the package from its environment.
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environ(bench.scratch))
    return json.loads(done.stdout), []


def check(way: Way, port: int, expected: bytes) -> None:
    """Compares the response to one request with the stored probabilities, bit for bit. Raises TrialFailed."""
    head, _, body = rows.requests(way.kind, way.path)[0].partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", way.path, body, fields)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status != 200:
        raise TrialFailed(f"responded to {way.kind} with {response.status} {content[:60]!r}")
    if probabilities(way.kind, content, response.headers.get("Inference-Header-Content-Length")) != expected:
        raise TrialFailed(f"responded to {way.kind} with other probabilities than onnxruntime")


def probabilities(kind: str, content: bytes, json_bytes: str | None) -> bytes:
    """Returns the probabilities of a response as float32."""
    if kind == "large":
        return rows.float32_bytes(json.loads(content)["probabilities"])
    end = int(json_bytes or len(content))
    for output in json.loads(content[:end])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["name"] == "probabilities":
            return content[end : end + size] if size else struct.pack(f"<{len(output['data'])}f", *output["data"])
        end += size
    raise TrialFailed("responded without probabilities")


def text(results: Results) -> str:
    lines = [[ALONE, *speeds(results, ALONE, ["rate", None]), "", "", ""]]
    for way in WAYS:
        figures = [f"{way.kind}_rate_{at}" for at in CONNECTIONS]
        costs = [(f"{way.kind}_cpu_{CONNECTIONS[0]}", "{:.1f}", 1e-3), (f"{way.kind}_p50_{CONNECTIONS[0]}", "{:.1f}", 1.0)]
        values = [format_value(results.value(way.server.name, figure), pattern, factor) for figure, pattern, factor in costs]
        body = len(rows.requests(way.kind, way.path)[0])
        lines.append([way.title, *speeds(results, way.server.name, figures), *values, f"{body / 1e3:.0f}"])
    headings = ["10,000 rows at a time", *(word for at in CONNECTIONS for word in (f"rows/s at {at}", "to the model alone"))]
    return section_text(
        results,
        HEADING,
        markdown_table([*headings, "CPU ms", "p50 ms at 1", "request KB"], lines),
        METHOD,
        targets(results),
        USED,
    )


def speeds(results: Results, name: str, figures: Sequence[str | None]) -> Iterator[str]:
    """Yields rows/s, and their ratio to the model alone, for each figure."""
    for figure in figures:
        yield format_value(figure and results.value(name, figure), "{:,.0f}", rows.LARGE_ROWS)
        yield format_value(figure and results.ratio((name, figure), (ALONE, "rate")), "{:.2f}")


def targets(results: Results) -> Iterator[str]:
    for at in CONNECTIONS:
        plural = "connection" if at == 1 else "connections"
        fast = BINARY.server.name, f"{BINARY.kind}_rate_{at}"
        yield at_least(
            f"rows/s in binary over {at} {plural}, relative to the model alone", results.ratio(fast, (ALONE, "rate")), 0.5
        )
        ours = results.ratio(fast, (V2.server.name, f"{V2.kind}_rate_{at}"))
        yield at_least(f"rows/s in binary over {at} {plural}, relative to the protocol's JSON", ours, 5.0)
        peer = results.ratio(fast, (FASTAPI.server.name, f"{FASTAPI.kind}_rate_{at}"))
        yield "INFO rows/s in binary over {} {}, relative to FastAPI's JSON: {}".format(
            at, plural, format_value(peer, "{:.2f}") or "not measured"
        )
