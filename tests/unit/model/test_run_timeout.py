"""Deadlines: an expired request is not computed any further, and gets 504 in time."""

import json
import threading
import time
from functools import partial
from math import inf
from queue import Queue

import numpy as np
import pytest
from applications import call_wsgi
from http_clients import LABEL_REQUEST, METRICS, RawConnection, http_request, metric_sum
from http_clients import wait_until as happens
from predictors import of_arrays
from racing_threads import race

from iris_wsgi.errors import PARSED_TOO_LATE, RAN_TOO_LONG, WAITED_TOO_LONG, DeadlineExceeded
from iris_wsgi.model import predictor
from iris_wsgi.model.predictor import PIECE_ROWS, RunWatchdog, within_deadline
from iris_wsgi.model.session import RunOptions, load_model
from iris_wsgi.wsgi.application import deadline_of

ROW = [[5.1, 3.5, 1.4, 0.2]]


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 10), ("", 10), ("wait=3", 3), ("WAIT=3", 3), (' wait = "3" ', 3), ("respond-async, wait=3", 3), ("wait=3;a=b", 3),
        ("wait=3, wait=5", 3), ("wait=30", 10), ("wait=0", 10), ("wait=-3", 10), ("wait=3.5", 10), ("wait=x", 10), ("wait", 10),
        ("await=3", 10), ("wait=9999999999", 10), ("wait=٣", 10), ('note="a, wait=3"', 10), (r'note="\", wait=3"', 10),
        ('note="a", wait="3"', 3), ('"', 10),
    ],
)  # fmt: skip
def test_the_earlier_of_the_servers_deadline_and_the_clients_preference_counts(prefer, seconds):
    assert deadline_of(100.0, 10.0, prefer) == 100.0 + seconds


def test_without_settings_there_is_no_deadline():
    assert deadline_of(1.0, inf, None) == inf
    assert deadline_of(1.0, inf, "wait=2") == 3.0


class RecordingModel:
    """Model that records its calls."""

    def __init__(self, do=lambda rows, options: rows) -> None:
        self.do, self.rows = do, []

    def predict(self, rows, options=None):
        self.rows.append(len(rows))
        return self.do(rows, options)


def test_nothing_runs_after_the_deadline():
    model = RecordingModel()
    with pytest.raises(DeadlineExceeded, match=PARSED_TOO_LATE):
        of_arrays(within_deadline(model, RunWatchdog()))(np.zeros((1, 4), np.float32), time.monotonic())
    assert model.rows == []


def test_many_rows_run_in_pieces_with_the_results_of_one_run():
    model, rows = RecordingModel(), np.arange(4 * (2 * PIECE_ROWS + 5), dtype=np.float32).reshape(-1, 4)
    predict = of_arrays(within_deadline(model, RunWatchdog()))
    assert (predict(rows, time.monotonic() + 60) == rows).all()
    assert model.rows == [PIECE_ROWS, PIECE_ROWS, 5]
    assert predict(rows) is rows and model.rows[3:] == [len(rows)]


def test_no_piece_starts_after_the_deadline(monkeypatch):
    now, deadline_at = [1000.0], 1001.0
    monkeypatch.setattr(predictor, "monotonic", lambda: now[0])

    def slowly(rows, _):
        now[0] = deadline_at
        return rows

    model = RecordingModel(slowly)
    with pytest.raises(DeadlineExceeded, match=RAN_TOO_LONG):
        of_arrays(within_deadline(model, RunWatchdog()))(np.zeros((3 * PIECE_ROWS, 4), np.float32), deadline_at)
    assert model.rows == [PIECE_ROWS]


def test_a_run_is_ended_at_its_deadline_and_others_continue(slow_model, monkeypatch):
    now, watching = [time.monotonic()], RunWatchdog()
    monkeypatch.setattr(predictor, "monotonic", lambda: now[0])
    # The deadline is far in the future of the real clock, so only the watchdog's clock can end the run.
    near_deadline, far_deadline = now[0] + 3600, now[0] + 10**6
    predict, few = of_arrays(within_deadline(load_model(slow_model)[0], watching)), np.ones((64, 4), np.float32)
    expected_rows = predict(few, far_deadline)
    # The run would take minutes with this number of rows.
    many = np.ones((100 * PIECE_ROWS, 4), np.float32)
    results = {}

    def run(name, rows, until):
        try:
            results[name] = predict(rows, until)
        except DeadlineExceeded as error:
            results[name] = error.detail

    threads = [
        threading.Thread(target=run, args=item)
        for item in (("short", many, near_deadline), ("long", few, far_deadline), ("none", few, inf))
    ]
    for thread in threads:
        thread.start()
    happens(lambda: any(deadline_seen == near_deadline for deadline_seen, _ in list(watching.runs.values())), "the run has begun")
    now[0] = near_deadline
    watching.sooner.set()
    for thread in threads:
        thread.join()
    assert results["short"] == RAN_TOO_LONG
    assert (results["long"] == expected_rows).all() and (results["none"] == expected_rows).all()


