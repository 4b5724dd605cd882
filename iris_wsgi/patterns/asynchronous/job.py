"""Jobs, their states, and the interface of a job store."""

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
# Pauses between two polls of `wait`, in seconds: short for short jobs, cheap for long ones.
FIRST_PAUSE, LAST_PAUSE = 0.004, 0.1

Clock = Callable[[], float]
Stop = Callable[[], bool]


class Job(NamedTuple):
    """Job record; times are seconds since the epoch.

    `body` is opaque to a store. Callers submit the validated rows as float32 bytes, a quarter of the size of JSON. Each spelling
    of the same rows has the same bytes, so that an idempotency key matches.
    `attempts` counts the claims since the last `redrive`; `started` is the time of the last claim.
    `failed` is final: only `redrive` puts such a job back. `error` is the reason why the last attempt failed.
    `note` is JSON that the caller submitted with the job.
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
    """Right of a worker to process a job until its lease expires.

    `lease` is a fencing token: it grows with each claim of the job. `lost` is True if the previous worker reported no outcome:
    the job may have killed that worker.
    """

    job: Job
    lease: int
    lost: bool


class Limits(NamedTuple):
    """Maximum number of queued jobs (delayed retries included) and of attempts, and retention times in seconds.

    The store answers JobExpired for an id during `remember_seconds` after its expiry, and JobNotFound later.
    """

    queued: int = 10_000
    attempts: int = 5
    keep_seconds: float = 3600.0
    # A week is enough time to examine a dead letter and to put it back into the queue.
    keep_failed_seconds: float = 7 * 86400.0
    remember_seconds: float = 3600.0

    def kept(self, state: str) -> float:
        return self.keep_failed_seconds if state == "failed" else self.keep_seconds


DEFAULT = Limits()


class QueueDepth(NamedTuple):
    """Number of jobs by state, and the age of the oldest queued job in seconds (0 without one)."""

    by_state: dict[State, int]
    oldest_seconds: float


class QueueFull(JobError):
    """The queue has the maximum number of jobs."""


class KeyConflict(JobError):
    """The idempotency key belongs to a job with another body."""


class JobNotFound(JobError):
    """The id is unknown."""


class JobExpired(JobError):
    """The job existed and has expired."""


def never() -> bool:
    return False


class JobStore(Protocol):
    """Jobs that survive the process.

    The effects of a method are durable once it returns. Threads and processes may call all methods concurrently.
    Every method may raise BackendUnavailable, and works again once the store does.
    """

    def submit(self, body: bytes, key: str | None = None, note: bytes | None = None) -> Job:
        """Adds a job, or returns the existing job with this key. Raises QueueFull, and KeyConflict for another body.

        An empty key or note counts as None.
        """

    def get(self, job_id: str) -> Job:
        """Returns a job. Raises JobNotFound and JobExpired."""

    def wait(self, job_id: str, timeout_seconds: float, stop: Stop = never) -> Job:
        """Returns the job once it is done, after the timeout, or once `stop` returns True. Raises JobNotFound and JobExpired."""

    def cancel(self, job_id: str) -> Job:
        """Cancels the job unless it is done, and fences its worker. Raises JobNotFound and JobExpired."""

    def claim(self, worker: str, max_jobs: int, lease_seconds: float) -> list[Claim]:
        """Claims up to `max_jobs` jobs, oldest first: due retries before new jobs.

        A job with an expired lease is claimed alone: if it kills its worker again, no other job loses an attempt.
        A job that has used its last attempt becomes failed instead.
        """

    def heartbeat(self, claims: Sequence[Claim], lease_seconds: float) -> list[bool]:
        """Extends leases, starting now. Returns for each claim whether it was still held."""

    def finish(self, results: Sequence[tuple[Claim, bytes]]) -> list[bool]:
        """Writes the results of held claims. Returns for each whether it is stored, now or by an earlier call for this claim."""

    def fail(self, claim: Claim, error: str, retry_at: float | None = None) -> bool:
        """Ends an attempt. The job is due again at `retry_at`; without it, or after the last attempt, the job is failed.

        Returns False and writes nothing if the claim was not held.
        """

    def redrive(self, ids: Sequence[str] | None = None, max_jobs: int = 1000) -> int:
        """Puts failed jobs (the given ids, or the oldest) back into the queue while it has room. Returns their number."""

    def counts(self) -> QueueDepth: ...

    def concerns(self) -> Sequence[str]:
        """Returns sentences on weaker durability than promised, for the log and the readiness route."""

    def sweep(self, max_jobs: int = 500) -> int:
        """Removes up to `max_jobs` expired jobs, and the same number of forgotten ids. Returns their number; 0 means done."""

    def close(self) -> None: ...


def new_id() -> str:
    """Returns 128 random bits in the form of ID_PATTERN."""
    return f"j{secrets.token_urlsafe(16)}"


def digest_of(body: bytes) -> bytes:
    return sha256(body).digest()


def lost_error(attempts: int | str) -> str:
    return f"No worker reported an outcome in {attempts} attempts."


def wait_until(done: Callable[[], bool], timeout_seconds: float, stop: Stop) -> None:
    """Polls until `done` or `stop` returns True, or until the timeout."""
    deadline, pause = time.monotonic() + timeout_seconds, FIRST_PAUSE
    while not done() and (left := deadline - time.monotonic()) > 0 and not stop():
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LAST_PAUSE)
