"""The ensemble vote: the combination of member votes, and the members that may vote."""

import json
import shutil

import numpy as np
import pytest
from applications import call_wsgi
from project import MODEL

from iris_wsgi.client.v2_messages import RemoteModel
from iris_wsgi.errors import BadModel
from iris_wsgi.factory import build
from iris_wsgi.patterns.horizontal.remote_members import why_not_member
from iris_wsgi.patterns.horizontal.voting import Vote, decide, digest_of, majority
from iris_wsgi.settings import BadSetting, Settings

NAMES = ["setosa", "versicolor", "virginica"]
POINTS = {"setosa": [5.1, 3.5, 1.4, 0.2], "versicolor": [6.7, 3.1, 4.7, 1.5], "virginica": [7.2, 3.6, 6.1, 2.5]}
TRAINING = np.loadtxt(MODEL / "training.csv", delimiter=",", skiprows=1, usecols=range(4), dtype=np.float32)


@pytest.mark.parametrize(
    ("member_votes", "below", "label", "probability", "missing"),
    [
        ((0.9, 0.06, 0.04), 0.0, "setosa", 0.9, []),
        ((0.4, 0.4, 0.4), 0.0, "setosa", 1 / 3, []),
        ((0.1, 0.4, 0.4), 0.0, "versicolor", 4 / 9, []),
        ((0.02, 0.02, 0.01), 0.0, "setosa", 0.4, []),
        ((0.8, 0.8, 0.4), 0.41, None, 0.4, []),
        ((0.8, 0.8, 0.4), 0.4, "setosa", 0.4, []),
        # No member claims the row.
        ((0.0, 0.0, 0.0), 0.0, None, 0.0, []),
        # The missing member might claim the row.
        ((None, 0.01, 0.02), 0.0, "virginica", 0.02, ["setosa"]),
        ((None, 0.01, 0.02), 0.5, None, 0.02, ["setosa"]),
        ((0.9, None, 0.6), 0.0, "setosa", 0.6, ["versicolor"]),
        ((None, None, 0.7), 0.0, "virginica", 0.7, ["setosa", "versicolor"]),
    ],
)
def test_votes_are_combined_into_one_result(member_votes, below, label, probability, missing):
    votes = [Vote(item, "d") for item in member_votes]
    found = decide(NAMES, votes, below)
    assert (found.label, found.missing) == (label, missing)
    assert found.probability == pytest.approx(probability)


