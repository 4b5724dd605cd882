"""Job stores: one suite for both, and the failures of each."""

import base64
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from json import loads
from pathlib import Path

import pytest
from http_clients import wait_until
from job_store_invariants import invariant_violations
from job_workers import open_job_store
from project import ROOT

from iris_wsgi.errors import BackendUnavailable, BadStore
from iris_wsgi.patterns.asynchronous.job import (
    ID_PATTERN,
    STATES,
    Claim,
    Job,
    JobExpired,
    JobNotFound,
    JobStore,
    KeyConflict,
    Limits,
    QueueDepth,
    QueueFull,
    new_id,
)
from iris_wsgi.patterns.asynchronous.redis_store import RedisJobStore
from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore

BODY = bytes(range(256))
JOB_WORKERS = ROOT / "tests/support/job_workers.py"
TIMEOUT_SECONDS = 60


class Clock:
    """Clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "redis"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Returns the location of an empty store."""
    if request.param == "sqlite":
        return str(tmp_path / "state/jobs.db")
    server = request.getfixturevalue("shared_redis")
    server.execute("FLUSHALL")
    return server.url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_app(location: str, clock: Clock) -> Iterator[Callable[..., JobStore]]:
    """Function that opens the store. The fixture checks the invariants at the end."""
    stores: list[JobStore] = []

    def make_store(**limits) -> JobStore:
        stores.append(open_job_store(location, Limits(**limits), clock))
        return stores[-1]

    yield make_store
    for item in stores:
        assert invariant_violations(item) == []
        item.close()


@pytest.fixture
def store(make_app: Callable[..., JobStore]) -> JobStore:
    return make_app()


def claim_one(store: JobStore, seconds: float = 30) -> Claim:
    (claim,) = store.claim("w", 1, seconds)
    return claim


def by_state(store: JobStore) -> dict[str, int]:
    return {state: count for state, count in store.counts().by_state.items() if count}


# The states of one job


def test_a_queued_job_has_the_submitted_body_and_note(store, clock):
    job = store.submit(BODY, note=b'{"fast": 1}')
    assert job == Job(job.id, "queued", 0, clock.now, None, None, BODY, None, None, b'{"fast": 1}')
    assert store.get(job.id) == job and re.fullmatch(ID_PATTERN, job.id)


def test_a_claimed_job_runs_and_a_finished_job_has_its_result(store, clock):
    job = store.submit(BODY)
    clock.now += 2
    claim = claim_one(store)
    assert claim == Claim(job._replace(state="running", attempts=1, started=clock.now), 1, False)
    assert store.get(job.id) == claim.job
    clock.now += 3
    assert store.finish([(claim, b"answer")]) == [True]
    assert store.get(job.id) == claim.job._replace(state="succeeded", finished=clock.now, result=b"answer")


def test_a_failed_job_waits_for_its_next_attempt_and_keeps_the_reason(store, clock):
    job = store.submit(BODY)
    assert store.fail(claim_one(store), "no memory", clock.now + 5)
    assert store.claim("w", 1, 30) == [] and by_state(store) == {"queued": 1}
    assert (store.get(job.id).state, store.get(job.id).error) == ("queued", "no memory")
    clock.now += 5
    again = claim_one(store)
    assert (again.job.attempts, again.lease, again.lost) == (2, 2, False)
    assert store.finish([(again, b"r")]) == [True] and store.get(job.id).error is None


def test_a_final_failure_is_a_dead_letter(store, clock):
    job = store.submit(BODY)
    claim = claim_one(store)
    clock.now += 1
    assert store.fail(claim, "wrong width")
    assert store.get(job.id) == claim.job._replace(state="failed", finished=clock.now, error="wrong width")
    clock.now += 1000
    assert store.claim("w", 1, 30) == []


def test_after_the_last_attempt_the_job_keeps_its_own_reason(make_app, clock):
    store = make_app(attempts=3)
    job = store.submit(BODY)
    for i in range(3):
        assert store.fail(claim_one(store), f"failure {i}", clock.now)
    assert store.claim("w", 1, 30) == []
    assert (store.get(job.id).state, store.get(job.id).error, store.get(job.id).attempts) == ("failed", "failure 2", 3)


def test_a_cancelled_job_is_skipped(store, clock):
    first, second, third = (store.submit(BODY) for _ in range(3))
    clock.now += 1
    assert store.cancel(second.id) == second._replace(state="cancelled", finished=clock.now)
    assert [claim.job.id for claim in store.claim("w", 5, 30)] == [first.id, third.id]


