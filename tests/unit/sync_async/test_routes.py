"""POST /predict/hybrid: a provisional prediction at once, the full one as a job, and the failure of one of the two."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import webtest
from http_clients import ROW
from job_requests import idempotency_key, run_worker, submit_job
from predictors import predictor
from project import MODEL

from iris_wsgi.errors import BadModel
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.sync_async import role
from iris_wsgi.patterns.sync_async.role import BOTH_FAILED

SETOSA = {"data": [ROW]}
# The fast model is confident about the first row, and not about the second.
UNSURE = {"data": [[6.7, 3.1, 4.7, 1.5]]}
FAST = load_model(MODEL / "fast")[0]


@pytest.fixture
def app(make_app: Callable[..., webtest.TestApp]) -> webtest.TestApp:
    return make_app()


def hybrid(app: webtest.TestApp, rows=SETOSA, status: int = 200, **headers: str) -> webtest.TestResponse:
    return app.post_json("/predict/hybrid", rows, headers=headers, status=status)


class Fast:
    """The fast model, unless the test sets another behavior."""

    def __init__(self) -> None:
        self.do = lambda rows, until: FAST.predict(rows)

    def __call__(self, rows, until):
        return self.do(rows, until)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Fast:
    fast = Fast()
    monkeypatch.setattr(role, "within_deadline", lambda model, watch: predictor(fast))
    return fast


def fail(rows, until):
    raise RuntimeError("no memory")


def test_the_fast_response_comes_at_once_and_the_full_one_is_a_job(app):
    response = hybrid(app)
    document = response.json
    assert list(document) == ["provisional", "final", "degraded"] and document["degraded"] is False
    assert document["provisional"]["label"] == "setosa"
    assert document["provisional"]["model"] == {"name": FAST.name, "version": FAST.version, "digest": FAST.digest}
    assert document["provisional"]["probabilities"] == FAST.predict([ROW])[0].tolist()
    assert response.headers["X-Model-Digest"] == FAST.digest != app.service.model.digest
    assert document["final"]["status"] == "queued" and document["final"]["href"] == response.headers["Location"]


def test_the_record_has_both_predictions_and_whether_they_agree(app):
    document = hybrid(app).json
    path = document["final"]["href"]
    assert "agrees" not in app.get(path).json and app.get(path).json["provisional"] == document["provisional"]
    run_worker(app)
    record = app.get(path)
    assert record.json["agrees"] is True and record.json["degraded"] is False
    assert record.json["provisional"] == document["provisional"]
    assert record.json["result"] == app.post_json("/predict/batch", SETOSA).json
    assert record.headers["X-Model-Digest"] == app.service.model.digest


def test_predictions_that_differ_are_reported_and_counted(app):
    both = load_model(MODEL)[0], FAST
    rows = [[4 + i / 10, 2 + j / 10, 1 + k / 4, k / 10] for i in range(0, 40, 3) for j in range(0, 24, 4) for k in range(25)]
    labels = [[model.labels[i] for i in model.predict(rows).argmax(axis=1)] for model in both]
    differing = [row for row, full, fast in zip(rows, *labels, strict=True) if full != fast]
    assert differing
    path = hybrid(app, {"data": differing[:1]}).json["final"]["href"]
    hybrid(app)
    run_worker(app)
    assert app.get(path).json["agrees"] is False
    text = app.get("/metrics").text.splitlines()
    assert {'hybrid_agreements_total{agrees="false"} 1', 'hybrid_agreements_total{agrees="true"} 1'} <= set(text)
    assert 'hybrid_answers_total{final="queued"} 2' in text


@pytest.mark.parametrize("do", [fail, lambda rows, until: FAST.predict(rows) * float("nan")], ids=["raises", "not finite"])
def test_when_the_fast_model_fails_the_job_is_accepted_and_marked(app, fast, do, log):
    fast.do = do
    response = hybrid(app, status=202)
    assert response.json["provisional"] is None and response.json["degraded"] is True
    assert response.json["final"]["href"] == response.headers["Location"] and "X-Model-Digest" not in response.headers
    run_worker(app)
    record = app.get(response.headers["Location"]).json
    assert (record["status"], record["degraded"], record["provisional"]) == ("succeeded", True, None)
    assert "agrees" not in record and "the fast model failed" in [line.get("message") for line in log.events()]
    assert 'hybrid_answers_total{final="degraded"} 1' in app.get("/metrics").text


def test_openapi_shows_that_a_response_may_lack_the_provisional_prediction(app):
    documented = app.get("/openapi.json").json["paths"]["/predict/hybrid"]["post"]["responses"]
    assert [status for status in documented if status < "300"] == ["200", "202"]


def test_a_fast_model_that_hangs_gets_half_of_the_time_and_the_job_gets_the_rest(make_app, fast):
    app, deadlines = make_app(deadline_ms=60_000), []
    fast.do = lambda rows, until: deadlines.append(until - time.monotonic()) or FAST.predict(rows)
    hybrid(app)
    assert 0 < deadlines[0] <= 30


def test_when_the_queue_is_full_the_fast_prediction_is_still_sent(make_app):
    app = make_app(jobs_queued=1)
    submit_job(app)
    response = hybrid(app)
    assert response.json["final"] == {"status": "unavailable"} and response.json["provisional"]["label"] == "setosa"
    assert "Location" not in response.headers and 'hybrid_answers_total{final="unavailable"} 1' in app.get("/metrics").text


def test_when_both_fail_the_status_is_503(make_app, fast):
    app = make_app(jobs_queued=1)
    submit_job(app)
    fast.do = fail
    response = hybrid(app, status=503)
    assert response.json["detail"] == BOTH_FAILED and response.headers["Retry-After"] == "1"


def test_only_a_row_without_a_confident_prediction_becomes_a_job(make_app):
    app = make_app(escalate_below=0.9)
    assert hybrid(app).json["final"] == {"status": "confident"}
    assert hybrid(app, UNSURE).json["final"]["status"] == "queued"
    assert app.get("/jobs").json["jobs"]["queued"] == 1
    assert 'hybrid_answers_total{final="confident"} 1' in app.get("/metrics").text


def test_with_a_threshold_of_1_all_become_jobs_and_of_0_none(make_app):
    certain = {"data": [[-1e6, 3, -1e6, -1e6]]}
    app = make_app(escalate_below=1.0)
    assert max(hybrid(app, certain).json["provisional"]["probabilities"]) == 1.0
    assert app.get("/jobs").json["jobs"]["queued"] == 1
    assert hybrid(make_app(escalate_below=0.0), UNSURE).json["final"] == {"status": "confident"}


def test_one_key_is_one_job_with_the_first_response(app, fast):
    first = hybrid(app, **idempotency_key("k")).json
    fast.do = fail
    again = hybrid(app, **idempotency_key("k")).json
    assert again == first
    assert "Idempotency-Key" in hybrid(app, UNSURE, status=422, **idempotency_key("k")).json["detail"]


def test_several_rows_get_an_error_that_names_the_other_route(app):
    document = hybrid(app, {"data": [ROW, ROW]}, status=422).json
    assert "POST /jobs" in document["errors"][0]["detail"]


def test_a_fast_model_of_other_classes_stops_the_role_and_is_left_out_of_role_all(make_app, slow_model, model_copy: Path, log):
    shutil.rmtree(model_copy / "fast")
    shutil.copytree(slow_model, model_copy / "fast")
    with pytest.raises(BadModel, match="a, b, c; the full model has the classes setosa, versicolor, virginica"):
        make_app(role="sync_async", model_dir=str(model_copy))
    app = make_app(model_dir=str(model_copy))
    app.post_json("/predict/hybrid", SETOSA, status=404)
    assert app.post_json("/predict/label", SETOSA).json == {"prediction": "setosa"}
    assert "POST /predict/hybrid is not served" in log.events()[0]["message"]


def test_a_custom_model_without_a_fast_one_is_served(make_app, model_copy: Path):
    shutil.rmtree(model_copy / "fast")
    assert make_app(model_dir=str(model_copy)).post_json("/predict/label", SETOSA).json == {"prediction": "setosa"}
    with pytest.raises(BadModel, match="fast"):
        make_app(role="sync_async", model_dir=str(model_copy))