def test_a_majority_is_more_than_half():
    assert [majority(count) for count in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


def test_the_digest_of_a_result_covers_the_members_that_voted():
    votes = [Vote(0.1, "a"), Vote(0.2, "b")]
    assert digest_of(votes) != digest_of(votes[::-1]) != digest_of([votes[0], Vote(None, error="late")])


def test_a_member_belongs_to_its_species_and_to_the_release():
    def peer(classes=2, **arguments):
        return RemoteModel("m", "features", 4, "probabilities", classes, 10, {"digest": "sha256:1", **arguments})

    assert why_not_member(peer(member="setosa"), "setosa", "sha256:1") is None
    assert why_not_member(peer(member="setosa"), "setosa", None) is None
    assert "of virginica, not of setosa" in why_not_member(peer(member="virginica"), "setosa", None)
    assert "no species" in why_not_member(peer(), "setosa", None)
    assert "3 classes" in why_not_member(peer(3, member="setosa"), "setosa", None)
    assert "sha256:2" in why_not_member(peer(member="setosa"), "setosa", "sha256:2")


def test_the_members_in_one_process_recognize_the_three_labeled_rows(app):
    for label, row in POINTS.items():
        response = app.post_json("/ensemble/predict", {"data": [row]}).json
        assert (response["prediction"]["label"], response["status"], response["missing"]) == (label, "complete", [])
        full_model_labels = sum(member["probability"] for member in response["members"].values())
        assert response["prediction"]["probability"] == response["members"][label]["probability"] / full_model_labels
    assert app.get("/ensemble/health").json["members"] == {name: {"up": True, "why": None} for name in NAMES}


def test_the_ensemble_agrees_with_the_full_model_on_nearly_all_rows(app):
    full_model_labels = app.post_json("/predict/batch", {"data": TRAINING.tolist()}).json["labels"]
    found = [app.post_json("/ensemble/predict", {"data": [row]}).json["prediction"]["label"] for row in TRAINING.tolist()]
    assert sum(a == b for a, b in zip(found, full_model_labels, strict=True)) == 148


def test_more_than_one_row_is_422_and_an_undecided_row_gets_no_name(make_app):
    app = make_app(abstain_below=0.9)
    response = app.post_json("/ensemble/predict", {"data": TRAINING[:2].tolist()}, status=422).json
    assert "a separate request" in response["errors"][0]["detail"]
    unsure = app.post_json("/ensemble/predict", {"data": [TRAINING[106].tolist()]}).json
    assert unsure["prediction"]["label"] is None and unsure["prediction"]["probability"] < 0.9


def test_a_custom_model_needs_no_members(make_app, model_copy, log):
    shutil.rmtree(model_copy / "members")
    app = make_app(model_dir=str(model_copy))
    app.post_json("/ensemble/predict", {"data": [POINTS["setosa"]]}, status=404)
    assert any("/ensemble/predict is not served" in line["message"] for line in log.events())


def test_a_member_with_the_model_of_another_species_does_not_start(model_copy, log):
    shutil.rmtree(model_copy / "members/setosa")
    shutil.copytree(model_copy / "members/virginica", model_copy / "members/setosa")
    with pytest.raises(BadModel, match="has a model of virginica for other, virginica; IRIS_MEMBER=setosa"):
        build(Settings(role="member", member="setosa", model_dir=str(model_copy)), log)
    # A different label alone is not an error.
    golden = json.loads((model_copy / "members/setosa/golden.json").read_text())
    assert golden["model"] == "iris_virginica.onnx"
    with pytest.raises(BadModel, match="cannot be read"):
        build(Settings(role="member", member="rosa", model_dir=str(model_copy)), log)


@pytest.mark.parametrize("role", ["gateway", "all"])
def test_a_hundred_members_have_their_metrics(role, log, tmp_path):
    members = ",".join(f"m{i}=http://127.0.0.1:9" for i in range(100))
    service = build(Settings(role=role, members=members, model_dir=str(MODEL), state_dir=str(tmp_path)), log)
    assert b'remote_connections{target="m99"} 0' in call_wsgi(service.app, "GET", "/metrics")[2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"role": "member"}, "requires IRIS_MEMBER"),
        ({"role": "gateway"}, "requires IRIS_MEMBERS"),
        ({"role": "prep"}, "requires IRIS_PRED_URL"),
        ({"member": "../x"}, "letters"),
        ({"members": "setosa"}, "name=http://"),
        ({"members": "setosa=http://a,"}, "name=http://"),
        ({"members": "setosa=http://a,setosa=http://b"}, "each member once"),
        ({"members": ",".join(f"m{i}=http://a" for i in range(101))}, "at most 100 members"),
        ({"members": "setosa=https://a"}, "name=http://"),
        ({"members": "setosa=http://a:70000"}, "name=http://"),
        ({"members": "setosa=http://a..b"}, "name=http://"),
        ({"members": f"setosa=http://{'a' * 64}.b"}, "name=http://"),
        ({"members": "setosa=http://u:p@a"}, "name=http://"),
        ({"members": "setosa=http://a", "quorum": 2}, "is more than the 1 members"),
        ({"pred_url": "http://a/path"}, "http://host"),
        ({"pred_url": "pred:8000"}, "http://host"),
    ],
)
def test_an_invalid_setting_stops_the_start(settings, words):
    with pytest.raises(BadSetting, match=words):
        Settings(**settings)
