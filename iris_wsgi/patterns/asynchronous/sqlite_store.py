"""Jobs in an SQLite file: the embedded store, for the threads and processes of one machine."""

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
    KeyConflict,
    Limits,
    QueueDepth,
    QueueFull,
    Stop,
    digest_of,
    given_up,
    never,
    new_id,
    wait_until,
)
from iris_wsgi.patterns.asynchronous.sqlite_schema import APPLICATION, HELD, JOB, LATEST, SCRIPT, VERSION
from iris_wsgi.storage.clock import STEPPED, BootClock
from iris_wsgi.storage.sqlite import SqliteDatabase, SqliteSchema


class SqliteJobStore:
    """A JobStore. Without a `clock` that of this boot counts; raises BadStore when made over a file that is something else.

    Times of claims are those of the store's clock; others are shown as the machine has them now.
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

        return self.shown(self.database.write(work))

    def get(self, job_id: str) -> Job:
        with self.database.read() as db:
            job = self.find(db, job_id, self.clock())
        return self.shown(job)

    def wait(self, job_id: str, seconds: float, stop: Stop = never) -> Job:
        def done() -> bool:
            with self.database.read() as db:
                row = db.execute("SELECT state FROM job WHERE id = ?", (job_id,)).fetchone()
            return row is None or row[0] in DONE

        wait_until(done, seconds, stop)
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

        return self.shown(self.database.write(work))

    def shown(self, job: Job) -> Job:
        """With times by which its ages are right, where the time of the machine was moved."""
        moved = self.boot_clock.moved() if self.clock is self.boot_clock else 0
        if not moved:
            return job
        created, started, finished = (None if one is None else one + moved for one in (job.created, job.started, job.finished))
        return job._replace(created=created or 0.0, started=started, finished=finished)

    def concerns(self) -> list[str]:
        moved = self.boot_clock.moved() if self.clock is self.boot_clock else 0
        return [STEPPED.format(moved)] if moved else []

    def claim(self, worker: str, most: int, lease_seconds: float) -> list[Claim]:
        with self.database.read() as db:
            # Most of the time there is nothing, and to see that needs no lock.
            if not self.late(db, self.clock(), 1) and not self.new(db, 1):
                return []
        return self.database.write(lambda db: self.take(db, worker, most, lease_seconds))

    def take(self, db: sqlite3.Connection, worker: str, most: int, lease_seconds: float) -> list[Claim]:
        now = self.clock()

        def lease(seq: int, lost: bool) -> Claim:
            (number,) = db.execute(
                "UPDATE job SET state = 'running', since = ?1, started = ?1, due = ?2, attempts = attempts + 1,"
                " lease = lease + 1, worker = ?3 WHERE seq = ?4 RETURNING lease",
                (now, now + lease_seconds, worker, seq),
            ).fetchone()
            return Claim(Job(*db.execute(f"{JOB} WHERE seq = ?", (seq,)).fetchone()), number, lost)

        taken: list[Claim] = []
        for seq, state, attempts in self.late(db, now, most):
            lost = state == "running"
            if attempts >= self.limits.attempts:
                db.execute(
                    "UPDATE job SET state = 'failed', since = ?1, finished = ?1, due = NULL, error = coalesce(?2, error)"
                    " WHERE seq = ?3",
                    (now, given_up(attempts) if lost else None, seq),
                )
            elif not lost:
                taken.append(lease(seq, lost=False))
            elif taken:
                return taken
            else:
                return [lease(seq, lost=True)]
        return taken + [lease(seq, lost=False) for (seq,) in self.new(db, most - len(taken))]

    def heartbeat(self, claims: Sequence[Claim], lease_seconds: float) -> list[bool]:
        def work(db: sqlite3.Connection) -> list[bool]:
            now = self.clock()
            return [
                db.execute(f"UPDATE job SET due = ? WHERE {HELD}", (now + lease_seconds, one.job.id, one.lease, now)).rowcount > 0
                for one in claims
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

    def redrive(self, ids: Sequence[str] | None = None, most: int = 1000) -> int:
        def work(db: sqlite3.Connection) -> int:
            now = self.clock()
            kept = now - self.limits.keep_failed_seconds
            found = db.execute("SELECT id FROM job WHERE state = 'failed' AND since > ? ORDER BY since LIMIT ?", (kept, most))
            chosen = [one for (one,) in found] if ids is None else list(ids)[:most]
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

    def sweep(self, most: int = 500) -> int:
        def work(db: sqlite3.Connection) -> int:
            now, removed = self.clock(), 0
            for state in DONE:
                kept = self.limits.kept(state)
                expired = "SELECT seq, id, since FROM job WHERE state = ? AND since <= ? ORDER BY since LIMIT ?"
                for seq, job_id, since in db.execute(expired, (state, now - kept, most - removed)).fetchall():
                    db.execute("DELETE FROM job WHERE seq = ?", (seq,))
                    db.execute("DELETE FROM content WHERE seq = ?", (seq,))
                    db.execute("INSERT INTO gone VALUES (?, ?)", (job_id, since + kept + self.limits.remember_seconds))
                    removed += 1
            forgotten = "DELETE FROM gone WHERE id IN (SELECT id FROM gone WHERE until <= ? ORDER BY until LIMIT ?)"
            return removed + db.execute(forgotten, (now, most)).rowcount

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

    def late(self, db: sqlite3.Connection, now: float, most: int) -> list[tuple[int, str, int]]:
        """Those whose lease is over, and those whose next attempt has its time."""
        return db.execute("SELECT seq, state, attempts FROM job WHERE due <= ? ORDER BY due LIMIT ?", (now, most)).fetchall()

    def new(self, db: sqlite3.Connection, most: int) -> list[tuple[int]]:
        new = "SELECT seq FROM job INDEXED BY job_new WHERE state = 'queued' AND due IS NULL ORDER BY since, seq LIMIT ?"
        return db.execute(new, (most,)).fetchall()
