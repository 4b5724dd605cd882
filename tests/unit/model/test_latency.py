"""The latency of the model determines which requests run in the I/O loop."""

import time

import pytest
from project import MODEL

from iris_wsgi.model.golden import golden_array
from iris_wsgi.model.predictor import BLOCKING, LOOP_SECONDS, NEVER, LatencyProfile, measure
from iris_wsgi.model.session import load_model
from iris_wsgi.wsgi.health_routes import Readiness


def test_a_fast_model_runs_in_the_loop_up_to_the_limit():
    assert LatencyProfile(1e-5, 1e-6).inline_bytes(16384, 20) == 16384
    assert LatencyProfile(1e-5, 1e-6).inline_bytes(1_000_000, 20) == int(LOOP_SECONDS / 1e-6) * 20


def test_a_slower_one_only_for_the_rows_of_a_millisecond_and_for_at_least_one_row():
    assert LatencyProfile(LOOP_SECONDS / 2, LOOP_SECONDS / 10).inline_bytes(16384, 20) == 200
    assert LatencyProfile(LOOP_SECONDS, LOOP_SECONDS).inline_bytes(16384, 20, other_bytes=100) == 120


def test_a_slow_model_never_runs_in_the_loop():
    assert LatencyProfile(LOOP_SECONDS * 1.01, 1e-9).inline_bytes(16384, 20) == BLOCKING.inline_bytes(16384, 20) == NEVER


def test_the_latency_is_measured_for_one_row_and_for_a_row_among_many(monkeypatch):
    model, golden = load_model(MODEL)
    now, run = [0.0], model.predict

    def predict(rows):
        now[0] += 20e-6 if len(rows) == 1 else len(rows) * 1e-6
        return run(rows)

    monkeypatch.setattr(model, "predict", predict)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    pace = measure(model, golden_array(model, golden.cases[:1]))
    assert (pace.single_row, pace.per_row) == (pytest.approx(20e-6), pytest.approx(1e-6))


def test_a_slow_model_is_measured_once(slow_model):
    model, golden = load_model(slow_model)
    pace = measure(model, golden_array(model, golden.cases[:1]))
    assert pace.single_row == pace.per_row > LOOP_SECONDS


def test_the_readiness_of_a_slow_model_is_cached_and_that_of_a_fast_one_is_tested_each_time():
    calls = []

    def responds() -> bool:
        calls.append(True)
        return len(calls) < 2

    slow, fast = Readiness(responds, 1e6), Readiness(responds, LOOP_SECONDS / 2)
    assert [slow.problem() for _ in range(3)] == [None] * 3 and len(calls) == 1
    assert fast.problem() is not None and len(calls) == 2
    slow.stopping = True
    assert slow.problem() == "The server is shutting down."
