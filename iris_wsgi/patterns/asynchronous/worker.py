"""Works on jobs: claims them, runs the model on many at once, and writes a result only while it holds the lease."""

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np

from iris_wsgi.codec.rows import Array, Encoder, best
from iris_wsgi.errors import BackendUnavailable, DeadlineExceeded, Problem
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.patterns.asynchronous.job import Claim, JobStore, Stop, never
from iris_wsgi.patterns.asynchronous.job_codec import pack_result, unpack_note, unpack_rows
from iris_wsgi.patterns.asynchronous.leases import Leases
from iris_wsgi.patterns.asynchronous.metrics import JobMetrics
from iris_wsgi.resilience.background import pause
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker

# How long a worker that found nothing waits until it looks again, unless it is woken: at first, at last, after a defect.
FIRST_PAUSE, LAST_PAUSE, DEFECT_PAUSE = 0.002, 0.05, 0.25
# How long it waits until it asks a store again that is down.
DOWN_PAUSE = 0.25
MOST_RETRY_SECONDS = 60.0
NO_ROWS = np.empty((0, 0), np.float32)
WRONG_ROWS = "The rows are not of the width that this model takes."
TOO_LONG = "The model took too long for these rows."
NO_ANSWER = "The model failed on these rows; the log of its worker says more."


T = TypeVar("T")


class WorkerLimits(NamedTuple):
    """Jobs that are taken at once, rows in one run, how often a job is tried, and seconds: of a lease, of a run at most, and
    of the first pause before another attempt."""

    jobs: int
    rows: int
    attempts: int
    lease_seconds: float
    run_seconds: float
    retry_seconds: float


class ClaimedJob(NamedTuple):
    """A job that was claimed, its rows, and when that was (monotonic)."""

    claim: Claim
    rows: Array
    began: float


class Result(NamedTuple):
    """An answer as it is kept, and whether it agrees with the provisional one; None where there was none."""

    packed: bytes
    agrees: bool | None