def test_a_job_cancelled_during_an_attempt_or_between_attempts_accepts_no_result(store, clock):
    running, waiting = (store.submit(BODY) for _ in range(2))
    claims = store.claim("w", 2, 30)
    assert store.fail(claims[1], "later", clock.now + 1)
    for job in (running, waiting):
        assert store.cancel(job.id).state == "cancelled" and store.cancel(job.id).error is None
    clock.now += 2
    assert store.heartbeat(claims, 30) == [False, False] and store.finish([(claim, b"r") for claim in claims]) == [False, False]
    assert not store.fail(claims[0], "x") and store.claim("w", 2, 30) == []
    assert store.get(running.id).result is None and by_state(store) == {"cancelled": 2}


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_a_finished_job_cannot_be_cancelled(store, end):
    job = store.submit(BODY)
    store.finish([(claim_one(store), b"r")]) if end == "succeeded" else store.fail(claim_one(store), "e")
    assert store.cancel(job.id).state == store.get(job.id).state == end


def test_an_id_does_not_look_like_an_option_and_has_128_random_bits():
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000 and not any(job_id.startswith("-") for job_id in ids)
    assert all(re.fullmatch(ID_PATTERN, job_id) and len(base64.urlsafe_b64decode(f"{job_id[1:]}==")) == 16 for job_id in ids)


def test_an_id_that_was_never_used_is_unknown(store):
    for call in (store.get, store.cancel, lambda job_id: store.wait(job_id, 10)):
        with pytest.raises(JobNotFound):
            call("A" * 22)


# Order and leases


def test_the_oldest_jobs_come_first_up_to_the_requested_number(store, clock):
    ids = []
    for _ in range(7):
        ids.append(store.submit(BODY).id)
        clock.now += 1
    assert [[claim.job.id for claim in store.claim("w", 3, 30)] for _ in range(4)] == [ids[:3], ids[3:6], ids[6:], []]


def test_jobs_with_another_attempt_come_before_new_ones(store, clock):
    old = store.submit(BODY)
    store.fail(claim_one(store), "e", clock.now + 1)
    new = [store.submit(BODY).id for _ in range(2)]
    clock.now += 1
    assert [claim.job.id for claim in store.claim("w", 9, 30)] == [old.id, *new]


def test_a_job_with_an_expired_lease_goes_to_another_worker_and_the_first_cannot_write(store, clock):
    job = store.submit(BODY)
    expired = claim_one(store, 10)
    clock.now += 9.999
    assert store.claim("w", 1, 10) == []
    clock.now += 0.001
    assert store.heartbeat([expired], 10) == store.finish([(expired, b"late")]) == [False]
    again = claim_one(store, 10)
    assert again.lost and again.lease == 2 and again.job.attempts == 2
    assert store.heartbeat([expired], 10) == store.finish([(expired, b"late")]) == [False] and not store.fail(expired, "late")
    assert store.finish([(again, b"right")]) == [True] and store.finish([(expired, b"late")]) == [False]
    assert store.get(job.id).result == b"right"


def test_an_expired_lease_writes_nothing_even_if_the_job_has_no_other_worker(store, clock):
    job = store.submit(BODY)
    expired = claim_one(store, 10)
    clock.now += 10
    assert store.finish([(expired, b"late")]) == [False] and not store.fail(expired, "late")
    assert store.get(job.id) == expired.job


def test_a_heartbeat_extends_the_lease_from_now_on(store, clock):
    store.submit(BODY)
    claim = claim_one(store, 10)
    for _ in range(5):
        clock.now += 9
        assert store.heartbeat([claim], 10) == [True] and store.claim("w", 1, 10) == []
    assert store.finish([(claim, b"r")]) == [True] and store.heartbeat([claim], 10) == [False]


def test_finish_can_be_repeated_after_a_lost_reply_but_the_result_stays(store):
    job = store.submit(BODY)
    claim = claim_one(store)
    assert [store.finish([(claim, result)]) for result in (b"first", b"second")] == [[True], [True]]
    assert store.get(job.id).result == b"first"


def test_a_lease_from_before_a_redrive_is_invalid_after_it(store, clock):
    job = store.submit(BODY)
    old = claim_one(store, 10)
    clock.now += 10
    assert store.fail(claim_one(store, 10), "e") and store.redrive() == 1
    new = claim_one(store, 10)
    assert new.job.attempts == old.job.attempts == 1 and new.lease == 3
    assert store.finish([(old, b"old")]) == [False] and store.finish([(new, b"new")]) == [True]
    assert store.get(job.id).result == b"new"


