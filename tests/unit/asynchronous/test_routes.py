"""The job routes over both stores."""

import json
import re
import signal
import threading
import time
from collections.abc import Callable

import pytest
import webtest
from applications import call_wsgi
from http_clients import ROW, wait_until
from job_requests import ROWS, idempotency_key, run_worker, submit_job, worker_of
from redis_server import RedisServer

from iris_wsgi.codec.model_schema import Feature, RowSchema
from iris_wsgi.patterns.asynchronous import role
from iris_wsgi.patterns.asynchronous.job import ID_PATTERN, Job
from iris_wsgi.patterns.asynchronous.job_codec import record
from iris_wsgi.patterns.asynchronous.routes import BAD_KEY, CONFLICT, DOWN, EXPIRED, FULL, NOT_FOUND

NO_JOB = "A" * 22


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of an empty store."""
    if request.param == "sqlite":
        return {}
    server = request.getfixturevalue("shared_redis")
    server.execute("FLUSHALL")
    return {"redis_url": server.url}


@pytest.fixture
def start(
    make_app: Callable[..., webtest.TestApp], place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., webtest.TestApp]:
    # Nothing hangs here, but a busy disk may be slow.
    monkeypatch.setattr(role, "REQUEST_SECONDS", 10.0)
    return lambda **settings: make_app(**{"role": "all", **place, **settings})


@pytest.fixture
def app(start: Callable[..., webtest.TestApp]) -> webtest.TestApp:
    return start()


def submit_to_new_store(app: webtest.TestApp) -> str:
    """Submits a job to a store that has just started. Its first write to a busy disk may take longer than a request."""
    responses = []

    def accepted() -> bool:
        responses.append(app.post_json("/jobs", ROWS, headers=idempotency_key("first"), status="*"))
        return responses[-1].status_int in (200, 202)

    wait_until(accepted, "the store has started")
    return responses[-1].headers["Location"]


def test_a_job_is_accepted_with_its_path_and_queued(app):
    response = app.post_json("/jobs", ROWS)
    assert response.status_int == 202
    document = response.json
    assert list(document) == ["id", "status", "href"] and document["status"] == "queued"
    assert (
        re.fullmatch(ID_PATTERN, document["id"]) and document["href"] == response.headers["Location"] == f"/jobs/{document['id']}"
    )
    record = app.get(document["href"])
    assert record.json | {"created": ""} == {**document, "attempts": 0, "created": "", "started": None, "finished": None}
    assert record.headers["Retry-After"] == "1" and record.headers["Cache-Control"] == "no-store"
    assert "X-Model-Digest" not in record.headers


def test_the_result_is_that_of_predict_batch_and_has_the_digest(app):
    path = submit_job(app)
    run_worker(app)
    record = app.get(path)
    assert list(record.json) == ["id", "status", "href", "attempts", "created", "started", "finished", "model", "result"]
    assert (record.json["status"], record.json["attempts"]) == ("succeeded", 1)
    batch = app.post_json("/predict/batch", ROWS)
    assert record.body.endswith(b',"result":%b}\n' % batch.body.removesuffix(b"\n")) and record.json["result"] == batch.json
    assert record.headers["X-Model-Digest"] == record.json["model"]["digest"] == batch.headers["X-Model-Digest"]
    assert "Retry-After" not in record.headers


def test_a_result_of_an_older_version_has_the_record_of_a_new_one():
    metadata, result = b'{"model":{"name":"iris","version":"1","digest":"sha256:0"}}', b'{"labels":["setosa"]}'
    done = Job(f"j{'0' * 22}", "succeeded", 1, 0.0, 0.5, 1.0, b"", b"%b\n%b\n" % (metadata, result), None, None)
    with_spaces = json.dumps(json.loads(metadata)).encode()
    assert record(done._replace(result=b"%b\n%b" % (with_spaces, result))) == record(done)
    body, digest = record(done)
    assert body.endswith(b',"result":{"labels":["setosa"]}}\n') and digest == "sha256:0"
    assert list(json.loads(body)) == ["id", "status", "href", "attempts", "created", "started", "finished", "model", "result"]


def test_the_times_are_rfc_3339_in_utc_and_in_order(app):
    before = time.time()
    path = submit_job(app)
    run_worker(app)
    document = app.get(path).json
    times = [document[name] for name in ("created", "started", "finished")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", item) for item in times)
    assert sorted(times) == times
    assert abs(time.mktime(time.strptime(times[0][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - before) < 60


def test_many_jobs_each_get_their_own_result(app):
    rows = [[round(4 + i / 50, 2), 3.0, 1 + i / 40, 0.1 + i / 80] for i in range(150)]
    paths = [submit_job(app, {"data": [row]}) for row in rows]
    run_worker(app)
    responses = [app.get(path).json["result"]["probabilities"][0] for path in paths]
    assert responses == app.post_json("/predict/batch", {"data": rows}).json["probabilities"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 422), (b'{"data": []}', 422), (b'{"data": [[1, 2, 3]]}', 422),
        (b'{"data": [[1, 2, 3, 1e39]]}', 422), (b'{"data": [[1, 2, 3, 4]], "wait": 1}', 422),
    ],
)  # fmt: skip
def test_input_that_predict_batch_refuses_is_refused_for_jobs(app, body, status):
    responses = [app.post(path, body, content_type="application/json", status=status) for path in ("/jobs", "/predict/batch")]
    assert responses[0].json | {"request_id": ""} == responses[1].json | {"request_id": ""}
    assert app.get("/jobs").json["jobs"]["queued"] == 0


def test_the_maximum_number_of_rows_is_accepted_and_one_more_gets_an_error_with_the_solution(start):
    app = start(max_rows=3)
    assert app.post_json("/jobs", ROWS).status_int == 202
    document = app.post_json("/jobs", {"data": [ROW] * 4}, status=422).json
    assert "submit several jobs of up to 3 rows" in document["errors"][0]["detail"]


def test_one_idempotency_key_is_one_job_while_that_is_kept(app):
    first = submit_job(app, **idempotency_key("order-17"))
    assert submit_job(app, **idempotency_key("order-17")) == first != submit_job(app)
    run_worker(app)
    again = app.post_json("/jobs", ROWS, headers=idempotency_key("order-17"))
    assert (again.headers["Location"], again.status_int, again.json["status"]) == (first, 202, "succeeded")


def test_a_quoted_key_is_the_same_key_and_the_rows_may_have_another_notation(app):
    first = submit_job(app, **idempotency_key("a b"))
    other = b'{"data":[[5.10,35e-1,1.4,0.2],[6.7,3.1,4.7,1.5],[7.2,3.6,6.1,2.5]]}'
    response = app.post("/jobs", other, headers=idempotency_key(' "a b"'), content_type="application/json")
    assert response.headers["Location"] == first


def test_other_rows_with_the_same_key_get_422(app):
    first = submit_job(app, **idempotency_key("k"))
    assert app.post_json("/jobs", {"data": [ROW]}, headers=idempotency_key("k"), status=422).json["detail"] == CONFLICT
    # The same bytes with another shape are other rows.
    assert submit_job(app, **idempotency_key("k")) == first and app.get("/jobs").json["jobs"]["queued"] == 1


@pytest.mark.parametrize("bad", ["", " ", '""', "x" * 256, "\x7f", "é", "\t"])
def test_an_invalid_key_gets_400(app, bad):
    status, _, content = call_wsgi(app.service.app, "POST", "/jobs", json.dumps(ROWS).encode(), HTTP_IDEMPOTENCY_KEY=bad)
    assert (status, json.loads(content)["detail"]) == (400, BAD_KEY)


def test_keys_of_jobs_and_of_hybrid_requests_are_separate(app):
    item = {"data": [ROW]}
    assert (
        submit_job(app, item, **idempotency_key("k"))
        != app.post_json("/predict/hybrid", item, headers=idempotency_key("k")).headers["Location"]
    )


@pytest.mark.parametrize("method", ["get", "delete"])
def test_an_unknown_job_gets_404_and_an_expired_one_410(start, method):
    app = start(keep_seconds=0.1)
    for job_id in (NO_JOB, "x", "A" * 21, "A" * 23, "..", "%00"):
        assert getattr(app, method)(f"/jobs/{job_id}", status=404).json["detail"] == NOT_FOUND
    path = submit_job(app)
    run_worker(app)
    wait_until(lambda: app.get(path, status="*").status_int == 410, "the job has expired")
    assert getattr(app, method)(path, status=410).json["detail"] == EXPIRED
    worker_of(app).store.sweep()
    assert sum(app.get("/jobs").json["jobs"].values()) == 0
    assert getattr(app, method)(path, status=410).json["detail"] == EXPIRED


def test_a_cancelled_job_is_not_executed_and_may_be_cancelled_again(app):
    path = submit_job(app)
    assert [app.delete(path).json["status"] for _ in range(2)] == ["cancelled"] * 2
    run_worker(app)
    document = app.get(path).json
    assert document["status"] == "cancelled" and document["finished"] and document["attempts"] == 0 and "result" not in document


def test_a_finished_job_cannot_be_cancelled(app):
    path = submit_job(app)
    run_worker(app)
    assert "done" in app.delete(path, status=409).json["detail"]
    assert app.get(path).json["status"] == "succeeded"


def test_operators_see_the_number_of_jobs_in_each_state_and_the_age_of_the_oldest(app):
    assert app.get("/jobs").json == {
        "jobs": {"queued": 0, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0},
        "oldest_queued_seconds": 0.0,
    }
    submit_job(app)
    app.delete(submit_job(app))
    run_worker(app)
    submit_job(app)
    document = app.get("/jobs").json
    assert document["jobs"] == {"queued": 1, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 1}
    assert document["oldest_queued_seconds"] > 0


def test_a_full_queue_gets_503_until_there_is_room(start):
    app = start(jobs_queued=2)
    paths = [submit_job(app, **idempotency_key("first")), submit_job(app)]
    response = app.post_json("/jobs", ROWS, status=503)
    assert response.json["detail"] == FULL and response.headers["Retry-After"] == "1"
    # A known key needs no room in the queue.
    assert submit_job(app, **idempotency_key("first")) == paths[0]
    app.delete(paths[1])
    assert app.post_json("/jobs", ROWS).status_int == 202


def wait(value: str) -> dict[str, str]:
    return {"Prefer": value}


def test_a_long_poll_waits_until_the_job_is_done(app):
    path = submit_job(app)
    responses = []
    thread = threading.Thread(target=lambda: responses.append(app.get(path, headers=wait("wait=20"))))
    thread.start()
    assert app.get(path).json["status"] == "queued"
    run_worker(app)
    thread.join(120)
    assert responses[0].json["status"] == "succeeded" and responses[0].headers["Preference-Applied"] == "wait=20"


def test_a_long_poll_waits_at_most_for_the_preferred_time_and_for_the_limit(start, monkeypatch):
    monkeypatch.setattr(role, "MAX_WAIT_SECONDS", 0.1)
    app = start()
    path = submit_job(app)
    response = app.get(path, headers=wait("wait=3600"))
    assert response.json["status"] == "queued" and response.headers["Preference-Applied"] == "wait=0.1"


@pytest.mark.parametrize("prefer", ["wait=0", "wait=x", "respond-async", ""])
def test_without_a_preference_the_response_comes_at_once(app, prefer):
    assert "Preference-Applied" not in app.get(submit_job(app), headers=wait(prefer)).headers


def test_a_long_poll_of_an_unknown_job_responds_at_once(app):
    assert app.get(f"/jobs/{NO_JOB}", headers=wait("wait=30"), status=404).json["detail"] == NOT_FOUND


def test_when_the_process_stops_no_long_poll_waits(app):
    path = submit_job(app)
    app.service.background.stopping = True
    assert app.get(path, headers=wait("wait=30")).json["status"] == "queued"


def test_a_long_poll_may_wait_longer_than_the_deadline_of_other_requests(start, monkeypatch):
    monkeypatch.setattr(role, "MAX_WAIT_SECONDS", 0.3)
    app = start(deadline_ms=200)
    assert app.get(submit_job(app), headers=wait("wait=1")).json["status"] == "queued"


def test_the_log_shows_the_id_of_a_job_and_neither_its_key_nor_an_invalid_id(app, log):
    path = submit_job(app, **idempotency_key("secret-order"))
    app.get(path)
    app.get(f"/jobs/j{'x' * 22}", status=404)
    app.delete(path)
    text = "".join(log.raw_lines)
    assert "secret-order" not in text and "x" * 22 not in text and '"route":"/jobs/{id}"' in text
    assert [line.get("job") for line in log.events()] == [path.rpartition("/")[2]] * 2 + [None, path.rpartition("/")[2]]


def test_jobs_are_counted(app):
    submit_job(app, **idempotency_key("k"))
    app.post_json("/jobs", {"data": [ROW]}, headers=idempotency_key("k"), status=422)
    run_worker(app)
    text = app.get("/metrics").text
    for line in (
        'job_submissions_total{outcome="accepted"} 1',
        'job_submissions_total{outcome="conflict"} 1',
        'job_attempts_total{outcome="succeeded"} 1',
        "job_reclaimed_total 0",
        "job_queue_duration_seconds_count 1",
        "job_result_duration_seconds_count 1",
    ):
        assert line in text.splitlines()


@pytest.fixture
def stoppable(make_app: Callable[..., webtest.TestApp], own_redis: RedisServer) -> tuple[webtest.TestApp, RedisServer]:
    """The role `all` on a separate Redis."""
    return make_app(redis_url=own_redis.url), own_redis


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_without_its_store_only_the_job_routes_are_unavailable_and_recover_on_their_own(stoppable, fault, log):
    app, server = stoppable
    path = submit_to_new_store(app)
    server.process.send_signal(fault)
    for ask in (lambda: app.post_json("/jobs", ROWS, status=503), lambda: app.get(path, status=503)) * 3:
        response = ask()
        assert response.json["detail"] == DOWN and response.headers["Retry-After"] == "1"
    for ask in (app.delete, app.get):
        assert ask(path, status=503).json["detail"] == DOWN
    assert app.get("/jobs", status=503).json["detail"] == DOWN
    assert app.get(path, headers=wait("wait=30"), status=503).json["detail"] == DOWN
    assert app.post_json("/predict/label", {"data": [ROW]}).json == {"prediction": "setosa"}
    assert app.get("/readyz").json == {"ready": True}
    result = [line["message"] for line in log.events() if "message" in line]
    assert len(result) == 1 and "jobs are rejected" in result[0] and server.url not in result[0]
    if fault is signal.SIGSTOP:
        server.process.send_signal(signal.SIGCONT)
    else:
        server.process.communicate()
        server.start()
    wait_until(lambda: app.get(path, status="*").status_int == 200, "the store is called again")
    run_worker(app)
    assert app.get(path).json["status"] == "succeeded"


def test_an_unavailable_store_shows_in_the_metrics(stoppable):
    app, server = stoppable
    app.service.background.start()
    wait_until(lambda: "job_store_up 1" in app.get("/metrics").text, "the store is up")
    server.kill()
    wait_until(lambda: "job_store_up 0" in app.get("/metrics").text, "the store is down")
    assert 'jobs{state="queued"}' not in app.get("/metrics").text
    server.start()
    wait_until(lambda: 'jobs{state="queued"} 0' in app.get("/metrics").text, "the store is up again")
    app.service.background.stop(time.monotonic() + 20)


def test_a_job_of_a_model_of_another_width_fails_and_affects_no_other(start):
    wide = start()
    path = submit_job(wide)
    worker = worker_of(wide)
    schema, worker.model.schema = worker.model.schema, RowSchema([Feature(name) for name in "abcde"])
    run_worker(wide)
    worker.model.schema = schema
    other = submit_job(wide)
    run_worker(wide)
    document = wide.get(path).json
    assert document["status"] == "failed" and "width" in document["error"] and wide.get(other).json["status"] == "succeeded"


def test_the_state_folder_is_created_and_has_the_embedded_store(make_app, tmp_path):
    make_app(role="asynchronous", state_dir=str(tmp_path / "a/b"))
    assert (tmp_path / "a/b/jobs.db").stat().st_mode & 0o777 == 0o600
