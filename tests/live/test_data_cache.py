"""The data cache in server processes, with real databases and Redis, and their failures."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from http_clients import RawConnection, fetch, http_request, kill_tree, wait_until
from redis_server import RedisServer

from iris_wsgi.patterns.data_cache.item_store import Item
from iris_wsgi.storage.redis_tier import TierOptions, VersionedTier, pack

ROWS = [[5.1, 3.5, 1.4, 0.2], [7.2, 3.6, 6.1, 2.5]]
SERVE = ("--role", "data_cache")


def looks_within(seconds: float) -> dict[str, object]:
    """Returns the constants of a server that sees the changes of others within this time."""
    return {"iris_wsgi.patterns.data_cache.role.CHECK_SECONDS": seconds}


@pytest.fixture
def redis(own_redis: RedisServer) -> RedisServer:
    return own_redis


def get(server, item_id, path="", *fields):
    return fetch(server, http_request("GET", f"/items/{item_id}{path}", None, *fields))


def put(server, item_id, row):
    return fetch(server, http_request("PUT", f"/items/{item_id}", {"data": [row]}))


def status(response) -> str:
    return response.headers["cache-status"]


def metric(server, name: str) -> float:
    text = fetch(server, http_request("GET", "/metrics")).body.decode()
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_the_processes_of_a_server_see_each_write_at_once(run):
    server = run(*SERVE, "--workers", "3")
    for i in range(20):
        result = put(server, "a", ROWS[i % 2])
        assert result.status == (201 if i == 0 else 200)
        for path in ("", "/prediction"):
            for response in [get(server, "a", path) for _ in range(6)]:
                assert response.json()["version"] == i + 1
                assert path or response.body == result.body


def test_a_reader_sees_every_earlier_acknowledged_write_from_every_process(run):
    server = run(*SERVE, "--workers", "3", "--items-bytes", "4096")
    names = [f"i{i}" for i in range(6)]
    acknowledged, done, rows = dict.fromkeys(names, 0), threading.Event(), {}

    def write(name):
        for i in range(20):
            response = put(server, name, ROWS[i % 2])
            # A busy disk may cause a 503. It is then unknown whether the item was written.
            if response.status != 503:
                rows[name, response.json()["version"]] = i % 2
                acknowledged[name] = response.json()["version"]

    def read():
        looks = 0
        while not done.is_set():
            for name in names:
                min_version = acknowledged[name]
                for path in ("", "/prediction"):
                    response = get(server, name, path)
                    assert response.status == 200 or not min_version
                    if response.status != 200:
                        continue
                    document = response.json()
                    assert document["version"] >= min_version
                    row = rows.get((name, document["version"]))
                    if row is not None:
                        assert document["label"] == ["setosa", "virginica"][row] if path else document["data"] == [ROWS[row]]
                    looks += 1
        return looks

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        writers = [pool.submit(write, name) for name in names]
        try:
            for writer in writers:
                writer.result(120)
        finally:
            done.set()
        assert all(reader.result(120) for reader in readers)
    assert metric(server, 'item_lookups_total{source="hit"}') > 0 and metric(server, "item_cache_evictions_total") > 0


def test_two_servers_on_one_file_see_each_others_writes_soon(run, tmp_path):
    first, second = (run(*SERVE, constants=looks_within(0.2), IRIS_STATE_DIR=str(tmp_path)) for _ in range(2))
    for i in range(5):
        assert get(second, "0000").json()["version"] == i + 1
        body = put(first, "0000", ROWS[i % 2]).body
        wait_until(lambda body=body: get(second, "0000").body == body, "the other server has the new version")


@pytest.mark.long
def test_an_acknowledged_write_survives_a_kill(run, tmp_path):
    for attempt in range(3):
        server = run(*SERVE, IRIS_STATE_DIR=str(tmp_path))
        acknowledged = []

        def write(name, server=server, acknowledged=acknowledged):
            try:
                with RawConnection(server) as connection:
                    for i in range(10**6):
                        response = connection.exchange(http_request("PUT", f"/items/{name}-{i}", {"data": [ROWS[0]]}))
                        acknowledged.append((f"{name}-{i}", response.status))
            except (OSError, EOFError):
                return

        with ThreadPoolExecutor(4) as pool:
            for name in "wxyz":
                pool.submit(write, f"{name}{attempt}")
            wait_until(lambda acknowledged=acknowledged: len(acknowledged) > 40, "some items were written")
            kill_tree(server.process)
        server.process.communicate()
        again = run(*SERVE, IRIS_STATE_DIR=str(tmp_path))
        with RawConnection(again) as connection:
            for item_id, expected in acknowledged:
                assert expected == 201
                response = connection.exchange(http_request("GET", f"/items/{item_id}"))
                assert response.json() == {"id": item_id, "version": 1, "data": [ROWS[0]]}
        again.stop()


def test_two_hundred_requests_for_a_cold_item_cause_one_read_and_one_run(run, postgres_server):
    server = run(*SERVE, "--queue", "1000", IRIS_DATABASE_URL=postgres_server.create_database("crowd"))
    wait_until(lambda: get(server, "none").status == 404, "the database is there")
    # On a busy machine the waiting requests may time out. Then the test tries the next item.
    for i in range(150):
        reads, runs = metric(server, 'item_lookups_total{source="database"}'), metric(server, "model_runs_total")
        responses = request_concurrently(server, postgres_server, f"{i:04d}")
        if {response.status for response in responses} == {200}:
            break
    assert {response.status for response in responses} == {200} and len({response.body for response in responses}) == 1
    assert metric(server, 'item_lookups_total{source="database"}') == reads + 1
    assert metric(server, "model_runs_total") == runs + 1


def request_concurrently(server, postgres_server, item_id):
    """Sends two hundred requests for an item before the database responds to one of them."""
    locked = threading.Event()
    connections = [RawConnection(server) for _ in range(200)]
    with ThreadPoolExecutor(1) as pool:
        lock = pool.submit(hold_lock, postgres_server, "crowd", locked)
        assert locked.wait(60)
        for connection in connections:
            connection.send(http_request("GET", f"/items/{item_id}/prediction"))
        responses = [connection.receive() for connection in connections]
        lock.result(60)
    for connection in connections:
        connection.socket.close()
    return responses


def hold_lock(postgres_server, name, locked):
    """Locks the table for less than the timeout of a request."""
    import psycopg

    with psycopg.connect(postgres_server.url.replace("/postgres?", f"/{name}?")) as connection:
        connection.execute("LOCK TABLE iris_items IN ACCESS EXCLUSIVE MODE")
        locked.set()
        connection.execute("SELECT pg_sleep(0.08)")


@pytest.mark.parametrize("fault", ["hangs", "is gone"])
def test_while_the_database_is_unavailable_cached_items_are_marked_as_stale(run, postgres_server, fault):
    database = postgres_server.create_database(f"down_{fault[0]}")
    server = run(*SERVE, constants=looks_within(0.3), IRIS_DATABASE_URL=database)
    wait_until(lambda: get(server, "0000/prediction").status == 200, "the database is there")
    before = {path: get(server, "0000", path) for path in ("", "/prediction")}
    if fault == "hangs":
        postgres_server.signal(signal.SIGSTOP)
    else:
        postgres_server.stop()
    try:
        wait_until(lambda: "stale" in status(get(server, "0000")), "the item is stale")
        for path, response in before.items():
            now = get(server, "0000", path)
            assert (now.status, now.body, status(now)) == (200, response.body, "iris_wsgi; hit; detail=stale")
            assert int(now.headers["age"]) >= 0
        assert "detail=stale" in status(get(server, "0000", "/prediction", "Cache-Control: no-cache"))
        for response in (get(server, "0001"), get(server, "0001", "/prediction"), put(server, "0000", ROWS[1])):
            assert response.status == 503 and response.headers["retry-after"] == "1"
            assert response.headers["content-type"] == "application/problem+json" and "cache-status" in response.headers
        assert get(server, "a.b").status == 404
        assert fetch(server, http_request("GET", "/readyz")).status == 200
        for _ in range(50):
            assert get(server, "0000").status == 200
        assert metric(server, 'item_store_failures_total{of="database"}') > 0
    finally:
        if fault == "hangs":
            postgres_server.signal(signal.SIGCONT)
        else:
            postgres_server.start()
    wait_until(lambda: status(get(server, "0000")).startswith("iris_wsgi; hit; ttl"), "the item is no longer stale")
    wait_until(lambda: put(server, "0000", ROWS[1]).status == 200, "the item can be written again")
    assert get(server, "0000").json()["data"] == [ROWS[1]]


def test_a_server_starts_without_its_database_and_finds_it_later(run, postgres_server):
    url = postgres_server.create_database("later")
    postgres_server.stop()
    try:
        server = run(*SERVE, IRIS_DATABASE_URL=url)
        assert get(server, "0000").status == 503
    finally:
        postgres_server.start()
    wait_until(lambda: get(server, "0000").status == 200, "the item is there")


def test_redis_is_read_before_the_database_and_its_entries_are_used_for_a_limited_time(run, redis, tmp_path):
    settings = {"IRIS_STATE_DIR": str(tmp_path), "IRIS_CACHE_REDIS_URL": redis.url, "constants": looks_within(0.3)}
    first, second = run(*SERVE, **settings), run(*SERVE, **settings)
    wait_until(lambda: metric(first, "item_lookups_total") >= 0 and get(first, "0000").status == 200, "the item is read")

    def from_redis():
        get(first, "0001", "", "Cache-Control: no-cache")
        return "detail=redis" in status(get(second, "0001")) or put(first, "0001", ROWS[0]).status == 0

    wait_until(from_redis, "the other server finds the item in Redis")
    # Redis is unreachable during the write, and then has the old version.
    redis.process.send_signal(signal.SIGSTOP)
    body = put(first, "0001", ROWS[1]).body
    assert get(first, "0001").body == body
    redis.process.send_signal(signal.SIGCONT)
    wait_until(lambda: get(second, "0001").body == body, "the other server has the new version")
    third = run(*SERVE, **settings)
    wait_until(lambda: get(third, "0001").body == body, "a new server has the new version")


@pytest.mark.parametrize("fault", ["hangs", "is gone", "is full of garbage", "refuses"])
def test_responses_are_correct_and_quick_whatever_redis_does(run, redis, fault):
    server = run(*SERVE, IRIS_CACHE_REDIS_URL=redis.url, constants=looks_within(0.3))
    wait_until(lambda: put(server, "a", ROWS[0]).status == 200, "the item is written")
    match fault:
        case "hangs":
            redis.process.send_signal(signal.SIGSTOP)
        case "is gone":
            redis.process.kill()
        case "is full of garbage":
            keys = redis.execute("KEYS", "iris:item:*")
            assert keys
            for key in keys:
                redis.execute("SET", key.decode(), "00000000000000000009 no item")
        case "refuses":
            redis.execute("CONFIG", "SET", "maxmemory", "1")
    # Redis stays unavailable until after the last response, so no response can have waited for it.
    for i in range(30):
        version = put(server, "a", ROWS[i % 2]).json()["version"]
        document = get(server, "a", "/prediction").json()
        assert (document["version"], document["label"]) == (version, ["setosa", "virginica"][i % 2])
        assert get(server, "none").status == 404
    assert fault == "is full of garbage" or metric(server, 'item_store_failures_total{of="redis"}') > 0
    if fault == "hangs":
        redis.process.send_signal(signal.SIGCONT)


def test_an_entry_in_redis_is_checked_against_its_key_and_the_newer_of_two_versions_stays(redis):
    failures = []
    options = TierOptions(redis.url, 60, "data cache", lambda *_: None, lambda: failures.append(1))
    level = VersionedTier(options, "iris:item:2f4")
    old, new = Item(9, b"aaaa"), Item(10, b"bbbb")
    for first, second in ((old, new), (new, old)):
        redis.execute("FLUSHALL")
        assert level.put("db", {"a": first}) and level.put("db", {"a": second})
        assert level.get("db", "a") == new and level.get("other db", "a") is None
    # Ignoring older versions must not remove an entry with the current version.
    assert level.put("db", {"a": Item(10, b"")}) and level.get("db", "a") == new
    assert level.put("db", {"a": Item(11, b"")}) and level.get("db", "a") is None
    assert level.put("db", {"a": new}) and level.get("db", "a") is None
    assert level.put("db", {"a": Item(11, b"cccc")}) and level.get("db", "a") == Item(11, b"cccc")
    assert failures == []
    key, content = level.name("db", "a"), b"00000000000000000010bbbb"
    value = pack(key, content)
    for wrong in (
        b"",
        b"x" * 100,
        value[:-1],
        value + b"x",
        pack(level.name("db", "b"), content),
        bytes([value[0] ^ 1]) + value[1:],
    ):
        redis.execute("SET", key, wrong)
        assert level.get("db", "a") is None and redis.execute("EXISTS", key) == 0
    assert len(failures) == 6 and level.unpack(key, value) == content
    redis.execute("DEL", key)
    redis.execute("LPUSH", key, "a list")
    assert level.get("db", "a") is None and len(failures) == 7
    level.close()


def warm(*arguments, **environ):
    command = [sys.executable, "-m", "iris_wsgi", "warm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, timeout=120, check=False)


def test_after_a_warm_up_every_item_is_in_memory(run, tmp_path):
    state = {"IRIS_STATE_DIR": str(tmp_path)}
    # No entry expires during the test.
    server = run(*SERVE, "--items-seconds", "3600", **state)
    result = warm("--url", server.url, **state)
    # On a slow machine the command also prints its progress.
    assert (result.returncode, [line for line in result.stderr.splitlines() if not line.endswith(" bad")]) == (0, [])
    assert result.stdout.startswith(f"150 items and their predictions are in the memory of {server.url}, after ")
    reads = metric(server, 'item_lookups_total{source="database"}')
    for i in range(150):
        assert "; hit" in status(get(server, f"{i:04d}", "/prediction"))
    assert reads == metric(server, 'item_lookups_total{source="database"}') == 150


@pytest.mark.long
def test_a_warm_up_reports_errors(run, tmp_path):
    state = {"IRIS_STATE_DIR": str(tmp_path)}
    assert "there are no items: " in warm(**state).stderr
    small = run(*SERVE, "--items-bytes", "4096", **state)
    for arguments, reason in (
        (("--url", small.url), "not all of 150 items stay in the memory"),
        (("--url", small.url, "none"), "2 requests failed in the last round"),
        (("--url", "http://127.0.0.1:1"), "no server at http://127.0.0.1:1: Connection refused"),
        (("--url", "https://h"), "--url='https://h' must be http://host[:port]"),
    ):
        result = warm("--quiet", *arguments, **state)
        assert result.returncode == 1 and reason in result.stderr and result.stderr.count("\n") == 1
