"""Jobs, the states they go through, and what a store of them must do."""

import secrets
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Literal, NamedTuple, Protocol

from iris_wsgi.errors import JobError

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "succeeded", "failed", "cancelled")
DONE = ("succeeded", "failed", "cancelled")
# The first letter keeps an id from looking like an option to a command.
ID_PATTERN = "j[A-Za-z0-9_-]{22}"
# How long `wait` pauses between two looks, in seconds: short jobs are told soon, long ones cost little.
FIRST_PAUSE, LAST_PAUSE = 0.004, 0.1

Clock = Callable[[], float]
Stop = Callable[[], bool]


class Job(NamedTuple):
    """One job; times are seconds since the epoch.

    `body` is opaque to a store. Those who submit should give the validated rows as float32 bytes, row by row: a quarter of
    their JSON, nothing to parse twice, one `concatenate` away from a batch, and the same rows in another spelling are the same
    job under one key. `attempts` counts the times it was claimed (since the last `redrive`), `started` is the last of them.
    `failed` is final: retries are over, and only `redrive` brings such a job back. `error` is why the last attempt failed.
    `note` is JSON that was handed in with the job and stays with it.
    """

    id: str
    state: State
    attempts: int
    created: float
    started: float | None
    finished: float | None
    body: bytes
    result: bytes | None
    error: str | None
    note: bytes | None


class Claim(NamedTuple):
    """A job that a worker may work on until its lease is over; `lease` grows with each claim of this job and is never used twice.

    `lost` says that whoever had it before did not say how it ended, so that it may be what ended them.
    """

    job: Job
    lease: int
    lost: bool


class Limits(NamedTuple):
    """How many jobs may wait (delayed retries count), how often one is tried, and how long what is done is kept, in seconds.

    `remember_seconds` is for how long after that an id is still known as one that has expired.
    """

    queued: int = 10_000
    attempts: int = 5
    keep_seconds: float = 3600.0
    keep_failed_seconds: float = 7 * 86400.0
    remember_seconds: float = 3600.0

    def kept(self, state: str) -> float:
        return self.keep_failed_seconds if state == "failed" else self.keep_seconds


DEFAULT = Limits()


class QueueDepth(NamedTuple):
    """Jobs by state, and the seconds since the oldest of the queued ones began to wait; 0 when none waits."""

    by_state: dict[State, int]
    oldest_seconds: float


class QueueFull(JobError):
    """As many jobs wait as there may be."""


class KeyConflict(JobError):
    """The key belongs to a job with another body."""


class JobNotFound(JobError):
    """There is no such job."""


class JobExpired(JobError):
    """There was such a job, and it has expired."""


def never() -> bool:
    return False


class JobStore(Protocol):
    """Jobs that survive the process; every method may raise BackendUnavailable, and works again once the store does.

    What a method has returned is durable. All may be called from any thread and any process at once.
    """

    def submit(self, body: bytes, key: str | None = None, note: bytes | None = None) -> Job:
        """A new job; or the first one with this key, while that is kept. Raises QueueFull, and KeyConflict for another body.

        An empty key or note is none.
        """

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound and JobExpired."""

    def wait(self, job_id: str, seconds: float, stop: Stop = never) -> Job:
        """The job once it is done, or as it is after so many seconds, or once `stop` says so. Raises JobNotFound, JobExpired."""

    def cancel(self, job_id: str) -> Job:
        """The job, cancelled unless it was done; its worker can no longer write. Raises JobNotFound and JobExpired."""

    def claim(self, worker: str, most: int, lease_seconds: float) -> list[Claim]:
        """Jobs to work on, oldest first: those that are to be tried again, then new ones; `most` at most.

        A job whose lease is over is given alone: were it to end its worker again, it would take none with it. One that was
        tried as often as it may be is failed instead.
        """

    def heartbeat(self, claims: Sequence[Claim], lease_seconds: float) -> list[bool]:
        """Leases anew, from now on; for each claim whether it was still held."""

    def finish(self, results: Sequence[tuple[Claim, bytes]]) -> list[bool]:
        """Writes each result whose claim is held; for each whether it is there, written now or by the same claim before."""

    def fail(self, claim: Claim, error: str, retry_at: float | None = None) -> bool:
        """Ends an attempt: until `retry_at` nobody gets the job; without one, or after the last attempt, it is failed.

        False when the claim was not held, and nothing is written.
        """

    def redrive(self, ids: Sequence[str] | None = None, most: int = 1000) -> int:
        """Puts failed jobs (those named, or the oldest) back into the queue as far as it has room; how many that were."""

    def counts(self) -> QueueDepth: ...

    def concerns(self) -> Sequence[str]:
        """Sentences on what the store cannot promise as it is, for the log and for readiness."""

    def sweep(self, most: int = 500) -> int:
        """Removes up to `most` expired jobs and as many ids remembered for long enough; how many. To be called until it is 0."""

    def close(self) -> None: ...


def new_id() -> str:
    """128 random bits that match ID_PATTERN."""
    return f"j{secrets.token_urlsafe(16)}"


def digest_of(body: bytes) -> bytes:
    return sha256(body).digest()


def given_up(attempts: int | str) -> str:
    return f"no worker that had it said how it ended, {attempts} times"


def wait_until(done: Callable[[], bool], seconds: float, stop: Stop) -> None:
    """Looks again and again, until it is done, the time is over, or it is to stop."""
    end, pause = time.monotonic() + seconds, FIRST_PAUSE
    while not done() and (left := end - time.monotonic()) > 0 and not stop():
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LAST_PAUSE)
