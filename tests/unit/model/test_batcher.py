"""Dynamic batching: the same results from fewer runs."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from http_clients import RawConnection, http_request, metric_sum, wait_until
from predictors import of_arrays, predictor
from project import MODEL

from iris_wsgi.errors import PARSED_TOO_LATE, RAN_TOO_LONG, DeadlineExceeded, InvalidOutput
from iris_wsgi.model.batcher import DynamicBatcher
from iris_wsgi.model.session import load_model
from iris_wsgi.settings import BadSetting

ROWS = np.random.default_rng(5).uniform(0, 8, (200, 4)).astype(np.float32)


class BlockingPredictor:
    """Predictor that blocks until its release, and records its arguments."""

    def __init__(self, predict) -> None:
        self.predict, self.sizes, self.untils = predict, [], []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, rows, until):
        self.sizes.append(len(rows))
        self.untils.append(until)
        self.begun.release()
        self.go.acquire()
        return self.predict(rows)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(64) as workers:
        yield workers


def wait_until_queued(batcher: DynamicBatcher, count: int) -> None:
    wait_until(lambda: len(batcher.queue) >= count, f"{count} rows in the queue")


def test_rows_that_arrive_during_a_run_are_in_the_next_one_and_get_the_same_bits(pool):
    model = load_model(MODEL)[0]
    blocking = BlockingPredictor(model.predict)
    batcher = DynamicBatcher(predictor(blocking), 16, 0)
    predict = of_arrays(batcher)
    first = pool.submit(predict, ROWS[:1])
    blocking.begun.acquire()
    other_rows = [pool.submit(predict, ROWS[i : i + 1]) for i in range(1, 41)]
    wait_until_queued(batcher, 40)
    for _ in range(4):
        blocking.go.release()
    responses = [first.result(120), *(other.result(120) for other in other_rows)]
    assert blocking.sizes == [1, 16, 16, 8]
    for row, response in zip(ROWS, responses, strict=False):
        assert (response == model.predict(row[np.newaxis])).all()


def test_requests_of_several_rows_are_not_batched():
    batch_sizes = []
    batcher = DynamicBatcher(predictor(lambda rows, until: batch_sizes.append((len(rows), until)) or rows), 8, 10)
    assert of_arrays(batcher)(ROWS, 5.0) is ROWS and batch_sizes == [(200, 5.0)] and batcher.thread is None


def test_the_first_row_waits_for_the_maximum_delay_and_only_if_the_batch_is_not_full(pool):
    sizes = []
    batcher = DynamicBatcher(predictor(lambda rows, until: sizes.append(len(rows)) or rows), 4, 3600)
    predict = of_arrays(batcher)
    assert [future.result(120).shape for future in [pool.submit(predict, ROWS[i : i + 1]) for i in range(4)]] == [(1, 4)] * 4
    assert sizes == [4]
    quick = DynamicBatcher(predictor(lambda rows, until: sizes.append(len(rows)) or rows), 4, 0.01)
    assert of_arrays(quick)(ROWS[:1]).shape == (1, 4) and sizes == [4, 1]


def test_an_expired_row_is_not_run_and_no_row_waits_beyond_its_deadline(pool):
    blocking = BlockingPredictor(lambda rows: rows)
    batcher = DynamicBatcher(predictor(blocking), 8, 0)
    predict = of_arrays(batcher)
    first = pool.submit(predict, ROWS[:1])
    blocking.begun.acquire()
    short_deadline = pool.submit(predict, ROWS[1:2], time.monotonic() + 0.01)
    patience = time.monotonic() + 3600
    patient = pool.submit(predict, ROWS[2:3], patience)
    with pytest.raises(DeadlineExceeded, match=RAN_TOO_LONG):
        short_deadline.result(120)
    wait_until_queued(batcher, 2)
    blocking.go.release()
    blocking.go.release()
    assert (patient.result(120) == ROWS[2:3]).all() and (first.result(120) == ROWS[:1]).all()
    assert blocking.sizes == [1, 1] and blocking.untils[1] == patience


def test_a_batch_without_rows_is_not_run():
    batcher = DynamicBatcher(predictor(lambda rows, until: pytest.fail("it ran")), 8, 0)
    with pytest.raises(DeadlineExceeded, match=f"{PARSED_TOO_LATE}|{RAN_TOO_LONG}"):
        of_arrays(batcher)(ROWS[:1], time.monotonic() - 1)


def test_a_row_that_makes_the_model_fail_affects_no_other(pool):
    def refuse_first(rows, until):
        if (rows == ROWS[0]).all(axis=1).any():
            raise InvalidOutput("one row less")
        return rows

    predict = of_arrays(DynamicBatcher(predictor(refuse_first), 3, 3600))
    bad, *others = [pool.submit(predict, ROWS[i : i + 1]) for i in range(3)]
    assert [other.result(120).tolist() for other in others] == [ROWS[1:2].tolist(), ROWS[2:3].tolist()]
    with pytest.raises(InvalidOutput):
        bad.result(120)


def test_a_failed_run_fails_each_of_its_requests_and_the_next_run_works(pool):
    failing = [True]

    def broken(rows, until):
        if failing:
            raise RuntimeError(f"broken for {len(rows)}")
        return rows

    predict = of_arrays(DynamicBatcher(predictor(broken), 2, 3600))
    for future in [pool.submit(predict, ROWS[i : i + 1]) for i in range(2)]:
        with pytest.raises(RuntimeError, match="broken for 1"):
            future.result(120)
    failing.clear()
    assert [future.result(120).shape for future in [pool.submit(predict, ROWS[i : i + 1]) for i in range(2)]] == [(1, 4)] * 2


def test_a_model_whose_results_depend_on_the_batch_is_not_batched(slow_model, make_app, monkeypatch):
    from iris_wsgi.model import golden

    monkeypatch.setattr(golden, "batch_difference", lambda *_: 1e-7)
    with pytest.raises(BadSetting, match=r"^IRIS_BATCH_ROWS: .* differ by up to 1.0e-07; leave it at 0$"):
        make_app(batch_rows=8)


def test_a_live_server_responds_bit_for_bit_the_same_with_fewer_runs(run, service):
    server = run("--batch-rows", "16", constants={"iris_wsgi.factory.BATCH_DELAY_SECONDS": 0.05})
    rows = ROWS[:64].astype(float).round(3).tolist()
    expected = [service.app.answer("POST", "/predict", {}, json.dumps({"data": [row]}).encode())[0].body for row in rows]
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in rows]
        for connection, row in zip(connections, rows, strict=True):
            connection.send(http_request("POST", "/predict", {"data": [row]}))
        assert [connection.receive().body for connection in connections] == expected
        text = connections[0].exchange(http_request("GET", "/metrics")).body.decode()
    assert metric_sum(text, "model_runs_total") < 64 / 4
    assert sum(metric_sum(text, "model_rows_total", label=label) for label in service.model.labels) == 64