def test_several_jobs_are_finished_at_once_each_with_its_own_lease(store, clock):
    ids = [store.submit(BODY).id for _ in range(3)]
    claims = store.claim("w", 3, 10)
    store.cancel(ids[1])
    assert store.finish([(claim, claim.job.id.encode()) for claim in claims]) == [True, False, True]
    assert [store.get(job_id).result for job_id in ids] == [ids[0].encode(), None, ids[2].encode()]


def test_a_job_that_ends_its_worker_each_time_is_given_up_without_others(make_app, clock):
    store = make_app(attempts=3)
    jobs = [store.submit(BODY).id for _ in range(5)]
    bad, seen = jobs[2], []
    for _ in range(20):
        claims = store.claim("w", 5, 10)
        seen.append([claim.job.id for claim in claims])
        if bad in seen[-1]:
            # This worker never reports again.
            clock.now += 10
        else:
            store.finish([(claim, b"r") for claim in claims])
    assert seen[0] == jobs and all(len(ids) <= 1 for ids in seen[1:])
    assert by_state(store) == {"succeeded": 4, "failed": 1}
    assert [store.get(job).attempts for job in jobs] == [2, 2, 3, 2, 2]
    assert store.get(bad).error == "No worker reported an outcome in 3 attempts."


def test_jobs_with_another_attempt_do_not_share_a_claim_with_a_lost_one(store, clock):
    retried, lost_job = store.submit(BODY).id, store.submit(BODY).id
    claims = store.claim("w", 2, 10)
    store.fail(claims[0], "e", clock.now + 1)
    store.submit(BODY)
    clock.now += 10
    assert [[claim.job.id for claim in store.claim("w", 5, 10)] for _ in range(2)] == [[retried], [lost_job]]


# The limit, keys, dead letters, and counts


def test_the_queue_is_full_exactly_at_its_limit(make_app, clock):
    store = make_app(queued=3)
    jobs = [store.submit(BODY, "key"), store.submit(BODY), store.submit(BODY)]
    with pytest.raises(QueueFull):
        store.submit(BODY)
    assert store.submit(BODY, "key") == jobs[0]
    claim = claim_one(store)
    store.submit(BODY)
    store.fail(claim, "e", clock.now + 1)
    with pytest.raises(QueueFull):
        store.submit(BODY)
    assert by_state(store) == {"queued": 4}
    for job in jobs[:2]:
        store.cancel(job.id)
    assert store.submit(BODY).state == "queued"


def test_no_more_than_the_limit_are_accepted_at_once(make_app):
    store = make_app(queued=5)

    def submit(_: int) -> bool:
        try:
            return bool(store.submit(BODY))
        except QueueFull:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(40))) == 5
    assert by_state(store) == {"queued": 5}


def test_one_key_is_one_job_at_once_and_later(store, clock):
    with ThreadPoolExecutor(8) as pool:
        jobs = set(pool.map(lambda _: store.submit(BODY, "the key"), range(40)))
    assert len(jobs) == 1 and by_state(store) == {"queued": 1}
    store.finish([(claim_one(store), b"r")])
    clock.now += 3599
    assert store.submit(BODY, "the key").result == b"r"
    assert store.submit(BODY, "another").id != jobs.pop().id != store.submit(BODY).id


def test_another_body_with_the_same_key_is_refused(store):
    job = store.submit(BODY, "key")
    with pytest.raises(KeyConflict):
        store.submit(BODY + b"x", "key")
    assert store.submit(BODY, "key") == job


def test_an_empty_key_is_ignored(store):
    assert store.submit(BODY, "").id != store.submit(BODY, "").id and store.submit(BODY, note=b"").id


@pytest.mark.parametrize("swept", [False, True])
def test_a_key_lives_as_long_as_its_job_and_then_belongs_to_the_next(store, clock, swept):
    first = store.submit(BODY, "key")
    store.finish([(claim_one(store), b"r")])
    clock.now += 3600
    assert store.sweep() == 1 if swept else True
    second = store.submit(b"another", "key")
    assert second.id != first.id and store.sweep() == (0 if swept else 1)
    assert store.submit(b"another", "key") == second
    with pytest.raises(JobExpired):
        store.get(first.id)