class JobWorker:
    """Nothing that a job or the store does ends it."""

    def __init__(
        self, store: JobStore, model: Graph, predict: Predict, rules: WorkerLimits, metrics: JobMetrics, log: Log, stopping: Stop
    ) -> None:
        self.store, self.model, self.predict, self.rules = store, model, predict, rules
        self.metrics, self.log, self.stopping = metrics, log, stopping
        self.encoder = Encoder(model.labels)
        self.breaker = CircuitBreaker(log.event, "the worker waits for the store", "the store is back; the worker goes on")
        self.leases = Leases(store, rules.lease_seconds)
        self.woken = threading.Event()

    def wake(self) -> None:
        """There is a new job."""
        self.woken.set()

    def run(self) -> None:
        """Until it is to end; what was claimed by then is finished."""
        # A forked process has another number, and the store tells workers apart by that.
        name = f"{socket.gethostname()}-{os.getpid()}"
        seconds = FIRST_PAUSE
        with self.leases:
            while not self.stopping():
                self.woken.clear()
                try:
                    found = self.turn(name)
                except Exception:
                    # A defect of ours. Leases run out, and the jobs are tried again.
                    self.log.failure("the worker failed")
                    found, seconds = False, DEFECT_PAUSE
                if found:
                    seconds = FIRST_PAUSE
                else:
                    self.woken.wait(seconds)
                    seconds = min(1.5 * seconds, LAST_PAUSE)

    def turn(self, name: str) -> bool:
        """Works on what there is; whether there was anything."""
        claims = self.asked(lambda: self.store.claim(name, self.rules.jobs, self.rules.lease_seconds), self.stopping) or []
        self.metrics.claimed(claims)
        with self.leases.holding(claims):
            for group in self.groups(claims):
                self.attempt(group)
        return bool(claims)

    def asked(self, ask: Callable[[], T], stopping: Stop = never) -> T | None:
        """What the store answers, however long that takes; None if the worker is to end before.

        What was worked for is not given up: if its lease is over by then, the store says so.
        """
        while not stopping():
            with suppress(BackendUnavailable):
                return self.breaker.call(ask)
            pause(DOWN_PAUSE)
        return None

    def groups(self, claims: Sequence[Claim]) -> Iterator[list[ClaimedJob]]:
        """Jobs whose rows go into one run; what has more than that has a run of its own."""
        group: list[ClaimedJob] = []
        began = time.monotonic()
        for claim in claims:
            rows = self.rows_of(claim)
            if rows is None:
                self.end_attempt(ClaimedJob(claim, NO_ROWS, began), WRONG_ROWS)
                continue
            if group and sum(len(task.rows) for task in group) + len(rows) > self.rules.rows:
                yield group
                group = []
            group.append(ClaimedJob(claim, rows, began))
        if group:
            yield group

    def rows_of(self, claim: Claim) -> Array | None:
        """None where they are not for this model: another may have been served when they were handed in."""
        try:
            rows = unpack_rows(claim.job.body)
        except ValueError:
            return None
        return rows if rows.shape[1] == self.model.width else None

    def attempt(self, group: Sequence[ClaimedJob]) -> None:
        """One run for all of them; if it fails, one for each, so that what one job does to the model harms no other."""
        held = []
        for task in group:
            if self.leases.has(task.claim):
                held.append(task)
            else:
                self.ended(task, "refused")
        try:
            results = self.results(held) if held else []
        except Exception as error:
            if len(held) > 1:
                for task in held:
                    self.attempt([task])
            else:
                self.failed(held[0], error)
        else:
            self.finish(held, results)

    def finish(self, group: Sequence[ClaimedJob], results: Sequence[Result]) -> None:
        """Writes what came out, all in one step."""
        if not group:
            return
        pairs = [(task.claim, result.packed) for task, result in zip(group, results, strict=True)]
        for task, result, there in zip(group, results, self.asked(lambda: self.store.finish(pairs)) or [], strict=True):
            self.ended(task, "succeeded" if there else "refused")
            if there:
                self.metrics.succeeded(task.claim, time.monotonic() - task.began, result.agrees)

    def results(self, group: Sequence[ClaimedJob]) -> list[Result]:
        context = PredictContext(time.monotonic() + self.rules.run_seconds)
        probabilities = self.predict(np.concatenate([task.rows for task in group]), context).probabilities
        ends = np.cumsum([len(task.rows) for task in group])[:-1]
        return [self.result(task, part) for task, part in zip(group, np.split(probabilities, ends), strict=True)]

    def result(self, task: ClaimedJob, probabilities: Array) -> Result:
        """The answer to one job, compared with the provisional one if there was such."""
        agrees, note = None, task.claim.job.note
        if note is not None and (first := unpack_note(note)):
            agrees = first.label == self.model.labels[best(probabilities[0].tolist())]
        return Result(pack_result(self.model, self.encoder.batch(probabilities), agrees), agrees)

    def failed(self, task: ClaimedJob, error: Exception) -> None:
        """Another attempt may help where the model ran out of time or of memory, and not where its answer is no answer."""
        if isinstance(error, Problem) and not isinstance(error, DeadlineExceeded):
            self.end_attempt(task, error.detail)
            return
        too_long = isinstance(error, DeadlineExceeded)
        if not too_long:
            self.log.failure("the model failed", job=task.claim.job.id)
        self.end_attempt(task, TOO_LONG if too_long else NO_ANSWER, self.retry_seconds(task.claim.job.attempts))

    def retry_seconds(self, attempts: int) -> float:
        """Seconds until the next attempt: twice as long each time, less by chance so that jobs do not all come back at once."""
        return min(MOST_RETRY_SECONDS, self.rules.retry_seconds * 2.0 ** min(attempts - 1, 30)) * random.uniform(0.5, 1)

    def end_attempt(self, task: ClaimedJob, why: str, retry: float | None = None) -> None:
        claim = task.claim
        final = retry is None or claim.job.attempts >= self.rules.attempts
        retry_at = None
        if not final and retry is not None:
            # By the clock of the store, which need not be that of this machine.
            retry_at = (claim.job.started or 0.0) + (time.monotonic() - task.began) + retry
        there = self.asked(lambda: self.store.fail(claim, why, retry_at))
        self.ended(task, "refused" if not there else "failed" if final else "retried", error=why)

    def ended(self, task: ClaimedJob, outcome: str, **told: str) -> None:
        """An attempt has; by its job the line is found to the one of the request that handed it in."""
        self.metrics.attempts.add((outcome,))
        job, ms = task.claim.job, round((time.monotonic() - task.began) * 1000, 3)
        level, rows = "info" if outcome == "succeeded" else "warning", len(task.rows)
        self.log.event(level, "attempt ended", job=job.id, attempt=job.attempts, outcome=outcome, rows=rows, ms=ms, **told)
