"""Jobs in Redis: the store for several machines."""

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, TypeVar

from iris_wsgi.errors import JobError
from iris_wsgi.patterns.asynchronous.job import (
    DEFAULT,
    DONE,
    STATES,
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
from iris_wsgi.patterns.asynchronous.redis_scripts import STEPS
from iris_wsgi.storage import redis_durability
from iris_wsgi.storage.redis import RedisClient

T = TypeVar("T")
STREAM = "{iris}:stream"
# How often its settings are read: they may be changed while it runs, and another Redis may take its place.
SETTINGS_SECONDS = 60.0
REFUSED: dict[bytes, type[JobError]] = {
    b"full": QueueFull,
    b"conflict": KeyConflict,
    b"unknown": JobNotFound,
    b"gone": JobExpired,
}


class RedisJobStore:
    """A JobStore. Without a `clock` the server's own counts; each call ends within about `seconds`, one way or the other.

    Durable is what the server makes durable: nothing acknowledged is lost only with `appendonly yes` and `appendfsync always`.
    Of a job whose keys it has lost, in part or all of them, whoever asks next makes a failed job that says so.
    Connects when it is first used, and again whenever that is needed.
    """

    def __init__(self, url: str, limits: Limits = DEFAULT, clock: Clock | None = None, seconds: float = 0.15) -> None:
        self.limits, self.clock = limits, clock
        self.link = RedisClient(url, seconds)
        self.redis = self.link.client
        self.read_at, self.found = float("-inf"), list[str]()
        self.steps = {name: self.redis.register_script(text) for name, text in STEPS.items()}

    def run(self, name: str, *values: str | bytes | float, parse: Callable[[Any], T]) -> T:
        """One script, and its answer. Raises BackendUnavailable."""
        limits = self.limits
        now = "" if self.clock is None else repr(self.clock())
        given = [now, limits.keep_seconds, limits.keep_failed_seconds, limits.remember_seconds, *values]
        return self.link.call(lambda: parse(self.steps[name]([STREAM], given)))

    def submit(self, body: bytes, key: str | None = None, note: bytes | None = None) -> Job:
        digest = digest_of(body) if key else b""
        return self.run("submit", new_id(), body, note or b"", key or "", digest, self.limits.queued, parse=job_or_refusal)

    def get(self, job_id: str) -> Job:
        return self.run("get", job_id, parse=job_or_refusal)

    def wait(self, job_id: str, seconds: float, stop: Stop = never) -> Job:
        wait_until(lambda: self.run("state", job_id, parse=is_over), seconds, stop)
        return self.get(job_id)

    def cancel(self, job_id: str) -> Job:
        return self.run("cancel", job_id, parse=job_or_refusal)

    def claim(self, worker: str, most: int, lease_seconds: float) -> list[Claim]:
        values = (worker, most, lease_seconds, self.limits.attempts, given_up("COUNT"))
        return self.run("claim", *values, parse=lambda told: [Claim(job_of(job), int(job[-1]), lost == 1) for lost, job in told])

    def heartbeat(self, claims: Sequence[Claim], lease_seconds: float) -> list[bool]:
        values = [part for one in claims for part in (one.job.id, one.lease)]
        return self.run("heartbeat", lease_seconds, *values, parse=flags)

    def finish(self, results: Sequence[tuple[Claim, bytes]]) -> list[bool]:
        values = [part for claim, result in results for part in (claim.job.id, claim.lease, result)]
        return self.run("finish", *values, parse=flags)

    def fail(self, claim: Claim, error: str, retry_at: float | None = None) -> bool:
        final = retry_at is None or claim.job.attempts >= self.limits.attempts
        values = (claim.job.id, claim.lease, error, "" if final else repr(retry_at))
        return self.run("fail", *values, parse=lambda told: int(told) == 1)

    def redrive(self, ids: Sequence[str] | None = None, most: int = 1000) -> int:
        values = ("all",) if ids is None else ("these", *ids[:most])
        return self.run("redrive", self.limits.queued, most, *values, parse=int)

    def counts(self) -> QueueDepth:
        def parse(told: Any) -> QueueDepth:
            return QueueDepth(dict(zip(STATES, map(int, told[1:]), strict=True)), float(told[0]))

        return self.run("counts", *STATES, parse=parse)

    def concerns(self) -> Sequence[str]:
        if monotonic() >= self.read_at + SETTINGS_SECONDS:
            self.found = redis_durability.concerns(self.link)
            self.read_at = monotonic()
        return self.found

    def sweep(self, most: int = 500) -> int:
        return self.run("sweep", most, parse=int)

    def close(self) -> None:
        self.redis.close()


def job_or_refusal(told: Any) -> Job:
    if told[0] in REFUSED:
        raise REFUSED[told[0]]
    return job_of(told[1])


def job_of(fields: Sequence[Any]) -> Job:
    job_id, state, attempts, created, started, finished, body, result, error, note, _ = fields
    if body is None:
        raise ValueError
    return Job(
        job_id.decode(),
        state.decode(),
        int(attempts),
        float(created),
        None if started is None else float(started),
        None if finished is None else float(finished),
        body,
        result,
        None if error is None else error.decode(),
        note,
    )


def flags(told: Iterable[int]) -> list[bool]:
    return [one == 1 for one in told]


def is_over(told: Sequence[bytes]) -> bool:
    return told[0].decode() in (*DONE, "gone", "unknown")
