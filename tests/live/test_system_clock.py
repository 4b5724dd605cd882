"""Changes of the system clock while jobs wait, run, and are stored: the stores use the time since the boot."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from http_clients import fetch, http_request, kill_tree, wait_until
from job_store_invariants import invariant_violations
from optional_programs import require_program

from iris_wsgi.patterns.asynchronous.job import JobExpired, Limits
from iris_wsgi.patterns.asynchronous.sqlite_store import LATEST, SqliteJobStore
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItemStore
from iris_wsgi.storage.sqlite import BootClock

BODY = bytes(64)
JOB = {"data": [[5.1, 3.5, 1.4, 0.2]]}
HOURS = 7200.0
TIMEOUT_SECONDS = 60.0


class Machine:
    """Machine with a wall clock that can be changed, an uptime that cannot, and restarts."""

    def __init__(self) -> None:
        self.wall, self.up, self.boot = 1_800_000_000.0, 1000.0, "one"

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds

    def restart(self, wall: float) -> None:
        self.wall, self.up, self.boot = wall, 10.0, self.boot + "'"

    def jobs(self, path: Path, **limits) -> SqliteJobStore:
        return store_on(self, SqliteJobStore, path, Limits(**limits))


def store_on(machine: Machine, kind: type, *arguments):
    """Opens a store on this machine."""
    with pytest.MonkeyPatch.context() as patch:

        def clock(latest: str) -> BootClock:
            return BootClock(latest, lambda: machine.wall, lambda: machine.up, lambda: machine.boot)

        patch.setattr(f"{kind.__module__}.BootClock", clock)
        return kind(*arguments)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.mark.parametrize("step", [-HOURS, HOURS, -10 * HOURS])
def test_a_lease_ends_after_its_time_whatever_the_clock_is_set_to(machine, path, step):
    with closing(machine.jobs(path)) as store:
        store.submit(BODY)
        (claim,) = store.claim("dead", 1, 30)
        machine.wall += step
        machine.pass_by(29)
        assert store.claim("w", 1, 30) == []
        assert store.heartbeat([claim], 30) == [True]
        machine.pass_by(31)
        (again,) = store.claim("w", 1, 30)
        assert again.lost and store.finish([(claim, b"late")]) == [False] and store.finish([(again, b"r")]) == [True]


@pytest.mark.parametrize("step", [-HOURS, HOURS])
def test_finished_jobs_are_kept_for_their_time_when_the_clock_is_changed_and_corrected(machine, path, step):
    with closing(machine.jobs(path, keep_seconds=3600)) as store:
        machine.wall += step
        job = store.submit(BODY)
        assert store.finish([(store.claim("w", 1, 30)[0], b"r")]) == [True]
        machine.wall -= step
        machine.pass_by(3599)
        assert store.get(job.id).state == "succeeded" and store.sweep() == 0
        machine.pass_by(1)
        with pytest.raises(JobExpired):
            store.get(job.id)
        assert store.sweep() == 1


def test_processes_of_one_boot_share_a_clock_whenever_they_start(machine, path):
    with closing(machine.jobs(path)) as store:
        store.submit(BODY)
        store.claim("dead", 1, 30)
        machine.wall -= HOURS
        with closing(machine.jobs(path)) as other:
            machine.pass_by(29.9)
            assert other.claim("w", 1, 30) == []
            machine.pass_by(0.2)
            assert len(other.claim("w", 1, 30)) == 1


def test_a_step_of_the_clock_is_reported_and_times_are_shown_with_correct_ages(machine, path):
    with closing(machine.jobs(path)) as store:
        job = store.submit(BODY)
        assert store.concerns() == [] and store.get(job.id).created == machine.wall
        machine.pass_by(10)
        machine.wall += 1
        assert store.concerns() == []
        machine.wall += HOURS - 1
        assert store.concerns() == [
            "The system clock was moved by +7200 s while the store was in use; ages of jobs and leases do not follow the change."
        ]
        assert store.get(job.id).created == machine.wall - 10 and store.counts().oldest_seconds == 10
        assert store.submit(BODY).created == machine.wall


@pytest.mark.parametrize("wall", [1_800_000_100.0, 1_700_000_000.0, 0.0])
def test_after_a_boot_no_age_is_negative_and_earlier_leases_expire(machine, path, wall):
    with closing(machine.jobs(path)) as store:
        done, _ = store.submit(BODY), store.submit(BODY)
        store.finish([(store.claim("w", 1, 30)[0], b"r")])
        store.claim("dead", 1, 30)
    machine.restart(wall)
    with closing(machine.jobs(path)) as store:
        assert store.get(done.id).state == "succeeded" and store.counts().oldest_seconds == 0
        machine.pass_by(30)
        assert len(store.claim("w", 1, 30)) == 1 and invariant_violations(store) == []


def test_a_database_of_an_earlier_version_can_be_used_and_so_can_an_earlier_program(machine, path):
    with closing(machine.jobs(path)) as store:
        job = store.submit(BODY)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE boot")
        # The clock has been set back since then.
        db.execute("UPDATE job SET since = since + 7200")
        db.commit()
        assert db.execute("PRAGMA user_version").fetchone() == (1,) and db.execute(LATEST).fetchone() == (1_800_007_200.0,)
    with closing(machine.jobs(path)) as store:
        assert store.get(job.id).state == "queued" and store.counts().oldest_seconds == 0
        assert len(store.claim("w", 1, 30)) == 1


def test_without_the_number_of_the_boot_the_clock_of_each_process_is_monotonic(machine, path):
    machine.boot = ""
    with closing(machine.jobs(path)) as store:
        store.submit(BODY)
        store.claim("dead", 1, 30)
        machine.wall -= HOURS
        machine.pass_by(31)
        assert len(store.claim("w", 1, 30)) == 1


def test_a_first_look_at_items_lists_recent_writes_although_the_clock_was_changed(machine, tmp_path):
    for step in (HOURS, -HOURS):
        with closing(store_on(machine, SqliteItemStore, tmp_path / f"items{step}.db", {})) as store:
            store.put("a", b"aaaa" * 4)
            machine.wall += step
            machine.pass_by(5)
            store.put("b", b"aaaa" * 4)
            assert set(store.changes(None, 60).versions) == {"a", "b"} and set(store.changes(None, 3).versions) == {"b"}


@pytest.mark.long
def test_jobs_of_a_killed_worker_are_done_after_the_clock_was_set_back_two_hours(run, tmp_path, slow_model):
    require_program("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    stamp = tmp_path / "time"
    stamp.write_text("+0")
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "IRIS_STATE_DIR": str(tmp_path / "state"),
    }
    server = run("--role", "asynchronous", **faked)
    lease = ("--lease-seconds", "2")
    dead = run(*lease, command="worker", **faked)
    kill_tree(dead.process)
    job = fetch(server, http_request("POST", "/jobs", JOB)).json()
    with closing(SqliteJobStore(tmp_path / "state/jobs.db", busy_seconds=TIMEOUT_SECONDS)) as store:
        assert len(store.claim("a worker that dies", 1, 2)) == 1
    stamp.write_text("-7200")
    run(*lease, command="worker", **faked)

    def state() -> str:
        return fetch(server, http_request("GET", job["href"])).json()["status"]

    wait_until(lambda: state() == "succeeded", "another worker has finished the job")
    wait_until(
        lambda: "moved by -7200 s" in str(fetch(server, http_request("GET", "/readyz")).body), "the readiness has the warning"
    )
    stamp.write_text("+0")
    assert state() == "succeeded"
    server.process.terminate()
    assert "moved by -7200 s" in server.process.communicate(timeout=TIMEOUT_SECONDS)[1]