def test_dead_letters_go_back_into_the_queue_by_id_or_all(store, clock):
    ids = [store.submit(BODY).id for _ in range(4)]
    for claim in store.claim("w", 3, 30):
        store.fail(claim, "e")
    clock.now += 1
    assert store.redrive([ids[1], ids[3], "A" * 22]) == 1
    assert [claim.job.id for claim in store.claim("w", 9, 30)] == [ids[3], ids[1]]
    assert store.redrive(max_jobs=1) == 1 and store.redrive() == 1 and store.redrive() == 0
    job = store.get(ids[0])
    assert (job.state, job.attempts, job.started, job.finished, job.error) == ("queued", 0, None, None, None)
    assert {claim.job.id for claim in store.claim("w", 9, 30)} == {ids[0], ids[2]}


def test_a_redrive_does_not_exceed_the_limit_of_the_queue(make_app):
    store = make_app(queued=3)
    for _ in range(3):
        store.submit(BODY)
        store.fail(claim_one(store), "e")
    store.submit(BODY)
    assert store.redrive() == 2 and by_state(store) == {"queued": 3, "failed": 1}
    assert store.redrive() == 0


def test_counts_have_each_state_and_the_age_of_the_oldest_job(store, clock):
    assert store.counts() == QueueDepth(dict.fromkeys(STATES, 0), 0.0)
    jobs = []
    for _ in range(6):
        jobs.append(store.submit(BODY))
        clock.now += 10
    claims = store.claim("w", 3, 30)
    store.finish([(claims[0], b"r")])
    store.fail(claims[1], "e")
    store.cancel(jobs[3].id)
    assert store.counts() == QueueDepth({"queued": 2, "running": 1, "succeeded": 1, "failed": 1, "cancelled": 1}, 20.0)


# Expiration


@pytest.mark.parametrize(("state", "retention"), [("succeeded", 100), ("cancelled", 100), ("failed", 200)])
def test_a_finished_job_expires_is_gone_for_a_while_and_then_unknown(make_app, clock, state, retention):
    store = make_app(keep_seconds=100, keep_failed_seconds=200, remember_seconds=50)
    job = store.submit(BODY)
    end = {
        "succeeded": lambda: store.finish([(claim_one(store), b"r")]),
        "cancelled": lambda: store.cancel(job.id),
        "failed": lambda: store.fail(claim_one(store), "e"),
    }
    end[state]()
    clock.now += retention - 1
    assert store.sweep() == 0 and store.get(job.id).state == state
    clock.now += 1
    for removed in (1, 0):
        for call in (store.get, store.cancel, lambda job_id: store.wait(job_id, 10)):
            with pytest.raises(JobExpired):
                call(job.id)
        assert store.redrive([job.id]) == 0 and store.sweep() == removed
    clock.now += 50
    assert store.sweep() == 1 and store.sweep() == 0 and by_state(store) == {}
    with pytest.raises(JobNotFound):
        store.get(job.id)


def test_an_unfinished_job_never_expires(store, clock):
    jobs = [store.submit(BODY) for _ in range(2)]
    claim_one(store, 10**9)
    clock.now += 10**8
    assert store.sweep() == 0 and [store.get(job.id).state for job in jobs] == ["running", "queued"]


def test_expired_dead_letters_are_not_redriven(make_app, clock):
    store = make_app(keep_failed_seconds=100)
    job = store.submit(BODY)
    store.fail(claim_one(store), "e")
    clock.now += 100
    assert store.redrive() == store.redrive([job.id]) == 0


def test_sweeping_works_in_small_batches(store, clock):
    for _ in range(25):
        store.submit(BODY)
    store.finish([(claim, b"r") for claim in store.claim("w", 25, 30)])
    clock.now += 3600
    assert [store.sweep(10) for _ in range(4)] == [10, 10, 5, 0]
    clock.now += 3600
    assert [store.sweep(10) for _ in range(4)] == [10, 10, 5, 0]


# Waiting


def test_waiting_ends_with_the_job(store):
    job = store.submit(BODY)
    claim = claim_one(store)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, job.id, TIMEOUT_SECONDS)
        assert not waiting.done()
        store.finish([(claim, b"r")])
        assert waiting.result(TIMEOUT_SECONDS).result == b"r"
    assert store.wait(job.id, TIMEOUT_SECONDS).state == "succeeded"


def test_waiting_ends_after_its_timeout(store):
    job = store.submit(BODY)
    # No worker processes the job, so only the timeout can end this.
    assert store.wait(job.id, 0.05) == store.wait(job.id, 0) == job


