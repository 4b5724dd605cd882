"""Jobs while processes, the store or the disk fail: what was acknowledged is done once, and seen with one result."""

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
from crashing_model import ABORTS, HOLDS, KILLS
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

pytestmark = pytest.mark.long

TIMES, OF_EACH = (300, 3) if CI else (10, 2)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(MODEL)[0]


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    """Of a store without jobs."""
    if request.param == "sqlite":
        return StoreLocation({"IRIS_STATE_DIR": str(tmp_path / "state")}, str(tmp_path / "state/jobs.db"))
    server = request.getfixturevalue("own_redis")
    return StoreLocation({"IRIS_REDIS_URL": server.url}, server.url)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[StartProcess]:
    """Starts processes, and others after them; they are removed with the test. Nothing of what they log is a traceback."""
    kept: list[RestartingProcess] = []

    def keep_one(*command: str, script: Path | None = None, **settings: str) -> RestartingProcess:
        kept.append(RestartingProcess(tmp_path / f"log-{len(kept)}", settings, *command, script=script))
        return kept[-1]

    yield keep_one
    for one in kept:
        one.remove()
        assert "traceback" not in one.log.read_text()


SERVE, WORK = ("serve", "--role", "asynchronous"), ("worker",)


def test_kill_9_at_any_moment_loses_no_acknowledged_job_and_shows_one_result(place, keep, model):
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "0.3", "IRIS_JOBS_ATTEMPTS": "1000"}
    servers = [keep(*SERVE, **settings) for _ in range(OF_EACH)]
    every, chance = servers + [keep(*WORK, **settings) for _ in range(OF_EACH)], random.Random()
    for one in every:
        one.ready()
    with JobClients(model, servers, 4) as crowd:
        kills = 0
        while kills < TIMES:
            # At a random moment, and not before the last one is overcome. Who follows is often killed too, as it starts.
            acknowledged, done = len(crowd.ids) + chance.randint(0, 5), len(crowd.done) + chance.randint(0, 5)
            wait_until(
                lambda a=acknowledged, d=done: crowd.faults or (len(crowd.ids) >= a and len(crowd.done) >= d),
                "jobs go on",
            )
            victim, times = chance.choice(every), chance.randint(1, 3)
            for _ in range(times):
                victim.kill(chance.uniform(0, 0.3))
            kills += times
            assert place.check() == [] and crowd.faults == []
        for one in every:
            one.ready()
    crowd.settle(place)
    assert crowd.faults == []
    assert len(crowd.ids) > TIMES and (not CI or (crowd.cancelled and crowd.broken))
    for one in every:
        one.terminate()
    assert [one.ended() for one in every] == [0] * len(every)
    assert {code for one in every for code in one.ends[:-1]} == {-signal.SIGKILL}
    assert sum(len(one.ends) - 1 for one in every) == kills and place.check() == []


# Redis stops, goes and comes back.


def job_requests(job_id: str, number: int) -> list[bytes]:
    """One of each kind."""
    return [
        http_request("POST", "/jobs", {"data": [distinct_row(number)]}),
        http_request("GET", f"/jobs/{job_id}"),
        http_request("GET", f"/jobs/{job_id}", None, WAIT),
        http_request("DELETE", f"/jobs/{job_id}"),
        http_request("GET", "/jobs"),
    ]


def refused(answer: HttpResponse) -> bool:
    """Whether it is a 503 as it must be."""
    if answer.status != 503:
        return False
    assert answer.fields["content-type"] == "application/problem+json" and int(answer.fields["retry-after"]) > 0
    assert answer.json()["status"] == 503
    return True


