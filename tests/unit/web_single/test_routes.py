"""The web-single routes: right predictions, with the same bits for each way to send a row."""

import json
import re

import numpy as np
import pytest
from iris_data import LABELED_ROWS, training_rows
from project import MODEL


@pytest.mark.parametrize(("label", "row"), LABELED_ROWS.items())
def test_the_three_labeled_rows_have_their_labels_on_every_route(app, label, row):
    body = {"data": [row]}
    assert app.post_json("/predict/label", body).json == {"prediction": label}
    pairs = app.post_json("/predict/proba", body).json["prediction"]
    assert [pair["label"] for pair in pairs] == ["setosa", "versicolor", "virginica"]
    assert max(pairs, key=lambda pair: pair["probability"])["label"] == label
    probabilities = app.post_json("/predict", body).json["prediction"]
    assert probabilities == [pair["probability"] for pair in pairs]
    assert app.post_json("/predict/batch", body).json == {
        "classes": ["setosa", "versicolor", "virginica"],
        "labels": [label],
        "probabilities": [probabilities],
    }


def test_the_sample_is_a_valid_row(app):
    metadata = app.get("/metadata").json
    assert metadata["data_type"] == metadata["prediction_type"] == "float32"
    assert (metadata["data_structure"], metadata["prediction_structure"]) == ("(1,4)", "(1,3)")
    assert metadata["data_sample"] == [[5.1, 3.5, 1.4, 0.2]]
    response = app.post_json("/predict", {"data": metadata["data_sample"]}).json
    assert response["prediction"] == metadata["prediction_sample"] == app.get("/predict/test").json["prediction"]
    assert app.get("/predict/test/label").json == {"prediction": "setosa"}


def test_metadata_names_the_origin_of_the_model(app):
    model = app.get("/metadata").json["model"]
    assert (model["name"], model["version"]) == ("iris_svc", "1.0.0")
    assert (
        model["digest"]
        == app.service.model.digest
        == app.post_json("/predict", {"data": [[1, 2, 3, 4]]}).headers["X-Model-Digest"]
    )
    assert re.fullmatch("sha256:[0-9a-f]{64}", model["digest"])
    assert [f["name"] for f in model["features"]] == ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    assert all(f["unit"] == "cm" and f["min"] < f["max"] for f in model["features"])


def test_label_returns_the_unchanged_file(app):
    assert app.get("/label").json == json.loads((MODEL / "label.json").read_text())


@pytest.mark.long
def test_ten_thousand_rows_get_the_same_in_one_batch_and_one_by_one(call):
    rows = np.random.default_rng(7).uniform(-2, 12, (10_000, 4)).round(3).tolist()
    _, _, response = call("POST", "/predict/batch", json.dumps({"data": rows}).encode())
    batch = json.loads(response)
    for i, row in enumerate(rows):
        status, _, response = call("POST", "/predict", json.dumps({"data": [row]}).encode())
        assert status == 200
        assert json.loads(response)["prediction"] == batch["probabilities"][i]
    label_of = [batch["classes"][int(np.argmax(p))] for p in batch["probabilities"]]
    assert batch["labels"] == label_of


def test_the_label_route_returns_the_class_of_the_highest_probability(call):
    for row in np.random.default_rng(8).uniform(-2, 12, (2000, 4)).tolist():
        body = json.dumps({"data": [row]}).encode()
        probabilities = json.loads(call("POST", "/predict", body)[2])["prediction"]
        label = json.loads(call("POST", "/predict/label", body)[2])["prediction"]
        assert label == ["setosa", "versicolor", "virginica"][int(np.argmax(probabilities))]


def test_the_150_rows_over_http_equal_the_session_bit_for_bit(call, service):
    rows = training_rows()
    (direct,) = service.model.session.run(["probabilities"], {"features": np.array(rows, np.float32)})
    response = json.loads(call("POST", "/predict/batch", json.dumps({"data": rows}).encode())[2])
    assert response["probabilities"] == direct.tolist()
    assert np.array(response["probabilities"], np.float32).tobytes() == direct.tobytes()


def test_a_result_of_the_model_that_is_not_finite_is_500_and_logged(make_app, log):
    app = make_app()
    table = app.service.app.table
    run = app.service.model.run
    app.service.model.run = lambda *arguments: [run(*arguments)[0] * np.nan]
    for path in ("/predict", "/predict/label", "/predict/proba", "/predict/batch"):
        assert path in table
        response = app.post_json(path, {"data": [[1, 2, 3, 4]]}, status=500, headers={"X-Request-ID": "nan"})
        assert "not a finite number" in response.json["detail"]
    assert sum(line["level"] == "error" and line["request_id"] == "nan" for line in log.events()) == 4
    assert "first golden row" in app.get("/readyz", status=503).json["detail"]
    assert app.get("/livez").json == {"live": True}
