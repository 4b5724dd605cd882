"""Files of a packed folder: the order of the writes, files of the model before, and the size of training.csv."""

import csv

import numpy as np
import pytest
from small_models import golden_of, inputs, logistic

import iris_wsgi
from iris_wsgi.codec.model_schema import Feature
from iris_wsgi.errors import BadModel
from iris_wsgi.packing import folder as folder_module
from iris_wsgi.packing.folder import TRAINING_ROWS, training_csv

ROWS = inputs(50, seed=1)


def regressor():
    from sklearn.linear_model import LinearRegression

    return LinearRegression().fit(inputs(), inputs()[:, 0])


def test_files_of_the_model_before_are_removed_and_others_stay(tmp_path):
    iris_wsgi.pack(logistic(), ROWS, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    iris_wsgi.pack(regressor(), ROWS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.json", "model.onnx", "notes.txt", "training.csv"]


def test_a_folder_that_the_server_would_refuse_is_not_written(tmp_path, monkeypatch):
    iris_wsgi.pack(logistic(), ROWS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(folder):
        raise BadModel(f"{folder}/golden.json is wrong")

    monkeypatch.setattr(folder_module, "load_verified_model", refuse)
    with pytest.raises(BadModel) as caught:
        iris_wsgi.pack(regressor(), ROWS, tmp_path)
    assert str(caught.value) == f"the server would refuse the folder: {tmp_path}/golden.json is wrong"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_golden_json_is_the_last_file(tmp_path, monkeypatch):
    written = []
    replace = folder_module.replace_file
    monkeypatch.setattr(folder_module, "replace_file", lambda path, content: (written.append(path.name), replace(path, content)))
    iris_wsgi.pack(logistic(), ROWS, tmp_path)
    assert written[-1] == "golden.json" and set(written[:-1]) == set(golden_of(tmp_path)["files"])


def test_training_csv_has_at_most_a_thousand_rows_with_missing_cells(tmp_path):
    rows = [[float(i), None if i == 0 else "a,b"] for i in range(5000)]
    content = training_csv([Feature("x"), Feature("y", type="string")], rows, ["l"] * 5000).decode()
    lines = list(csv.reader(content.splitlines()))
    assert lines[0] == ["x", "y", "label"] and lines[1] == ["0.0", "", "l"] and lines[-1] == ["4999.0", "a,b", "l"]
    assert len(lines) == TRAINING_ROWS + 1


def test_golden_json_of_many_features_is_small(tmp_path):
    from sklearn.linear_model import LogisticRegression

    rows = inputs(100, 3000)
    fitted = LogisticRegression(max_iter=500).fit(rows, np.arange(100) % 2)
    iris_wsgi.pack(fitted, rows, tmp_path)
    assert (tmp_path / "golden.json").stat().st_size < 2_000_000 and len(golden_of(tmp_path)["rows"]) >= 8
