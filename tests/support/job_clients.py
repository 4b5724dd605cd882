"""Clients of jobs, and the processes that serve them and are killed meanwhile."""

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
from job_store_invariants import invariant_violations
from job_workers import open_job_store
from project import MODEL

from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.asynchronous.job import DONE, JobStore, Limits
from iris_wsgi.patterns.asynchronous.job_codec import unpack_rows

CRASHING_MODEL = Path(__file__).with_name("crashing_model.py")
# Nothing here takes as long; who waits so long waits in vain.
TIMEOUT_SECONDS = 120
WAIT = "Prefer: wait=20"
find_address = re.compile(r"serves role \w+ on http://(\S+):(\d+)$").search


class Address(NamedTuple):
    host: str
    port: int


class StoreLocation(NamedTuple):
    """A store of jobs: the settings by which processes find it, and how a test opens it beside them."""

    settings: dict[str, str]
    where: str

    def open(self, **limits) -> JobStore:
        return open_job_store(self.where, Limits(**limits))

    def check(self) -> list[str]:
        with closing(self.open()) as store:
            return invariant_violations(store)

    def rows(self) -> Counter[bytes]:
        """The rows of all jobs that are kept, by how many jobs have them."""
        with closing(self.open()) as store:
            if self.settings.keys() == {"IRIS_STATE_DIR"}:
                with store.database.read() as db:
                    bodies = [body for (body,) in db.execute("SELECT body FROM content")]
            else:
                bodies = [store.client.redis.hget(key, "body") for key in store.client.redis.scan_iter("{iris}:job:*", 10_000)]
        # One may be removed while they are listed.
        return Counter(unpack_rows(body).tobytes() for body in bodies if body is not None)


class RestartingProcess:
    """A place for a process: what ends there is followed by another, until `end`."""

    def __init__(self, log: Path, settings: dict[str, str], *command: str, script: Path | None = None) -> None:
        program = [script] if script else ["-m", "iris_wsgi"]
        self.command = [sys.executable, *program, *command, "--port", "0", "--model-dir", str(MODEL)]
        self.environment = {**os.environ, **NO_COVERAGE, "IRIS_WORKERS": "1", **settings}
        self.log, self.ending = log, False
        log.touch()
        self.process: subprocess.Popen | None = None
        self.victim: subprocess.Popen | None = None
        self.began = 0.0
        # Where it serves, once it does.
        self.at: Address | None = None
        self.ends: list[int] = []
        self.thread = threading.Thread(target=self.keep)
        self.thread.start()

    def keep(self) -> None:
        while not self.ending:
            with self.log.open("a") as log:
                self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment)
                self.began = time.monotonic()
            with self.process:
                for line in self.process.stdout:
                    if found := find_address(line):
                        self.at = Address(found[1], int(found[2]))
            self.at = None
            self.ends.append(self.process.returncode)

    def ready(self) -> "RestartingProcess":
        wait_until(lambda: self.at, f"{self.command} serves; {self.log.read_text()}")
        return self

    def kill(self, age: float = 0.0) -> None:
        """Whatever it is doing, once it is so many seconds old; after one that was killed it means who follows it."""
        wait_until(lambda: self.process is not self.victim, "another process follows")
        time.sleep(max(0.0, self.began + age - time.monotonic()))
        self.at, self.victim = None, self.process
        kill_tree(self.process)

    @property
    def worker(self) -> int:
        """The process id of its only worker."""
        (pid,) = child_pids(self.process.pid)
        return pid

    def terminate(self) -> None:
        """Sends SIGTERM to it; none follows it."""
        self.ready()
        self.ending = True
        self.process.terminate()

    def ended(self) -> int:
        """The status it ends with."""
        self.thread.join(TIMEOUT_SECONDS)
        assert not self.thread.is_alive(), f"{self.command} does not end"
        return self.ends[-1]

    def remove(self) -> None:
        self.ending = True
        while self.thread.is_alive():
            if self.process is not None:
                kill_tree(self.process)
            self.thread.join(0.05)


StartProcess = Callable[..., RestartingProcess]


def distinct_row(number: int) -> list[float]:
    """One of its own for each number, the same as float32."""
    return [1 + number / 2048, 3.5, 1.4, 0.2]


