"""Job store in Redis, for several machines."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
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
    lost_error,
    never,
    new_id,
    wait_until,
)
from iris_wsgi.storage.redis import RedisClient

T = TypeVar("T")
STREAM = "{iris}:stream"
# Interval between two reads of the settings of Redis: an operator may change them, or replace the server.
SETTINGS_SECONDS = 60.0
REFUSALS: dict[bytes, type[JobError]] = {
    b"full": QueueFull,
    b"conflict": KeyConflict,
    b"unknown": JobNotFound,
    b"gone": JobExpired,
}

DURABILITY_SETTINGS = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy")
NO_LOG = (
    "The Redis of the jobs may lose acknowledged jobs: it has no append-only file; set appendonly yes and appendfsync always."
)
LATE = "The Redis of the jobs may lose acknowledged jobs: it responds before it writes to disk; set appendfsync always."
PAUSES = (
    "The Redis of the jobs may lose acknowledged jobs: it stops writing to disk during a rewrite of its file;"
    " set no-appendfsync-on-rewrite no."
)
EVICTS = "The Redis of the jobs may lose acknowledged jobs: it evicts keys when memory is full; set maxmemory-policy noeviction."
UNKNOWN = (
    "The durability of the Redis of the jobs is unknown: its user may not read the settings;"
    " it must have appendonly yes, appendfsync always, and maxmemory-policy noeviction."
)


def load_scripts() -> dict[str, str]:
    """Returns the sections of job_store.lua by name."""
    sections = Path(__file__).with_name("job_store.lua").read_text().split("\n--- ")
    return dict(section.split("\n", 1) for section in sections[1:])


class RedisJobStore:
    """JobStore over Redis. Without a `clock` the clock of Redis counts. Each call ends within about `timeout_seconds`.

    Acknowledged jobs are durable only if Redis has `appendonly yes` and `appendfsync always`.
    A job of which Redis lost some keys becomes a failed job with an error that says so.
    """

    def __init__(self, url: str, limits: Limits = DEFAULT, clock: Clock | None = None, timeout_seconds: float = 0.15) -> None:
        self.limits, self.clock = limits, clock
        self.client = RedisClient(url, timeout_seconds, "IRIS_REDIS_URL")
        self.settings_read_at, self.found_concerns = float("-inf"), list[str]()
        self.sources = load_scripts()
        self.scripts = {name: self.register(source) for name, source in self.sources.items() if name != "shared"}

    def register(self, source: str) -> Any:
        return self.client.redis.register_script(self.sources["shared"] + source)

    def run(self, name: str, *values: str | bytes | float, parse: Callable[[Any], T]) -> T:
        """Runs a script and returns its parsed reply. Raises BackendUnavailable."""
        limits = self.limits
        now = "" if self.clock is None else repr(self.clock())
        arguments = [now, limits.keep_seconds, limits.keep_failed_seconds, limits.remember_seconds, *values]
        return self.client.call(lambda: parse(self.scripts[name]([STREAM], arguments)))

    def submit(self, body: bytes, key: str | None = None, note: bytes | None = None) -> Job:
        digest = digest_of(body) if key else b""
        return self.run("submit", new_id(), body, note or b"", key or "", digest, self.limits.queued, parse=job_or_refusal)

    def get(self, job_id: str) -> Job:
        return self.run("get", job_id, parse=job_or_refusal)

    def wait(self, job_id: str, timeout_seconds: float, stop: Stop = never) -> Job:
        wait_until(lambda: self.run("state", job_id, parse=is_over), timeout_seconds, stop)
        return self.get(job_id)

    def cancel(self, job_id: str) -> Job:
        return self.run("cancel", job_id, parse=job_or_refusal)

    def claim(self, worker: str, max_jobs: int, lease_seconds: float) -> list[Claim]:
        values = (worker, max_jobs, lease_seconds, self.limits.attempts, lost_error("COUNT"))
        return self.run("claim", *values, parse=claims_of)

    def heartbeat(self, claims: Sequence[Claim], lease_seconds: float) -> list[bool]:
        values = [value for claim in claims for value in (claim.job.id, claim.lease)]
        return self.run("heartbeat", lease_seconds, *values, parse=flags)

    def finish(self, results: Sequence[tuple[Claim, bytes]]) -> list[bool]:
        values = [value for claim, result in results for value in (claim.job.id, claim.lease, result)]
        return self.run("finish", *values, parse=flags)

    def fail(self, claim: Claim, error: str, retry_at: float | None = None) -> bool:
        final = retry_at is None or claim.job.attempts >= self.limits.attempts
        values = (claim.job.id, claim.lease, error, "" if final else repr(retry_at))
        return self.run("fail", *values, parse=lambda reply: int(reply) == 1)

    def redrive(self, ids: Sequence[str] | None = None, max_jobs: int = 1000) -> int:
        values = ("all",) if ids is None else ("these", *ids[:max_jobs])
        return self.run("redrive", self.limits.queued, max_jobs, *values, parse=int)

    def counts(self) -> QueueDepth:
        def parse(reply: Any) -> QueueDepth:
            return QueueDepth(dict(zip(STATES, map(int, reply[1:]), strict=True)), float(reply[0]))

        return self.run("counts", *STATES, parse=parse)

    def concerns(self) -> Sequence[str]:
        if monotonic() >= self.settings_read_at + SETTINGS_SECONDS:
            self.found_concerns = durability_concerns(self.client)
            self.settings_read_at = monotonic()
        return self.found_concerns

    def sweep(self, max_jobs: int = 500) -> int:
        return self.run("sweep", max_jobs, parse=int)

    def close(self) -> None:
        self.client.redis.close()


def job_or_refusal(reply: Any) -> Job:
    if reply[0] in REFUSALS:
        raise REFUSALS[reply[0]]
    return job_of(reply[1])


def claims_of(reply: Any) -> list[Claim]:
    return [Claim(job_of(fields), int(fields[-1]), lost == 1) for lost, fields in reply]


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


def flags(reply: Iterable[int]) -> list[bool]:
    return [value == 1 for value in reply]


def is_over(reply: Sequence[bytes]) -> bool:
    return reply[0].decode() in (*DONE, "gone", "unknown")


def durability_concerns(client: RedisClient) -> list[str]:
    """Reads the settings of Redis by CONFIG GET, or by INFO if CONFIG is forbidden. Raises BackendUnavailable."""
    settings = client.config(DURABILITY_SETTINGS)
    is_partial = len(settings) < len(DURABILITY_SETTINGS)
    if is_partial:
        persistence, memory = client.info("persistence"), client.info("memory")
        settings |= {"0": {"appendonly": "no"}, "1": {"appendonly": "yes"}}.get(persistence.get("aof_enabled", ""), {})
        settings |= {name.replace("_", "-"): memory[name] for name in ("maxmemory", "maxmemory_policy") if name in memory}
    found = []
    if settings.get("appendonly") == "no":
        found.append(NO_LOG)
    elif settings.get("appendfsync", "always") != "always":
        found.append(LATE)
    elif settings.get("no-appendfsync-on-rewrite") == "yes":
        found.append(PAUSES)
    # Keys of jobs have no time to live, so `volatile` policies do not evict them.
    if settings.get("maxmemory", "0") != "0" and settings.get("maxmemory-policy", "").startswith("allkeys"):
        found.append(EVICTS)
    return found or ([UNKNOWN] if is_partial else [])