def test_an_error_of_the_model_is_not_reported_as_a_deadline():
    def fail(rows, options):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        of_arrays(within_deadline(RecordingModel(fail), RunWatchdog()))(np.zeros((1, 4), np.float32), time.monotonic() + 60)


def test_the_watchdog_forgets_finished_runs():
    watchdog, before = RunWatchdog(), threading.active_count()
    for _ in range(100):
        watchdog.run(lambda options: None, time.monotonic() + 60)
    assert watchdog.runs == {} and threading.active_count() <= before + 1


class SteppedEvent:
    """Event whose waiting thread continues when the test says so. `next_wait` is the time that the thread asks for."""

    def __init__(self) -> None:
        self.waits, self.steps, self.times_set = Queue(), Queue(), 0

    def set(self) -> None:
        self.times_set += 1

    def clear(self) -> None:
        pass

    def wait(self, seconds) -> None:
        self.waits.put(seconds)
        self.steps.get()

    def next_wait(self):
        return self.waits.get(timeout=60)

    def step(self):
        """Wakes the thread. Returns the time that the thread asks for next."""
        self.steps.put(None)
        return self.next_wait()


@pytest.fixture
def stepped(monkeypatch):
    """Watchdog whose thread makes one step at a time, and its clock, which stands at 1000."""
    now, watchdog = [1000.0], RunWatchdog()
    watchdog.sooner = SteppedEvent()
    monkeypatch.setattr(predictor, "monotonic", lambda: now[0])
    return watchdog, watchdog.sooner, now


def test_the_thread_sleeps_until_the_earliest_deadline_and_without_end_if_nothing_runs(stepped):
    watchdog, sleep, now = stepped
    waits = watchdog.run(lambda _: [sleep.next_wait()], 1010.0)
    assert sleep.times_set == 1
    # The run has ended. The thread looks once at its deadline, and then sleeps.
    now[0] = 1010.0
    waits.append(sleep.step())

    def inner(options):
        sets = sleep.times_set
        other = threading.Thread(target=watchdog.run, args=(lambda _: waits.append(sleep.times_set - sets), 1030.0))
        other.start(), other.join()
        other = threading.Thread(target=watchdog.run, args=(lambda _: waits.append(sleep.step()), 1015.0))
        other.start(), other.join()
        waits.append(sleep.step())
        assert not options.terminate

    watchdog.run(lambda options: (waits.append(sleep.step()), inner(options)), 1020.0)
    # 10 s, no end, 10 s, no wake-up for a later deadline, 5 s for an earlier one, 10 s again.
    assert waits == [10.0, None, 10.0, 0, 5.0, 10.0]
    now[0] = 1020.0
    assert sleep.step() is None and sleep.waits.empty()


def test_only_runs_at_their_deadline_are_terminated(stepped):
    watchdog, sleep, now = stepped
    seen = []

    def outer(options):
        def inner(inner_options):
            now[0] = 1009.9
            sleep.step()
            seen.append((options.terminate, inner_options.terminate))
            now[0] = 1010.0
            # The thread sleeps although the terminated run has not ended.
            assert sleep.step() == 10.0
            seen.append((options.terminate, inner_options.terminate))

        other = threading.Thread(target=watchdog.run, args=(inner, 1010.0))
        other.start(), other.join()

    watchdog.run(lambda options: (sleep.next_wait(), outer(options)), 1020.0)
    assert seen == [(False, False), (False, True)]
    assert [options.terminate for options in watchdog.unused] == [False]


def test_a_run_that_begins_while_the_thread_looks_at_the_others_is_not_forgotten(stepped):
    watchdog, sleep, _ = stepped
    watchdog.run(lambda _: sleep.next_wait(), 1005.0)
    looking, compared, began, ended, wake = *(threading.Event() for _ in range(4)), watchdog.wake

    class Runs(dict):
        def values(self):
            found = list(super().values())
            looking.set()
            # The new run is not in this list. It compares its deadline with the next wake-up before the thread continues.
            assert compared.wait(60)
            return found

    watchdog.runs = Runs(watchdog.runs)
    watchdog.wake = lambda at: (compared.set(), wake(at))
    new = threading.Thread(target=watchdog.run, args=(lambda _: (compared.set(), began.set(), ended.wait(60)), 1010.0))
    sleep.steps.put(None)
    assert looking.wait(60)
    new.start()
    found = [sleep.next_wait(), began.wait(60), sleep.times_set, sleep.step()]
    ended.set()
    new.join()
    assert found == [None, True, 2, 10.0]


