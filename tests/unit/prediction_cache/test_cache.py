"""The prediction cache: the same results as without it, from fewer runs."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import inf

import numpy as np
import pytest
from applications import RecordingLog
from http_clients import RawConnection, fetch, http_request, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iris_data import IRIS_ROWS
from metrics_text import sample_value
from prediction_caches import ROW, ROWS, CountingPredictor, build_cache, cached, expected_probabilities, row_counts
from project import MODEL
from property_tests import examples

from iris_wsgi.errors import DeadlineExceeded
from iris_wsgi.factory import build
from iris_wsgi.http.cache_headers import CacheDirectives
from iris_wsgi.model import golden
from iris_wsgi.model.predictor import PredictContext
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.patterns.prediction_cache import store
from iris_wsgi.patterns.prediction_cache.cache import PredictionCache
from iris_wsgi.patterns.prediction_cache.store import RESULTS, CacheMetrics, CacheStore
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.storage.lru import LRUCache, entry_bytes


@pytest.fixture
def pool():
    with ThreadPoolExecutor(200) as threads:
        yield threads


def test_a_cached_row_is_not_run_again():
    predict = CountingPredictor()
    cache = build_cache(predict)
    for _ in range(3):
        assert cached(cache, ROWS[:1]).tobytes() == expected_probabilities(ROWS[:1]).tobytes()
    assert predict.runs == [1] and row_counts(cache) == {"hit": 2, "run": 1}


def test_of_a_batch_only_missing_rows_are_run_and_the_order_stays():
    predict = CountingPredictor()
    cache = build_cache(predict)
    cached(cache, ROWS[[3, 5]])
    mixed = ROWS[[1, 3, 1, 5, 2, 3]]
    response = cache.lookup(mixed, PredictContext())
    assert response.outputs.tobytes() == expected_probabilities(mixed).tobytes()
    assert predict.runs == [2, 2] and response[1:5] == (3, 1, 0, 2)


def test_a_large_batch_is_run_in_pieces_with_the_same_results():
    predict = CountingPredictor()
    cache = build_cache(predict, chunk_rows=10)
    assert cached(cache, ROWS).tobytes() == expected_probabilities(ROWS).tobytes() and predict.runs == [10] * 6 + [4]
    response = cache.lookup(ROWS, PredictContext())
    assert response.outputs.tobytes() == expected_probabilities(ROWS).tobytes() and response.hits == 64 and len(predict.runs) == 7


def test_negative_zero_equals_zero():
    rows = np.array([[0.0, -0.0, 1.0, 2.0], [-0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1.0, 2.0]], np.float32)
    predict = CountingPredictor()
    assert len(set(IRIS_ROWS.canonical(rows)[1])) == 1
    cached(build_cache(predict), rows)
    assert predict.runs == [1]


def test_two_hundred_concurrent_requests_for_one_row_get_it_from_one_run(pool):
    predict = CountingPredictor(waits=True)
    cache = build_cache(predict)
    requested = [pool.submit(cached, cache, ROWS[:1]) for _ in range(200)]
    wait_until(lambda: row_counts(cache).get("coalesced") == 199, "199 requests wait for the first")
    predict.released.set()
    assert {future.result(60).tobytes() for future in requested} == {expected_probabilities(ROWS[:1]).tobytes()}
    assert predict.runs == [1] and cache.store.flights == {}


def test_a_failure_is_returned_to_all_waiting_requests_and_is_not_stored(pool):
    predict = CountingPredictor(waits=True)
    cache = build_cache(predict)
    predict.error = RuntimeError("broken")
    requested = [pool.submit(cached, cache, ROWS[:1]) for _ in range(20)]
    wait_until(lambda: row_counts(cache).get("coalesced") == 19, "19 requests wait for the first")
    predict.released.set()
    for future in requested:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(60)
    assert predict.runs == [1] and cache.store.flights == {}
    predict.error = None
    assert cached(cache, ROWS[:1]).tobytes() == expected_probabilities(ROWS[:1]).tobytes() and predict.runs == [1, 1]


def test_a_request_waiting_for_a_row_of_a_failed_batch_runs_it_alone(pool):
    predict = CountingPredictor(waits=True)
    cache = build_cache(predict)
    predict.error = RuntimeError("another row breaks it")
    batch = pool.submit(cached, cache, ROWS[:2])
    assert predict.started.wait(60)
    single_requests = [pool.submit(cached, cache, ROWS[:1]) for _ in range(5)]
    wait_until(lambda: row_counts(cache).get("coalesced") == 5, "the requests wait for the batch")
    cache.predict = CountingPredictor()
    predict.released.set()
    with pytest.raises(RuntimeError, match="another row"):
        batch.result(60)
    assert {future.result(60).tobytes() for future in single_requests} == {expected_probabilities(ROWS[:1]).tobytes()}
    assert cache.predict.runs == [1]


def test_a_waiting_request_with_a_later_deadline_tries_again(pool):
    predict = CountingPredictor(waits=True)
    cache = build_cache(predict)
    predict.error = DeadlineExceeded("too late")
    first = pool.submit(cached, cache, ROWS[:1])
    assert predict.started.wait(60)
    second = pool.submit(cached, cache, ROWS[:1])
    wait_until(lambda: row_counts(cache).get("coalesced") == 1, "the request waits for the first")
    cache.predict = CountingPredictor()
    predict.released.set()
    with pytest.raises(DeadlineExceeded, match="too late"):
        first.result(60)
    assert second.result(60).tobytes() == expected_probabilities(ROWS[:1]).tobytes() and cache.predict.runs == [1]


def test_no_request_waits_beyond_its_own_deadline(pool):
    predict = CountingPredictor(waits=True)
    cache = build_cache(predict)
    first = pool.submit(cached, cache, ROWS[:1])
    assert predict.started.wait(60)
    with pytest.raises(DeadlineExceeded):
        cached(cache, ROWS[:1], time.monotonic() + 0.01)
    predict.released.set()
    assert first.result(60).tobytes() == expected_probabilities(ROWS[:1]).tobytes()


def test_a_result_that_is_not_finite_is_not_stored_and_the_others_of_its_batch_are():
    predict, broken = CountingPredictor(), [True]

    def run(rows, context):
        found = predict(rows, context)
        if broken:
            found.outputs[rows[:, 0] == ROWS[0, 0]] = np.nan
        return found

    cache = build_cache(run)
    assert np.isnan(cached(cache, ROWS[:1])).all() and np.isnan(cached(cache, ROWS[:3])[0]).all()
    assert len(cache.store.entries.entries) == 2
    broken.clear()
    assert cached(cache, ROWS[:3]).tobytes() == expected_probabilities(ROWS[:3]).tobytes() and predict.runs == [1, 3, 1]


def test_no_store_stores_nothing_and_no_cache_reads_nothing():
    predict = CountingPredictor()
    cache = build_cache(predict)
    cache.lookup(ROWS[:1], PredictContext(inf, CacheDirectives(read=False, store=False)))
    assert len(cache.store.entries.entries) == 0
    for _ in range(2):
        cache.lookup(ROWS[:1], PredictContext(inf, CacheDirectives(read=False)))
    assert predict.runs == [1, 1, 1] and cache.lookup(ROWS[:1], PredictContext()).hits == 1
    assert row_counts(cache) == {"bypassed": 3, "hit": 1}


def test_an_entry_expires_after_its_time_to_live(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(store, "monotonic", lambda: now[0])
    predict = CountingPredictor()
    cache = build_cache(predict, seconds=10)
    cached(cache, ROWS[:1])
    now[0] += 9.5
    assert cache.lookup(ROWS[:1], PredictContext()).ttl == 0.5
    now[0] += 0.5
    cached(cache, ROWS[:1])
    assert predict.runs == [1, 1]
    assert cache.store.metrics.totals()["evictions"] == {"size": 0, "expired": 1}


def test_the_cache_never_exceeds_its_size_and_reports_its_bytes():
    cache = build_cache(CountingPredictor(), max_bytes=10 * entry_bytes(bytes(16), bytes(12)))
    cached(cache, ROWS)
    result = cache.store.metrics.totals()
    assert (result["entries"], result["bytes"]) == (10, cache.store.entries.max_bytes)
    assert result["evictions"] == {"size": 54, "expired": 0}


def test_a_result_computed_before_a_clear_is_not_stored_after_it(pool):
    predict = CountingPredictor(waits=True)
    cache = build_cache(predict)
    first = pool.submit(cache.lookup, ROWS[:1], PredictContext())
    assert predict.started.wait(60)
    cache.clear()
    predict.released.set()
    assert not first.result(60).stored and len(cache.store.entries.entries) == 0


def test_a_clear_reaches_every_cache_of_the_service():
    predict = CountingPredictor()
    registry = Registry()
    metrics = CacheMetrics(registry)
    first, second = (
        PredictionCache(predict, IRIS_ROWS, 3, CacheStore(LRUCache(1 << 20), 60, metrics, registry.memory)) for _ in range(2)
    )
    registry.join()
    cached(first, ROWS[:5])
    cached(second, ROWS[:5])
    first.clear()
    assert (first.lookup(ROWS[:1], PredictContext()).hits, second.lookup(ROWS[:1], PredictContext()).hits) == (0, 0)


# Requests to the application


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Applications without a cache, and with one that has room for eight rows."""
    folder = {"model_dir": str(MODEL), "state_dir": str(tmp_path_factory.mktemp("state")), "max_rows": 20, "deadline_ms": 0}
    room = 8 * entry_bytes(bytes(16), bytes(12))
    plain = build(Settings(role="web_single", **folder), RecordingLog())
    return plain, build(Settings(role="prediction_cache", cache_bytes=room, cache_seconds=10.0, **folder), RecordingLog())


