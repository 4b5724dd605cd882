"""Clients that submit jobs, and the processes that serve these clients and are killed."""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from http_clients import NO_COVERAGE, HttpResponse, RawConnection, child_pids, fetch, http_request, kill_tree, wait_until
from iris_data import IRIS_ROWS
from job_store_invariants import invariant_violations
from job_workers import open_job_store
from project import MODEL
from terminal_process import TerminalProcess

from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.asynchronous.job import DONE, JobStore, Limits
from iris_wsgi.patterns.asynchronous.job_codec import unpack_rows

CRASHING_MODEL = Path(__file__).with_name("crashing_model.py")
# Longer than any operation here, so that only a hanging operation exceeds it.
TIMEOUT_SECONDS = 120
WAIT = "Prefer: wait=20"
find_address = re.compile(r"serves role \w+ on http://(\S+):(\d+)$").search


class Address(NamedTuple):
    """Address of a server."""

    host: str
    port: int


class StoreLocation(NamedTuple):
    """Location of a job store: the settings for a server, and the path or URL for a test."""

    settings: dict[str, str]
    location: str

    def open(self, **limits) -> JobStore:
        return open_job_store(self.location, Limits(**limits))

    def violations(self) -> list[str]:
        with closing(self.open()) as store:
            return invariant_violations(store)

    def rows(self) -> Counter[bytes]:
        """Returns the number of stored jobs by their rows."""
        with closing(self.open()) as store:
            if self.settings.keys() == {"IRIS_STATE_DIR"}:
                with store.database.read() as db:
                    bodies = [body for (body,) in db.execute("SELECT body FROM content")]
            else:
                bodies = [store.client.redis.hget(key, "body") for key in store.client.redis.scan_iter("{iris}:job:*", 10_000)]
        # A job may expire between the listing and the read.
        return Counter(unpack_rows(IRIS_ROWS, body).tobytes() for body in bodies if body is not None)


class RestartingProcess:
    """Process that is started again after each exit, until it is stopped."""

    def __init__(self, log: Path, settings: dict[str, str], *command: str, script: Path | None = None) -> None:
        program = [script] if script else ["-m", "iris_wsgi"]
        self.command = [sys.executable, *program, *command, "--port", "0", "--model-dir", str(MODEL)]
        self.environment = {**os.environ, **NO_COVERAGE, "IRIS_WORKERS": "1", **settings}
        self.log, self.stopping = log, False
        log.touch()
        self.process: subprocess.Popen | None = None
        self.killed: subprocess.Popen | None = None
        self.started_at = 0.0
        # Set while the process serves.
        self.address: Address | None = None
        self.exit_codes: list[int] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            with self.log.open("a") as log:
                self.process = TerminalProcess(self.command, stderr=log, env=self.environment)
                self.started_at = time.monotonic()
            with self.process:
                lines = self.process.startup_lines()
                if lines and (found := find_address(lines[0])):
                    self.address = Address(found[1], int(found[2]))
            self.address = None
            self.exit_codes.append(self.process.returncode)

    def ready(self) -> "RestartingProcess":
        wait_until(lambda: self.address, f"{self.command} serves; {self.log.read_text()}")
        return self

    def kill(self, age: float = 0.0) -> None:
        """Kills the process at this age. After an earlier kill, waits for the next process first."""
        wait_until(lambda: self.process is not self.killed, "another process follows")
        time.sleep(max(0.0, self.started_at + age - time.monotonic()))
        self.address, self.killed = None, self.process
        kill_tree(self.process)

    @property
    def worker_pid(self) -> int:
        """Process id of the only worker."""
        (pid,) = child_pids(self.process.pid)
        return pid

    def terminate(self) -> None:
        """Ends the process with SIGTERM and does not start it again."""
        self.ready()
        self.stopping = True
        self.process.terminate()

    def wait_for_exit(self) -> int:
        """Returns the exit code of the last process."""
        self.thread.join(TIMEOUT_SECONDS)
        assert not self.thread.is_alive(), f"{self.command} does not end"
        return self.exit_codes[-1]

    def remove(self) -> None:
        self.stopping = True
        while self.thread.is_alive():
            if self.process is not None:
                kill_tree(self.process)
            self.thread.join(0.05)


StartProcess = Callable[..., RestartingProcess]


def distinct_row(number: int) -> list[float]:
    """Returns a different row for each number, with the same value as float32."""
    return [1 + number / 2048, 3.5, 1.4, 0.2]