# Several processes


def worker(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, JOB_WORKERS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_claim_a_thousand_jobs_each_exactly_once(location, make_app, clock):
    workers = [worker("claim_all", location) for _ in range(2)]
    store = make_app()
    # The processes use the real time.
    clock.now = time.time()
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: store.submit(BODY).id, range(1000)))
    for process in workers:
        assert process.stdout.readline() == "ready\n"
    # Neither worker continues before both have claimed.
    for response in ("claimed\n", None):
        for process in workers:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert response is None or [process.stdout.readline() for process in workers] == [response] * 2
    done = []
    for process in workers:
        result, error = process.communicate(timeout=TIMEOUT_SECONDS)
        assert not error
        done.append(loads(result))
    assert all(done) and sorted(done[0] + done[1]) == sorted(ids)
    assert [store.get(job_id).result for job_id in done[0][:10]] == [str(workers[0].pid).encode()] * 10
    assert by_state(store) == {"succeeded": 1000}


@pytest.mark.repeats
def test_kill_9_at_any_moment_loses_nothing_and_does_nothing_twice(location):
    kills = "300" if os.environ.get("CI") == "true" else "30"
    result, error = worker("kill", location, kills, str(time.time_ns())).communicate(timeout=3600)
    assert not error
    result = loads(result)
    assert result["faults"] == []
    assert result["submitted"] > int(kills) // 2 and result["finished"] > int(kills) // 2


# SQLite


def test_only_the_owner_can_read_the_database_files(tmp_path):
    with closing(SqliteJobStore(tmp_path / "a/jobs.db")) as store:
        store.submit(BODY)
        assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == dict.fromkeys(
            ("jobs.db", "jobs.db-gate", "jobs.db-wal", "jobs.db-shm"), 0o600
        )


def test_jobs_are_there_when_the_file_is_opened_again(tmp_path):
    for i in range(3):
        with closing(SqliteJobStore(tmp_path / "jobs.db")) as store:
            store.submit(BODY)
            assert by_state(store) == {"queued": i + 1}


def changed(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        SqliteJobStore(path).close()
        with closing(sqlite3.connect(path)) as db:
            db.executescript(statement)

    return change


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_bytes(b"a text that is long enough to be looked at" * 100), "is not an SQLite database"),
        (changed("PRAGMA user_version = 2"), "has schema version 2; this program supports version 1"),
        (changed("PRAGMA application_id = 5"), "is an SQLite database of another program"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, spoil, expected):
    spoil(tmp_path / "jobs.db")
    with pytest.raises(BadStore, match=f"^{tmp_path}/jobs.db {expected}$"):
        SqliteJobStore(tmp_path / "jobs.db")


def test_an_impossible_path_is_reported_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/jobs.db", tmp_path):
        with pytest.raises(BackendUnavailable, match=r"^the store \S+ cannot be opened(: \w+ \w+; set IRIS_STATE_DIR .*)?$"):
            SqliteJobStore(path)


def test_a_locked_file_is_reported_soon_and_works_again_after(tmp_path):
    with closing(SqliteJobStore(tmp_path / "jobs.db")) as store, closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
        job = store.submit(BODY)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendUnavailable, match=r"^the store \S+ is locked by another process$"):
            store.submit(BODY)
        assert store.get(job.id) == job and store.counts().by_state["queued"] == 1
        other.execute("ROLLBACK")
        store.submit(BODY)
        assert invariant_violations(store) == [] and by_state(store) == {"queued": 2}


def test_a_full_disk_is_reported_loses_nothing_and_works_again_after(tmp_path):
    """A limit for the size of files replaces a full disk, in a separate process."""
    code = (
        "import resource, sys\n"
        "from job_store_invariants import invariant_violations\n"
        "from iris_wsgi.errors import BackendUnavailable\n"
        "from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore\n"
        "from pathlib import Path\n"
        "store = SqliteJobStore(Path(sys.argv[1]))\n"
        "ids, (_, hard) = [], resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))\n"
        "try:\n"
        "    while True: ids.append(store.submit(bytes(10_000)).id)\n"
        "except BackendUnavailable as error: print(error)\n"
        "assert len(ids) > 5 and store.get(ids[-1]).body == bytes(10_000)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "ids += [store.submit(b'').id for _ in range(50)]\n"
        "assert all(store.get(one) for one in ids) and store.counts().by_state['queued'] == len(ids)\n"
        "assert invariant_violations(store) == []\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "jobs.db"], capture_output=True, text=True, cwd=ROOT / "tests/support"
    )
    assert (result.stdout, result.stderr) == (f"the store {tmp_path}/jobs.db cannot be written or read\n", "")


