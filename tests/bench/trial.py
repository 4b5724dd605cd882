"""One server, started once and measured: first answer, right answers, memory, load, and its end."""

import functools
import http.client
import json
import socket
import subprocess
import time

import processes
from bench import MODEL, Bench, Failed, environ
from environments import HOME, python
from servers import Server
from windows import loaded, wrong

START_LIMIT = 40.0
ASKED = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'


def trial(server: Server, bench: Bench, first: int) -> tuple[dict[str, float], list[str]]:
    """All figures of one start of a server, and what went wrong in single windows. Raises Failed.

    `first` is the number of the first row to send.
    """
    port = free_port()
    words = server.command(port, MODEL)
    if "--workers" in words and "--workers" not in help_text():
        if server.workers > 1:
            raise Failed("not built yet: serve has no --workers")
        words = words[:-2]
    complaints = []
    started = time.perf_counter()
    with processes.running(words, environ(bench.scratch), bench.server_cpus(server.workers), bench.scratch) as process:
        figures = {"start": first_answer(process, server, port) - started}
        time.sleep(0.5)
        figures["memory_idle"] = processes.memory(process.pid) / 1e6
        if server.checked:
            check(server, port, bench)
        for kind, at, found in loaded(server, bench, port, process.pid, first):
            complaint = wrong(found)
            complaints += [f"{kind} at {at}: {complaint}"] if complaint else []
            if "gave_up" not in found and not found["failures"]:
                figures |= {f"{kind}_{name}_{at}": value for name, value in found.items()}
        figures["memory_loaded"] = processes.memory(process.pid) / 1e6
    return figures, complaints


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@functools.cache
def help_text() -> str:
    """What `serve --help` lists today."""
    command = [python("ours"), "-m", "iris_wsgi", "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HOME, check=False).stdout


def first_answer(process: subprocess.Popen, server: Server, port: int) -> float:
    """The moment of the first right answer. Raises Failed."""
    give_up = time.perf_counter() + START_LIMIT
    while time.perf_counter() < give_up:
        if process.poll() is not None:
            raise Failed(f"ended with status {process.returncode} before its first answer")
        try:
            status, body = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), server.label_path, ASKED)
        except (OSError, http.client.HTTPException):
            time.sleep(0.002)
            continue
        if status == 200 and json.loads(body) == {"prediction": "setosa"}:
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