def test_without_redis_jobs_are_refused_the_rest_goes_on_and_nothing_is_lost(own_redis, keep, model):
    place = StoreLocation({"IRIS_REDIS_URL": own_redis.url}, own_redis.url)
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "0.5", "IRIS_JOBS_ATTEMPTS": "1000"}
    every = [keep("serve", **settings), keep(*SERVE, **settings), keep(*WORK, **settings)]
    servers = every[:2]
    for one in every:
        one.ready()
    with LoadGenerator(servers[0].at, 2, 1) as load, JobClients(model, servers, 4) as crowd:

        def goes_on() -> None:
            """More is acknowledged, more is done, and what takes no job as well."""
            acknowledged, done, answers = len(crowd.ids) + 20, len(crowd.done) + 20, load.answers + 20
            wait_until(
                lambda: crowd.faults or (len(crowd.ids) > acknowledged and len(crowd.done) > done and load.answers > answers),
                "jobs go on",
            )

        def refuses() -> None:
            job_id = next(iter(crowd.done))
            for one in servers:
                for data in job_requests(job_id, next(crowd.numbers)):
                    wait_until(lambda one=one, data=data: refused(fetch(one.at, data, TIMEOUT_SECONDS)), "jobs are refused")
                # And now at once, whatever is asked.
                assert all(refused(fetch(one.at, data, TIMEOUT_SECONDS)) for data in job_requests(job_id, next(crowd.numbers)))
                assert fetch(one.at, READYZ).status == 200
            answers = load.answers
            wait_until(lambda: load.answers > answers + 50, "/predict/label goes on")

        for _ in range(3 if CI else 1):
            goes_on()
            own_redis.process.send_signal(signal.SIGSTOP)
            refuses()
            own_redis.process.send_signal(signal.SIGCONT)
            goes_on()
            own_redis.kill()
            refuses()
            own_redis.start()
            goes_on()
            own_redis.process.terminate()
            own_redis.process.communicate()
            own_redis.start()
        goes_on()
    crowd.settle(place)
    assert crowd.faults == []
    assert load.lost == [] and load.statuses.keys() == {200} and load.refused == 0
    assert [one.ends for one in every] == [[], [], []]


# One key is one job.


def insist(wire: RawConnection, data: bytes, answer: HttpResponse | None = None) -> HttpResponse:
    """The answer of a store that has time: a busy disk may have none, and then 503 is right."""
    while answer is None or answer.status == 503:
        answer = wire.ask(data)
    return answer


def handed_in(number: int, key: str) -> bytes:
    return http_request("POST", "/jobs", {"data": [distinct_row(number)]}, f"Idempotency-Key: {key}")


def at_once(servers: list[RestartingProcess], requests: list[bytes]) -> list[HttpResponse]:
    """The answers to requests that are sent together, to one server after another."""
    with ExitStack() as stack:
        wires = [stack.enter_context(RawConnection(servers[i % len(servers)].at)) for i in range(len(requests))]
        for wire in wires:
            wire.ask(LIVEZ)
        for wire, data in zip(wires, requests, strict=True):
            wire.send(data)
        answers = [wire.answer() for wire in wires]
        return [insist(*one) for one in zip(wires, requests, answers, strict=True)]


