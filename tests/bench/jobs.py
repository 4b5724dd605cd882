"""Jobs: how many are accepted and finished a second in each store, with one worker and with four, and how soon one is done."""

import contextlib
import functools
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import environments
import processes
import rows
from bench import Bench, Failed, environ, needed
from document import framed
from environments import python
from load import Load
from report import shown, table
from results import Outcome
from runner import attempt
from server_trial import free_port

HEADING = "Jobs"
STORES = {"sqlite": "SQLite", "redis": "Redis"}
ENVIRONMENTS = {"sqlite": "ours", "redis": "redis"}
WORKERS = (1, 4)
CONNECTIONS = 16
DISK = "disk"
LIMIT = 60.0
# A worker that found nothing looks again after 0.05 seconds at most, which it comes to within 0.15.
REST = (0.2, 0.3)
RESTED = 50
METHOD = """\
* The server sends 202 when the job is on the disk. Over one connection each job waits for its own write. Over 16 connections,
  jobs that arrive during a write share the next one: in one commit of SQLite, or in one turn of Redis's loop. A worker claims
  up to 64 jobs in one write and finishes them in another.
* Jobs have one row, `POST /jobs` to the role `asynchronous` in one process, over 1 or 16 keep-alive connections, each of which
  has one request in progress. The workers are `python -m iris_wsgi worker --workers N`. Server, workers, Redis, and the load
  share two CPUs: while all of them run, each takes CPU from the others. `--pin` changes nothing here.
* Alone: the workers are stopped (SIGSTOP) while clients submit jobs. Backlog: then the workers continue without new jobs, and
  the figure is the number of jobs divided by the time until none is left.
* Both: 16 connections submit jobs while the workers run. Accepted is the number of 202 per second. Finished is the number of
  all these jobs divided by the time from the first submission to the last finish. The difference is the work left when the load
  ended.
* CPU is that of all processes from the first submission to the last finish of both, divided by the finished jobs. The CPU of an
  idle worker is from a window of two seconds without work.
* Submission to result: one client sends `POST /jobs`, then `GET /jobs/{{id}}` with `Prefer: wait=10`. The time is from the
  first byte of the first request to the last byte of the second response. Back to back: the next job follows at once. Rested:
  the next job follows after a pause of {rest[0]:g} to {rest[1]:g} s, when idle workers poll at their longest interval. A
  rejected job counts as a second more.
* The disk is that of the stores: 4 KiB appended to a file and `fdatasync`, repeated, in the same round.
* SQLite is {sqlite}. Redis is redis-server {redis} over TCP on the same machine, `appendonly yes`, `appendfsync always`,
  without snapshots.
* First, the labels of 200 jobs are compared with onnxruntime's own results. A job that is lost or fails invalidates its trial.
"""


class Kind(NamedTuple):
    """A store, and how many processes work on its jobs."""

    store: str
    workers: int

    @property
    def name(self) -> str:
        return f"{self.store} {self.workers}"


class Site(NamedTuple):
    """What runs in a trial: the server's port, and the first process of each part."""

    port: int
    parts: dict[str, int]


KINDS = [Kind(store, workers) for workers in WORKERS for store in STORES]


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    attempt(DISK, number, outcome, functools.partial(disk, bench.effort.seconds / 2))
    for kind in KINDS:
        attempt(kind.name, number, outcome, functools.partial(trial, kind, bench))


def disk(seconds: float) -> tuple[dict[str, float], list[str]]:
    """Writes a second that are on the disk before the next begins."""
    with tempfile.TemporaryFile(dir=environments.HOME, buffering=0) as file:
        done, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            done += 1
    return {"writes": done / elapsed}, []


