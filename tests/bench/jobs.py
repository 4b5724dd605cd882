"""Jobs: accepted and finished jobs per second for each store, with one worker and with four, and the time to a result."""

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
from bench import Bench, TrialFailed, environ, environment_python
from document import section_text
from environments import python
from load import LoadGenerator
from report import format_value, markdown_table
from results import Results
from runner import run_trial
from server_trial import free_port

HEADING = "Jobs"
STORES = {"sqlite": "SQLite", "redis": "Redis"}
ENVIRONMENTS = {"sqlite": "ours", "redis": "redis"}
WORKERS = (1, 4)
CONNECTIONS = 16
DISK = "disk"
LIMIT = 60.0
# An idle worker reaches its longest polling interval of 0.05 s within 0.15 s.
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
    """Store and number of worker processes."""

    store: str
    workers: int

    @property
    def name(self) -> str:
        return f"{self.store} {self.workers}"


class Site(NamedTuple):
    """Running processes of a trial: the port of the server, and the pid of each part."""

    port: int
    parts: dict[str, int]


KINDS = [Kind(store, workers) for workers in WORKERS for store in STORES]


def measure_round(number: int, bench: Bench, results: Results) -> None:
    run_trial(DISK, number, results, functools.partial(disk, bench.effort.seconds / 2))
    for kind in KINDS:
        run_trial(kind.name, number, results, functools.partial(trial, kind, bench))


def disk(seconds: float) -> tuple[dict[str, float], list[str]]:
    """Returns the number of durable writes per second of the disk."""
    with tempfile.TemporaryFile(dir=environments.HOME, buffering=0) as file:
        done, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            done += 1
    return {"writes": done / elapsed}, []