def test_a_database_at_its_maximum_size_has_no_room(tmp_path):
    with closing(SqliteJobStore(tmp_path / "jobs.db")) as store:
        job = store.submit(BODY)
        store.database.writer.execute("PRAGMA max_page_count = 1")
        with pytest.raises(BackendUnavailable, match=r"^the store \S+ has no room left to grow$"):
            store.submit(bytes(10**6))
        assert store.get(job.id) == job and store.submit(bytes(10**6)).state == "queued" and invariant_violations(store) == []


def test_a_damaged_file_is_found(tmp_path):
    with closing(SqliteJobStore(tmp_path / "jobs.db")) as store:
        ids = [store.submit(BODY).id for _ in range(1000)]
    content = bytearray((tmp_path / "jobs.db").read_bytes())
    content[40 * 4096 : 41 * 4096] = b"\xff" * 4096
    (tmp_path / "jobs.db").write_bytes(content)
    with closing(SqliteJobStore(tmp_path / "jobs.db")) as store:
        assert invariant_violations(store)
        with pytest.raises(BackendUnavailable, match=r"^the store \S+ is damaged$"):
            [store.get(job_id) for job_id in ids]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM content", "job {} has no content"),
        ("DROP TRIGGER job_goes; DELETE FROM job", "the number of queued jobs is incorrect"),
        ("UPDATE job SET attempts = 1", "job {} is queued, due None, 1 attempts"),
        ("UPDATE job SET finished = 1", "job {} is queued, finished 1.0"),
        ("INSERT INTO gone SELECT id, 1 FROM job", "job {} exists and is also marked as gone"),
    ],
)
def test_the_check_finds_violated_invariants(tmp_path, statement, expected):
    with closing(SqliteJobStore(tmp_path / "jobs.db")) as store:
        job = store.submit(BODY)
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
            db.executescript(statement)
        assert expected.format(job.id) in invariant_violations(store)


def test_writes_that_wait_at_the_same_time_are_one_commit_and_one_refusal_affects_no_other(tmp_path):
    with (
        closing(SqliteJobStore(tmp_path / "jobs.db", Limits(queued=5), busy_seconds=TIMEOUT_SECONDS)) as store,
        ThreadPoolExecutor(9) as pool,
    ):
        begun, go, batches = threading.Event(), threading.Event(), []
        commit = store.database.commit
        store.database.commit = lambda: (batches.append(len(store.database.waiting)), commit())
        first = pool.submit(store.database.write, lambda _: (begun.set(), go.wait(TIMEOUT_SECONDS)))
        begun.wait(TIMEOUT_SECONDS)
        waiting_writes = [pool.submit(store.submit, BODY) for _ in range(8)]
        while len(store.database.waiting) < 8:
            time.sleep(0.001)
        go.set()
        assert first.result(TIMEOUT_SECONDS) == (None, True)
        assert sum(isinstance(other.exception(TIMEOUT_SECONDS), QueueFull) for other in waiting_writes) == 3
        assert batches == [1, 8] and by_state(store) == {"queued": 5}


def test_a_failed_commit_is_reported_to_all_its_writes_and_undone(tmp_path):
    with closing(SqliteJobStore(tmp_path / "jobs.db")) as store:
        with pytest.raises(ZeroDivisionError):
            store.database.write(lambda db: (db.execute("DELETE FROM tally"), 1 / 0))
        assert invariant_violations(store) == [] and store.submit(BODY).state == "queued"


# Redis


def assert_unavailable(call: Callable[[], object], reason: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"^the Redis at [^ ]+ failed: {reason}"):
        call()


def calls_of_every_method(store: JobStore, claim: Claim) -> list[Callable[[], object]]:
    return [
        lambda: store.submit(BODY),
        lambda: store.get(claim.job.id),
        lambda: store.wait(claim.job.id, 10),
        lambda: store.cancel(claim.job.id),
        lambda: store.claim("w", 1, 30),
        lambda: store.heartbeat([claim], 30),
        lambda: store.finish([(claim, b"r")]),
        lambda: store.fail(claim, "e"),
        store.redrive,
        store.counts,
        store.sweep,
    ]