def trial(kind: Kind, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """One start of server, workers and store. Raises Failed."""
    seconds, complaints = bench.effort.seconds, []
    with site(kind, bench) as here:
        settle(here, kind.workers)
        check(here.port, bench)
        time.sleep(0.5)
        figures = {"idle": idle(here, seconds) / kind.workers}
        figures |= {f"row_{name}": value for name, value in turnaround(here.port, seconds, 100_000, (0.0, 0.0)).items()}
        figures |= {f"rested_{name}": value for name, value in turnaround(here.port, 8 * seconds, RESTED, REST).items()}
        with stopped(here):
            for at in (1, CONNECTIONS):
                found, wrong = handed_in(here.port, at, bench)
                figures[f"alone_{at}"] = found["rate"]
                complaints += wrong
        figures["backlog"] = worked_off(here.port)
        found, wrong = both(here, bench)
        if lost := sum(jobs for state, jobs in counts(here.port).items() if state != "succeeded"):
            raise Failed(f"{lost} jobs did not succeed")
    return figures | found, complaints + wrong


@contextlib.contextmanager
def site(kind: Kind, bench: Bench) -> Iterator[Site]:
    """A store of its own, on the disk that this project is on, and who uses it; all of it is ended at exit. Raises Failed."""
    interpreter = needed(ENVIRONMENTS[kind.store])
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="jobs-", dir=environments.HOME, ignore_cleanup_errors=True)
        )
        settings = {"IRIS_STATE_DIR": folder, "IRIS_JOBS_QUEUED": "1000000", "IRIS_MODEL_DIR": bench.model}
        parts = {}

        def start(part: str, command: Sequence[str], settings: Mapping[str, str]) -> subprocess.Popen:
            process = stack.enter_context(processes.running(command, environ(folder) | settings, bench.cpus, folder))
            parts[part] = process.pid
            return process

        if kind.store == "redis":
            program, port = redis_server(), free_port()
            durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
            redis = start("redis", [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, *durable], {})
            until_up(redis, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            settings["IRIS_REDIS_URL"] = f"redis://127.0.0.1:{port}"
        command = [interpreter, "-m", "iris_wsgi"]
        port, health = free_port(), free_port()
        roles = {
            "server": ["serve", "--role", "asynchronous", "--workers", "1", "--port", str(port)],
            "workers": ["worker", "--workers", str(kind.workers), "--port", str(health)],
        }
        for (part, words), at in zip(roles.items(), (port, health), strict=True):
            until_up(start(part, [*command, *words], settings), functools.partial(fetch, at, "GET", "/readyz"))
        yield Site(port, parts)


def redis_server() -> str:
    """Raises Failed where there is none."""
    if found := shutil.which("redis-server"):
        return found
    raise Failed("redis-server is not installed")


def until_up(process: subprocess.Popen, ask: Callable[[], object]) -> None:
    """Raises Failed for what has not come up, or ended."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            ask()
            return
        except (OSError, http.client.HTTPException, Failed) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise Failed(f"did not come up: {error}") from None
        time.sleep(0.01)


def fetch(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    """An answer's body, over a connection of its own. Raises Failed for one that is no success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        return asked(connection, method, path, body)
    finally:
        connection.close()


def asked(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, wait: str | None = None
) -> bytes:
    """The same over one that is there; `wait` is for how many seconds the answer may be held back."""
    fields = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, body, fields | ({"Prefer": f"wait={wait}"} if wait else {}))
    response = connection.getresponse()
    content = response.read()
    if response.status not in (200, 202):
        raise Failed(f"{method} {path} was answered with {response.status}")
    return content


def again(ask: Callable[[], bytes]) -> bytes:
    """An answer, as soon as there is one: where the disk is busy a store may take longer than a server waits. Raises Failed."""
    for _ in range(20):
        with contextlib.suppress(Failed):
            return ask()
        time.sleep(0.25)
    return ask()


def settle(here: Site, workers: int) -> None:
    """Waits until all workers are there and have nothing to do: they come one after another. Raises Failed."""
    end = time.monotonic() + LIMIT
    wanted = workers + (workers > 1)
    while time.monotonic() < end:
        before = processes.cpu_times(processes.tree(here.parts["workers"]))
        time.sleep(0.25)
        after = processes.cpu_times(processes.tree(here.parts["workers"]))
        if len(after) >= wanted and set(after) == set(before) and processes.cpu_between(before, after) < 50e6:
            return
    raise Failed("the workers do not come to rest")


