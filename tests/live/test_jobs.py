"""Jobs on running servers: long polls, separate worker processes, the commands, and the shutdown."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from http_clients import LABEL_REQUEST, METRICS, READYZ, ROW, RawConnection, fetch, http_request, metric_sum, wait_until
from job_workers import open_job_store
from project import MODEL
from server_process import ServerProcess, error_of

from iris_wsgi.patterns.asynchronous.sqlite_store import create_job_store
from iris_wsgi.settings import BadSetting, Settings

ROWS = {"data": [ROW]}
SUBMIT = http_request("POST", "/jobs", ROWS)
# A server where two requests may wait for jobs.
TWO_WAIT = {"iris_wsgi.server.event_loop.MAX_LONG_POLLS": 2}


@pytest.fixture(params=["sqlite", "redis"])
def store_environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Returns the environment of processes that share an empty store."""
    if request.param == "sqlite":
        return {"IRIS_STATE_DIR": str(tmp_path / "state")}
    server = request.getfixturevalue("shared_redis")
    server.execute("FLUSHALL")
    return {"IRIS_REDIS_URL": server.url}


def long_poll(path: str, seconds: int = 30) -> bytes:
    return http_request("GET", path, None, f"Prefer: wait={seconds}")


def state(server: ServerProcess, path: str) -> str:
    response = fetch(server, http_request("GET", path))
    return response.json()["status"] if response.status == 200 else "unknown"


def metric_value(server: ServerProcess, name: str, **labels: str) -> float:
    return metric_sum(fetch(server, METRICS).body.decode(), name, **labels)


def submit(server: ServerProcess, rows=ROWS) -> str:
    """Submits a job and returns its path. Retries a 503 of a busy store; the idempotency key prevents a second job."""
    responses, key = [], f"Idempotency-Key: {uuid4()}"

    def accepted() -> bool:
        responses.append(fetch(server, http_request("POST", "/jobs", rows, key)))
        assert responses[-1].status in (202, 503)
        return responses[-1].status == 202

    wait_until(accepted, "the job is accepted")
    return responses[-1].headers["location"]


def test_a_separate_worker_executes_the_jobs_and_reports_them_in_its_own_metrics(run, store_environment):
    web = run("--role", "asynchronous", **store_environment)
    path = submit(web)
    assert state(web, path) == "queued"
    worker = run(command="worker", **store_environment)
    document = fetch(web, long_poll(path)).json()
    assert (document["status"], document["result"]["labels"]) == ("succeeded", ["setosa"])
    assert fetch(worker, READYZ).status == 200 and fetch(worker, SUBMIT).status == 404
    wait_until(
        lambda: metric_value(worker, "job_attempts_total", outcome="succeeded") == 1,
        "the attempt is counted after the result is stored",
    )
    wait_until(lambda: metric_value(web, "jobs", state="succeeded") == 1, "the web role reports the same")


def test_bin_serve_executes_its_own_jobs_with_several_processes(run, store_environment):
    server = run("--workers", "2", **store_environment)
    paths = [submit(server) for _ in range(40)]
    assert {fetch(server, long_poll(path)).json()["status"] for path in paths} == {"succeeded"}
    assert metric_value(server, "job_submissions_total", outcome="accepted") == 40
    wait_until(
        lambda: metric_value(server, "job_attempts_total", outcome="succeeded") == 40,
        "each attempt is counted after the result is stored",
    )
    wait_until(lambda: metric_value(server, "jobs", state="succeeded") == 40, "the store reports the same")


def test_long_polls_use_no_thread_of_other_requests(run):
    server = run("--role", "asynchronous", "--threads", "1")
    path = submit(server)
    with ExitStack() as stack:
        waiting = [stack.enter_context(RawConnection(server)).send(long_poll(path)) for _ in range(20)]
        wait_until(lambda: metric_value(server, "http_requests_in_flight") == 20 + 1, "all long polls wait")
        assert state(server, path) == "queued"
        assert fetch(server, http_request("DELETE", path)).json()["status"] == "cancelled"
        assert {connection.receive().json()["status"] for connection in waiting} == {"cancelled"}


