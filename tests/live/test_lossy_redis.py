"""Warnings about a Redis that may lose jobs, and jobs after Redis has lost a part of their data."""

from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from http_clients import fetch, http_request, wait_until
from job_store_invariants import invariant_violations
from redis_server import RedisServer

from iris_wsgi.patterns.asynchronous.job import Job, JobNotFound
from iris_wsgi.patterns.asynchronous.redis_store import EVICTS, LATE, NO_LOG, PAUSES, UNKNOWN, RedisJobStore

BODY = bytes(64)
JOB = {"data": [[5.1, 3.5, 1.4, 0.2]]}
TIMEOUT_SECONDS = 60.0
LOST = "The store lost part of this job; submit it again."


class Clock:
    """Clock that a test advances."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(shared_redis: RedisServer, clock: Clock) -> Iterator[RedisJobStore]:
    shared_redis.execute("FLUSHALL")
    with closing(RedisJobStore(shared_redis.url, clock=clock, timeout_seconds=TIMEOUT_SECONDS)) as store:
        yield store


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"appendfsync": "everysec"}, [LATE]),
        ({"appendfsync": "no"}, [LATE]),
        ({"appendonly": "no"}, [NO_LOG]),
        ({"no-appendfsync-on-rewrite": "yes"}, [PAUSES]),
        ({"maxmemory-policy": "allkeys-lru"}, []),
        ({"maxmemory-policy": "allkeys-lru", "maxmemory": "100mb"}, [EVICTS]),
        ({"maxmemory-policy": "allkeys-random", "maxmemory": "100mb", "appendonly": "no"}, [NO_LOG, EVICTS]),
        ({"maxmemory-policy": "volatile-lru", "maxmemory": "100mb"}, []),
        ({"maxmemory-policy": "noeviction", "maxmemory": "100mb"}, []),
    ],
)
def test_each_setting_that_may_cause_a_loss_of_jobs_is_reported(own_redis, settings, expected):
    for name, value in settings.items():
        own_redis.execute("CONFIG", "SET", name, value)
    with closing(RedisJobStore(own_redis.url, timeout_seconds=TIMEOUT_SECONDS)) as store:
        assert store.concerns() == expected


@pytest.mark.parametrize(
    ("rules", "settings", "expected"),
    [
        ("-config", {}, [UNKNOWN]),
        ("-config", {"appendonly": "no"}, [NO_LOG]),
        ("-config", {"maxmemory-policy": "allkeys-lru", "maxmemory": "100mb"}, [EVICTS]),
        ("-config -info", {"appendonly": "no"}, [UNKNOWN]),
    ],
)
def test_without_config_get_info_is_used_and_the_other_settings_are_reported_as_unknown(own_redis, rules, settings, expected):
    for name, value in settings.items():
        own_redis.execute("CONFIG", "SET", name, value)
    own_redis.execute("ACL", "SETUSER", "guest", "on", ">right", "~*", "+@all", *rules.split())
    url = own_redis.url.replace("unix://", "unix://guest:right@")
    with closing(RedisJobStore(url, timeout_seconds=TIMEOUT_SECONDS)) as store:
        assert store.concerns() == expected
    assert all("secret" not in item for item in expected)


def test_a_server_over_a_redis_without_a_log_warns_once_and_in_its_readiness_and_is_ready(run):
    server = RedisServer(durable=False)
    try:
        jobs = run("--role", "asynchronous", IRIS_REDIS_URL=server.url)
        ready = {"ready": True, "warnings": [NO_LOG]}
        wait_until(lambda: fetch(jobs, http_request("GET", "/readyz")).json() == ready, "the readiness has the warning")
        assert fetch(jobs, http_request("GET", "/readyz")).status == 200
        jobs.process.terminate()
        assert jobs.process.communicate(timeout=TIMEOUT_SECONDS)[1].count(NO_LOG) == 1
    finally:
        server.remove()


# Jobs that have lost a part of their data


def job_key(job: Job) -> str:
    return f"{{iris}}:job:{job.id}"


def finish_all(store: RedisJobStore, clock: Clock) -> set[str]:
    """Finishes jobs until the queue is empty, and returns their ids."""
    done = set()
    for _ in range(20):
        claims = store.claim("w", 3, 30)
        done |= {claim.job.id for claim in claims if store.finish([(claim, b"r")]) == [True]}
        clock.now += 31
    assert store.claim("w", 3, 30) == []
    counts = store.counts()
    assert (counts.by_state["queued"], counts.by_state["running"], counts.oldest_seconds) == (0, 0, 0.0)
    return done


@pytest.fixture
def jobs(store: RedisJobStore, clock: Clock) -> dict[str, Job]:
    """Returns one job in each state, and one that waits for its next attempt."""
    jobs_by_state = {}
    for name in ("succeeded", "failed", "cancelled", "waiting", "running", "queued", "another"):
        jobs_by_state[name] = store.submit(BODY, key=name)
        if name in ("queued", "another"):
            continue
        if name == "cancelled":
            store.cancel(jobs_by_state[name].id)
            continue
        (claim,) = store.claim("w", 1, 30)
        if name == "succeeded":
            store.finish([(claim, b"r")])
        elif name != "running":
            store.fail(claim, "e", clock.now + 5 if name == "waiting" else None)
    assert invariant_violations(store) == []
    return jobs_by_state


@pytest.mark.parametrize("name", ["succeeded", "failed", "cancelled", "waiting", "running", "queued"])
@pytest.mark.parametrize("use", ["get", "cancel", "wait", "claim"])
def test_a_job_without_its_record_fails_with_the_reason_and_the_others_continue(store, jobs, clock, name, use):
    store.client.redis.delete(job_key(jobs[name]))
    if use != "claim":
        arguments = (jobs[name].id, 0.0) if use == "wait" else (jobs[name].id,)
        assert getattr(store, use)(*arguments).state == "failed"
    remaining = {jobs[text].id for text in ("waiting", "running", "queued", "another") if text != name}
    assert finish_all(store, clock) == remaining
    lost = store.get(jobs[name].id)
    assert (lost.state, lost.error, lost.result) == ("failed", LOST, None)
    store.sweep()
    assert invariant_violations(store) == []
    # The job is a dead letter, and expires like one.
    assert store.redrive([lost.id]) == 1 and store.fail(store.claim("w", 1, 30)[0], "of no use")
    clock.now += 8 * 86400
    while store.sweep():
        pass
    clock.now += 86400
    while store.sweep():
        pass
    assert invariant_violations(store) == []


@pytest.mark.parametrize("field", ["body", "state", "attempts", "created", "lease", "entry", "id"])
@pytest.mark.parametrize("name", ["waiting", "running", "queued"])
def test_a_job_without_a_part_of_its_record_stops_no_other_job(store, jobs, clock, name, field):
    store.client.redis.hdel(job_key(jobs[name]), field)
    done = finish_all(store, clock)
    assert {jobs[text].id for text in ("waiting", "running", "queued", "another") if text != name} <= done
    assert store.get(jobs[name].id).state in ("succeeded" if field == "entry" else "failed",)


SHARED = [
    "stream",
    "queued",
    "running",
    "due",
    "keys",
    "gone",
    "succeeded",
    "failed",
    "cancelled",
    "stream due",
    "running due",
    "queued running due",
]


@pytest.mark.parametrize("key", SHARED)
def test_each_job_is_done_whichever_key_is_lost(store, jobs, clock, key):
    store.client.redis.delete(*(f"{{iris}}:{word}" for word in key.split()))
    for job in jobs.values():
        with suppress(JobNotFound):
            store.get(job.id)
    assert store.submit(BODY).state == "queued"
    done = finish_all(store, clock)
    expected = {jobs[text].id for text in ("waiting", "running", "queued", "another")}
    assert expected <= done and len(done) == len(expected) + 1
    assert store.get(jobs["succeeded"].id).result == b"r"


def test_a_worker_keeps_its_job_if_the_end_of_its_lease_is_lost(store, clock):
    store.submit(BODY)
    (claim,) = store.claim("w", 1, 30)
    store.client.redis.delete("{iris}:due")
    assert store.claim("other", 1, 30) == []
    assert store.heartbeat([claim], 30) == [True] and store.finish([(claim, b"r")]) == [True]
    assert invariant_violations(store) == []


@pytest.mark.long
def test_a_server_and_its_worker_continue_whatever_part_of_its_jobs_a_redis_loses(run, own_redis):
    settings = {"IRIS_REDIS_URL": own_redis.url}
    server = run("--role", "asynchronous", **settings)

    def post() -> str:
        response = fetch(server, http_request("POST", "/jobs", JOB))
        assert response.status == 202
        return response.json()["href"]

    def status(href: str) -> str | None:
        return fetch(server, http_request("GET", href)).json().get("status")

    wait_until(lambda: fetch(server, http_request("GET", "/jobs")).status == 200, "the store responds")
    lost, complete_jobs = [post() for _ in range(3)], [post() for _ in range(3)]
    for href in lost:
        own_redis.execute("DEL", f"{{iris}}:job:{href.rpartition('/')[2]}")
    own_redis.execute("DEL", "{iris}:stream")
    responses = [fetch(server, http_request(method, lost[0])) for method in ("GET", "DELETE")]
    assert [response.status for response in responses] == [200, 409] and responses[0].json()["error"] == LOST
    worker = run(command="worker", **settings)
    wait_until(lambda: {status(item) for item in complete_jobs} == {"succeeded"}, "the other jobs are done")
    wait_until(lambda: {status(item) for item in lost} == {"failed"}, "the lost jobs have failed")
    assert fetch(server, http_request("GET", "/jobs")).json()["jobs"]["queued"] == 0
    worker.process.terminate()
    assert "failed: " not in worker.process.communicate(timeout=TIMEOUT_SECONDS)[1]


@pytest.mark.long
def test_caches_in_a_redis_that_loses_everything_again_and_again_respond_as_before(run, own_redis):
    server = run("--role", "all", IRIS_CACHE="on", IRIS_CACHE_REDIS_URL=own_redis.url)
    requests = [
        http_request("POST", "/predict/proba", JOB),
        http_request("GET", "/items/0000"),
        http_request("GET", "/items/0000/prediction"),
    ]
    first = None
    for _ in range(30):
        own_redis.execute("FLUSHALL")
        responses = [(response.status, response.body) for response in (fetch(server, data) for data in requests)]
        first = first or responses
        assert responses == first and {status for status, _ in responses} == {200}