@pytest.fixture
def open_redis(clock: Clock) -> Iterator[Callable[[str], JobStore]]:
    opened = []

    # On a busy disk a write may take its time.
    def open_it(url: str, seconds: float = TIMEOUT_SECONDS) -> JobStore:
        opened.append(RedisJobStore(url, clock=clock, timeout_seconds=seconds))
        return opened[-1]

    yield open_it
    for item in opened:
        item.close()


def test_a_stopped_redis_is_reported_within_the_timeout_and_works_again_when_it_continues(own_redis, open_redis):
    store = open_redis(own_redis.url, 0.5)
    # On a busy disk the first writes may take longer than a call may.
    retry_until_available(lambda: store.submit(BODY))
    claim = retry_until_available(lambda: claim_one(store))
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        assert_unavailable(lambda: store.get(claim.job.id), "Timeout")
        assert_unavailable(lambda: store.submit(BODY), "Timeout")
        assert_unavailable(lambda: store.wait(claim.job.id, 10), "Timeout")
        assert_unavailable(open_redis(own_redis.url, 0.5).counts, "Timeout")
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    assert retry_until_available(lambda: store.get(claim.job.id)) == claim.job
    assert store.finish([(claim, b"r")]) == [True] and invariant_violations(store) == []


def retry_until_available(call: Callable[[], object]) -> object:
    """Repeats a call until the store is available, and returns its result."""
    responses = []

    def is_available() -> bool:
        with suppress(BackendUnavailable):
            responses.append(call())
        return bool(responses)

    wait_until(is_available, "the store is back")
    return responses[0]


def test_a_redis_without_memory_refuses_jobs_but_finishes_and_removes_the_stored_ones(own_redis):
    clock = Clock()
    store = open_job_store(own_redis.url, Limits(keep_seconds=100), clock)
    free = own_redis.execute("INFO", "memory")["used_memory"]
    jobs = [store.submit(bytes(60_000)) for _ in range(50)]
    own_redis.execute("CONFIG", "SET", "maxmemory", str(free + 1_500_000), "maxmemory-policy", "noeviction")
    with pytest.raises(BackendUnavailable, match="OOM|maxmemory"):
        store.submit(BODY)
    store.cancel(jobs[0].id)
    claims = store.claim("w", 50, 30)
    assert len(claims) == 49 and all(store.heartbeat(claims, 30))
    assert store.fail(claims[0], "later", clock.now + 1) and all(store.finish([(claim, b"r") for claim in claims[1:]]))
    clock.now += 2
    assert (
        store.fail(claim_one(store), "for good") and store.redrive() == 1 and store.finish([(claim_one(store), b"r")]) == [True]
    )
    assert by_state(store) == {"succeeded": 49, "cancelled": 1}
    clock.now += 101
    while store.sweep(7):
        pass
    assert by_state(store) == {} and invariant_violations(store) == []
    assert store.submit(BODY).state == "queued"
    store.close()


def test_a_missing_redis_is_reported_by_every_method(own_redis, open_redis):
    store = open_redis(own_redis.url)
    store.submit(BODY)
    claim = claim_one(store)
    own_redis.kill()
    for call in calls_of_every_method(store, claim):
        assert_unavailable(call, "(Error|Connection)")
    own_redis.start()
    assert store.finish([(claim, b"r")]) == [True]


def test_a_killed_redis_has_every_acknowledged_job_when_it_is_back(own_redis, open_redis):
    store = open_redis(own_redis.url)
    acknowledged, finished = [], []

    def work() -> None:
        try:
            while True:
                acknowledged.append(store.submit(BODY).id)
                if len(acknowledged) % 3 == 0:
                    claim = claim_one(store)
                    store.finish([(claim, b"r")])
                    finished.append(claim.job.id)
        except BackendUnavailable:
            pass

    for count in (50, 100, 150):
        thread = threading.Thread(target=work)
        thread.start()
        while len(acknowledged) < count:
            assert thread.is_alive()
            time.sleep(0.001)
        own_redis.kill()
        thread.join()
        own_redis.start()
        assert [store.get(job_id).state for job_id in finished] == ["succeeded"] * len(finished)
        assert {store.get(job_id).state for job_id in acknowledged} <= {
            "queued",
            "running",
            "succeeded",
        } and invariant_violations(store) == []