def answered(service, path, rows, control=None):
    """Returns the status, the content, and the headers, except those of the cache."""
    variables = {"HTTP_X_REQUEST_ID": "same"} | ({"HTTP_CACHE_CONTROL": control} if control else {})
    method, body = ("GET", b"") if rows is None else ("POST", json.dumps({"data": rows}).encode())
    response, _ = service.app.answer(method, path, variables, body)
    return response.status, response.body, [field for field in response.headers if field[0] != "Cache-Status"]


VALUES = st.sampled_from([0.0, -0.0, 1.5, 5.1, -7.25, 1e-40, 3e38, 1e39, "5"])
KNOWN = st.sampled_from([[5.1, 3.5, 1.4, float(i)] for i in range(6)] + [[0.0, -0.0, 1.0, 2.0], [-0.0, 0.0, 1.0, 2.0]])
ROW_LISTS = st.lists(st.one_of(KNOWN, KNOWN, st.lists(VALUES, min_size=3, max_size=4)), min_size=0, max_size=22)
PATHS = st.sampled_from(["/predict", "/predict/label", "/predict/proba", "/predict/batch", "/predict/batch"])
CONTROLS = st.sampled_from([None, None, None, "no-store", "no-cache", "max-age=0", "no-cache, no-store", "max-age=60"])
ASKED = st.one_of(
    st.tuples(PATHS, st.one_of(KNOWN.map(lambda row: [row]), ROW_LISTS), CONTROLS),
    st.tuples(st.sampled_from(["/predict/test", "/predict/test/label", "/metadata", "/label"]), st.none(), CONTROLS),
)
STEPS = st.lists(st.one_of(ASKED, ASKED, ASKED, st.sampled_from(["clear", "later", "much later"])), max_size=30)


