"""Jobs while processes, the store, or the disk fail: each acknowledged job is done once and has one result."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from crashing_model import ABORTS, BLOCKS, KILLS
from http_clients import (
    CI,
    LIVEZ,
    METRICS,
    READYZ,
    HttpResponse,
    LoadGenerator,
    RawConnection,
    fetch,
    http_request,
    metric_sum,
    wait_until,
)
from iris_data import IRIS_ROWS
from job_clients import (
    CRASHING_MODEL,
    TIMEOUT_SECONDS,
    WAIT,
    JobClients,
    RestartingProcess,
    StartProcess,
    StoreLocation,
    distinct_row,
)
from job_workers import open_job_store
from project import MODEL

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.model.session import Model, load_model
from iris_wsgi.patterns.asynchronous.job import DONE, Limits
from iris_wsgi.patterns.asynchronous.job_codec import pack_rows

pytestmark = [pytest.mark.long, pytest.mark.repeats]

KILL_COUNT, PROCESSES_OF_EACH = (300, 3) if CI else (10, 2)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(MODEL)[0]


@pytest.fixture(params=["sqlite", "redis"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    """Location of an empty store."""
    if request.param == "sqlite":
        return StoreLocation({"IRIS_STATE_DIR": str(tmp_path / "state")}, str(tmp_path / "state/jobs.db"))
    server = request.getfixturevalue("own_redis")
    return StoreLocation({"IRIS_REDIS_URL": server.url}, server.url)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartProcess]:
    """Function that starts restarting processes. The fixture removes them and asserts that no log contains a traceback."""
    processes: list[RestartingProcess] = []

    def start_one(*command: str, script: Path | None = None, **settings: str) -> RestartingProcess:
        processes.append(RestartingProcess(tmp_path / f"log-{len(processes)}", settings, *command, script=script))
        return processes[-1]

    yield start_one
    for process in processes:
        process.remove()
        assert "traceback" not in process.log.read_text()


SERVE, WORK = ("serve", "--role", "asynchronous"), ("worker",)


def test_kill_9_at_any_moment_loses_no_acknowledged_job_and_shows_one_result(location, start, model):
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "0.3", "IRIS_JOBS_ATTEMPTS": "1000"}
    servers = [start(*SERVE, **settings) for _ in range(PROCESSES_OF_EACH)]
    all_processes, chance = servers + [start(*WORK, **settings) for _ in range(PROCESSES_OF_EACH)], random.Random()
    for process in all_processes:
        process.ready()
    with JobClients(model, servers, 4) as clients:
        kills = 0
        while kills < KILL_COUNT:
            # The kill comes at a random moment after the clients have made progress. It often hits a process during its start.
            acknowledged, done = len(clients.ids) + chance.randint(0, 5), len(clients.done) + chance.randint(0, 5)
            wait_until(
                lambda a=acknowledged, d=done: clients.faults or (len(clients.ids) >= a and len(clients.done) >= d),
                "jobs make progress",
            )
            victim, times = chance.choice(all_processes), chance.randint(1, 3)
            for _ in range(times):
                victim.kill(chance.uniform(0, 0.3))
            kills += times
            assert location.violations() == [] and clients.faults == []
        for process in all_processes:
            process.ready()
    clients.check_all(location)
    assert clients.faults == []
    assert len(clients.ids) > KILL_COUNT and (not CI or (clients.cancelled and clients.broken_connections))
    for process in all_processes:
        process.terminate()
    assert [process.wait_for_exit() for process in all_processes] == [0] * len(all_processes)
    assert {code for process in all_processes for code in process.exit_codes[:-1]} == {-signal.SIGKILL}
    assert sum(len(process.exit_codes) - 1 for process in all_processes) == kills and location.violations() == []


# Redis hangs, ends, and comes back.


def job_requests(job_id: str, number: int) -> list[bytes]:
    """Returns one request of each kind."""
    return [
        http_request("POST", "/jobs", {"data": [distinct_row(number)]}),
        http_request("GET", f"/jobs/{job_id}"),
        http_request("GET", f"/jobs/{job_id}", None, WAIT),
        http_request("DELETE", f"/jobs/{job_id}"),
        http_request("GET", "/jobs"),
    ]


def refused(response: HttpResponse) -> bool:
    """Returns whether the response is a 503, and asserts that a 503 has the required headers."""
    if response.status != 503:
        return False
    assert response.headers["content-type"] == "application/problem+json" and int(response.headers["retry-after"]) > 0
    assert response.json()["status"] == 503
    return True


def test_without_redis_jobs_are_refused_other_routes_respond_and_nothing_is_lost(own_redis, start, model):
    location = StoreLocation({"IRIS_REDIS_URL": own_redis.url}, own_redis.url)
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "0.5", "IRIS_JOBS_ATTEMPTS": "1000"}
    all_processes = [start("serve", **settings), start(*SERVE, **settings), start(*WORK, **settings)]
    servers = all_processes[:2]
    for process in all_processes:
        process.ready()
    with LoadGenerator(servers[0].address, 2, 1) as load, JobClients(model, servers, 4) as clients:

        def assert_progress() -> None:
            """Waits for more acknowledged jobs, more finished jobs, and more responses of other routes."""
            acknowledged, done, responses = len(clients.ids) + 20, len(clients.done) + 20, load.responses + 20
            wait_until(
                lambda: (
                    clients.faults
                    or (len(clients.ids) > acknowledged and len(clients.done) > done and load.responses > responses)
                ),
                "jobs make progress",
            )

        def assert_refused() -> None:
            job_id = next(iter(clients.done))
            for process in servers:
                for data in job_requests(job_id, next(clients.numbers)):
                    wait_until(
                        lambda process=process, data=data: refused(fetch(process.address, data, TIMEOUT_SECONDS)),
                        "jobs are refused",
                    )
                # The server now refuses every request at once.
                assert all(
                    refused(fetch(process.address, data, TIMEOUT_SECONDS)) for data in job_requests(job_id, next(clients.numbers))
                )
                assert fetch(process.address, READYZ).status == 200
            responses = load.responses
            wait_until(lambda: load.responses > responses + 50, "/predict/label still responds")

        for _ in range(3 if CI else 1):
            assert_progress()
            own_redis.process.send_signal(signal.SIGSTOP)
            assert_refused()
            own_redis.process.send_signal(signal.SIGCONT)
            assert_progress()
            own_redis.kill()
            assert_refused()
            own_redis.start()
            assert_progress()
            own_redis.process.terminate()
            own_redis.process.communicate()
            own_redis.start()
        assert_progress()
    clients.check_all(location)
    assert clients.faults == []
    assert load.lost == [] and load.statuses.keys() == {200} and load.refused == 0
    assert [process.exit_codes for process in all_processes] == [[], [], []]


# Each idempotency key has one job.


def send_until_stored(connection: RawConnection, data: bytes, response: HttpResponse | None = None) -> HttpResponse:
    """Sends a request again while its response is 503, which is correct for a store on a busy disk."""
    while response is None or response.status == 503:
        response = connection.exchange(data)
    return response


def submission(number: int, key: str) -> bytes:
    return http_request("POST", "/jobs", {"data": [distinct_row(number)]}, f"Idempotency-Key: {key}")


def send_at_once(servers: list[RestartingProcess], requests: list[bytes]) -> list[HttpResponse]:
    """Sends requests at the same time, distributed over the servers, and returns the responses."""
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(servers[i % len(servers)].address)) for i in range(len(requests))]
        for connection in connections:
            connection.exchange(LIVEZ)
        for connection, data in zip(connections, requests, strict=True):
            connection.send(data)
        responses = [connection.receive() for connection in connections]
        return [send_until_stored(*arguments) for arguments in zip(connections, requests, responses, strict=True)]


@pytest.mark.parametrize("times", [2, 20])
def test_one_key_is_one_job_at_two_servers_at_once_and_later(location, start, times):
    servers = [start(*SERVE, **location.settings) for _ in range(2)]
    for process in servers:
        process.ready()
    for i in range(50 if CI else 5):
        responses = send_at_once(servers, [submission(i, f"key {i}")] * times)
        assert [response.status for response in responses] == [202] * times
        assert len({response.json()["id"] for response in responses}) == 1
    first = responses[0].json()["id"]
    # Two clients use one key for different rows at the same time. The server accepts the rows of one client.
    responses = send_at_once(servers, [submission(100 + i % 2, "key of two") for i in range(times)])
    assert sorted(response.status for response in responses) == [202] * (times // 2) + [422] * (times // 2)
    start(*WORK, **location.settings).ready()
    assert finished_records(servers[0], [first])[0]["status"] == "succeeded"
    for process in servers:
        with RawConnection(process.address) as connection:
            again = send_until_stored(connection, submission(i, f"key {i}")).json()
            assert (again["id"], again["status"]) == (first, "succeeded")
            conflict = send_until_stored(connection, submission(i + 1, f"key {i}"))
            assert (conflict.status, conflict.headers["content-type"]) == (422, "application/problem+json")
    assert max(location.rows().values()) == 1 and location.violations() == []


# Jobs that crash their worker.


def finished_records(server: RestartingProcess, ids: list[str]) -> list[dict]:
    """Waits until the jobs are done and returns their records."""
    with RawConnection(server.address, timeout=TIMEOUT_SECONDS) as connection:

        def finished_record(job_id: str) -> dict:
            record = {"status": "queued"}
            while record["status"] not in DONE:
                record = send_until_stored(connection, http_request("GET", f"/jobs/{job_id}", None, WAIT)).json()
            return record

        return [finished_record(job_id) for job_id in ids]


def submit(server: RestartingProcess, *rows: list[float]) -> list[str]:
    """Submits a job for each row and returns the ids."""
    with RawConnection(server.address) as connection:
        return [
            send_until_stored(connection, http_request("POST", "/jobs", {"data": [row]}, f"Idempotency-Key: {row}")).json()["id"]
            for row in rows
        ]


def command(*words: str, **settings: str) -> str:
    """Runs a command, asserts that it succeeds, and returns its output."""
    run = subprocess.run(
        [sys.executable, "-m", "iris_wsgi", *words], capture_output=True, text=True, env={**os.environ, **settings}
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


@pytest.mark.parametrize(("processes", "death"), [("2", ABORTS), ("1", KILLS)], ids=["supervised", "plain"])
def test_a_job_that_crashes_each_worker_is_a_dead_letter_and_affects_no_other(location, start, processes, death):
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "0.5", "IRIS_JOBS_ATTEMPTS": "3"}
    server = start(*SERVE, **settings).ready()
    ids = submit(server, *map(distinct_row, range(3)), [death, 3.5, 1.4, 0.2], *map(distinct_row, range(3, 7)))
    crashing = start(*WORK, script=CRASHING_MODEL, **settings, IRIS_WORKERS=processes)
    good = finished_records(server, ids)
    bad = good.pop(3)
    assert (bad["status"], bad["attempts"]) == ("failed", 3)
    assert bad["error"] == "No worker reported an outcome in 3 attempts." and "result" not in bad
    assert {record["status"] for record in good} == {"succeeded"}
    # The remaining worker continues.
    assert finished_records(server, submit(server, distinct_row(20)))[0]["status"] == "succeeded"
    assert crashing.ready().exit_codes == []
    crashing.terminate()
    assert crashing.wait_for_exit() == 0
    assert command("redrive", ids[3], **location.settings) == "1 dead letters are back in the queue\n"
    start(*WORK, **location.settings)
    again = finished_records(server, [ids[3]])[0]
    assert (again["status"], again["attempts"], "error" in again) == ("succeeded", 1, False)
    assert command("redrive", **location.settings) == "0 dead letters are back in the queue\n" and location.violations() == []


def test_workers_that_crash_during_their_first_jobs_are_replaced_and_the_service_continues(tmp_path, start):
    """The start of a service is successful even if its first jobs crash the workers."""
    settings = {"IRIS_STATE_DIR": str(tmp_path / "state"), "IRIS_WORKERS": "2", "TEST_KILL_WORKER": "1"}
    crashing = start(*WORK, script=CRASHING_MODEL, **settings)
    wait_until(lambda: crashing.exit_codes or crashing.log.read_text().count("a worker died") >= 4, "workers die")
    assert crashing.exit_codes == []
    crashing.terminate()
    assert crashing.wait_for_exit() == 0


# Workers that receive SIGTERM, that hang, and that lose their job.


@pytest.mark.parametrize("processes", ["1", "2"], ids=["plain", "supervised"])
def test_a_worker_finishes_its_jobs_after_sigterm_and_leaves_nothing(location, start, model, processes):
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "5"}
    server, stays = start(*SERVE, **settings).ready(), start(*WORK, **settings)
    with JobClients(model, [server], 4) as clients:
        for _ in range(4 if CI else 1):
            leaving = start(*WORK, **settings, IRIS_WORKERS=processes).ready()
            done = len(clients.done) + random.randint(10, 40)
            wait_until(lambda done=done: clients.faults or len(clients.done) > done, "jobs make progress")
            leaving.terminate()
            assert leaving.wait_for_exit() == 0 and clients.faults == []
    clients.check_all(location)
    assert clients.faults == []
    text = fetch(stays.ready().address, METRICS).body.decode()
    assert metric_sum(text, "job_reclaimed_total") == 0 and metric_sum(text, "job_attempts_total", outcome="succeeded") > 0
    records = map(json.loads, clients.done.values())
    assert {record["attempts"] for record in records if record["status"] == "succeeded"} == {1}


@pytest.fixture
def block_file(tmp_path: Path) -> Path:
    """File whose existence blocks the rows BLOCKS in workers with the crashing model."""
    path = tmp_path / "block"
    path.write_text("")
    return path


def wait_until_blocked(block_file: Path) -> None:
    wait_until(Path(f"{block_file}.waiting").exists, "a worker has the job")


def test_a_worker_that_gets_sigterm_during_a_run_ends_after_it(location, start, block_file):
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "5", "IRIS_DRAIN_SECONDS": "60"}
    server = start(*SERVE, **settings).ready()
    ids = submit(server, [BLOCKS, 3.5, 1.4, 0.2], distinct_row(1))
    leaving = start(*WORK, script=CRASHING_MODEL, **settings, TEST_BLOCK_FILE=str(block_file))
    wait_until_blocked(block_file)
    leaving.terminate()
    later_jobs = submit(server, distinct_row(2))
    stays = start(*WORK, **settings)
    assert finished_records(server, later_jobs)[0]["status"] == "succeeded" and leaving.process.poll() is None
    block_file.unlink()
    assert leaving.wait_for_exit() == 0
    assert [(record["status"], record["attempts"]) for record in finished_records(server, ids)] == [("succeeded", 1)] * 2
    assert metric_sum(fetch(stays.ready().address, METRICS).body.decode(), "job_reclaimed_total") == 0


def test_a_worker_that_hangs_beyond_its_lease_writes_no_result(location, start, block_file):
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "0.3"}
    server = start(*SERVE, **settings).ready()
    ids = submit(server, [BLOCKS, 3.5, 1.4, 0.2])
    later_jobs = start(*WORK, script=CRASHING_MODEL, **settings, TEST_BLOCK_FILE=str(block_file)).ready()
    wait_until_blocked(block_file)
    stop_outside_the_store(later_jobs, location)
    start(*WORK, **location.settings)
    (first,) = finished_records(server, ids)
    assert (first["status"], first["attempts"]) == ("succeeded", 2)
    block_file.unlink()
    os.kill(later_jobs.worker_pid, signal.SIGCONT)
    wait_until(
        lambda: metric_sum(fetch(later_jobs.address, METRICS).body.decode(), "job_attempts_total", outcome="refused") == 1,
        "the result is refused",
    )
    assert finished_records(server, ids) == [first] and location.violations() == []
    assert metric_sum(fetch(later_jobs.address, METRICS).body.decode(), "job_attempts_total", outcome="succeeded") == 0


def stop_outside_the_store(process: RestartingProcess, location: StoreLocation) -> None:
    """Sends SIGSTOP to a worker at a moment at which the worker does not hold the lock of the database file."""
    with closing(location.open()) as store:
        while True:
            os.kill(process.worker_pid, signal.SIGSTOP)
            try:
                store.heartbeat([], 1)
                return
            except BackendUnavailable:
                os.kill(process.worker_pid, signal.SIGCONT)


def test_a_running_job_that_is_cancelled_stays_cancelled(location, start, block_file):
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "0.3"}
    server = start(*SERVE, **settings).ready()
    ids = submit(server, [BLOCKS, 3.5, 1.4, 0.2])
    worker = start(*WORK, script=CRASHING_MODEL, **settings, TEST_BLOCK_FILE=str(block_file)).ready()
    wait_until_blocked(block_file)
    with RawConnection(server.address) as connection:
        cancelled = send_until_stored(connection, http_request("DELETE", f"/jobs/{ids[0]}"))
    assert (cancelled.status, cancelled.json()["status"]) == (200, "cancelled")
    block_file.unlink()
    wait_until(
        lambda: metric_sum(fetch(worker.address, METRICS).body.decode(), "job_attempts_total", outcome="refused") == 1,
        "the result is refused",
    )
    assert finished_records(server, ids) == [cancelled.json()] and location.violations() == []
    assert finished_records(server, submit(server, distinct_row(1)))[0]["status"] == "succeeded"


# Expired jobs.


def test_expired_jobs_are_removed_while_a_worker_is_in_a_long_run(location, start, block_file):
    settings = {**location.settings, "IRIS_KEEP_SECONDS": "0.1"}
    server = start(*SERVE, **settings).ready()
    start(*WORK, script=CRASHING_MODEL, **settings, TEST_BLOCK_FILE=str(block_file)).ready()
    done = submit(server, distinct_row(1))
    wait_until(lambda: fetch(server.address, http_request("GET", f"/jobs/{done[0]}")).status == 410, "the job has expired")
    blocked = submit(server, [BLOCKS, 3.5, 1.4, 0.2])
    wait_until_blocked(block_file)
    with closing(location.open()) as store:
        wait_until(lambda: store.counts().by_state["succeeded"] == 0, "the job is removed")
    assert fetch(server.address, http_request("GET", f"/jobs/{blocked[0]}")).json()["status"] == "running"
    block_file.unlink()


def test_thousands_of_expired_jobs_are_removed_while_others_make_progress(location, start, model):
    old = np.array([distinct_row(10**6)], np.float32)
    with closing(open_job_store(location.location, Limits(), lambda: time.time() - 7200)) as past, ThreadPoolExecutor(32) as pool:
        ids = list(pool.map(lambda _: past.submit(pack_rows(IRIS_ROWS, old)).id, range(5000 if CI else 300)))
        while claims := past.claim("w", 500, 60):
            past.finish([(claim, b"{}\n{}") for claim in claims])
    server, worker = start("serve", **location.settings).ready(), start(*WORK, **location.settings)
    with JobClients(model, [server], 4) as clients:
        wait_until(lambda: old.tobytes() not in location.rows(), "the jobs are removed")
        done = len(clients.done) + 20
        wait_until(lambda: clients.faults or len(clients.done) > done, "jobs make progress")
    clients.check_all(location)
    assert clients.faults == [] and server.exit_codes == worker.exit_codes == []
    with RawConnection(server.address) as connection:
        statuses = {send_until_stored(connection, http_request("GET", f"/jobs/{job_id}")).status for job_id in ids[:50]}
        assert statuses == {410}


# A full disk.


def test_on_a_full_disk_jobs_are_refused_and_the_server_continues_until_there_is_room(tmp_path, start, model):
    """A limit on the file size simulates a full disk."""
    location = StoreLocation({"IRIS_STATE_DIR": str(tmp_path / "state")}, str(tmp_path / "state/jobs.db"))
    settings = {**location.settings, "IRIS_LEASE_SECONDS": "0.5", "IRIS_JOBS_ATTEMPTS": "1000"}
    server, worker = start("serve", **settings).ready(), start(*WORK, **settings).ready()
    _, max_size = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LoadGenerator(server.address, 1, 1) as load, JobClients(model, [server], 3) as clients:
        for _ in range(5 if CI else 2):
            done = len(clients.done) + 20
            wait_until(lambda done=done: clients.faults or len(clients.done) > done, "jobs make progress")
            for process in (server, worker):
                resource.prlimit(process.worker_pid, resource.RLIMIT_FSIZE, (random.choice((1, 4096, 100_000)), max_size))
            wait_until(
                lambda: refused(
                    fetch(server.address, http_request("POST", "/jobs", {"data": [distinct_row(next(clients.numbers))]}))
                ),
                "the disk is full",
            )
            responses = load.responses + 50
            wait_until(lambda responses=responses: load.responses > responses, "/predict/label still responds")
            assert fetch(server.address, READYZ).status == 200
            for process in (server, worker):
                resource.prlimit(process.worker_pid, resource.RLIMIT_FSIZE, (max_size, max_size))
    clients.check_all(location)
    assert clients.faults == []
    assert load.lost == [] and load.statuses.keys() == {200}
    assert server.exit_codes == worker.exit_codes == []