@pytest.mark.parametrize("times", [2, 20])
def test_one_key_is_one_job_at_two_servers_at_once_and_later(place, keep, times):
    servers = [keep(*SERVE, **place.settings) for _ in range(2)]
    for one in servers:
        one.ready()
    for i in range(50 if CI else 5):
        answers = at_once(servers, [handed_in(i, f"key {i}")] * times)
        assert [answer.status for answer in answers] == [202] * times
        assert len({answer.json()["id"] for answer in answers}) == 1
    first = answers[0].json()["id"]
    # Of different rows under one key, at once, those of one client are taken.
    answers = at_once(servers, [handed_in(100 + i % 2, "key of two") for i in range(times)])
    assert sorted(answer.status for answer in answers) == [202] * (times // 2) + [422] * (times // 2)
    keep(*WORK, **place.settings).ready()
    assert records(servers[0], [first])[0]["status"] == "succeeded"
    for one in servers:
        with RawConnection(one.at) as wire:
            again = insist(wire, handed_in(i, f"key {i}")).json()
            assert (again["id"], again["status"]) == (first, "succeeded")
            other = insist(wire, handed_in(i + 1, f"key {i}"))
            assert (other.status, other.fields["content-type"]) == (422, "application/problem+json")
    assert max(place.rows().values()) == 1 and place.check() == []


# Jobs that end their worker.


def records(server: RestartingProcess, ids: list[str]) -> list[dict]:
    """Of jobs, once they are done."""
    with RawConnection(server.at, timeout=TIMEOUT_SECONDS) as wire:

        def record(job_id: str) -> dict:
            told = {"status": "queued"}
            while told["status"] not in DONE:
                told = insist(wire, http_request("GET", f"/jobs/{job_id}", None, WAIT)).json()
            return told

        return [record(job_id) for job_id in ids]


def hand_in(server: RestartingProcess, *rows: list[float]) -> list[str]:
    """The ids of jobs of a row each."""
    with RawConnection(server.at) as wire:
        return [
            insist(wire, http_request("POST", "/jobs", {"data": [one]}, f"Idempotency-Key: {one}")).json()["id"] for one in rows
        ]


def command(*words: str, **settings: str) -> str:
    """What a command says; nothing is wrong with it."""
    run = subprocess.run(
        [sys.executable, "-m", "iris_wsgi", *words], capture_output=True, text=True, env={**os.environ, **settings}
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


@pytest.mark.parametrize(("processes", "death"), [("2", ABORTS), ("1", KILLS)], ids=["supervised", "plain"])
def test_a_job_that_ends_each_worker_is_a_dead_letter_and_takes_no_other_with_it(place, keep, processes, death):
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "0.5", "IRIS_JOBS_ATTEMPTS": "3"}
    server = keep(*SERVE, **settings).ready()
    ids = hand_in(server, *map(distinct_row, range(3)), [death, 3.5, 1.4, 0.2], *map(distinct_row, range(3, 7)))
    deadly = keep(*WORK, script=CRASHING_MODEL, **settings, IRIS_WORKERS=processes)
    told = records(server, ids)
    bad = told.pop(3)
    assert (bad["status"], bad["attempts"]) == ("failed", 3)
    assert bad["error"] == "No worker reported an outcome in 3 attempts." and "result" not in bad
    assert {one["status"] for one in told} == {"succeeded"}
    # Who is left goes on.
    assert records(server, hand_in(server, distinct_row(20)))[0]["status"] == "succeeded"
    assert deadly.ready().ends == []
    deadly.terminate()
    assert deadly.ended() == 0
    assert command("redrive", ids[3], **place.settings) == "1 dead letters are back in the queue\n"
    keep(*WORK, **place.settings)
    again = records(server, [ids[3]])[0]
    assert (again["status"], again["attempts"], "error" in again) == ("succeeded", 1, False)
    assert command("redrive", **place.settings) == "0 dead letters are back in the queue\n" and place.check() == []


def test_workers_that_die_on_jobs_as_soon_as_they_work_are_replaced_and_do_not_end_the_service(tmp_path, keep):
    """A start that finds such jobs has not failed."""
    settings = {"IRIS_STATE_DIR": str(tmp_path / "state"), "IRIS_WORKERS": "2", "DEADLY_AT_ONCE": "1"}
    deadly = keep(*WORK, script=CRASHING_MODEL, **settings)
    wait_until(lambda: deadly.ends or deadly.log.read_text().count("a worker died") >= 4, "workers die")
    assert deadly.ends == []
    deadly.terminate()
    assert deadly.ended() == 0


# Workers that are told to end, that stand still, and that lose what they work on.


@pytest.mark.parametrize("processes", ["1", "2"], ids=["plain", "supervised"])
def test_a_worker_that_is_told_to_end_finishes_what_it_has_and_leaves_nothing(place, keep, model, processes):
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "5"}
    server, stays = keep(*SERVE, **settings).ready(), keep(*WORK, **settings)
    with JobClients(model, [server], 4) as crowd:
        for _ in range(4 if CI else 1):
            goes = keep(*WORK, **settings, IRIS_WORKERS=processes).ready()
            done = len(crowd.done) + random.randint(10, 40)
            wait_until(lambda done=done: crowd.faults or len(crowd.done) > done, "jobs go on")
            goes.terminate()
            assert goes.ended() == 0 and crowd.faults == []
    crowd.settle(place)
    assert crowd.faults == []
    told = fetch(stays.ready().at, METRICS).body.decode()
    assert metric_sum(told, "job_reclaimed_total") == 0 and metric_sum(told, "job_attempts_total", outcome="succeeded") > 0
    attempts = {one["attempts"] for one in map(json.loads, crowd.done.values()) if one["status"] == "succeeded"}
    assert attempts == {1}


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """While it is there, workers that are deadly stay with the rows that hold; its companion tells that one does."""
    path = tmp_path / "hold"
    path.write_text("")
    return path


