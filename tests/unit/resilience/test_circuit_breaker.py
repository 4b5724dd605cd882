"""The circuit breaker of a store, and the background tasks of a process."""

import threading
import time

import pytest
from applications import RecordingLog
from http_clients import wait_until

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.asynchronous.job import JobNotFound
from iris_wsgi.resilience import circuit_breaker
from iris_wsgi.resilience.background import BackgroundTasks
from iris_wsgi.resilience.circuit_breaker import FAILURES, CircuitBreaker


class Store:
    """Store whose get() behaves as the test sets it, and counts calls; `guarded` calls it through a circuit breaker."""

    def __init__(self) -> None:
        self.asked, self.error = 0, None

    def get(self, job_id):
        self.asked += 1
        if self.error:
            raise self.error
        return job_id


@pytest.fixture
def messages():
    return []


@pytest.fixture
def guarded(messages, monkeypatch):
    breaker = CircuitBreaker(lambda level, message: messages.append((level, message)), "refused", "back")
    breaker.store = Store()
    breaker.clock = [1000.0]
    monkeypatch.setattr(circuit_breaker.time, "monotonic", lambda: breaker.clock[0])
    return breaker


def down(guarded, times=FAILURES):
    guarded.store.error = BackendUnavailable("the store hangs")
    for _ in range(times):
        with pytest.raises(BackendUnavailable, match="the store hangs"):
            guarded.call(guarded.store.get, "a")


def test_one_or_two_failures_do_not_open_the_breaker(guarded, messages):
    down(guarded, FAILURES - 1)
    guarded.store.error = None
    assert guarded.call(guarded.store.get, "a") == "a" and messages == []
    down(guarded, FAILURES - 1)
    assert guarded.up and guarded.store.asked == 2 * FAILURES - 1


def test_an_open_breaker_refuses_at_once_except_for_one_attempt_now_and_then(guarded):
    down(guarded)
    assert not guarded.up
    down(guarded, 10)
    assert guarded.store.asked == FAILURES
    for _ in range(5):
        guarded.clock[0] += circuit_breaker.PAUSE_SECONDS
        down(guarded, 10)
    assert guarded.store.asked == FAILURES + 5


def test_a_recovered_store_is_called_by_all_and_both_changes_are_logged(guarded, messages):
    down(guarded, 10)
    guarded.store.error = None
    guarded.clock[0] += circuit_breaker.PAUSE_SECONDS
    assert [guarded.call(guarded.store.get, "a") for _ in range(5)] == ["a"] * 5
    assert [level for level, _ in messages] == ["error", "info"] and "the store hangs" in messages[0][1]


def test_a_refusal_is_a_result_of_a_working_store(guarded):
    down(guarded)
    guarded.store.error = JobNotFound()
    guarded.clock[0] += circuit_breaker.PAUSE_SECONDS
    for _ in range(3):
        with pytest.raises(JobNotFound):
            guarded.call(guarded.store.get, "a")
    assert guarded.up


def test_during_an_attempt_the_others_are_refused_at_once(guarded):
    down(guarded)
    guarded.clock[0] += circuit_breaker.PAUSE_SECONDS
    trying, goes_on, responses = threading.Event(), threading.Event(), []

    def slow(job_id):
        trying.set()
        assert goes_on.wait(60)
        return job_id

    guarded.store.get = slow
    thread = threading.Thread(target=lambda: responses.append(guarded.call(guarded.store.get, "a")))
    thread.start()
    assert trying.wait(60)
    down(guarded, 3)
    goes_on.set()
    thread.join(60)
    assert responses == ["a"] and guarded.up


def test_background_tasks_start_and_end_with_the_process():
    background, events_seen = BackgroundTasks(RecordingLog()), []

    def run():
        while not background.stopping:
            time.sleep(0.001)
        events_seen.append("finished")

    background.add("one", run)
    background.add("two", lambda: threading.Event().wait(), drains=False)
    background.start()
    assert background.problem() is None
    assert background.stop(time.monotonic() + 60) == [] and events_seen == ["finished"]
    assert background.problem() is None


def test_a_background_task_that_does_not_finish_in_time_is_named():
    background, goes_on = BackgroundTasks(RecordingLog()), threading.Event()
    background.add("slow one", goes_on.wait)
    background.start()
    assert background.stop(time.monotonic()) == ["slow one"]
    goes_on.set()


def test_a_background_task_that_fails_is_logged_and_starts_again():
    log, runs = RecordingLog(), []
    background = BackgroundTasks(log)

    def run():
        runs.append(1)
        if len(runs) == 1:
            raise ZeroDivisionError
        while not background.stopping:
            time.sleep(0.001)

    background.add("one", run)
    background.start()
    wait_until(lambda: len(runs) == 2, "the task runs again")
    assert "ZeroDivisionError" in log.raw_lines[0] and background.problem() is None
    background.stop(time.monotonic() + 60)


def test_a_process_whose_background_task_has_ended_reports_that_it_must_be_restarted(make_app):
    app = make_app()
    assert app.get("/livez").json == {"live": True}
    app.service.background.tasks.clear()
    app.service.background.add("worker", lambda: None)
    app.service.background.start()
    wait_until(lambda: app.get("/livez", status="*").status_int == 503, "the liveness reports it")
    assert app.get("/livez", status=503).json["detail"] == "Background task 'worker' stopped unexpectedly; restart the process."