class JobClients:
    """Clients that submit, poll, and cancel jobs, and record every fault. Each row belongs to one client."""

    def __init__(self, model: Model, servers: list[RestartingProcess], clients: int) -> None:
        self.model, self.encoder, self.servers = model, Encoder(model.outputs), servers
        self.numbers = count()
        self.lock = threading.Lock()
        # Acknowledged jobs: the id by number, and the number by id. The store may also contain jobs without acknowledgment.
        self.ids: dict[int, str] = {}
        self.number_of: dict[str, int] = {}
        self.with_key: set[int] = set()
        self.cancelled: set[str] = set()
        # Record of each finished job.
        self.done: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.broken_connections, self.stopping = 0, False
        self.threads = [threading.Thread(target=self.run_client) for _ in range(clients)]

    def __enter__(self) -> "JobClients":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until the clients have finished their current operations. At least one server must run."""
        self.stopping = True
        for thread in self.threads:
            thread.join(TIMEOUT_SECONDS)
        assert not any(thread.is_alive() for thread in self.threads)

    def run_client(self) -> None:
        chance = random.Random()
        try:
            while not self.stopping:
                number = next(self.numbers)
                key = f"key {number}" if chance.random() < 0.6 else None
                job_id = self.submit(number, key)
                if job_id is None:
                    continue
                action = chance.random()
                if action < 0.1:
                    self.cancel(job_id)
                elif action < 0.5:
                    self.poll(job_id, WAIT)
                if key and action > 0.8:
                    self.submit(number, key)
                self.poll(chance.choice(list(self.ids.values())))
        except Exception as error:
            self.faults.append(f"a client ended: {error!r}")

    def try_request(self, method: str, path: str, document: object = None, *header_lines: str) -> HttpResponse | None:
        """Sends a request to one of the servers. Returns None if the connection broke, or if the store was unavailable."""
        addresses = [server.address for server in self.servers if server.address is not None]
        if not addresses:
            time.sleep(0.005)
            return None
        try:
            response = fetch(random.choice(addresses), http_request(method, path, document, *header_lines), TIMEOUT_SECONDS)
        except TimeoutError:
            self.faults.append(f"{method} {path} hangs")
            return None
        except (OSError, EOFError):
            with self.lock:
                self.broken_connections += 1
            return None
        if response.status != 503:
            return response
        if response.headers.get("content-type") != "application/problem+json" or "retry-after" not in response.headers:
            self.faults.append(f"{method} {path}: {response}")
        time.sleep(0.005)
        return None

    def request(self, method: str, path: str, document: object = None, *header_lines: str) -> HttpResponse:
        """Sends a request repeatedly until there is a response."""
        responses: list[HttpResponse] = []

        def has_response() -> bool:
            response = self.try_request(method, path, document, *header_lines)
            responses.extend([] if response is None else [response])
            return bool(responses)

        wait_until(has_response, f"{method} {path} has a response")
        return responses[0]

    def submit(self, number: int, key: str | None = None) -> str | None:
        """Submits a job and returns its id.

        With an idempotency key, tries again until a server acknowledges the job. Without a key, tries once and may return None.
        """
        header_lines = [f"Idempotency-Key: {key}"] if key else []
        if key:
            self.with_key.add(number)
        send = self.request if key else self.try_request
        response = send("POST", "/jobs", {"data": [distinct_row(number)]}, *header_lines)
        if response is None or response.status != 202:
            self.faults += [f"POST /jobs: {response}"] if response else []
            return None
        job_id = response.json()["id"]
        with self.lock:
            first_id = self.ids.setdefault(number, job_id)
            self.number_of[job_id] = number
        if first_id != job_id:
            self.faults.append(f"{key} has the jobs {first_id} and {job_id}")
        return job_id

    def cancel(self, job_id: str) -> None:
        done, cancelled = self.last_seen(job_id)
        response = self.request("DELETE", f"/jobs/{job_id}")
        if response.status == 200:
            self.check_record(job_id, response, done, cancelled)
            self.cancelled.add(job_id)
        elif response.status != 409:
            self.faults.append(f"DELETE of {job_id}: {response}")

    def poll(self, job_id: str, *header_lines: str) -> str:
        """Returns the state of a job."""
        done, cancelled = self.last_seen(job_id)
        return self.check_record(job_id, self.request("GET", f"/jobs/{job_id}", None, *header_lines), done, cancelled)

    def last_seen(self, job_id: str) -> tuple[bytes | None, bool]:
        """Returns the record of a finished job, and whether the job is cancelled. Read this before sending a request."""
        return self.done.get(job_id), job_id in self.cancelled

    def check_record(self, job_id: str, response: HttpResponse, done: bytes | None, cancelled: bool) -> str:
        """Compares a response with the earlier ones, records the faults, and returns the state of the job."""
        if response.status != 200:
            self.faults.append(f"{job_id} was acknowledged, and is {response}")
            return "lost"
        body = response.body
        record = json.loads(body)
        state = record["status"]
        if done is not None and state not in DONE:
            self.faults.append(f"{job_id} was done, and is {state}: {done!r}")
        if cancelled and state != "cancelled":
            self.faults.append(f"{job_id} was cancelled, and is {state}")
        if state in DONE and (first := self.done.setdefault(job_id, body)) != body:
            self.faults.append(f"{job_id} was seen as {first!r} and as {body!r}")
        if state == "succeeded" and record["result"] != json.loads(self.expected_body(distinct_row(self.number_of[job_id]))):
            self.faults.append(f"{job_id} has the result of other rows: {body!r}")
        if state == "failed":
            self.faults.append(f"{job_id} failed: {body!r}")
        return state

    def expected_body(self, *rows: list[float]) -> bytes:
        return self.encoder.batch(self.model.predict(np.array(rows, np.float32)))

    def check_all(self, store: StoreLocation) -> None:
        """Waits until all jobs are finished, and compares their records and the store with the acknowledgments."""
        with RawConnection(random.choice(self.servers).ready().address, timeout=TIMEOUT_SECONDS) as connection:
            for job_id in self.number_of:
                state = "queued"
                while state in ("queued", "running"):
                    done, cancelled = self.last_seen(job_id)
                    response = connection.exchange(http_request("GET", f"/jobs/{job_id}", None, WAIT))
                    state = "queued" if response.status == 503 else self.check_record(job_id, response, done, cancelled)
        stored = store.rows()
        jobs_by_number = {
            number: stored[np.array(distinct_row(number), np.float32).tobytes()] for number in range(next(self.numbers))
        }
        for number, jobs in jobs_by_number.items():
            acknowledged = 1 if number in self.ids else 0
            if not acknowledged <= jobs <= 1:
                self.faults.append(f"{jobs} jobs have the row {number}, and {acknowledged} was acknowledged")
        if stored.total() != sum(jobs_by_number.values()):
            self.faults.append("the store has jobs that no client submitted")
        if missing := self.with_key - set(self.ids):
            self.faults.append(f"never acknowledged: {missing}")
        self.faults += store.violations()