def check(port: int, bench: Bench) -> None:
    """Compares the labels of a sample of rows, each a job, with onnxruntime's own. Raises Failed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def patiently(method: str, path: str, body: bytes | None = None, wait: str | None = None) -> dict:
        return json.loads(again(lambda: asked(connection, method, path, body, wait)))

    ids = [patiently("POST", "/jobs", rows.nested([row]))["id"] for row in bench.rows]
    for job, label in zip(ids, bench.labels, strict=True):
        told = patiently("GET", f"/jobs/{job}", wait="10")
        if told["status"] != "succeeded" or told["result"]["labels"] != [label]:
            raise Failed(f"told {told['status']} of a job whose label is {label}")
    connection.close()


def idle(here: Site, seconds: float) -> float:
    """CPU of the workers, in ms a second, while there is nothing to do."""
    pids = processes.tree(here.parts["workers"])
    before, began = processes.cpu_times(pids), time.perf_counter()
    time.sleep(seconds)
    return processes.cpu_between(before, processes.cpu_times(pids)) / 1e6 / (time.perf_counter() - began)


def turnaround(port: int, seconds: float, most: int, rest: tuple[float, float]) -> dict[str, float]:
    """Milliseconds from handing in a job to its result, one job after another, each after a pause within `rest`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    bodies, chance, taken = rows.singles_of(1000), random.Random(5), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and len(taken) < most:
        time.sleep(chance.uniform(*rest))
        began = time.perf_counter()
        try:
            job = json.loads(asked(connection, "POST", "/jobs", bodies[len(taken) % len(bodies)]))
            told = json.loads(asked(connection, "GET", job["href"], wait="10"))
        except Failed:
            # It counts as having taken as long as a client would wait before it tries again.
            told = {"status": "succeeded"}
            time.sleep(1.0)
        taken.append((time.perf_counter() - began) * 1e3)
        if told["status"] != "succeeded":
            raise Failed(f"told {told['status']} of a job after 10 seconds")
    connection.close()
    return spread(taken)


