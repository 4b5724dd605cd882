"""Job worker: claims jobs, runs the model on batches, and writes a result only while it holds the lease."""

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

import numpy as np

from iris_wsgi.codec.model_schema import Array
from iris_wsgi.codec.rows import Encoder
from iris_wsgi.errors import BackendUnavailable, DeadlineExceeded, Problem
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.patterns.asynchronous.job import Claim, JobStore, Stop, never
from iris_wsgi.patterns.asynchronous.job_codec import pack_result, unpack_note, unpack_rows
from iris_wsgi.patterns.asynchronous.metrics import JobMetrics
from iris_wsgi.resilience.background import pause
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker

T = TypeVar("T")
# Pauses of an idle worker: the first, the longest, and the one after a defect.
FIRST_PAUSE, LAST_PAUSE, DEFECT_PAUSE = 0.002, 0.05, 0.25
# Pause between two calls to a store that is down.
DOWN_PAUSE = 0.25
MAX_RETRY_SECONDS = 60.0
# Interval of the removal of expired jobs in an idle store, and the number of jobs that one step removes.
SWEEP_IDLE_SECONDS, SWEEP_JOBS = 5.0, 50
# Pause after a removal, in durations of that removal.
SWEEP_PAUSE_FACTOR = 4
NO_ROWS = np.empty((0, 0), np.float32)
OTHER_FEATURES = "The rows are for another model: the width (number of features) or the types of the features differ."
TOO_LONG = "The model exceeded its time limit for these rows."
MODEL_FAILED = "The model failed on these rows; see the log of the worker."


class WorkerLimits(NamedTuple):
    """Limits of a worker: `retry_seconds` is the pause before the second attempt, and doubles with each further attempt."""

    max_jobs: int
    max_rows: int
    max_attempts: int
    lease_seconds: float
    run_seconds: float
    retry_seconds: float


class ClaimedJob(NamedTuple):
    """A claim, the rows of its job, and the monotonic time of the claim."""

    claim: Claim
    rows: Array
    started: float


class JobResult(NamedTuple):
    """Encoded result, and whether it agrees with the provisional prediction; None without one."""

    packed: bytes
    agrees: bool | None


class LeaseHeartbeat:
    """Thread that extends the leases of held claims three times in the duration of a lease."""

    def __init__(self, store: JobStore, lease_seconds: float) -> None:
        self.store, self.lease_seconds = store, lease_seconds
        self.held: dict[str, Claim] = {}
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, name="leases", daemon=True)

    def __enter__(self) -> "LeaseHeartbeat":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    @contextmanager
    def holding(self, claims: Sequence[Claim]) -> Iterator[None]:
        self.held = {claim.job.id: claim for claim in claims}
        try:
            yield
        finally:
            self.held = {}

    def holds(self, claim: Claim) -> bool:
        """Returns False if a heartbeat found the lease lost. True is not a guarantee."""
        return claim.job.id in self.held

    def run(self) -> None:
        while not self.stopped.wait(self.lease_seconds / 3):
            held = self.held
            claims = list(held.values())
            if claims:
                # The store may be back before the leases expire. Otherwise it rejects the results.
                with suppress(BackendUnavailable):
                    for claim, extended in zip(claims, self.store.heartbeat(claims, self.lease_seconds), strict=True):
                        if not extended:
                            held.pop(claim.job.id, None)


