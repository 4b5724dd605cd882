"""Requests of 10,000 rows: the inference protocol in binary beside JSON, FastAPI, and the model alone without a server."""

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
from bench import Bench, Failed, environ
from document import framed
from load_windows import driven, taken
from report import shown, table
from results import Outcome
from runner import attempt
from server_trial import started
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
    """How a server is asked for 10,000 rows; `kind` is the load generator's word for the body."""

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


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    attempt(ALONE, number, outcome, functools.partial(alone, bench))
    for server in SERVERS:
        attempt(server.name, number, outcome, functools.partial(trial, server, bench))


def trial(server: Server, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """All ways that one server can be asked. Raises Failed."""
    wanted = (Path(bench.scratch) / "wanted").read_bytes()
    common = {"first": 0, "warm": 8, "requests": 1_000_000, "seconds": bench.effort.seconds}
    with started(server, bench) as (port, pid, _):
        windows = []
        for way in WAYS:
            if way.server is server:
                check(way, port, wanted)
                told = common | {"port": port, "pid": pid, "kind": way.kind, "path": way.path}
                windows += [(way.kind, at, told | {"connections": at}) for at in CONNECTIONS]
        return taken(driven(windows, bench, server.workers))


def alone(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """The model in a process of its own; leaves the probabilities that the servers' answers are compared with."""
    command = [environments.python("ours"), "-B", str(environments.BENCH / "inprocess_model.py")]
    command += [bench.model, str(bench.effort.seconds), f"{bench.scratch}/wanted"]
    # It finds the rows in this folder and the package in its environment.
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environ(bench.scratch))
    return json.loads(done.stdout), []


def check(way: Way, port: int, wanted: bytes) -> None:
    """Compares the answer to one request with the model's own, bit for bit. Raises Failed."""
    head, _, body = rows.requests(way.kind, way.path)[0].partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", way.path, body, fields)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status != 200:
        raise Failed(f"answered {way.kind} with {response.status} {content[:60]!r}")
    if probabilities(way.kind, content, response.headers.get("Inference-Header-Content-Length")) != wanted:
        raise Failed(f"answered {way.kind} with other probabilities than onnxruntime's")


def probabilities(kind: str, content: bytes, json_bytes: str | None) -> bytes:
    """Those of an answer, as float32."""
    if kind == "large":
        return rows.packed(json.loads(content)["probabilities"])
    end = int(json_bytes or len(content))
    for output in json.loads(content[:end])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["name"] == "probabilities":
            return content[end : end + size] if size else struct.pack(f"<{len(output['data'])}f", *output["data"])
        end += size
    raise Failed("answered without probabilities")


def text(outcome: Outcome) -> str:
    lines = [[ALONE, *speeds(outcome, ALONE, ["rate", None]), "", "", ""]]
    for way in WAYS:
        figures = [f"{way.kind}_rate_{at}" for at in CONNECTIONS]
        costs = [(f"{way.kind}_cpu_{CONNECTIONS[0]}", "{:.1f}", 1e-3), (f"{way.kind}_p50_{CONNECTIONS[0]}", "{:.1f}", 1.0)]
        told = [shown(outcome.value(way.server.name, figure), pattern, factor) for figure, pattern, factor in costs]
        body = len(rows.requests(way.kind, way.path)[0])
        lines.append([way.title, *speeds(outcome, way.server.name, figures), *told, f"{body / 1e3:.0f}"])
    headings = ["10,000 rows at a time", *(word for at in CONNECTIONS for word in (f"rows/s at {at}", "to the model alone"))]
    return framed(
        outcome, HEADING, table([*headings, "CPU ms", "p50 ms at 1", "request KB"], lines), METHOD, targets(outcome), USED
    )


def speeds(outcome: Outcome, name: str, figures: Sequence[str | None]) -> Iterator[str]:
    """Rows/s and how much of the model's own they are, for each figure."""
    for figure in figures:
        yield shown(figure and outcome.value(name, figure), "{:,.0f}", rows.LARGE_ROWS)
        yield shown(figure and outcome.ratio((name, figure), (ALONE, "rate")), "{:.2f}")


def targets(outcome: Outcome) -> Iterator[str]:
    for at in CONNECTIONS:
        plural = "connection" if at == 1 else "connections"
        fast = BINARY.server.name, f"{BINARY.kind}_rate_{at}"
        yield at_least(
            f"rows/s in binary over {at} {plural}, relative to the model alone", outcome.ratio(fast, (ALONE, "rate")), 0.5
        )
        ours = outcome.ratio(fast, (V2.server.name, f"{V2.kind}_rate_{at}"))
        yield at_least(f"rows/s in binary over {at} {plural}, relative to the protocol's JSON", ours, 5.0)
        peer = outcome.ratio(fast, (FASTAPI.server.name, f"{FASTAPI.kind}_rate_{at}"))
        yield "INFO rows/s in binary over {} {}, relative to FastAPI's JSON: {}".format(
            at, plural, shown(peer, "{:.2f}") or "not measured"
        )
