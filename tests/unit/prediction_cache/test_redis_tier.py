"""The Redis tier of the prediction cache: shared entries, clears for all servers, and correct results during failures."""

import json
import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
from http_clients import fetch, http_request, wait_until
from prediction_caches import ROW, ROWS, CountingPredictor, build_cache, cached, expected_probabilities, row_counts
from project import MODEL
from redis_server import RedisServer

from iris_wsgi.model.predictor import PredictContext, Prediction
from iris_wsgi.resilience.circuit_breaker import FAILURES
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage import redis_tier
from iris_wsgi.storage.redis_tier import ClearableTier, TierOptions

SECONDS = 0.5


@pytest.fixture
def redis():
    server = RedisServer(durable=False)
    yield server
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGCONT)
    server.remove()


@pytest.fixture(autouse=True)
def long_timeouts(monkeypatch):
    """Uses long timeouts, so that a busy machine does not look like a Redis that hangs."""
    monkeypatch.setattr(redis_tier, "TIMEOUT_SECONDS", 3.0)


@pytest.fixture
def caches(redis, monkeypatch):
    """Function that builds caches of one model over one Redis, each with its own memory."""
    monkeypatch.setattr(redis_tier, "TIMEOUT_SECONDS", SECONDS)
    tiers = []

    def make_cache(url=redis.url, space=b"model", predict=None, **options):
        failures, result = [], []
        predict = predict or CountingPredictor()
        cache = build_cache(predict, **options)
        about = TierOptions(url, 60.0, "prediction cache", lambda *line: result.append(line), lambda: failures.append(1))
        cache.tier = ClearableTier(about, space, cache.store.memory.next_generation)
        tiers.append(cache.tier)
        cache.failures, cache.told = failures, result
        return cache

    yield make_cache
    for tier in tiers:
        tier.close()


def assert_same_results(cache, rows=ROWS):
    assert cached(cache, rows).tobytes() == expected_probabilities(rows).tobytes()


def test_a_result_of_one_cache_is_found_by_the_other(caches):
    first, second = caches(), caches()
    assert_same_results(first, ROWS[:5])
    response = second.lookup(ROWS[:8], PredictContext())
    assert response.outputs.tobytes() == expected_probabilities(ROWS[:8]).tobytes()
    assert response[1:5] == (0, 0, 5, 3) and second.predict.runs == [3]
    assert row_counts(second) == {"shared": 5, "run": 3} and second.failures == []
    assert second.lookup(ROWS[:8], PredictContext()).hits == 8


def test_no_model_gets_the_results_of_another(caches):
    def other_model(rows, context):
        return Prediction(expected_probabilities(rows) + 1)

    first, second = caches(), caches(space=b"other", predict=other_model)
    for _ in range(2):
        assert_same_results(first)
        assert cached(second, ROWS).tobytes() == (expected_probabilities(ROWS) + 1).tobytes()
        first.store.memory.next_generation()
        second.store.memory.next_generation()


def test_two_models_over_one_redis_predict_as_without_it(make_app, redis):
    for folder in (MODEL, MODEL / "fast", MODEL):
        expected = make_app(role="web_single", model_dir=str(folder))
        app = make_app(role="prediction_cache", model_dir=str(folder), cache_redis_url=redis.url)
        body = {"data": ROWS.astype(float).tolist()}
        assert app.post_json("/predict/batch", body).body == expected.post_json("/predict/batch", body).body
    assert redis.execute("DBSIZE") == 2 * (len(ROWS) + 1)


def test_the_status_names_both_levels(make_app, redis):
    first, second = (make_app(role="prediction_cache", cache_redis_url=redis.url) for _ in range(2))
    body = {"data": [ROW]}
    assert first.post_json("/predict", body).headers["Cache-Status"] == "iris_wsgi; fwd=miss; stored"
    assert second.post_json("/predict", body).headers["Cache-Status"] == "iris_wsgi_shared; hit, iris_wsgi; fwd=miss; stored"
    assert second.post_json("/predict", body).headers["Cache-Status"].startswith("iris_wsgi; hit; ttl=")
    assert second.get("/cache").json["second_level"] is True