def spread(taken: list[float]) -> dict[str, float]:
    """The median, and what 99 of 100 are not over."""
    taken.sort()
    return {"p50": taken[len(taken) // 2], "p99": taken[min(len(taken) - 1, len(taken) * 99 // 100)]}


@contextlib.contextmanager
def stopped(here: Site) -> Iterator[None]:
    """The workers stand still meanwhile; none of them holds what others wait for. Raises Failed."""
    pids = processes.tree(here.parts["workers"])

    def tell(number: signal.Signals) -> None:
        for pid in pids:
            os.kill(pid, number)

    try:
        for _ in range(20):
            tell(signal.SIGSTOP)
            # A thread may go on until another of its process has had the signal.
            while not all(map(processes.stands, pids)):
                time.sleep(0.01)
            # One may have been stopped in the middle of a step.
            with contextlib.suppress(Failed):
                fetch(here.port, "POST", "/jobs", rows.singles_of(1)[0])
                break
            tell(signal.SIGCONT)
            time.sleep(1.0)
        else:
            raise Failed("no jobs are taken while the workers stand still")
        yield
    finally:
        tell(signal.SIGCONT)


@functools.cache
def requests() -> list[bytes]:
    return rows.requests("label", "/jobs")


def handed_in(port: int, connections: int, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Jobs accepted a second, and after how many ms, with so many requests under way; and whether some were refused."""
    load = Load(port, requests(), 0, b"HTTP/1.1 202 ")
    for _ in range(connections):
        load.connect()
    began = time.perf_counter()
    done = load.drive(bench.effort.requests, 2 * bench.effort.seconds)
    elapsed = time.perf_counter() - began
    load.close()
    complaints = [f"{load.failures} of {done} jobs were refused: {load.wrong.decode()}"] if load.failures else []
    return {"rate": (done - load.failures) / elapsed} | spread([one / 1e6 for one in load.latencies]), complaints


def both(here: Site, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Jobs accepted and finished a second while some are handed in and others worked on, and the CPU of each part."""
    before, began = {part: cpu(pid) for part, pid in here.parts.items()}, time.perf_counter()
    was = counts(here.port)["succeeded"]
    found, complaints = handed_in(here.port, CONNECTIONS, bench)
    worked_off(here.port)
    elapsed, finished = time.perf_counter() - began, counts(here.port)["succeeded"] - was
    figures = {f"cpu_{part}": processes.cpu_between(before[part], cpu(pid)) / 1e3 / finished for part, pid in here.parts.items()}
    figures |= {"cpu": sum(figures.values()), "accepted": found["rate"], "finished": finished / elapsed}
    return figures | {"p50": found["p50"], "p99": found["p99"]}, complaints


def cpu(root: int) -> dict[int, int]:
    return processes.cpu_times(processes.tree(root))


def worked_off(port: int) -> float:
    """Jobs finished a second until none is left. Raises Failed."""
    began, first = time.perf_counter(), counts(port)["succeeded"]
    while time.perf_counter() < began + LIMIT:
        now = counts(port)
        if not now["queued"] + now["running"]:
            return (now["succeeded"] - first) / (time.perf_counter() - began)
        time.sleep(0.02)
    raise Failed(f"jobs were left after {LIMIT:g} seconds")


def counts(port: int) -> dict[str, int]:
    """Jobs by state. Raises Failed."""
    return json.loads(again(lambda: fetch(port, "GET", "/jobs")))["jobs"]


def text(outcome: Outcome) -> str:
    rates, costs, delays = [], [], []
    for kind in KINDS:
        told = functools.partial(cell, outcome, kind.name)
        words = [STORES[kind.store], str(kind.workers)]
        rates.append(
            words + [told(name, "{:,.0f}") for name in ("alone_1", f"alone_{CONNECTIONS}", "backlog", "accepted", "finished")]
        )
        costs.append(words + [told(name, "{:,.0f}") for name in ("cpu_server", "cpu_workers", "cpu_redis", "cpu")])
        costs[-1].append(told("idle", "{:.1f}"))
        delays.append(words + [told(f"{one}{p}", "{:.1f}") for one in ("", "row_", "rested_") for p in ("p50", "p99")])
    alone = [f"accepted/s alone, at {at}" for at in (1, CONNECTIONS)]
    tables = table(["store", "workers", *alone, "backlog/s", "both: accepted/s", "finished/s"], rates)
    tables += f"\nThe disk alone makes {cell(outcome, DISK, 'writes', '{:,.0f}')} durable writes a second, one after another.\n"
    tables += "\nCPU of a job in µs, and of an idle worker in ms a second:\n\n"
    tables += table(["store", "workers", "server", "the workers", "Redis", "all", "idle worker"], costs)
    tables += "\nLatency in ms, of the 202 at 16 connections with the workers at work, and from submission to result:\n\n"
    headings = [f"{what} {p}" for what in ("202", "back to back", "rested") for p in ("p50", "p99")]
    tables += table(["store", "workers", *headings], delays)
    used = [name for name in dict.fromkeys(ENVIRONMENTS.values()) if (environments.HOME / name / "installed").exists()]
    return framed(outcome, HEADING, tables, METHOD.format(rest=REST, **versions()), targets(outcome), used)


def cell(outcome: Outcome, name: str, figure: str, pattern: str) -> str:
    return shown(outcome.value(name, figure), pattern)


def versions() -> dict[str, str]:
    """Of what is not a package."""
    code = "import sqlite3; print(sqlite3.sqlite_version)"
    commands = {"sqlite": [python("ours"), "-c", code]}
    if program := shutil.which("redis-server"):
        commands["redis"] = [program, "--version"]
    found = {"redis": "(which is not here)"}
    for name, command in commands.items():
        words = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
        found[name] = next((word[2:] for word in words if word.startswith("v=")), words[0])
    return found


def targets(outcome: Outcome) -> Iterator[str]:
    """No target, but what the stores make of the disk, and the workers of each other."""
    for store, title in STORES.items():
        one, many = (Kind(store, workers).name for workers in WORKERS)
        for at in (1, CONNECTIONS):
            ratio = shown(outcome.ratio((one, f"alone_{at}"), (DISK, "writes")), "{:.2f} times") or "not measured"
            plural = "connection" if at == 1 else "connections"
            yield f"INFO {title}: jobs accepted a second over {at} {plural}, relative to durable writes of the disk: {ratio}"
        ratio = shown(outcome.ratio((many, "backlog"), (one, "backlog")), "{:.2f} times") or "not measured"
        yield f"INFO {title}: backlog/s with {WORKERS[-1]} workers, relative to one: {ratio}"