def test_long_polls_over_the_limit_get_503(run):
    server = run("--role", "asynchronous", constants=TWO_WAIT)
    path = submit(server)
    with ExitStack() as stack:
        waiting = [stack.enter_context(RawConnection(server)).send(long_poll(path)) for _ in range(2)]
        wait_until(lambda: metric_value(server, "http_requests_in_flight") == 2 + 1, "both long polls wait")
        response = fetch(server, long_poll(path))
        assert response.status == 503 and response.headers["retry-after"] == "1"
        assert state(server, path) == "queued"
        assert fetch(server, http_request("DELETE", path)).status == 200
        assert {connection.receive().status for connection in waiting} == {200}
        # The limit is free again.
        assert fetch(server, long_poll(path)).json()["status"] == "cancelled"


def test_disconnected_clients_free_their_long_polls(run):
    server = run("--role", "asynchronous", constants=TWO_WAIT)
    path = submit(server)
    for _ in range(3):
        with RawConnection(server) as connection, RawConnection(server) as two:
            for wire in (connection, two):
                wire.send(long_poll(path))
            wait_until(lambda: metric_value(server, "http_requests_in_flight") == 2 + 1, "both long polls wait")
        wait_until(lambda: metric_value(server, "http_requests_in_flight") == 1, "no long poll waits any more")
    with RawConnection(server) as half:
        half.send(long_poll(path)).socket.shutdown(socket.SHUT_WR)
        assert half.receive().json()["status"] == "queued"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_shutdown_of_a_server_ends_long_polls_at_once(run, number):
    server = run("--role", "asynchronous", "--drain-seconds", "20")
    path = submit(server)
    with RawConnection(server) as waiting:
        waiting.send(long_poll(path))
        wait_until(lambda: metric_value(server, "http_requests_in_flight") == 1 + 1, "the long poll waits")
        server.process.send_signal(number)
        response = waiting.receive()
        assert (response.status, response.json()["status"], response.closes) == (200, "queued", True)
    assert server.process.wait(120) == 0


def test_a_replaced_process_ends_long_polls_too(run):
    server = run("--role", "asynchronous", "--workers", "2")
    path = submit(server)
    with RawConnection(server) as waiting:
        waiting.send(long_poll(path))
        wait_until(lambda: metric_value(server, "http_requests_in_flight") == 1 + 1, "the long poll waits")
        server.process.send_signal(signal.SIGHUP)
        assert waiting.receive().json()["status"] == "queued"


@pytest.mark.long
def test_a_stopping_server_finishes_the_jobs_it_has_started(run, store_environment, slow_model):
    web = run("--role", "asynchronous", "--model-dir", str(slow_model), **store_environment)
    worker = run("--model-dir", str(slow_model), command="worker", **store_environment)
    many = submit(web, {"data": [ROW] * 30})
    wait_until(lambda: state(web, many) == "running", "the job runs")
    _, log = worker.stop()
    assert worker.process.returncode == 0 and "cut off" not in log
    document = fetch(web, http_request("GET", many)).json()
    assert (document["status"], document["attempts"]) == ("succeeded", 1)


@pytest.mark.long
def test_a_worker_that_cannot_finish_in_time_ends_and_its_job_goes_to_another(run, store_environment, slow_model):
    slow = ("--model-dir", str(slow_model), "--lease-seconds", "2")
    web = run("--role", "asynchronous", *slow, **store_environment)
    worker = run(*slow, "--drain-seconds", "0", command="worker", **store_environment)
    path = submit(web, {"data": [ROW] * 1000})
    wait_until(lambda: state(web, path) == "running", "the job runs")
    _, log = worker.stop()
    assert worker.process.returncode == 0 and '"busy":["worker"]' in log
    other = run(*slow, command="worker", **store_environment)
    wait_until(lambda: fetch(web, http_request("GET", path)).json().get("attempts", 0) >= 2, "another worker has the job")
    # The worker counts after the store has counted.
    wait_until(lambda: metric_value(other, "job_reclaimed_total") >= 1, "the worker counts the reclaimed job")
    fetch(web, http_request("DELETE", path))