class JobClients:
    """Clients that hand in jobs, look at them and cancel some, and note all that must not be; one row has only one of them."""

    def __init__(self, model: Model, servers: list[RestartingProcess], clients: int) -> None:
        self.model, self.encoder, self.servers = model, Encoder(model.labels), servers
        self.numbers = count()
        self.lock = threading.Lock()
        # What was acknowledged: ids by number and numbers by id; of what is not among them, some may be there all the same.
        self.ids: dict[int, str] = {}
        self.number_of: dict[str, int] = {}
        self.with_key: set[int] = set()
        self.cancelled: set[str] = set()
        # The records of those that were seen to be done.
        self.done: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.broken, self.ending = 0, False
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def __enter__(self) -> "JobClients":
        for one in self.threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        """They end once what they have begun is acknowledged; there must be a server."""
        self.ending = True
        for one in self.threads:
            one.join(TIMEOUT_SECONDS)
        assert not any(one.is_alive() for one in self.threads)

    def client(self) -> None:
        chance = random.Random()
        try:
            while not self.ending:
                number = next(self.numbers)
                key = f"key {number}" if chance.random() < 0.6 else None
                job_id = self.submit(number, key)
                if job_id is None:
                    continue
                what = chance.random()
                if what < 0.1:
                    self.cancel(job_id)
                elif what < 0.5:
                    self.look(job_id, WAIT)
                if key and what > 0.8:
                    self.submit(number, key)
                self.look(chance.choice(list(self.ids.values())))
        except Exception as error:
            self.faults.append(f"a client ended: {error!r}")

    def ask(self, method: str, path: str, document: object = None, *fields: str) -> HttpResponse | None:
        """The answer of one of the servers; None where the connection broke, or the store was down."""
        chosen = [one.at for one in self.servers if one.at is not None]
        if not chosen:
            time.sleep(0.005)
            return None
        try:
            answer = fetch(random.choice(chosen), http_request(method, path, document, *fields), TIMEOUT_SECONDS)
        except TimeoutError:
            self.faults.append(f"{method} {path} hangs")
            return None
        except (OSError, EOFError):
            with self.lock:
                self.broken += 1
            return None
        if answer.status != 503:
            return answer
        if answer.fields.get("content-type") != "application/problem+json" or "retry-after" not in answer.fields:
            self.faults.append(f"{method} {path}: {answer}")
        time.sleep(0.005)
        return None

    def insist(self, method: str, path: str, document: object = None, *fields: str) -> HttpResponse:
        """Asks again until there is an answer."""
        answers: list[HttpResponse] = []

        def answered() -> bool:
            answer = self.ask(method, path, document, *fields)
            answers.extend([] if answer is None else [answer])
            return bool(answers)

        wait_until(answered, f"{method} {path} has an answer")
        return answers[0]

    def submit(self, number: int, key: str | None = None) -> str | None:
        """The id of a job; with a key until it is acknowledged, without one None if that it was not."""
        fields = [f"Idempotency-Key: {key}"] if key else []
        if key:
            self.with_key.add(number)
        answer = (self.insist if key else self.ask)("POST", "/jobs", {"data": [distinct_row(number)]}, *fields)
        if answer is None or answer.status != 202:
            self.faults += [f"POST /jobs: {answer}"] if answer else []
            return None
        job_id = answer.json()["id"]
        with self.lock:
            first = self.ids.setdefault(number, job_id)
            self.number_of[job_id] = number
        if first != job_id:
            self.faults.append(f"{key} has the jobs {first} and {job_id}")
        return job_id

    def cancel(self, job_id: str) -> None:
        done, cancelled = self.before(job_id)
        answer = self.insist("DELETE", f"/jobs/{job_id}")
        if answer.status == 200:
            self.note(job_id, answer, done, cancelled)
            self.cancelled.add(job_id)
        elif answer.status != 409:
            self.faults.append(f"DELETE of {job_id}: {answer}")

    def look(self, job_id: str, *fields: str) -> str:
        """The state of a job, once a server has told it."""
        done, cancelled = self.before(job_id)
        return self.note(job_id, self.insist("GET", f"/jobs/{job_id}", None, *fields), done, cancelled)

    def before(self, job_id: str) -> tuple[bytes | None, bool]:
        """What is known of it before it is asked for."""
        return self.done.get(job_id), job_id in self.cancelled

    def note(self, job_id: str, answer: HttpResponse, done: bytes | None, cancelled: bool) -> str:
        """What an answer tells of it."""
        if answer.status != 200:
            self.faults.append(f"{job_id} was acknowledged, and is {answer}")
            return "lost"
        body = answer.body
        record = json.loads(body)
        state = record["status"]
        if done is not None and state not in DONE:
            self.faults.append(f"{job_id} was done, and is {state}: {done!r}")
        if cancelled and state != "cancelled":
            self.faults.append(f"{job_id} was cancelled, and is {state}")
        if state in DONE and (first := self.done.setdefault(job_id, body)) != body:
            self.faults.append(f"{job_id} was seen as {first!r} and as {body!r}")
        if state == "succeeded" and record["result"] != json.loads(self.right(distinct_row(self.number_of[job_id]))):
            self.faults.append(f"{job_id} has the result of other rows: {body!r}")
        if state == "failed":
            self.faults.append(f"{job_id} failed: {body!r}")
        return state

    def right(self, *rows: list[float]) -> bytes:
        return self.encoder.batch(self.model.predict(np.array(rows, np.float32)))

    def settle(self, place: StoreLocation) -> None:
        """Waits for all to be done, and looks at each once more, and at what is in the store."""
        with RawConnection(random.choice(self.servers).ready().at, timeout=TIMEOUT_SECONDS) as wire:
            for job_id in self.number_of:
                state = "queued"
                while state in ("queued", "running"):
                    done, cancelled = self.before(job_id)
                    answer = wire.ask(http_request("GET", f"/jobs/{job_id}", None, WAIT))
                    state = "queued" if answer.status == 503 else self.note(job_id, answer, done, cancelled)
        kept = place.rows()
        there = Counter(
            {number: kept[np.array(distinct_row(number), np.float32).tobytes()] for number in range(next(self.numbers))}
        )
        for number, times in there.items():
            least = 1 if number in self.ids else 0
            if not least <= times <= 1:
                self.faults.append(f"{times} jobs have the row {number}, of which {least} was acknowledged")
        if kept.total() != there.total():
            self.faults.append("there are jobs that nobody handed in")
        if lacking := self.with_key - set(self.ids):
            self.faults.append(f"never acknowledged: {lacking}")
        self.faults += place.check()