@settings(deadline=None, max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_responses_are_the_same_to_the_byte_with_and_without_a_cache(pair, monkeypatch, steps):
    plain, with_cache = pair
    now = [time.monotonic()]
    with monkeypatch.context() as patched:
        patched.setattr(store, "monotonic", lambda: now[0])
        with_cache.app.answer("DELETE", "/cache", {}, b"")
        for step in steps:
            if step == "clear":
                assert with_cache.app.answer("DELETE", "/cache", {}, b"")[0].status == 200
            elif isinstance(step, str):
                now[0] += 4 if step == "later" else 40
            else:
                assert answered(with_cache, *step) == answered(plain, *step)


def test_responses_are_the_same_with_several_threads_and_clears_between_them(pair, pool):
    plain, with_cache = pair
    chance = random.Random(11)
    rows = [[round(chance.uniform(0, 8), 1) for _ in range(4)] for _ in range(12)] + [
        [0.0, -0.0, 1.0, 2.0],
        [-0.0, 0.0, 1.0, 2.0],
    ]
    expected = {}
    for row in rows:
        expected[tuple(map(str, row))] = json.loads(answered(plain, "/predict", [row])[1])["prediction"]

    def client(seed):
        chance, wrong = random.Random(seed), 0
        for _ in range(150):
            if chance.random() < 0.03:
                with_cache.app.answer("DELETE", "/cache", {}, b"")
            requested = [chance.choice(rows) for _ in range(chance.choice((1, 1, 3, 15)))]
            control = chance.choice((None, None, None, "no-cache", "no-store"))
            status, body, _ = answered(with_cache, "/predict/batch", requested, control)
            wrong += (status, json.loads(body)["probabilities"]) != (200, [expected[tuple(map(str, row))] for row in requested])
        return wrong

    assert [future.result(120) for future in [pool.submit(client, seed) for seed in range(8)]] == [0] * 8


def test_the_response_names_its_source(make_app):
    app = make_app(role="prediction_cache")

    def status(rows, path="/predict/batch", **headers):
        return app.post_json(path, {"data": rows}, headers=headers).headers["Cache-Status"]

    assert status([ROW]) == "iris_wsgi; fwd=miss; stored"
    assert status([ROW], "/predict/label") == "iris_wsgi; hit; ttl=3599"
    assert status([ROW, [1, 2, 3, 4]]) == 'iris_wsgi; fwd=partial; stored; detail="1 of 2 rows"'
    for control in ("no-cache", "No-Cache", "max-age=0", "max-age = 0", "x=1,no-cache", 'no-cache="x"'):
        assert status([ROW], **{"Cache-Control": control}) == "iris_wsgi; fwd=request; stored"
    for control in ("no-store", "no-cache, no-store", "NO-STORE ,x"):
        assert status([ROW], **{"Cache-Control": control}) == "iris_wsgi; fwd=request"
    for control in ("max-age=10", "no-cached", "x-no-store", 'x="no-store"', "", "only-if-cached"):
        assert status([ROW], **{"Cache-Control": control}).startswith("iris_wsgi; hit; ttl=")
    assert "Cache-Status" not in make_app(role="web_single").post_json("/predict", {"data": [ROW]}).headers


def test_operators_see_the_cache_and_clear_it(make_app):
    app = make_app(role="prediction_cache", cache_bytes=1_000_000)
    app.post_json("/predict/batch", {"data": [ROW, [1, 2, 3, 4]]})
    app.post_json("/predict", {"data": [ROW]})
    state = app.get("/cache").json
    assert (state["entries"], state["bytes"], state["limit_bytes"]) == (2, 2 * entry_bytes(bytes(16), bytes(12)), 1_000_000)
    assert state["rows"] == dict.fromkeys(RESULTS, 0) | {"run": 2, "hit": 1}
    assert (state["model"], state["second_level"]) == (app.service.model.digest, False)
    assert app.delete("/cache").json == {"cleared": True}
    assert app.post_json("/predict", {"data": [ROW]}).headers["Cache-Status"] == "iris_wsgi; fwd=miss; stored"
    assert app.get("/cache").json["entries"] == 1


def test_the_metrics_have_the_same_numbers(make_app):
    app = make_app(role="prediction_cache", cache_bytes=1024)
    app.post_json("/predict/batch", {"data": ROWS[:10].astype(float).tolist()})
    text = app.get("/metrics").text
    assert sample_value(text, "prediction_cache_entries") == 3 and sample_value(text, "prediction_cache_bytes") <= 1024
    assert sample_value(text, "prediction_cache_evictions_total", reason="size") == 7
    assert sample_value(text, "prediction_cache_rows_total", result="run") == sample_value(
        text, "model_rows_total", label="setosa"
    ) + sum(sample_value(text, "model_rows_total", label=label) for label in ("versicolor", "virginica"))


def test_every_route_of_the_model_uses_the_cache(make_app):
    app = make_app(role="all")
    app.post_json("/predict", {"data": [ROW]})
    app.post_json("/v1/models/iris_svc:predict", {"instances": [ROW]})
    infer = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": ROW}]}
    app.post_json("/v2/models/iris_svc/infer", infer)
    assert app.get("/cache").json["rows"] == dict.fromkeys(RESULTS, 0) | {"run": 1, "hit": 2}


def test_the_cache_is_used_in_the_roles_of_its_setting(make_app):
    assert make_app(role="web_single").service.app.answer("GET", "/cache", {}, b"")[0].status == 404
    assert make_app(role="web_single", cache="on").get("/cache").json["entries"] == 0
    assert make_app(role="all", cache="off").service.app.answer("GET", "/cache", {}, b"")[0].status == 404
    with pytest.raises(BadSetting, match="IRIS_CACHE=off leaves nothing of IRIS_ROLE=prediction_cache"):
        Settings(role="prediction_cache", cache="off")
    with pytest.raises(BadSetting, match="IRIS_CACHE_REDIS_URL is the second level of a cache that is off"):
        Settings(role="web_single", cache_redis_url="redis://x")
    with pytest.raises(BadSetting, match="IRIS_CACHE must be one of|IRIS_CACHE='maybe' must be one of"):
        Settings(cache="maybe")


def test_a_model_whose_results_depend_on_the_batch_is_not_cached(make_app, monkeypatch, log):
    monkeypatch.setattr(golden, "batch_difference", lambda *_: 1e-7)
    for expected, name in (({"role": "prediction_cache"}, "IRIS_ROLE=prediction_cache"), ({"cache": "on"}, "IRIS_CACHE=on")):
        with pytest.raises(BadSetting, match=f"^{name}: .* differ by up to 1.0e-07; it cannot be cached$"):
            make_app(**expected)
    assert make_app(role="all").service.app.answer("GET", "/cache", {}, b"")[0].status == 404
    assert "there is no prediction cache" in log.raw_lines[0]


# Live server


def test_two_hundred_requests_for_one_cold_row_are_one_run_of_a_slow_model(run, slow_model):
    server = run("--role", "prediction_cache", "--model-dir", str(slow_model), "--queue", "300")
    requested = http_request("POST", "/predict", {"data": [[1.0, 2.0, 3.0, 4.0]]})
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server, timeout=120)) for _ in range(200)]
        for connection in connections:
            connection.send(requested)
        responses = [connection.receive() for connection in connections]
    assert {(response.status, response.body) for response in responses} == {(200, responses[0].body)}
    assert sample_value(fetch(server, http_request("GET", "/metrics")).body.decode(), "model_runs_total") == 1