def trial(kind: Kind, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures one start of server, workers, and store. Raises TrialFailed."""
    seconds, complaints = bench.effort.seconds, []
    with running_site(kind, bench) as site:
        wait_until_idle(site, kind.workers)
        check(site.port, bench)
        time.sleep(0.5)
        figures = {"idle": idle_cpu(site, seconds) / kind.workers}
        figures |= {f"row_{name}": value for name, value in measure_turnaround(site.port, seconds, 100_000, (0.0, 0.0)).items()}
        figures |= {f"rested_{name}": value for name, value in measure_turnaround(site.port, 8 * seconds, RESTED, REST).items()}
        with stopped_workers(site):
            for at in (1, CONNECTIONS):
                found, problems = submit_jobs(site.port, at, bench)
                figures[f"alone_{at}"] = found["rate"]
                complaints += problems
        figures["backlog"] = drain_queue(site.port)
        found, problems = submit_and_process(site, bench)
        if lost := sum(jobs for state, jobs in counts(site.port).items() if state != "succeeded"):
            raise TrialFailed(f"{lost} jobs did not succeed")
    return figures | found, complaints + problems


@contextlib.contextmanager
def running_site(kind: Kind, bench: Bench) -> Iterator[Site]:
    """Starts a separate store on the disk of this project, a server, and workers, and stops them at exit. Raises TrialFailed."""
    interpreter = environment_python(ENVIRONMENTS[kind.store])
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
            wait_until_up(redis, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            settings["IRIS_REDIS_URL"] = f"redis://127.0.0.1:{port}"
        command = [interpreter, "-m", "iris_wsgi"]
        port, health = free_port(), free_port()
        roles = {
            "server": ["serve", "--role", "asynchronous", "--workers", "1", "--port", str(port)],
            "workers": ["worker", "--workers", str(kind.workers), "--port", str(health)],
        }
        for (part, words), at in zip(roles.items(), (port, health), strict=True):
            wait_until_up(start(part, [*command, *words], settings), functools.partial(fetch, at, "GET", "/readyz"))
        yield Site(port, parts)


def redis_server() -> str:
    """Returns the path of redis-server. Raises TrialFailed if it is not installed."""
    if found := shutil.which("redis-server"):
        return found
    raise TrialFailed("redis-server is not installed")


def wait_until_up(process: subprocess.Popen, ask: Callable[[], object]) -> None:
    """Waits until a process responds. Raises TrialFailed."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            ask()
            return
        except (OSError, http.client.HTTPException, TrialFailed) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise TrialFailed(f"did not start: {error}") from None
        time.sleep(0.01)


def fetch(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    """Returns the body of a successful response over a new connection. Raises TrialFailed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        return send(connection, method, path, body)
    finally:
        connection.close()


def send(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, wait: str | None = None
) -> bytes:
    """Returns the body of a successful response over this connection; the server may hold it for `wait` seconds."""
    fields = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, body, fields | ({"Prefer": f"wait={wait}"} if wait else {}))
    response = connection.getresponse()
    content = response.read()
    if response.status not in (200, 202):
        raise TrialFailed(f"{method} {path} returned status {response.status}")
    return content


def retry_until_success(ask: Callable[[], bytes]) -> bytes:
    """Repeats a request. With a busy disk a store may take longer than a server waits. Raises TrialFailed."""
    for _ in range(20):
        with contextlib.suppress(TrialFailed):
            return ask()
        time.sleep(0.25)
    return ask()


def wait_until_idle(site: Site, workers: int) -> None:
    """Waits until all workers have started and have nothing to do. Raises TrialFailed."""
    end = time.monotonic() + LIMIT
    expected = workers + (workers > 1)
    while time.monotonic() < end:
        before = processes.cpu_times(processes.tree(site.parts["workers"]))
        time.sleep(0.25)
        after = processes.cpu_times(processes.tree(site.parts["workers"]))
        if len(after) >= expected and set(after) == set(before) and processes.cpu_between(before, after) < 50e6:
            return
    raise TrialFailed("the workers do not become idle")


def check(port: int, bench: Bench) -> None:
    """Compares the labels of a sample of jobs with those of onnxruntime. Raises TrialFailed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def send_until_success(method: str, path: str, body: bytes | None = None, wait: str | None = None) -> dict:
        return json.loads(retry_until_success(lambda: send(connection, method, path, body, wait)))

    ids = [send_until_success("POST", "/jobs", rows.batch_body([row]))["id"] for row in bench.rows]
    for job, label in zip(ids, bench.labels, strict=True):
        record = send_until_success("GET", f"/jobs/{job}", wait="10")
        if record["status"] != "succeeded" or record["result"]["labels"] != [label]:
            raise TrialFailed(f"a job with the label {label} is {record['status']}")
    connection.close()


def idle_cpu(site: Site, seconds: float) -> float:
    """Returns the CPU of idle workers, in ms per second."""
    pids = processes.tree(site.parts["workers"])
    before, began = processes.cpu_times(pids), time.perf_counter()
    time.sleep(seconds)
    return processes.cpu_between(before, processes.cpu_times(pids)) / 1e6 / (time.perf_counter() - began)


def measure_turnaround(port: int, seconds: float, max_jobs: int, rest: tuple[float, float]) -> dict[str, float]:
    """Returns percentiles of the milliseconds from submission to result, one job after another with pauses."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    bodies, chance, times = rows.some_single_row_bodies(1000), random.Random(5), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and len(times) < max_jobs:
        time.sleep(chance.uniform(*rest))
        began = time.perf_counter()
        try:
            job = json.loads(send(connection, "POST", "/jobs", bodies[len(times) % len(bodies)]))
            record = json.loads(send(connection, "GET", job["href"], wait="10"))
        except TrialFailed:
            # A rejected job counts as the time that a client waits before it tries again.
            record = {"status": "succeeded"}
            time.sleep(1.0)
        times.append((time.perf_counter() - began) * 1e3)
        if record["status"] != "succeeded":
            raise TrialFailed(f"a job is {record['status']} after 10 seconds")
    connection.close()
    return percentiles(times)


def percentiles(times: list[float]) -> dict[str, float]:
    """Returns the median and the 99th percentile."""
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[min(len(times) - 1, len(times) * 99 // 100)]}


@contextlib.contextmanager
def stopped_workers(site: Site) -> Iterator[None]:
    """Context manager that stops the workers with SIGSTOP while they hold no lock. Raises TrialFailed."""
    pids = processes.tree(site.parts["workers"])

    def signal_workers(number: signal.Signals) -> None:
        for pid in pids:
            os.kill(pid, number)

    try:
        for _ in range(20):
            signal_workers(signal.SIGSTOP)
            # A thread may run until another thread of its process has received the signal.
            while not all(map(processes.stands, pids)):
                time.sleep(0.01)
            # A worker may have been stopped while it held a lock.
            with contextlib.suppress(TrialFailed):
                fetch(site.port, "POST", "/jobs", rows.some_single_row_bodies(1)[0])
                break
            signal_workers(signal.SIGCONT)
            time.sleep(1.0)
        else:
            raise TrialFailed("the server accepts no jobs while the workers are stopped")
        yield
    finally:
        signal_workers(signal.SIGCONT)


@functools.cache
def requests() -> list[bytes]:
    return rows.requests("label", "/jobs")


def submit_jobs(port: int, connections: int, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Returns the accepted jobs per second and the latencies, and complaints about rejected jobs."""
    load = LoadGenerator(port, requests(), 0, b"HTTP/1.1 202 ")
    for _ in range(connections):
        load.connect()
    began = time.perf_counter()
    done = load.drive(bench.effort.requests, 2 * bench.effort.seconds)
    elapsed = time.perf_counter() - began
    load.close()
    complaints = [f"{load.failures} of {done} jobs were rejected: {load.wrong.decode()}"] if load.failures else []
    return {"rate": (done - load.failures) / elapsed} | percentiles([one / 1e6 for one in load.latencies]), complaints


def submit_and_process(site: Site, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Returns accepted and finished jobs per second while the workers run, and the CPU of each part."""
    before, began = {part: cpu(pid) for part, pid in site.parts.items()}, time.perf_counter()
    was = counts(site.port)["succeeded"]
    found, complaints = submit_jobs(site.port, CONNECTIONS, bench)
    drain_queue(site.port)
    elapsed, finished = time.perf_counter() - began, counts(site.port)["succeeded"] - was
    figures = {f"cpu_{part}": processes.cpu_between(before[part], cpu(pid)) / 1e3 / finished for part, pid in site.parts.items()}
    figures |= {"cpu": sum(figures.values()), "accepted": found["rate"], "finished": finished / elapsed}
    return figures | {"p50": found["p50"], "p99": found["p99"]}, complaints


def cpu(root: int) -> dict[int, int]:
    return processes.cpu_times(processes.tree(root))


def drain_queue(port: int) -> float:
    """Returns the finished jobs per second until the queue is empty. Raises TrialFailed."""
    began, first = time.perf_counter(), counts(port)["succeeded"]
    while time.perf_counter() < began + LIMIT:
        now = counts(port)
        if not now["queued"] + now["running"]:
            return (now["succeeded"] - first) / (time.perf_counter() - began)
        time.sleep(0.02)
    raise TrialFailed(f"jobs remain after {LIMIT:g} seconds")


def counts(port: int) -> dict[str, int]:
    """Returns the number of jobs by state. Raises TrialFailed."""
    return json.loads(retry_until_success(lambda: fetch(port, "GET", "/jobs")))["jobs"]


def text(results: Results) -> str:
    rates, costs, delays = [], [], []
    for kind in KINDS:
        value = functools.partial(cell, results, kind.name)
        words = [STORES[kind.store], str(kind.workers)]
        rates.append(
            words + [value(name, "{:,.0f}") for name in ("alone_1", f"alone_{CONNECTIONS}", "backlog", "accepted", "finished")]
        )
        costs.append(words + [value(name, "{:,.0f}") for name in ("cpu_server", "cpu_workers", "cpu_redis", "cpu")])
        costs[-1].append(value("idle", "{:.1f}"))
        delays.append(words + [value(f"{one}{p}", "{:.1f}") for one in ("", "row_", "rested_") for p in ("p50", "p99")])
    alone = [f"accepted/s alone, at {at}" for at in (1, CONNECTIONS)]
    tables = markdown_table(["store", "workers", *alone, "backlog/s", "both: accepted/s", "finished/s"], rates)
    tables += f"\nThe disk alone makes {cell(results, DISK, 'writes', '{:,.0f}')} durable writes a second, one after another.\n"
    tables += "\nCPU of a job in µs, and of an idle worker in ms a second:\n\n"
    tables += markdown_table(["store", "workers", "server", "the workers", "Redis", "all", "idle worker"], costs)
    tables += "\nLatency in ms, of the 202 at 16 connections with the workers at work, and from submission to result:\n\n"
    headings = [f"{what} {p}" for what in ("202", "back to back", "rested") for p in ("p50", "p99")]
    tables += markdown_table(["store", "workers", *headings], delays)
    used = [name for name in dict.fromkeys(ENVIRONMENTS.values()) if (environments.HOME / name / "installed").exists()]
    return section_text(results, HEADING, tables, METHOD.format(rest=REST, **versions()), targets(results), used)


def cell(results: Results, name: str, figure: str, pattern: str) -> str:
    return format_value(results.value(name, figure), pattern)


def versions() -> dict[str, str]:
    """Returns the versions of SQLite and Redis, which are not Python packages."""
    code = "import sqlite3; print(sqlite3.sqlite_version)"
    commands = {"sqlite": [python("ours"), "-c", code]}
    if program := shutil.which("redis-server"):
        commands["redis"] = [program, "--version"]
    found = {"redis": "(which is not site)"}
    for name, command in commands.items():
        words = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
        found[name] = next((word[2:] for word in words if word.startswith("v=")), words[0])
    return found


def targets(results: Results) -> Iterator[str]:
    """Yields the ratios of the stores to the disk, and of several workers to one. They have no targets."""
    for store, title in STORES.items():
        one, many = (Kind(store, workers).name for workers in WORKERS)
        for at in (1, CONNECTIONS):
            ratio = format_value(results.ratio((one, f"alone_{at}"), (DISK, "writes")), "{:.2f} times") or "not measured"
            plural = "connection" if at == 1 else "connections"
            yield f"INFO {title}: jobs accepted a second over {at} {plural}, relative to durable writes of the disk: {ratio}"
        ratio = format_value(results.ratio((many, "backlog"), (one, "backlog")), "{:.2f} times") or "not measured"
        yield f"INFO {title}: backlog/s with {WORKERS[-1]} workers, relative to one: {ratio}"
