"""Job store in an SQLite file, for the threads and processes of one machine, and the choice of the store by the settings."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from iris_wsgi.patterns.asynchronous.job import (
    DEFAULT,
    DONE,
    Claim,
    Clock,
    Job,
    JobExpired,
    JobNotFound,
    JobStore,
    KeyConflict,
    Limits,
    QueueDepth,
    QueueFull,
    Stop,
    digest_of,
    lost_error,
    never,
    new_id,
    wait_until,
)
from iris_wsgi.settings import Settings
from iris_wsgi.storage.sqlite import STEPPED, BootClock, SqliteDatabase, SqliteSchema

FILE = "jobs.db"
REMEMBER_SECONDS = 86400.0
# `since` is the time at which a job entered its state. `due` is the time at which another worker may claim the job: the end of
# its lease, or the time of its next attempt. New jobs and done jobs have no `due`. The large columns are in a separate table,
# because each heartbeat would write them again. Triggers count the jobs by state: counting rows would take longer with each job.
SCRIPT = """
CREATE TABLE job (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    since REAL NOT NULL,
    due REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    lease INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    key TEXT,
    digest BLOB,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    error TEXT,
    result BLOB
) STRICT;

CREATE TABLE content (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, note BLOB) STRICT;

CREATE TABLE gone (id TEXT PRIMARY KEY, until REAL NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE tally (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX job_key ON job (key) WHERE key IS NOT NULL;

CREATE INDEX job_state ON job (state, since);

CREATE INDEX job_due ON job (due) WHERE due IS NOT NULL;

CREATE INDEX job_new ON job (since, seq) WHERE state = 'queued' AND due IS NULL;

CREATE INDEX gone_until ON gone (until);

CREATE TRIGGER job_comes AFTER INSERT ON job BEGIN UPDATE tally SET jobs = jobs + 1 WHERE state = new.state; END;

CREATE TRIGGER job_goes AFTER DELETE ON job BEGIN UPDATE tally SET jobs = jobs - 1 WHERE state = old.state; END;

CREATE TRIGGER job_moves AFTER UPDATE OF state ON job WHEN old.state != new.state BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
    UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
END;

INSERT INTO tally VALUES ('queued', 0), ('running', 0), ('succeeded', 0), ('failed', 0), ('cancelled', 0)
"""
APPLICATION, VERSION = 0x69726A6F, 1
LATEST = "SELECT max(since) FROM (SELECT max(since) AS since FROM job GROUP BY state)"

JOB = "SELECT id, state, attempts, created, started, finished, body, result, error, note FROM job JOIN content USING (seq)"
HELD = "id = ? AND lease = ? AND state = 'running' AND due > ?"


class SqliteJobStore:
    """JobStore over SQLite. Without a `clock` the clock of this boot counts.

    The constructor raises BadStore for a file of another program, and BackendUnavailable.
    Claims have times of the store's clock. Other records have times of the system clock, so that ages are correct.
    """

    def __init__(self, path: Path, limits: Limits = DEFAULT, clock: Clock | None = None, busy_seconds: float = 0.15) -> None:
        self.boot_clock = BootClock(LATEST)
        self.limits, self.clock = limits, clock or self.boot_clock
        self.database = SqliteDatabase(path, SqliteSchema(APPLICATION, VERSION, SCRIPT, self.boot_clock.anchor), busy_seconds)

    def submit(self, body: bytes, key: str | None = None, note: bytes | None = None) -> Job:
        key = key or None
        digest = digest_of(body) if key else None

        def work(db: sqlite3.Connection) -> Job:
            now = self.clock()
            if first := db.execute("SELECT id, digest FROM job WHERE key = ?", (key,)).fetchone():
                try:
                    job = self.find(db, first[0], now)
                except JobExpired:
                    pass
                else:
                    if first[1] != digest:
                        raise KeyConflict
                    return job
            if self.room(db) <= 0:
                raise QueueFull
            db.execute("UPDATE job SET key = NULL WHERE key = ?", (key,))
            job = Job(new_id(), "queued", 0, now, None, None, body, None, None, note)
            values = (job.id, job.state, now, key, digest, now)
            added = db.execute("INSERT INTO job (id, state, since, key, digest, created) VALUES (?, ?, ?, ?, ?, ?)", values)
            db.execute("INSERT INTO content VALUES (?, ?, ?)", (added.lastrowid, body, note))
            return job

        return self.in_system_time(self.database.write(work))

    def get(self, job_id: str) -> Job:
        with self.database.read() as db:
            job = self.find(db, job_id, self.clock())
        return self.in_system_time(job)

    def wait(self, job_id: str, timeout_seconds: float, stop: Stop = never) -> Job:
        def done() -> bool:
            with self.database.read() as db:
                row = db.execute("SELECT state FROM job WHERE id = ?", (job_id,)).fetchone()
            return row is None or row[0] in DONE

        wait_until(done, timeout_seconds, stop)
        return self.get(job_id)

    def cancel(self, job_id: str) -> Job:
        def work(db: sqlite3.Connection) -> Job:
            now = self.clock()
            if self.find(db, job_id, now).state not in DONE:
                db.execute(
                    "UPDATE job SET state = 'cancelled', since = ?, finished = ?, due = NULL, error = NULL WHERE id = ?",
                    (now, now, job_id),
                )
            return self.find(db, job_id, now)

        return self.in_system_time(self.database.write(work))

    def system_clock_step(self) -> int:
        return self.boot_clock.step_seconds() if self.clock is self.boot_clock else 0

    def in_system_time(self, job: Job) -> Job:
        step = self.system_clock_step()
        if not step:
            return job
        started, finished = (None if time is None else time + step for time in (job.started, job.finished))
        return job._replace(created=job.created + step, started=started, finished=finished)

    def concerns(self) -> list[str]:
        step = self.system_clock_step()
        return [STEPPED.format(step)] if step else []

    def claim(self, worker: str, max_jobs: int, lease_seconds: float) -> list[Claim]:
        with self.database.read() as db:
            # The queue is usually empty. A read needs no lock.
            if not self.due_jobs(db, self.clock(), 1) and not self.new_jobs(db, 1):
                return []
        return self.database.write(lambda db: self.take(db, worker, max_jobs, lease_seconds))

    def take(self, db: sqlite3.Connection, worker: str, max_jobs: int, lease_seconds: float) -> list[Claim]:
        now = self.clock()

        def lease(seq: int, lost: bool) -> Claim:
            (number,) = db.execute(
                "UPDATE job SET state = 'running', since = ?1, started = ?1, due = ?2, attempts = attempts + 1,"
                " lease = lease + 1, worker = ?3 WHERE seq = ?4 RETURNING lease",
                (now, now + lease_seconds, worker, seq),
            ).fetchone()
            return Claim(Job(*db.execute(f"{JOB} WHERE seq = ?", (seq,)).fetchone()), number, lost)

        taken: list[Claim] = []
        for seq, state, attempts in self.due_jobs(db, now, max_jobs):
            lost = state == "running"
            if attempts >= self.limits.attempts:
                db.execute(
                    "UPDATE job SET state = 'failed', since = ?1, finished = ?1, due = NULL, error = coalesce(?2, error)"
                    " WHERE seq = ?3",
                    (now, lost_error(attempts) if lost else None, seq),
                )
            elif not lost:
                taken.append(lease(seq, lost=False))
            elif taken:
                return taken
            else:
                return [lease(seq, lost=True)]
        return taken + [lease(seq, lost=False) for (seq,) in self.new_jobs(db, max_jobs - len(taken))]

    def heartbeat(self, claims: Sequence[Claim], lease_seconds: float) -> list[bool]:
        def work(db: sqlite3.Connection) -> list[bool]:
            now = self.clock()
            return [
                db.execute(f"UPDATE job SET due = ? WHERE {HELD}", (now + lease_seconds, claim.job.id, claim.lease, now)).rowcount
                > 0
                for claim in claims
            ]

        return self.database.write(work)

    def finish(self, results: Sequence[tuple[Claim, bytes]]) -> list[bool]:
        def work(db: sqlite3.Connection) -> list[bool]:
            now = self.clock()
            for claim, result in results:
                db.execute(
                    "UPDATE job SET state = 'succeeded', since = ?, finished = ?, due = NULL, error = NULL, result = ?"
                    f" WHERE {HELD}",
                    (now, now, result, claim.job.id, claim.lease, now),
                )
            written = "SELECT 1 FROM job WHERE id = ? AND lease = ? AND state = 'succeeded'"
            return [db.execute(written, (claim.job.id, claim.lease)).fetchone() is not None for claim, _ in results]

        return self.database.write(work)

    def fail(self, claim: Claim, error: str, retry_at: float | None = None) -> bool:
        if claim.job.attempts >= self.limits.attempts:
            retry_at = None
        state = "failed" if retry_at is None else "queued"

        def work(db: sqlite3.Connection) -> bool:
            now = self.clock()
            finished = now if retry_at is None else None
            values = (state, now, finished, retry_at, error, claim.job.id, claim.lease, now)
            return (
                db.execute(f"UPDATE job SET state = ?, since = ?, finished = ?, due = ?, error = ? WHERE {HELD}", values).rowcount
                > 0
            )

        return self.database.write(work)

    def redrive(self, ids: Sequence[str] | None = None, max_jobs: int = 1000) -> int:
        def work(db: sqlite3.Connection) -> int:
            now = self.clock()
            kept = now - self.limits.keep_failed_seconds
            found = db.execute("SELECT id FROM job WHERE state = 'failed' AND since > ? ORDER BY since LIMIT ?", (kept, max_jobs))
            chosen = [job_id for (job_id,) in found] if ids is None else list(ids)[:max_jobs]
            room, moved = self.room(db), 0
            for job_id in chosen:
                if moved < room:
                    moved += db.execute(
                        "UPDATE job SET state = 'queued', since = ?, attempts = 0, started = NULL, finished = NULL, error = NULL"
                        " WHERE id = ? AND state = 'failed' AND since > ?",
                        (now, job_id, kept),
                    ).rowcount
            return moved

        return self.database.write(work)

    def counts(self) -> QueueDepth:
        with self.database.read() as db:
            by_state = dict(db.execute("SELECT state, jobs FROM tally").fetchall())
            (oldest,) = db.execute("SELECT min(since) FROM job WHERE state = 'queued'").fetchone()
        return QueueDepth(by_state, 0.0 if oldest is None else max(0.0, self.clock() - oldest))

    def sweep(self, max_jobs: int = 500) -> int:
        def work(db: sqlite3.Connection) -> int:
            now, removed = self.clock(), 0
            for state in DONE:
                kept = self.limits.kept(state)
                expired = "SELECT seq, id, since FROM job WHERE state = ? AND since <= ? ORDER BY since LIMIT ?"
                for seq, job_id, since in db.execute(expired, (state, now - kept, max_jobs - removed)).fetchall():
                    db.execute("DELETE FROM job WHERE seq = ?", (seq,))
                    db.execute("DELETE FROM content WHERE seq = ?", (seq,))
                    db.execute("INSERT INTO gone VALUES (?, ?)", (job_id, since + kept + self.limits.remember_seconds))
                    removed += 1
            forgotten = "DELETE FROM gone WHERE id IN (SELECT id FROM gone WHERE until <= ? ORDER BY until LIMIT ?)"
            return removed + db.execute(forgotten, (now, max_jobs)).rowcount

        return self.database.write(work)

    def close(self) -> None:
        self.database.close()

    def find(self, db: sqlite3.Connection, job_id: str, now: float) -> Job:
        row = db.execute(f"{JOB} WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise JobExpired if db.execute("SELECT 1 FROM gone WHERE id = ?", (job_id,)).fetchone() else JobNotFound
        job = Job(*row)
        if job.finished is not None and job.finished + self.limits.kept(job.state) <= now:
            raise JobExpired
        return job

    def room(self, db: sqlite3.Connection) -> int:
        (queued,) = db.execute("SELECT jobs FROM tally WHERE state = 'queued'").fetchone()
        return self.limits.queued - int(queued)

    def due_jobs(self, db: sqlite3.Connection, now: float, limit: int) -> list[tuple[int, str, int]]:
        """Returns jobs with an expired lease, and jobs whose next attempt is due."""
        return db.execute("SELECT seq, state, attempts FROM job WHERE due <= ? ORDER BY due LIMIT ?", (now, limit)).fetchall()

    def new_jobs(self, db: sqlite3.Connection, limit: int) -> list[tuple[int]]:
        query = "SELECT seq FROM job INDEXED BY job_new WHERE state = 'queued' AND due IS NULL ORDER BY since, seq LIMIT ?"
        return db.execute(query, (limit,)).fetchall()


def create_job_store(settings: Settings, timeout_seconds: float) -> JobStore:
    """Returns the store. Its calls end within about the timeout. Raises BadSetting, BadStore, and BackendUnavailable."""
    limits = Limits(settings.jobs_queued, settings.jobs_attempts, settings.keep_seconds, remember_seconds=REMEMBER_SECONDS)
    if settings.redis_url:
        from iris_wsgi.patterns.asynchronous.redis_store import RedisJobStore

        return RedisJobStore(settings.redis_url, limits, timeout_seconds=timeout_seconds)
    return SqliteJobStore(Path(settings.state_dir) / FILE, limits, busy_seconds=timeout_seconds)
