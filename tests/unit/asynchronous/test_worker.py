"""The job worker, with a real store and a predictor that the test controls."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from applications import RecordingLog
from http_clients import wait_until
from iris_data import IRIS_ROWS
from job_store_invariants import invariant_violations
from project import MODEL

from iris_wsgi.codec.model_schema import Feature, RowSchema
from iris_wsgi.codec.rows import Array, Encoder
from iris_wsgi.errors import RAN_TOO_LONG, BackendUnavailable, DeadlineExceeded
from iris_wsgi.model.predictor import PredictContext, Prediction
from iris_wsgi.model.session import Model, load_model
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.patterns.asynchronous.job import Job, Limits
from iris_wsgi.patterns.asynchronous.job_codec import Provisional, model_identity, pack_note, pack_rows
from iris_wsgi.patterns.asynchronous.metrics import JobMetrics
from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore
from iris_wsgi.patterns.asynchronous.worker import MODEL_FAILED, OTHER_FEATURES, TOO_LONG, JobWorker, WorkerLimits
from iris_wsgi.resilience.circuit_breaker import FAILURES

LIMITS = WorkerLimits(max_jobs=64, max_rows=100, max_attempts=3, lease_seconds=600, run_seconds=60, retry_seconds=1)
THREE = RowSchema([Feature(name) for name in "abc"])
ROW = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
# Rows at which `Acting` fails.
BAD, WORSE, SLOW = (np.full((1, 4), value, np.float32) for value in (1e9, 2e9, 3e9))


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class ControlledPredictor:
    """Predictor that records the rows of each run, and fails on some."""

    def __init__(self, model: Model) -> None:
        self.model, self.runs, self.now = model, [], time.monotonic()

    def __call__(self, rows: Array, context: PredictContext) -> Prediction:
        self.runs.append(len(rows))
        # The deadline is the maximum time of a run, minus the time since the worker read the clock.
        assert self.now <= context.deadline - LIMITS.run_seconds <= time.monotonic()
        if (rows == BAD[0, 0]).any():
            raise RuntimeError("onnxruntime says: secret /path")
        if (rows == SLOW[0, 0]).any():
            raise DeadlineExceeded(RAN_TOO_LONG)
        probabilities = self.model.predict(rows)
        probabilities[(rows == WORSE[0, 0]).any(axis=1)] = np.nan
        return Prediction(probabilities)


class WorkerUnderTest:
    """Worker with its store, predictor, and metrics."""

    def __init__(self, path: Path, limits: WorkerLimits = LIMITS) -> None:
        self.model = load_model(MODEL)[0]
        self.clock, self.log, self.registry, self.stopping = Clock(), RecordingLog(), Registry(), False
        self.store = SqliteJobStore(path, Limits(attempts=limits.max_attempts), self.clock, busy_seconds=60)
        self.predict = ControlledPredictor(self.model)
        metrics = JobMetrics(self.registry)
        self.registry.join()
        self.worker = JobWorker(
            self.store, self.model, Encoder(self.model.outputs), self.predict, limits, metrics, self.log, lambda: self.stopping
        )

    def submit(self, rows: Array = ROW, note: bytes | None = None) -> str:
        return self.store.submit(pack_rows(IRIS_ROWS, rows), note=note).id

    def job(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def count(self, line: str) -> int:
        found = [item for item in self.registry.text().decode().splitlines() if item.startswith(line + " ")]
        return int(found[0].rpartition(" ")[2])


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[Callable[..., WorkerUnderTest]]:
    made = []

    def make_bench(**limits) -> WorkerUnderTest:
        made.append(WorkerUnderTest(tmp_path / "jobs.db", LIMITS._replace(**limits)))
        return made[-1]

    yield make_bench
    for item in made:
        assert invariant_violations(item.store) == []
        item.store.close()


@pytest.fixture
def bench(make_app: Callable[..., WorkerUnderTest]) -> WorkerUnderTest:
    return make_app()


def test_waiting_jobs_are_one_run_of_the_model_and_each_gets_its_own_rows(bench):
    many = np.concatenate([ROW, ROW + 1, ROW + 2])
    ids = [bench.submit(rows) for rows in (ROW, many, ROW + 3)]
    assert bench.worker.run_once("w") and bench.predict.runs == [5]
    for job_id, rows in zip(ids, (ROW, many, ROW + 3), strict=True):
        response = Encoder(bench.model.outputs).batch(bench.model.predict(rows))
        about, _, result = bench.job(job_id).result.partition(b"\n")
        assert result == response and json.loads(about)["model"]["digest"] == bench.model.digest
    assert not bench.worker.run_once("w") and bench.predict.runs == [5]


def test_a_run_has_at_most_the_maximum_number_of_rows_but_all_of_one_job(bench):
    for rows in (60, 40, 1, 150, 99, 1):
        bench.submit(np.repeat(ROW, rows, axis=0))
    bench.worker.run_once("w")
    assert bench.predict.runs == [100, 1, 150, 100]
    assert bench.store.counts().by_state["succeeded"] == 6


def test_the_maximum_number_of_jobs_is_claimed_at_once(make_app):
    bench = make_app(max_jobs=2)
    for _ in range(5):
        bench.submit()
    while bench.worker.run_once("w"):
        pass
    assert bench.predict.runs == [2, 2, 1]


def test_a_job_that_makes_the_model_fail_affects_no_other_and_is_tried_again_later(bench):
    ids = [bench.submit(rows) for rows in (ROW, BAD, ROW + 1)]
    bench.worker.run_once("w")
    assert bench.predict.runs == [3, 1, 1, 1]
    states = [bench.job(job_id).state for job_id in ids]
    assert states == ["succeeded", "queued", "succeeded"]
    bad = bench.job(ids[1])
    assert (bad.attempts, bad.error) == (1, MODEL_FAILED)
    assert "secret" not in bad.error and "secret" in "".join(bench.log.raw_lines) and ids[1] in "".join(bench.log.raw_lines)
    assert bench.count('job_attempts_total{outcome="retried"}') == 1 and not bench.worker.run_once("w")


def test_after_the_maximum_number_of_attempts_the_job_is_a_dead_letter(bench):
    job_id = bench.submit(BAD)
    for _ in range(3):
        bench.worker.run_once("w")
        bench.clock.now += 10
    assert (bench.job(job_id).state, bench.job(job_id).attempts) == ("failed", 3)
    assert bench.count('job_attempts_total{outcome="retried"}') == 2
    assert bench.count('job_attempts_total{outcome="failed"}') == 1
    assert bench.store.redrive() == 1 and bench.worker.run_once("w")


def test_a_timeout_is_tried_again_with_its_reason(bench):
    job_id = bench.submit(SLOW)
    bench.worker.run_once("w")
    assert (bench.job(job_id).state, bench.job(job_id).error) == ("queued", TOO_LONG)


def test_an_invalid_result_fails_at_once_and_affects_no_other(bench):
    ids = [bench.submit(rows) for rows in (ROW, WORSE)]
    bench.worker.run_once("w")
    assert [bench.job(job_id).state for job_id in ids] == ["succeeded", "failed"]
    assert "not a finite number" in bench.job(ids[1]).error
    assert bench.count('job_attempts_total{outcome="failed"}') == 1


@pytest.mark.parametrize(
    "body", [b"", b"\4\0\0\0", pack_rows(THREE, np.ones((2, 3), np.float32)), pack_rows(IRIS_ROWS, ROW)[:-1], b"\0\0\0\0abcd"]
)
def test_rows_of_another_width_fail_at_once(bench, body):
    job_id, other = bench.store.submit(body).id, bench.submit()
    bench.worker.run_once("w")
    assert (bench.job(job_id).state, bench.job(job_id).error) == ("failed", OTHER_FEATURES)
    assert bench.job(other).state == "succeeded"


def test_pauses_double_up_to_a_minute_and_vary_randomly(make_app):
    worker = make_app(retry_seconds=2).worker
    for attempts, most in ((1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (1000, 60)):
        found = {worker.retry_seconds(attempts) for _ in range(200)}
        assert len(found) > 100 and most / 2 <= min(found) <= max(found) <= most


def test_the_next_attempt_is_due_by_the_clock_of_the_store(bench):
    job_id = bench.submit(BAD)
    bench.worker.run_once("w")
    assert bench.job(job_id).state == "queued"
    bench.clock.now += 0.4
    assert not bench.worker.run_once("w")
    bench.clock.now += 30
    assert bench.worker.run_once("w") and bench.job(job_id).attempts == 2


def test_a_result_after_the_end_of_the_lease_is_not_written(bench):
    job_id, predict = bench.submit(), bench.worker.predict

    def too_late(rows, context):
        bench.clock.now += LIMITS.lease_seconds + 1
        return predict(rows, context)

    bench.worker.predict = too_late
    bench.worker.run_once("w")
    assert bench.job(job_id).result is None and bench.count('job_attempts_total{outcome="refused"}') == 1
    bench.worker.predict = predict
    bench.worker.run_once("another")
    assert bench.job(job_id).state == "succeeded" and bench.count("job_reclaimed_total") == 1
    assert bench.count("job_queue_duration_seconds_count") == 1


def test_a_job_that_is_cancelled_during_the_run_stays_cancelled(bench):
    job_id, predict = bench.submit(), bench.worker.predict

    def meanwhile(rows, context):
        bench.store.cancel(job_id)
        return predict(rows, context)

    bench.worker.predict = meanwhile
    bench.worker.run_once("w")
    assert bench.job(job_id).state == "cancelled"
    assert bench.count('job_attempts_total{outcome="refused"}') == 1


def test_a_job_with_a_lost_lease_is_not_started(bench):
    ids = [bench.submit() for _ in range(2)]
    claims = bench.store.claim("w", 2, 600)
    with bench.worker.leases.holding(claims[:1]):
        for group in bench.worker.batches(claims):
            bench.worker.attempt(group)
    assert bench.predict.runs == [1]
    assert [bench.job(job_id).state for job_id in ids] == ["succeeded", "running"]
    assert bench.count('job_attempts_total{outcome="refused"}') == 1


def run(bench: WorkerUnderTest) -> threading.Thread:
    thread = threading.Thread(target=bench.worker.run)
    thread.start()
    return thread


def end(bench: WorkerUnderTest, thread: threading.Thread) -> None:
    bench.stopping = True
    thread.join(60)
    assert not thread.is_alive()


def test_a_lease_is_extended_during_the_run(make_app):
    bench = make_app(lease_seconds=0.3)
    job_id, predict, beats, goes_on = bench.submit(), bench.worker.predict, [], threading.Event()
    heartbeat = bench.store.heartbeat

    def slowly(rows, context):
        assert goes_on.wait(60)
        return predict(rows, context)

    def beat(claims, seconds):
        # This is the last moment of the lease on the clock of the store.
        bench.clock.now += 0.29
        beats.append(heartbeat(claims, seconds))
        return beats[-1]

    bench.worker.predict, bench.store.heartbeat = slowly, beat
    thread = run(bench)
    wait_until(lambda: len(beats) >= 3, "three heartbeats")
    goes_on.set()
    wait_until(lambda: bench.job(job_id).state == "succeeded", "the result")
    end(bench, thread)
    assert all(held == [True] for held in beats)


def test_a_heartbeat_that_finds_a_lost_lease_stops_extending_it(make_app):
    bench = make_app(lease_seconds=0.1)
    bench.submit()
    claims = bench.store.claim("w", 1, 600)
    with bench.worker.leases as leases, leases.holding(claims):
        assert leases.holds(claims[0])
        bench.store.cancel(claims[0].job.id)
        wait_until(lambda: not leases.holds(claims[0]), "the lease is dropped")


def test_a_heartbeat_without_a_store_is_tried_again(make_app):
    bench = make_app(lease_seconds=0.1)
    bench.submit()
    claims, asked, heartbeat = bench.store.claim("w", 1, 600), [], bench.store.heartbeat

    def down(*given):
        asked.append(given)
        if len(asked) < 3:
            raise BackendUnavailable("down")
        return heartbeat(*given)

    bench.store.heartbeat = down
    with bench.worker.leases as leases, leases.holding(claims):
        wait_until(lambda: len(asked) > 3, "another heartbeat")
        assert leases.holds(claims[0])


def test_the_worker_runs_until_it_must_stop_and_finishes_its_jobs(bench):
    thread = run(bench)
    begun, goes_on, predict = threading.Event(), threading.Event(), bench.worker.predict

    def held(rows, context):
        begun.set()
        assert goes_on.wait(60)
        return predict(rows, context)

    bench.worker.predict = held
    first = bench.submit()
    bench.worker.wake()
    assert begun.wait(60)
    second = bench.submit()
    bench.stopping = True
    goes_on.set()
    thread.join(60)
    assert not thread.is_alive()
    assert (bench.job(first).state, bench.job(second).state) == ("succeeded", "queued")


class FailingStore:
    """Store with one method that fails for the given number of calls."""

    def __init__(self, store: SqliteJobStore, method: str, failures: list[Exception]) -> None:
        self.works, self.failures = getattr(store, method), failures
        setattr(store, method, self)

    def __call__(self, *given):
        if self.failures:
            raise self.failures.pop(0)
        return self.works(*given)


@pytest.mark.parametrize("method", ["claim", "finish"])
def test_the_worker_waits_for_an_unavailable_store_and_loses_nothing(bench, method):
    FailingStore(bench.store, method, [BackendUnavailable("the store is locked")] * FAILURES)
    job_id = bench.submit()
    thread = run(bench)
    wait_until(lambda: bench.job(job_id).state == "succeeded", "the result")
    wait_until(lambda: len(bench.log.raw_lines) == 3, "both messages, and that of the job")
    end(bench, thread)
    assert bench.predict.runs == [1] and bench.job(job_id).attempts == 1
    result = [line["level"] for line in bench.log.events() if line["message"] != "attempt ended"]
    assert result == ["error", "info"]
    assert "the store is locked" in bench.log.raw_lines[0]


def test_each_attempt_has_a_log_line_with_the_id_of_its_job_and_the_outcome(make_app):
    bench = make_app(max_attempts=1)
    ids = [bench.submit(rows) for rows in (np.repeat(ROW, 2, axis=0), SLOW)]
    bench.worker.run_once("w")
    result = [(line["job"], line["level"], line["outcome"], line["attempt"], line["rows"]) for line in bench.log.events()]
    assert result == [(ids[0], "info", "succeeded", 1, 2), (ids[1], "warning", "failed", 1, 1)]
    assert bench.log.events()[1]["error"] == TOO_LONG


def test_a_failure_is_written_when_the_store_is_back(bench):
    FailingStore(bench.store, "fail", [BackendUnavailable("down")])
    job_id = bench.submit(BAD)
    bench.worker.run_once("w")
    assert bench.job(job_id).error == MODEL_FAILED


def test_a_worker_that_waits_for_its_store_can_be_stopped(bench):
    FailingStore(bench.store, "claim", [BackendUnavailable("down")] * 10_000)
    thread = run(bench)
    wait_until(lambda: bench.log.raw_lines, "the worker has noticed the failure")
    end(bench, thread)


def test_a_defect_is_logged_and_the_worker_continues(bench):
    FailingStore(bench.store, "claim", [ZeroDivisionError("a defect of ours")])
    job_id = bench.submit()
    thread = run(bench)
    wait_until(lambda: bench.job(job_id).state == "succeeded", "the result")
    end(bench, thread)
    assert "a defect of ours" in bench.log.raw_lines[0]


@pytest.mark.parametrize(("label", "agrees"), [("setosa", True), ("virginica", False), (None, None)])
def test_the_result_is_compared_with_the_provisional_one(bench, label, agrees):
    first = None if label is None else Provisional(model_identity(bench.model), {"label": label})
    job_id = bench.submit(note=pack_note(first))
    bench.worker.run_once("w")
    about = json.loads(bench.job(job_id).result.partition(b"\n")[0])
    assert about.get("agrees") is agrees
    for name in ("true", "false"):
        assert bench.count(f'hybrid_agreements_total{{agrees="{name}"}}') == (str(agrees).lower() == name)
