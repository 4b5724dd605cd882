"""Trial of one server: first response, check of the labels, memory, and load."""

import contextlib
import functools
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator

import processes
from bench import Bench, TrialFailed, environ
from environments import HOME, python
from load_windows import collect_figures, run_server_windows
from servers import Server

START_LIMIT = 40.0


def trial(server: Server, bench: Bench, first: int) -> tuple[dict[str, float], list[str]]:
    """Returns all figures of one start of a server, and the complaints about single windows. Raises TrialFailed.

    `first` is the number of the first row to send.
    """
    with running_server(server, bench) as (port, pid, seconds):
        time.sleep(0.5)
        figures = {"start": seconds, "memory_idle": processes.memory(pid) / 1e6}
        if server.checked:
            check_labels(server, port, bench)
        found, complaints = collect_figures(run_server_windows(server, bench, port, pid, first))
        figures |= found | {"memory_loaded": processes.memory(pid) / 1e6}
    return figures, complaints


@contextlib.contextmanager
def running_server(server: Server, bench: Bench) -> Iterator[tuple[int, int, float]]:
    """Context manager of a started server: its port, its pid, and the seconds to its first response. Raises TrialFailed."""
    port = free_port()
    words = server.command(port, bench.model)
    if "iris_wsgi" in words and (
        unknown := [word for word in words if word[:2] == "--" and word not in help_text(server.environment)]
    ):
        raise TrialFailed(f"serve has no option {unknown[0]}")
    began, cpus = time.perf_counter(), bench.server_cpus(server.workers)
    with processes.running(words, environ(bench.scratch, bench.model), cpus, bench.scratch) as process:
        yield port, process.pid, wait_for_first_response(process, server, port, bench) - began


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@functools.cache
def help_text(environment: str) -> str:
    """Returns the output of `serve --help`."""
    command = [python(environment), "-m", "iris_wsgi", "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HOME, check=False).stdout


def wait_for_first_response(process: subprocess.Popen, server: Server, port: int, bench: Bench) -> float:
    """Returns the time of the first correct response. Raises TrialFailed."""
    request, expected = json.dumps({"data": bench.rows[:1]}).encode(), {"prediction": bench.labels[0]}
    give_up = time.perf_counter() + START_LIMIT
    while time.perf_counter() < give_up:
        if process.poll() is not None:
            raise TrialFailed(f"exited with status {process.returncode} before its first response")
        try:
            status, body = post(http.client.HTTPConnection("127.0.0.1", port, timeout=10), server.label_path, request)
        except (OSError, http.client.HTTPException):
            time.sleep(0.002)
            continue
        if status == 200 and (json.loads(body) == expected or not server.checked):
            return time.perf_counter()
        time.sleep(0.002)
    raise TrialFailed(f"sent no correct response within {START_LIMIT:g} seconds")


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def check_labels(server: Server, port: int, bench: Bench) -> None:
    """Compares the labels of a sample of rows, single and as a batch, with those of onnxruntime. Raises TrialFailed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for row, label in zip(bench.rows, bench.labels, strict=True):
        status, body = post(connection, server.label_path, json.dumps({"data": [row]}).encode())
        if status != 200 or json.loads(body) != {"prediction": label}:
            raise TrialFailed(f"responded with {status} {body[:60]!r}; the label is {label}")
    if server.batch_path:
        status, body = post(connection, server.batch_path, json.dumps({"data": bench.rows}).encode())
        if status != 200 or json.loads(body)["labels"] != bench.labels:
            raise TrialFailed(f"responded to a batch with {status} and other labels than onnxruntime")
    connection.close()