def is_held(hold: Path) -> None:
    wait_until(Path(f"{hold}.held").exists, "a worker has the job")


def test_a_worker_that_is_told_to_end_in_a_run_ends_after_it(place, keep, hold):
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "5", "IRIS_DRAIN_SECONDS": "60"}
    server = keep(*SERVE, **settings).ready()
    ids = hand_in(server, [HOLDS, 3.5, 1.4, 0.2], distinct_row(1))
    goes = keep(*WORK, script=CRASHING_MODEL, **settings, DEADLY_HOLD=str(hold))
    is_held(hold)
    goes.terminate()
    late = hand_in(server, distinct_row(2))
    stays = keep(*WORK, **settings)
    assert records(server, late)[0]["status"] == "succeeded" and goes.process.poll() is None
    hold.unlink()
    assert goes.ended() == 0
    assert [(one["status"], one["attempts"]) for one in records(server, ids)] == [("succeeded", 1)] * 2
    assert metric_sum(fetch(stays.ready().at, METRICS).body.decode(), "job_reclaimed_total") == 0


def test_a_worker_that_stood_still_beyond_its_lease_writes_no_result(place, keep, hold):
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "0.3"}
    server = keep(*SERVE, **settings).ready()
    ids = hand_in(server, [HOLDS, 3.5, 1.4, 0.2])
    late = keep(*WORK, script=CRASHING_MODEL, **settings, DEADLY_HOLD=str(hold)).ready()
    is_held(hold)
    stop_outside_the_store(late, place)
    keep(*WORK, **place.settings)
    (first,) = records(server, ids)
    assert (first["status"], first["attempts"]) == ("succeeded", 2)
    hold.unlink()
    os.kill(late.worker, signal.SIGCONT)
    wait_until(
        lambda: metric_sum(fetch(late.at, METRICS).body.decode(), "job_attempts_total", outcome="refused") == 1, "it is refused"
    )
    assert records(server, ids) == [first] and place.check() == []
    assert metric_sum(fetch(late.at, METRICS).body.decode(), "job_attempts_total", outcome="succeeded") == 0


def stop_outside_the_store(one: RestartingProcess, place: StoreLocation) -> None:
    """SIGSTOP, and not while it holds the lock of a file, which nobody else would get."""
    with closing(place.open()) as store:
        while True:
            os.kill(one.worker, signal.SIGSTOP)
            try:
                store.heartbeat([], 1)
                return
            except BackendUnavailable:
                os.kill(one.worker, signal.SIGCONT)


def test_a_job_that_is_cancelled_while_it_runs_stays_cancelled(place, keep, hold):
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "0.3"}
    server = keep(*SERVE, **settings).ready()
    ids = hand_in(server, [HOLDS, 3.5, 1.4, 0.2])
    worker = keep(*WORK, script=CRASHING_MODEL, **settings, DEADLY_HOLD=str(hold)).ready()
    is_held(hold)
    with RawConnection(server.at) as wire:
        cancelled = insist(wire, http_request("DELETE", f"/jobs/{ids[0]}"))
    assert (cancelled.status, cancelled.json()["status"]) == (200, "cancelled")
    hold.unlink()
    wait_until(
        lambda: metric_sum(fetch(worker.at, METRICS).body.decode(), "job_attempts_total", outcome="refused") == 1, "it is refused"
    )
    assert records(server, ids) == [cancelled.json()] and place.check() == []
    assert records(server, hand_in(server, distinct_row(1)))[0]["status"] == "succeeded"


