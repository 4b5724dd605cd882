"""Companions in the folder of the full model: those of another model are refused by name, and not served."""

import shutil

import onnx
import pytest
from chosen_models import MIXED, NUMBERS, pack_classifier, pack_mixed, pack_regressor, pack_scores
from packed_models import write_model
from project import MODEL
from sealed_models import seal

from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel
from iris_wsgi.factory import build
from iris_wsgi.settings import BadSetting, Settings

URL = "http://127.0.0.1:9"
CLASSIFIER_ROLES = [
    ("prep", "prep-pred", {"pred_url": URL}),
    ("pred", "prep-pred", {}),
    ("member", "horizontal", {"member": "x"}),
    ("gateway", "horizontal", {"members": f"x={URL}"}),
]


def warnings_of(log) -> list[str]:
    return [line["message"] for line in log.events() if line["level"] == "warning" and "is not served" in line["message"]]


def renamed(change) -> list:
    return [change(one) for one in NUMBERS]


@pytest.mark.parametrize(
    ("pack", "difference"),
    [
        (lambda folder: pack_classifier(folder, name="fast"), ""),
        (lambda folder: pack_classifier(folder, labels=("z", "y", "x"), name="fast"),
         "it has the classes z, y, x; the full model has the classes x, y, z"),
        (lambda folder: pack_scores(folder), "it gives scores; the full model gives classifier"),
        (lambda folder: pack_classifier(folder, features=[NUMBERS[0], NUMBERS[2], NUMBERS[1]]),
         "it takes a (float32), c (float32), b (float32); the full model takes a (float32), b (float32), c (float32)"),
        (lambda folder: pack_classifier(folder, features=[one._replace(missing=True) for one in NUMBERS]),
         "its feature a may be missing; that of the full model may not"),
    ],
)  # fmt: skip
def test_a_fast_model_belongs_if_features_labels_and_kind_are_those_of_the_full_model(
    make_app, log, tmp_path, capsys, pack, difference
):
    whole = pack_classifier(tmp_path / "model", name="whole")
    pack(whole / "fast")
    app = make_app(model_dir=str(whole))
    assert app.post_json("/predict/hybrid", {"data": [[1, 1, 1]]}, status="*").status_int == (404 if difference else 200)
    found = [text for text in warnings_of(log) if text.startswith("POST /predict/hybrid")]
    assert len(found) == bool(difference) and all(
        text.endswith(f"which does not belong to whole unknown: {difference}") for text in found
    )
    assert main(["verify", "--model-dir", str(whole)]) == bool(difference)
    assert difference in capsys.readouterr().err
    if difference:
        with pytest.raises(BadModel, match="fast has the model .* unknown, which does not belong to whole"):
            make_app(model_dir=str(whole), role="sync_async")


def test_a_fast_model_with_other_types_is_refused(make_app, tmp_path):
    whole = write_model(tmp_path / "model", "columns of several types")
    shutil.copytree(write_model(tmp_path / "other", "missing values"), whole / "fast")
    with pytest.raises(BadModel, match=r"it takes x0 \(float32\), .*; the full model takes age \(float32\), city \(string\)"):
        make_app(model_dir=str(whole), role="sync_async")


def test_a_missing_companion_names_the_folder_and_the_command(make_app, log, tmp_path):
    whole = pack_mixed(tmp_path / "model")
    make_app(model_dir=str(whole))
    fast, members, half = warnings_of(log)
    assert fast.endswith(
        f"fast/golden.json cannot be read: there is no fast model; pack one by bin/pack MODEL --rows rows.csv --out {whole}/fast"
    )
    assert members.endswith("members has no models of one species each")
    assert half.endswith("there is no second half; docs/own-models.md describes how to make both halves of a model")


@pytest.mark.parametrize(
    ("member", "difference"),
    [
        (lambda folder: pack_classifier(folder, labels=("other", "x"), name="one"), ""),
        (lambda folder: pack_classifier(folder, labels=("x", "other"), name="one"),
         "it is for x, other; it must have two classes, with x as the last"),
        (lambda folder: pack_scores(folder, labels=("other", "x")), "it gives scores; a member gives probabilities"),
        (lambda folder: pack_classifier(folder, labels=("other", "x"),
                                        features=renamed(lambda one: one._replace(name=one.name * 2))),
         "it takes aa (float32), bb (float32), cc (float32); the full model takes a (float32), b (float32), c (float32)"),
    ],
)  # fmt: skip
def test_a_member_of_another_model_stops_the_ensemble(make_app, log, tmp_path, member, difference):
    whole = pack_classifier(tmp_path / "model", name="whole")
    member(whole / "members/x")
    make_app(model_dir=str(whole)).post_json("/ensemble/predict", {"data": [[1, 1, 1]]}, status=404 if difference else 200)
    found = [text for text in warnings_of(log) if text.startswith("POST /ensemble/predict")]
    assert len(found) == bool(difference) and all(difference in text and "members/x has the model" in text for text in found)