def command(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "iris_wsgi", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environ}, timeout=60)


def test_redrive_puts_dead_letters_back(run, store_environment):
    web = run("--role", "asynchronous", **store_environment)
    paths = [submit(web) for _ in range(3)]
    fail_all_attempts(store_environment)
    assert {state(web, path) for path in paths} == {"failed"}
    assert "Try again" not in fetch(web, http_request("GET", paths[0])).json()["error"]
    ids = [path.rpartition("/")[2] for path in paths]
    result = command("redrive", ids[1], "A" * 22, **store_environment)
    assert (result.returncode, result.stdout) == (0, "1 dead letters are back in the queue\n")
    assert [state(web, path) for path in paths] == ["failed", "queued", "failed"]
    assert command("redrive", "--most", "1", **store_environment).stdout.startswith("1 ")
    assert command("redrive", **store_environment).stdout.startswith("1 ")
    run(command="worker", **store_environment)
    assert {fetch(web, long_poll(path)).json()["status"] for path in paths} == {"succeeded"}


def fail_all_attempts(store_environment: dict[str, str]) -> None:
    store = open_job_store(store_environment.get("IRIS_REDIS_URL") or str(Path(store_environment["IRIS_STATE_DIR"]) / "jobs.db"))
    for claim in store.claim("test", 10, 60):
        assert store.fail(claim, "as the test wants it")
    store.close()


@pytest.mark.parametrize("name", ["serve", "worker", "redrive"])
def test_an_unusable_store_ends_a_command_with_one_line(tmp_path, name):
    (tmp_path / "jobs.db").write_bytes(b"not a database, but other notes" * 100)
    models = () if name == "redrive" else ("--model-dir", str(MODEL), "--port", "0", "--workers", "1")
    result = command(name, *models, IRIS_STATE_DIR=str(tmp_path))
    assert result.returncode == 1 and result.stdout == ""
    error = f"{tmp_path}/jobs.db is not an SQLite database"
    assert result.stderr == f"iris_wsgi: {error}\n" if name == "redrive" else error_of(result.stderr) == error


def test_several_processes_end_with_that_line_too(tmp_path):
    (tmp_path / "state").write_text("a file")
    result = command("serve", "--model-dir", str(MODEL), "--port", "0", "--workers", "2", IRIS_STATE_DIR=str(tmp_path / "state"))
    assert result.returncode == 1
    assert error_of(result.stderr).startswith(f"the store {tmp_path}/state/jobs.db cannot be opened")


def test_a_redis_that_starts_later_does_not_stop_the_start(run, tmp_path):
    server = run("--role", "all", IRIS_REDIS_URL=f"unix://{tmp_path}/none")
    response = fetch(server, SUBMIT)
    assert response.status == 503 and response.headers["content-type"] == "application/problem+json"
    assert fetch(server, LABEL_REQUEST).status == fetch(server, READYZ).status == 200
    wait_until(lambda: metric_value(server, "job_store_up") == 0, "the metrics report the missing store")


def test_the_redis_extra_is_named_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "redis", None)
    for name in ("iris_wsgi.storage.redis", "iris_wsgi.patterns.asynchronous.redis_store"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(BadSetting, match=r"pip install '\.\[redis\]'"):
        create_job_store(Settings(redis_url="redis://localhost"), 1)


def test_submissions_from_many_threads_are_all_stored(run, store_environment):
    server = run("--role", "asynchronous", **store_environment)
    paths: list[str] = []

    def many() -> None:
        for _ in range(25):
            paths.append(submit(server))

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 200
    assert fetch(server, http_request("GET", "/jobs")).json()["jobs"]["queued"] == 200