def test_a_run_is_listed_before_its_deadline_is_compared(stepped):
    watchdog, sleep, now = stepped
    watchdog.run(lambda _: sleep.next_wait(), 1005.0)
    steps = []

    class Runs(dict):
        def __setitem__(self, key, value):
            # The thread wakes at the old time, and finds nothing, just before the new run is listed.
            now[0] = 1005.0
            steps.append(sleep.step())
            super().__setitem__(key, value)

    watchdog.runs = Runs()
    watchdog.run(lambda _: steps.append((watchdog.wakes_at, sleep.step())), 1010.0)
    assert steps == [None, (1010.0, 5.0)]


def test_a_run_ends_under_the_lock_so_that_its_options_are_not_terminated_after_it():
    watchdog, held = RunWatchdog(), []

    class Runs(dict):
        def __delitem__(self, key):
            held.append(watchdog.lock.locked())
            super().__delitem__(key)

    watchdog.runs = Runs()
    watchdog.run(lambda _: None, time.monotonic() + 60)
    assert held == [True]


def test_a_deadline_in_a_million_years_does_not_end_the_thread(stepped):
    watchdog, sleep, _ = stepped
    waits = watchdog.run(lambda _: [sleep.next_wait()], 3e13)
    # A longer time raises OverflowError.
    assert threading.Lock().acquire(timeout=waits[0])
    assert watchdog.run(lambda _: sleep.step(), 1010.0) == 10.0


def test_a_system_without_a_free_thread_fails_one_run_only(monkeypatch):
    watchdog, start = RunWatchdog(), threading.Thread.start

    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        watchdog.run(lambda _: None, time.monotonic() + 60)
    assert watchdog.runs == {}
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(DeadlineExceeded):
        watchdog.run(until_terminated, time.monotonic() + 0.002)


def until_terminated(options) -> None:
    """Ends like a run of the session: with an error when it is terminated."""
    happens(lambda: options.terminate, "the run is terminated")
    raise RuntimeError("Exiting due to terminate flag being set to true.")


def test_of_the_runs_of_many_threads_those_that_outlive_their_deadline_are_terminated(monkeypatch):
    watchdog, created, ended, faults = RunWatchdog(), [], [], []
    terminated = []
    monkeypatch.setattr(predictor, "RunOptions", lambda options=RunOptions: created.append(options()) or created[-1])

    def long_run(options):
        # The deadline may have passed before this line, so that the options are no longer new.
        if options in terminated:
            faults.append("options of a terminated run")
        until_terminated(options)
        terminated.append(options)

    def work(k):
        for i in range(200):
            if (i + k) % 8 == 0:
                try:
                    watchdog.run(long_run, time.monotonic() + 0.001)
                    faults.append("not terminated")
                except DeadlineExceeded:
                    ended.append(k)
            elif watchdog.run(lambda options: [options.terminate for _ in range(50)][-1], time.monotonic() + 60 + i % 3):
                faults.append("terminated before its deadline")

    race(*(partial(work, k) for k in range(4)))
    assert not faults and len(ended) == 4 * 25 and watchdog.runs == {}
    # Options are used again, except those of terminated runs.
    assert [options.terminate for options in watchdog.unused] == [False] * (len(created) - len(ended))
    assert len(watchdog.unused) <= 4


@pytest.mark.parametrize("path", ["/predict", "/predict/label", "/predict/batch", "/v1/models/iris_svc:predict"])
def test_a_request_that_has_waited_too_long_gets_504_and_nothing_runs(service, path):
    before = metric_sum(service.app.answer("GET", "/metrics", {})[0].body.decode(), "model_runs_total")
    body = json.dumps({"data": ROW, "instances": ROW} if "v1" in path else {"data": ROW}).encode()
    response, _ = service.app.answer("POST", path, {"CONTENT_TYPE": "application/json"}, body, time.monotonic() - 3600)
    document = json.loads(response.body)
    assert response.status == 504 and document.get("detail", document.get("error")) == WAITED_TOO_LONG
    assert metric_sum(service.app.answer("GET", "/metrics", {})[0].body.decode(), "model_runs_total") == before


def infer(timeout: object = None) -> bytes:
    tensor = {"name": "features", "shape": [1, 4], "datatype": "FP32", "data": ROW[0]}
    return json.dumps({"inputs": [tensor], **({} if timeout is None else {"parameters": {"timeout": timeout}})}).encode()