def test_a_read_only_replica_is_reported_and_works_after_its_promotion(own_redis, open_redis):
    store = open_redis(own_redis.url)
    job = store.submit(BODY)
    own_redis.execute("REPLICAOF", "127.0.0.1", "1")
    assert_unavailable(lambda: store.submit(BODY), ".*read only replica")
    assert_unavailable(lambda: store.claim("w", 1, 30), ".*read only replica")
    assert store.get(job.id) == job
    own_redis.execute("REPLICAOF", "NO", "ONE")
    assert claim_one(store).job.id == job.id


def test_a_key_of_another_type_is_reported(own_redis, open_redis):
    store = open_redis(own_redis.url)
    own_redis.execute("SET", "{iris}:queued", "a string")
    assert_unavailable(lambda: store.submit(BODY), "WRONGTYPE")
    assert_unavailable(store.counts, ".*WRONGTYPE")


def test_a_reply_of_another_form_is_reported(own_redis, open_redis, monkeypatch):
    store = open_redis(own_redis.url)
    own_redis.execute("HSET", "{iris}:job:x", "state", "queued", "attempts", "many", "body", "b", "created", "1")
    with pytest.raises(BackendUnavailable, match=r"sent a malformed reply$"):
        store.get("x")
    for response in (None, 5, b"text", [], [[]], [b"queued", [b"x"]]):
        monkeypatch.setitem(store.scripts, "get", lambda *_, response=response: response)
        with pytest.raises(BackendUnavailable, match=r"sent a malformed reply$"):
            store.get("x")


def test_a_password_is_never_shown(open_redis):
    store = open_redis("redis://user:secret@127.0.0.1:1/0")
    with pytest.raises(BackendUnavailable) as caught:
        store.counts()
    assert "secret" not in str(caught.value) and "127.0.0.1:1" in str(caught.value)


def test_machines_need_not_agree_on_the_time(own_redis):
    with closing(RedisJobStore(own_redis.url, timeout_seconds=TIMEOUT_SECONDS)) as store:
        job = store.submit(BODY)
        seconds, microseconds = own_redis.execute("TIME")
        assert 0 <= seconds + microseconds / 1e6 - job.created < 60 and store.counts().oldest_seconds < 60


def test_all_keys_are_in_one_slot_of_a_cluster(own_redis, open_redis):
    store = open_redis(own_redis.url)
    store.submit(BODY, "key")
    for _ in range(3):
        store.submit(BODY)
    claims = store.claim("w", 4, 30)
    store.finish([(claims[0], b"r")])
    store.fail(claims[1], "e")
    store.cancel(claims[2].job.id)
    names = own_redis.execute("KEYS", "*")
    assert len(names) >= 10 and all(name.startswith(b"{iris}:") for name in names)


def test_workers_without_recent_claims_are_removed_from_the_group(own_redis, open_redis):
    store = open_redis(own_redis.url)
    assert store.sweep() == 0
    for name in ("busy", "done", "idle"):
        store.submit(BODY) if name != "idle" else None
        claims = store.claim(name, 1, 30)
        store.finish([(claim, b"r") for claim in claims if name == "done"])
    # An hour passes on the server's clock, which determines the idle time.
    store.scripts["sweep"] = store.register(store.sources["sweep"].replace("> 3600000", ">= 0"))
    store.sweep()
    assert [consumer["name"] for consumer in store.client.redis.xinfo_consumers("{iris}:stream", "workers")] == [b"busy"]


def test_the_check_of_redis_finds_violated_invariants(own_redis, open_redis):
    store = open_redis(own_redis.url)
    job = store.submit(BODY)
    job_key = f"{{iris}}:job:{job.id}"
    for words, expected in [
        (("ZADD", "{iris}:due", "1", job.id), f"job {job.id} is queued after 0 attempts"),
        (("HSET", job_key, "state", "failed"), f"job {job.id} is listed as queued and its state is failed"),
        (("HSET", job_key, "finished", "1"), f"job {job.id} is queued with invalid fields"),
        (("ZADD", "{iris}:gone", "1", job.id), f"job {job.id} exists and is also marked as gone"),
        (("XADD", "{iris}:stream", "*", "id", "x"), "entry without a job x"),
        (("HSET", "{iris}:keys", "k", "x"), "an idempotency key refers to the missing job x"),
        (("HSET", "{iris}:job:y", "id", "y"), "there are 2 records and 1 jobs"),
        (("HDEL", job_key, "body"), f"job {job.id} has no body"),
    ]:
        own_redis.execute(*words)
        assert expected in invariant_violations(store)