# What has expired.


def test_what_has_expired_is_removed_while_a_worker_is_in_a_long_run(place, keep, hold):
    settings = {**place.settings, "IRIS_KEEP_SECONDS": "0.1"}
    server = keep(*SERVE, **settings).ready()
    keep(*WORK, script=CRASHING_MODEL, **settings, DEADLY_HOLD=str(hold)).ready()
    done = hand_in(server, distinct_row(1))
    wait_until(lambda: fetch(server.at, http_request("GET", f"/jobs/{done[0]}")).status == 410, "it has expired")
    held = hand_in(server, [HOLDS, 3.5, 1.4, 0.2])
    is_held(hold)
    with closing(place.open()) as store:
        wait_until(lambda: store.counts().by_state["succeeded"] == 0, "it is removed")
    assert fetch(server.at, http_request("GET", f"/jobs/{held[0]}")).json()["status"] == "running"
    hold.unlink()


def test_thousands_that_have_expired_are_removed_while_jobs_go_on(place, keep, model):
    old = np.array([distinct_row(10**6)], np.float32)
    with closing(open_job_store(place.where, Limits(), lambda: time.time() - 7200)) as past, ThreadPoolExecutor(32) as pool:
        ids = list(pool.map(lambda _: past.submit(pack_rows(old)).id, range(5000 if CI else 300)))
        while claims := past.claim("w", 500, 60):
            past.finish([(one, b"{}\n{}") for one in claims])
    server, worker = keep("serve", **place.settings).ready(), keep(*WORK, **place.settings)
    with JobClients(model, [server], 4) as crowd:
        wait_until(lambda: old.tobytes() not in place.rows(), "they are removed")
        done = len(crowd.done) + 20
        wait_until(lambda: crowd.faults or len(crowd.done) > done, "jobs go on")
    crowd.settle(place)
    assert crowd.faults == [] and server.ends == worker.ends == []
    with RawConnection(server.at) as wire:
        assert {insist(wire, http_request("GET", f"/jobs/{one}")).status for one in ids[:50]} == {410}


# A full disk.


def test_on_a_full_disk_jobs_are_refused_and_the_server_goes_on_until_there_is_room(tmp_path, keep, model):
    """A bound for the size of files stands for that of the disk."""
    place = StoreLocation({"IRIS_STATE_DIR": str(tmp_path / "state")}, str(tmp_path / "state/jobs.db"))
    settings = {**place.settings, "IRIS_LEASE_SECONDS": "0.5", "IRIS_JOBS_ATTEMPTS": "1000"}
    server, worker = keep("serve", **settings).ready(), keep(*WORK, **settings).ready()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LoadGenerator(server.at, 1, 1) as load, JobClients(model, [server], 3) as crowd:
        for _ in range(5 if CI else 2):
            done = len(crowd.done) + 20
            wait_until(lambda done=done: crowd.faults or len(crowd.done) > done, "jobs go on")
            for one in (server, worker):
                resource.prlimit(one.worker, resource.RLIMIT_FSIZE, (random.choice((1, 4096, 100_000)), most))
            wait_until(
                lambda: refused(fetch(server.at, http_request("POST", "/jobs", {"data": [distinct_row(next(crowd.numbers))]}))),
                "it is full",
            )
            answers = load.answers + 50
            wait_until(lambda answers=answers: load.answers > answers, "/predict/label goes on")
            assert fetch(server.at, READYZ).status == 200
            for one in (server, worker):
                resource.prlimit(one.worker, resource.RLIMIT_FSIZE, (most, most))
    crowd.settle(place)
    assert crowd.faults == []
    assert load.lost == [] and load.statuses.keys() == {200}
    assert server.ends == worker.ends == []