def test_the_timeout_of_the_protocol_is_in_microseconds_and_starts_with_the_arrival(service):
    def status(timeout, ago=0.0):
        path = "/v2/models/iris_svc/infer"
        response = service.app.answer("POST", path, {}, infer(timeout), time.monotonic() - ago)[0]
        return response.status, response.body

    assert status(None)[0] == status(5_000_000)[0] == status(0)[0] == 200
    assert status(1)[0] == 504 and PARSED_TOO_LATE in status(1)[1].decode()
    assert status(1_000_000, ago=2)[0] == 504
    # The server's deadline is earlier.
    assert status(3_600_000_000, ago=11)[0] == 504


def test_the_statistics_of_the_protocol_have_the_waiting_time_of_requests(make_app):
    app = make_app(role="synchronous").service.app
    app.answer("POST", "/v2/models/iris_svc/infer", {}, infer(), time.monotonic() - 2)
    document = json.loads(app.answer("GET", "/v2/models/iris_svc/stats", {})[0].body)["model_stats"][0]["inference_stats"]
    assert document["queue"]["count"] == 1 and document["queue"]["ns"] > 2e9
    assert document["success"]["ns"] > document["queue"]["ns"]


def test_zero_milliseconds_are_no_deadline(make_app):
    app = make_app(deadline_ms=0)
    response, _ = app.service.app.answer("POST", "/predict", {}, json.dumps({"data": ROW}).encode(), time.monotonic() - 3600)
    assert response.status == 200


def test_under_another_server_a_deadline_starts_with_the_call(make_app, slow_model):
    app = make_app(model_dir=str(slow_model), deadline_ms=20, cache="off").service.app
    status, _, content = call_wsgi(app, "POST", "/predict/batch", json.dumps({"data": ROW * 2000}).encode())
    assert (status, json.loads(content)["detail"]) in ((504, RAN_TOO_LONG), (504, PARSED_TOO_LATE))


def test_a_run_that_takes_too_long_is_ended_in_every_protocol(run, slow_model):
    server = run("--cache", "off", "--model-dir", str(slow_model), "--deadline-ms", "300", "--threads", "1")
    tensor = {"name": "row", "shape": [2000, 4], "datatype": "FP32", "data": [1.0] * 8000}
    requests = [
        ("/predict/batch", {"data": ROW * 2000}),
        ("/v1/models/slow:predict", {"instances": ROW * 2000}),
        ("/v2/models/slow/infer", {"inputs": [tensor]}),
    ]
    with RawConnection(server) as connection:
        for path, document in requests:

            def ran(path=path, document=document) -> bool:
                # On a busy machine the deadline may expire before the run starts. Then the test sends the request again.
                response = connection.exchange(http_request("POST", path, document))
                assert response.status == 504 and any(
                    why in response.body.decode() for why in (RAN_TOO_LONG, PARSED_TOO_LATE, WAITED_TOO_LONG)
                ), path
                return RAN_TOO_LONG in response.body.decode()

            happens(ran, "a run that is ended")
        happens(
            lambda: connection.exchange(http_request("POST", "/predict/label", {"data": ROW})).status == 200, "a response in time"
        )


def test_a_request_that_expires_in_the_queue_gets_its_response_at_once_and_never_runs(run, slow_model):
    server = run("--cache", "off", "--model-dir", str(slow_model), "--deadline-ms", "0", "--threads", "1")
    large = http_request("POST", "/predict/batch", {"data": ROW * 10_000})
    impatient = http_request("POST", "/predict/batch", {"data": ROW * 3}, "Prefer: wait=1")
    with RawConnection(server) as busy, RawConnection(server) as waiting, RawConnection(server) as prober:
        # One connection keeps the only thread busy for longer than the timeout of the other request.
        busy.send(large)
        happens(lambda: metric_sum(prober.exchange(METRICS).body.decode(), "http_requests_in_flight") == 2, "the thread is busy")
        response = waiting.exchange(impatient)
        assert response.status == 504 and response.json()["detail"] == WAITED_TOO_LONG and not response.closes
        text = prober.exchange(METRICS).body.decode()
        assert metric_sum(text, "http_requests_total", method="POST", route="/predict/batch", status="504") == 1
        assert sum(metric_sum(text, "model_rows_total", label=label) for label in "abc") == 0 and not busy.readable()
        assert prober.exchange(http_request("GET", "/readyz")).status == 200


def test_a_slow_model_never_runs_in_the_io_loop(run, slow_model):
    server = run("--cache", "off", "--model-dir", str(slow_model), "--threads", "1", "--deadline-ms", "0")
    with RawConnection(server) as busy, RawConnection(server) as other:
        busy.send(http_request("POST", "/predict/batch", {"data": ROW * 200}))
        assert other.exchange(http_request("GET", "/livez")).status == 200
        assert not busy.readable()
        other.send(LABEL_REQUEST)
        assert not other.readable()
        assert busy.receive().status == 200
        assert other.receive().status == 200