def test_a_clear_by_command_reaches_all_workers(run, capsys):
    from iris_wsgi.cli.main import main

    server = run("--role", "prediction_cache", "--workers", "2")
    requested = http_request("POST", "/predict", {"data": [ROW]})

    with ExitStack() as stack:
        connections = []

        def cache_statuses():
            for connection in connections:
                connection.send(requested)
            return [connection.receive().headers["cache-status"] for connection in connections]

        def both_have_it():
            # The kernel chooses the worker of a connection.
            connections.extend(stack.enter_context(RawConnection(server)) for _ in range(20))
            cache_statuses()
            return connections[0].exchange(http_request("GET", "/cache")).json()["entries"] == 2

        wait_until(both_have_it, "both workers have the row")
        assert all("; hit" in item for item in cache_statuses())
        assert main(["clear", "--port", str(server.port)]) == 0
        assert capsys.readouterr().out == "the prediction cache is cleared\n"
        assert sum("fwd=miss" in item for item in cache_statuses()) == 2
        assert connections[0].exchange(http_request("GET", "/cache")).json()["entries"] == 2


def test_a_clear_without_a_cache_is_a_failure(run, capsys):
    from iris_wsgi.cli.main import main

    server = run("--role", "web_single")
    assert main(["clear", "--port", str(server.port)]) == 1
    assert "the cache is not cleared: 127.0.0.1 port" in capsys.readouterr().err