class JobWorker:
    """Worker loop that survives failures of jobs and of the store."""

    def __init__(
        self,
        store: JobStore,
        model: Graph,
        encoder: Encoder,
        predict: Predict,
        limits: WorkerLimits,
        metrics: JobMetrics,
        log: Log,
        stopping: Stop,
    ) -> None:
        self.store, self.model, self.encoder, self.predict, self.limits = store, model, encoder, predict, limits
        self.metrics, self.log, self.stopping = metrics, log, stopping
        self.breaker = CircuitBreaker(
            log.event, "the job worker waits for the store", "the job worker continues: the store is available"
        )
        self.leases = LeaseHeartbeat(store, limits.lease_seconds)
        self.woken = threading.Event()

    def wake(self) -> None:
        """Ends the pause of an idle worker, for a new job."""
        self.woken.set()

    def run(self) -> None:
        """Processes jobs until `stopping` returns True. Claimed jobs are finished first."""
        # A forked process has another number. The store identifies workers by their names.
        name = f"{socket.gethostname()}-{os.getpid()}"
        seconds = FIRST_PAUSE
        with self.leases:
            while not self.stopping():
                self.woken.clear()
                try:
                    found = self.run_once(name)
                except Exception:
                    # A defect of this program. The leases expire, and the jobs are tried again.
                    self.log.failure("the worker failed")
                    found, seconds = False, DEFECT_PAUSE
                if found:
                    seconds = FIRST_PAUSE
                else:
                    self.woken.wait(seconds)
                    seconds = min(1.5 * seconds, LAST_PAUSE)

    def run_once(self, name: str) -> bool:
        """Claims and processes one set of jobs. Returns whether there were any."""
        limits = self.limits
        claims = self.retry_while_down(lambda: self.store.claim(name, limits.max_jobs, limits.lease_seconds), self.stopping) or []
        self.metrics.claimed(claims)
        with self.leases.holding(claims):
            for batch in self.batches(claims):
                self.attempt(batch)
        return bool(claims)

    def retry_while_down(self, operation: Callable[[], T], stopping: Stop = never) -> T | None:
        """Returns the result of `operation`, or None if the worker must stop first.

        A computed result is kept for any duration of the outage. The store rejects it if its lease has expired.
        """
        while not stopping():
            with suppress(BackendUnavailable):
                return self.breaker.call(operation)
            pause(DOWN_PAUSE)
        return None

    def batches(self, claims: Sequence[Claim]) -> Iterator[list[ClaimedJob]]:
        """Yields jobs whose rows fit into one model run. A larger job is a batch by itself."""
        batch: list[ClaimedJob] = []
        started = time.monotonic()
        for claim in claims:
            rows = self.rows_of(claim)
            if rows is None:
                self.end_attempt(ClaimedJob(claim, NO_ROWS, started), OTHER_FEATURES)
                continue
            if batch and sum(len(job.rows) for job in batch) + len(rows) > self.limits.max_rows:
                yield batch
                batch = []
            batch.append(ClaimedJob(claim, rows, started))
        if batch:
            yield batch

    def rows_of(self, claim: Claim) -> Array | None:
        """Returns None if the rows do not fit this model: the job may come from a server with another model."""
        return unpack_rows(self.model.schema, claim.job.body)

    def attempt(self, batch: Sequence[ClaimedJob]) -> None:
        """Runs the model once for the batch. If that fails, runs it for each job, so that a bad job fails alone."""
        held = []
        for job in batch:
            if self.leases.holds(job.claim):
                held.append(job)
            else:
                self.record_end(job, "refused")
        try:
            results = self.results(held) if held else []
        except Exception as error:
            if len(held) > 1:
                for job in held:
                    self.attempt([job])
            else:
                self.fail(held[0], error)
        else:
            self.finish(held, results)

    def finish(self, batch: Sequence[ClaimedJob], results: Sequence[JobResult]) -> None:
        """Writes all results in one transaction."""
        if not batch:
            return
        pairs = [(job.claim, result.packed) for job, result in zip(batch, results, strict=True)]
        written = self.retry_while_down(lambda: self.store.finish(pairs)) or []
        for job, result, is_written in zip(batch, results, written, strict=True):
            self.record_end(job, "succeeded" if is_written else "refused")
            if is_written:
                self.metrics.succeeded(job.claim, time.monotonic() - job.started, result.agrees)

    def results(self, batch: Sequence[ClaimedJob]) -> list[JobResult]:
        context = PredictContext(time.monotonic() + self.limits.run_seconds)
        outputs = self.predict(np.concatenate([job.rows for job in batch]), context).outputs
        ends = np.cumsum([len(job.rows) for job in batch])[:-1]
        return [self.result(job, part) for job, part in zip(batch, np.split(outputs, ends), strict=True)]

    def result(self, job: ClaimedJob, outputs: Array) -> JobResult:
        agrees, note = None, job.claim.job.note
        if note is not None and (provisional := unpack_note(note)):
            label = provisional.fields.get("label")
            agrees = None if label is None else label == self.encoder.fields(outputs)["label"]
        return JobResult(pack_result(self.model, self.encoder.batch(outputs), agrees), agrees)

    def fail(self, job: ClaimedJob, error: Exception) -> None:
        """Ends the attempt. A retry may help after a timeout or a crash of the model, but not after an invalid output."""
        if isinstance(error, Problem) and not isinstance(error, DeadlineExceeded):
            self.end_attempt(job, error.detail)
            return
        is_timeout = isinstance(error, DeadlineExceeded)
        if not is_timeout:
            self.log.failure("the model failed", job=job.claim.job.id)
        self.end_attempt(job, TOO_LONG if is_timeout else MODEL_FAILED, self.retry_seconds(job.claim.job.attempts))

    def retry_seconds(self, attempts: int) -> float:
        """Returns the pause before the next attempt: exponential backoff, with jitter so that jobs do not retry together."""
        return min(MAX_RETRY_SECONDS, self.limits.retry_seconds * 2.0 ** min(attempts - 1, 30)) * random.uniform(0.5, 1)

    def end_attempt(self, job: ClaimedJob, error: str, retry_seconds: float | None = None) -> None:
        claim = job.claim
        is_final = retry_seconds is None or claim.job.attempts >= self.limits.max_attempts
        retry_at = None
        if not is_final and retry_seconds is not None:
            # By the clock of the store, which may differ from the clock of this machine.
            retry_at = (claim.job.started or 0.0) + (time.monotonic() - job.started) + retry_seconds
        is_written = self.retry_while_down(lambda: self.store.fail(claim, error, retry_at))
        self.record_end(job, "refused" if not is_written else "failed" if is_final else "retried", error=error)

    def record_end(self, claimed: ClaimedJob, outcome: str, **fields: str) -> None:
        """Counts and logs the end of an attempt. The job id connects the log line with that of the submitting request."""
        self.metrics.attempts.add((outcome,))
        job, ms = claimed.claim.job, round((time.monotonic() - claimed.started) * 1000, 3)
        level, rows = "info" if outcome == "succeeded" else "warning", len(claimed.rows)
        self.log.event(level, "attempt ended", job=job.id, attempt=job.attempts, outcome=outcome, rows=rows, ms=ms, **fields)


def sweep(
    store: JobStore, stopping: Stop, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = pause
) -> None:
    """Removes expired jobs in small steps, with pauses for other writers. Several processes may sweep one store."""
    while not stopping():
        started, removed = clock(), 0
        # The worker of this process logs an outage of the store.
        with suppress(BackendUnavailable):
            removed = store.sweep(SWEEP_JOBS)
        pause(min(SWEEP_IDLE_SECONDS, SWEEP_PAUSE_FACTOR * (clock() - started)) if removed else SWEEP_IDLE_SECONDS)