def test_a_member_for_an_unknown_class_is_refused(make_app, log, tmp_path):
    whole = pack_classifier(tmp_path / "model")
    pack_classifier(whole / "members/w", labels=("other", "w"))
    make_app(model_dir=str(whole))
    assert any("w is not one of the classes x, y, z of the full model" in text for text in warnings_of(log))


def models_of(app) -> list[str]:
    return app.get("/v2/models").json["models"]


def test_the_halves_of_the_full_model_are_served_and_those_of_another_are_not(make_app, log, tmp_path):
    assert models_of(make_app()) == ["iris_svc", "iris_svc_pred"]
    # A full model of the same labels and features, whose predictions differ from those of the halves.
    other = shutil.copytree(MODEL / "fast", tmp_path / "other")
    for half in ("prep", "pred"):
        shutil.copytree(MODEL / half, other / half)
    assert models_of(make_app(model_dir=str(other))) == ["iris_lr"]
    (found,) = [text for text in warnings_of(log) if text.startswith("the second half")]
    assert "pred has the model iris_svc_pred 1.0.0, which does not belong to iris_lr 1.0.0: the halves together fail" in found
    assert main(["verify", "--model-dir", str(other)]) == 1


def test_halves_with_other_labels_or_without_the_first_half_are_not_served(make_app, log, tmp_path):
    whole = pack_classifier(tmp_path / "model")
    shutil.copytree(MODEL / "pred", whole / "pred")
    assert models_of(make_app(model_dir=str(whole))) == ["small"]
    assert "it has the classes setosa, versicolor, virginica; the full model has the classes x, y, z" in warnings_of(log)[-1]
    copied = shutil.copytree(MODEL, tmp_path / "iris")
    shutil.rmtree(copied / "prep")
    assert models_of(make_app(model_dir=str(copied))) == ["iris_svc"]
    assert "prep/golden.json cannot be read" in warnings_of(log)[-1]


def test_halves_of_two_pairs_are_not_served(make_app, log, model_copy):
    path = model_copy / "pred/iris_pred.onnx"
    graph = onnx.load(path)
    next(prop for prop in graph.metadata_props if prop.key == "pair").value = "sha256:0"
    onnx.save(graph, path)
    seal(model_copy / "pred")
    assert models_of(make_app(model_dir=str(model_copy))) == ["iris_svc"]
    assert "are not the halves of one model: their files name different pairs" in warnings_of(log)[-1]


@pytest.mark.parametrize(("pack", "what"), [(pack_regressor, "values"), (pack_scores, "scores")])
def test_patterns_for_classifiers_say_so_at_the_start(make_app, log, tmp_path, pack, what):
    whole = pack(tmp_path / "model")
    for role, pattern, needed in CLASSIFIER_ROLES:
        with pytest.raises(BadModel) as refused:
            make_app(model_dir=str(whole), role=role, **needed)
        assert str(refused.value) == f"the pattern {pattern} is for classifiers with probabilities; this model gives {what}"
    make_app(model_dir=str(whole), edge_dir=str(tmp_path), edge_required="no")
    found = warnings_of(log)
    for pattern in ("prep-pred", "horizontal", "edge"):
        words = f"the pattern {pattern} is for classifiers with probabilities; this model gives {what}"
        assert [text.endswith(words) for text in found].count(True) == 1
    with pytest.raises(BadSetting, match="the pattern edge is for classifiers"):
        build(Settings(model_dir=str(whole), state_dir=str(tmp_path / "state"), edge_dir=str(tmp_path)), log)


def test_a_gateway_with_members_of_another_model_stops_at_the_start(make_app, tmp_path):
    whole = pack_classifier(tmp_path / "model")
    shutil.copytree(MODEL / "members/setosa", whole / "members/setosa")
    with pytest.raises(BadModel, match="members/setosa has a member of another model: setosa is not one of the classes x, y, z"):
        make_app(model_dir=str(whole), role="gateway", members=f"x={URL}")


@pytest.mark.parametrize(("role", "folder", "pattern"), [("pred", "pred", "prep-pred"), ("member", "members/x", "horizontal")])
def test_a_folder_with_a_part_of_another_kind_alone_stops_the_role(make_app, tmp_path, role, folder, pattern):
    pack_regressor(tmp_path / "model" / folder)
    with pytest.raises(BadModel, match=f"the pattern {pattern} is for classifiers with probabilities; this model gives values"):
        make_app(model_dir=str(tmp_path / "model"), role=role, member="x" if role == "member" else "")


def test_a_packed_model_with_typed_features_has_its_own_fast_model(make_app, tmp_path):
    whole = pack_mixed(tmp_path / "model")
    pack_mixed(whole / "fast")
    row = [None, 1, "Lima", False]
    response = make_app(model_dir=str(whole)).post_json("/predict/hybrid", {"data": [row]})
    assert response.json["provisional"]["label"] in ("no", "yes, <i>maybe</i>") and len(MIXED) == len(row)
