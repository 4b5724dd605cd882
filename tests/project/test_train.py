"""bin/train writes the same bytes as the files of the model, and ONNX gives the results of scikit-learn."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from project import MODEL

pytestmark = pytest.mark.long

FILES = ["README.md", "decision_regions.png", "golden.json", "iris_svc.onnx", "label.json", "reliability.png", "training.csv"]
BESIDE = {"fast": "iris_lr", "prep": "iris_prep", "pred": "iris_pred"}
BESIDE |= {f"members/{name}": f"iris_{name}" for name in ("setosa", "versicolor", "virginica")}
FILES += [f"{folder}/{file}" for folder, name in BESIDE.items() for file in ("golden.json", "label.json", f"{name}.onnx")]


@pytest.fixture(scope="module")
def iris():
    from sklearn.datasets import load_iris

    return load_iris()


@pytest.fixture(scope="module")
def fit_pipeline(iris):
    """Returns the pipeline that bin/train exports, fitted again, with every warning as an error."""
    from sklearn.model_selection import train_test_split

    sys.path.insert(0, str(MODEL))
    try:
        import train_main
    finally:
        sys.path.remove(str(MODEL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_rows, _, target, _ = train_test_split(
            iris.data, iris.target, test_size=30, stratify=iris.target, random_state=train_main.SEED
        )
        return train_main.pipeline().fit(training_rows, target)


def test_training_again_writes_the_same_bytes_without_warnings(tmp_path: Path):
    command = [sys.executable, "-W", "error", str(MODEL / "train.py"), "--out", str(tmp_path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stderr == ""
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (MODEL / name).read_bytes(), name


def test_onnx_and_scikit_learn_agree_on_the_150_rows_and_100_000_random_ones(service, fit_pipeline, iris):
    low, high = iris.data.min(axis=0), iris.data.max(axis=0)
    around = np.random.default_rng(11).uniform(low - 3 * (high - low), high + 3 * (high - low), (50_000, 4))
    within = np.random.default_rng(12).uniform(low, high, (50_000, 4))
    rows = np.concatenate([iris.data, around, within]).astype(np.float32)
    probabilities = service.model.predict(rows)
    reference = fit_pipeline.predict_proba(rows.astype(np.float64))
    assert np.abs(probabilities - reference).max() < 1e-5
    labels = probabilities.argmax(axis=1)
    assert (labels == fit_pipeline.predict(rows.astype(np.float64))).all()
    (in_graph,) = service.model.session.run(["label"], {"features": rows})
    assert (labels == in_graph).all()


def test_the_model_card_shows_accuracy_confusion_and_both_pictures():
    card = (MODEL / "README.md").read_text()
    assert "accuracy on the 30 held-out rows" in card
    assert "| true \\ predicted | setosa | versicolor | virginica |" in card
    for picture in ("decision_regions.png", "reliability.png"):
        assert f"]({picture})" in card
        assert (MODEL / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("folder", [".", *BESIDE])
def test_every_shipped_model_says_that_its_golden_rows_come_from_scikit_learn(folder):
    document = json.loads((MODEL / folder / "golden.json").read_text())
    members = {name: document[name] for name in ("proof", "kind", "label")}
    assert members == {"proof": "estimator", "kind": "classifier", "label": "both"}
    assert document["classes"] == list(range(len(document["rows"][0]["probabilities"])))
    # The bytes of the file must not depend on the runtime of a machine.
    assert "runtime" not in document


def test_training_csv_has_the_150_rows_of_scikit_learn(iris):
    lines = [line.split(",") for line in (MODEL / "training.csv").read_text().splitlines()]
    assert lines[0] == ["sepal_length", "sepal_width", "petal_length", "petal_width", "label"]
    assert [[float(v) for v in line[:4]] for line in lines[1:]] == iris.data.tolist()
    assert [line[4] for line in lines[1:]] == [iris.target_names[k] for k in iris.target]


def test_the_metadata_of_the_file_has_name_version_features_and_libraries(service):
    result = service.model.session.get_modelmeta().custom_metadata_map
    assert set(result) == {"name", "version", "features", "libraries"}
    assert set(service.model.libraries) == {"numpy", "onnx", "scikit-learn"}