def test_a_clear_affects_all_caches_that_share_the_tier(caches):
    first, second = caches(), caches()
    assert_same_results(first)
    assert_same_results(second)
    first.clear()
    assert first.lookup(ROWS[:1], PredictContext()).hits == 0
    # The other servers poll each second.
    second.tier.sync()
    assert second.lookup(ROWS[:2], PredictContext())[1:5] == (0, 0, 1, 1)


def test_a_lookup_notices_a_clear_without_the_poll(caches):
    first, second = caches(), caches()
    assert_same_results(first, ROWS[:4])
    assert_same_results(second, ROWS[:2])
    first.clear()
    assert second.lookup(ROWS[2:4], PredictContext()).run == 2
    assert second.lookup(ROWS[:2], PredictContext()).hits == 0


def test_a_redis_that_lost_its_token_returns_no_earlier_entry(caches, redis):
    item = caches()
    assert_same_results(item)
    redis.execute("DEL", "model:token")
    other = caches()
    assert_same_results(other)
    assert row_counts(other) == {"run": len(ROWS)}
    item.tier.sync()
    assert item.lookup(ROWS, PredictContext()).shared == len(ROWS)


def test_a_cache_that_was_disconnected_during_a_clear_forgets_its_entries(caches, redis, monkeypatch):
    cache = caches()
    redis.kill()
    assert_same_results(cache, ROWS[:3])
    redis.start()
    monkeypatch.setattr(cache.tier.breaker, "try_at", 0.0)
    cache.sync()
    assert cache.tier.breaker.up and len(cache.store.entries.entries) == 0


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(12), bytes(16), bytes(range(100, 116)), bytes(range(100, 117)), b"1" * 100_000]
)
def test_damaged_entries_are_ignored(caches, redis, content):
    first, second = caches(), caches()
    assert_same_results(first, ROWS[:3])
    for key in redis.execute("KEYS", "model:*"):
        if not key.endswith(b":token"):
            redis.execute("SET", key, content)
    assert_same_results(second, ROWS[:3])
    assert second.predict.runs == [3] and len(second.failures) == 3


def test_an_entry_under_the_key_of_another_is_ignored(caches, redis):
    writing, reading = caches(), caches()
    assert_same_results(writing, ROWS[:2])
    first, second = (key for key in redis.execute("KEYS", "model:*") if not key.endswith(b":token"))
    values = redis.execute("GET", first), redis.execute("GET", second)
    redis.execute("MSET", first, values[1], second, values[0])
    assert_same_results(reading, ROWS[:2])
    assert reading.predict.runs == [2]


def test_a_redis_that_hangs_is_left_out_and_used_again_later(caches, redis, monkeypatch):
    cache = caches(max_bytes=300)
    assert_same_results(cache, ROWS[:2])
    os.kill(redis.process.pid, signal.SIGSTOP)
    for i in range(20):
        assert_same_results(cache, ROWS[i : i + 1])
    assert len(cache.failures) == FAILURES and not cache.tier.breaker.up
    assert "skips its second level" in cache.told[0][1]
    os.kill(redis.process.pid, signal.SIGCONT)
    monkeypatch.setattr(cache.tier.breaker, "try_at", 0.0)
    wait_until(lambda: retried(cache, monkeypatch), "Redis is called again")
    assert "uses its second level again" in cache.told[-1][1]
    assert_same_results(cache)


def retried(cache, monkeypatch):
    monkeypatch.setattr(cache.tier.breaker, "try_at", 0.0)
    assert_same_results(cache, ROWS[:1])
    return cache.tier.breaker.up


def test_a_redis_that_ends_is_left_out_and_used_again_later(caches, redis, monkeypatch):
    cache = caches(max_bytes=300)
    assert_same_results(cache)
    redis.kill()
    for i in range(20):
        assert_same_results(cache, ROWS[i : i + 1])
    assert len(cache.failures) == FAILURES
    redis.start()
    wait_until(lambda: retried(cache, monkeypatch), "Redis is called again")
    assert_same_results(cache)


GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n" * 50,
    b"+OK\r\n" * 50,
    b":1\r\n" * 50,
    b"$-1\r\n" * 50,
    b"$x\r\n",
    b"*999999\r\n",
    b"-ERR no\r\n" * 50,
    b"\xff\xfe\x00" * 100,
    b"*1000\r\n" + b"$16\r\n" + b"x" * 16 + b"\r\n",
    b"",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_the_predictions_are_correct_whatever_redis_returns(caches, garbage):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = threading.Event()

        def serve():
            while not stopped.is_set():
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(0.05)
                    try:
                        while connection.recv(100_000):
                            connection.sendall(garbage)
                            if not garbage:
                                break
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        cache = caches(url=f"redis://127.0.0.1:{listener.getsockname()[1]}", max_bytes=300)
        for i in range(6):
            assert_same_results(cache, ROWS[i : i + 2])
            assert_same_results(cache, ROWS[:1])
        assert cache.failures
        stopped.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join(60)


def test_a_clear_that_redis_does_not_receive_is_503_and_clears_this_server(make_app, redis):
    app = make_app(role="prediction_cache", cache_redis_url=redis.url)
    app.post_json("/predict", {"data": [ROW]})
    redis.kill()
    assert "The second level did not answer" in app.delete("/cache", status=503).json["detail"]
    assert app.post_json("/predict", {"data": [ROW]}).headers["Cache-Status"] == "iris_wsgi; fwd=miss; stored"
    assert app.get("/cache").json["shared_failures"] >= 1


def test_a_request_without_time_for_redis_is_computed_without_it(caches, redis):
    first, second = caches(), caches()
    assert_same_results(first, ROWS[:1])
    os.kill(redis.process.pid, signal.SIGSTOP)
    second.tier.max_seconds = 3600
    assert second.lookup(ROWS[:1], PredictContext(time.monotonic() + 1800))[3:5] == (0, 1) and second.failures == []


def test_no_request_that_may_wait_for_redis_is_handled_in_the_loop(make_app, redis):
    app = make_app(role="all", cache_redis_url=redis.url).service.app
    for path, on_path in app.table.items():
        for method, route in on_path.items():
            waits = path.startswith("/predict") or path.endswith(("infer", ":predict")) or (path, method) == ("/cache", "DELETE")
            assert (route.schedule.inline_bytes == -1) or not waits, path


@pytest.mark.long
def test_a_password_is_never_shown(make_app, log):
    app = make_app(role="prediction_cache", cache_redis_url="redis://:hidden@127.0.0.1:1/0")
    for i in range(FAILURES + 1):
        app.post_json("/predict", {"data": [[i, 1, 1, 1]]})
    assert any("skips its second level" in line for line in log.raw_lines) and not any("hidden" in line for line in log.raw_lines)
    with pytest.raises(BadSetting) as raised:
        make_app(role="prediction_cache", cache_redis_url="redis://:hidden@h:port/0")
    assert "hidden" not in str(raised.value)


@pytest.mark.long
def test_a_live_server_responds_correctly_while_redis_hangs_and_notices_clears(run, redis):
    environment = {"IRIS_CACHE_REDIS_URL": redis.url}
    first, second = (run("--role", "prediction_cache", "--workers", "2", **environment) for _ in range(2))
    requests = [http_request("POST", "/predict", {"data": [row]}) for row in ROWS[:10].astype(float).tolist()]
    expected = [fetch(first, data).body for data in requests]
    assert [fetch(second, data).body for data in requests] == expected
    wait_until(lambda: fetch(first, http_request("DELETE", "/cache")).status == 200, "Redis receives the clear")
    wait_until(
        lambda: json.loads(fetch(second, http_request("GET", "/cache")).body)["entries"] == 0,
        "all processes of the other server notice the clear",
    )
    os.kill(redis.process.pid, signal.SIGSTOP)
    for server in (first, second):
        responses = [fetch(server, data) for data in requests]
        assert [(response.status, response.body) for response in responses] == [(200, body) for body in expected]
    assert np.isfinite([json.loads(body)["prediction"] for body in expected]).all()
