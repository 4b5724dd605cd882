"""One server, started once and measured: first answer, right answers, memory, load, and its end."""

import contextlib
import functools
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator

import processes
from bench import Bench, Failed, environ
from environments import HOME, python
from load_windows import loaded, taken
from servers import Server

START_LIMIT = 40.0


def trial(server: Server, bench: Bench, first: int) -> tuple[dict[str, float], list[str]]:
    """All figures of one start of a server, and what went wrong in single windows. Raises Failed.

    `first` is the number of the first row to send.
    """
    with started(server, bench) as (port, pid, seconds):
        time.sleep(0.5)
        figures = {"start": seconds, "memory_idle": processes.memory(pid) / 1e6}
        if server.checked:
            check(server, port, bench)
        found, complaints = taken(loaded(server, bench, port, pid, first))
        figures |= found | {"memory_loaded": processes.memory(pid) / 1e6}
    return figures, complaints


@contextlib.contextmanager
def started(server: Server, bench: Bench) -> Iterator[tuple[int, int, float]]:
    """Port and process of a server that has answered, and the seconds that took; it is ended at exit. Raises Failed."""
    port = free_port()
    words = server.command(port, bench.model)
    if "iris_wsgi" in words and (unknown := [word for word in words if word[:2] == "--" and word not in help_text()]):
        raise Failed(f"not built yet: serve has no {unknown[0]}")
    began, cpus = time.perf_counter(), bench.server_cpus(server.workers)
    with processes.running(words, environ(bench.scratch, bench.model), cpus, bench.scratch) as process:
        yield port, process.pid, first_answer(process, server, port, bench) - began


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@functools.cache
def help_text() -> str:
    """What `serve --help` lists today."""
    command = [python("ours"), "-m", "iris_wsgi", "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HOME, check=False).stdout


def first_answer(process: subprocess.Popen, server: Server, port: int, bench: Bench) -> float:
    """The moment of the first right answer. Raises Failed."""
    asked, wanted = json.dumps({"data": bench.rows[:1]}).encode(), {"prediction": bench.labels[0]}
    give_up = time.perf_counter() + START_LIMIT
    while time.perf_counter() < give_up:
        if process.poll() is not None:
            raise Failed(f"ended with status {process.returncode} before its first answer")
        try:
            status, body = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), server.label_path, asked)
        except (OSError, http.client.HTTPException):
            time.sleep(0.002)
            continue
        if status == 200 and (json.loads(body) == wanted or not server.checked):
            return time.perf_counter()
        time.sleep(0.002)
    raise Failed(f"gave no right answer within {START_LIMIT:g} seconds")


def ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def check(server: Server, port: int, bench: Bench) -> None:
    """Compares the labels of a sample of rows, one by one and as a batch, with onnxruntime's own. Raises Failed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for row, label in zip(bench.rows, bench.labels, strict=True):
        status, body = ask(connection, server.label_path, json.dumps({"data": [row]}).encode())
        if status != 200 or json.loads(body) != {"prediction": label}:
            raise Failed(f"answered {status} {body[:60]!r} where the label is {label}")
    if server.batch_path:
        status, body = ask(connection, server.batch_path, json.dumps({"data": bench.rows}).encode())
        if status != 200 or json.loads(body)["labels"] != bench.labels:
            raise Failed(f"answered a batch with {status} and other labels than onnxruntime's")
    connection.close()
