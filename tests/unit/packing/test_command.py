"""The command pack: its arguments, its report, and the one line of each refusal."""

import importlib
import os
import sys

import pytest
from optional_programs import require_package
from small_models import LEVELS, golden_of, graph_of, inputs, logistic, write_csv, write_graph

from iris_wsgi.cli.main import main
from iris_wsgi.model.golden import load_verified_model

ROWS = inputs(40, seed=1)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return graph_of(logistic(LEVELS))


@pytest.fixture
def saved(tmp_path):
    joblib = importlib.import_module("joblib")
    path = tmp_path / "my model.joblib"
    joblib.dump(logistic(LEVELS), path)
    return path


def test_a_saved_estimator_is_packed_with_the_names_of_the_header(tmp_path, saved, capsys):
    csv = write_csv(tmp_path / "rows.csv", ROWS, label=["high", "low"] * 20)
    assert main(["pack", str(saved), "--rows", str(csv), "--out", str(tmp_path / "out"), "--version", "3"]) == 0
    out, err = capsys.readouterr()
    assert f"loading {saved} runs the code in it; load only files that you trust" in err
    assert out.startswith(f"packed my_model 3 in {tmp_path / 'out'}: classifier with probabilities, 4 features\n")
    assert "40 rows compared with predict of LogisticRegression" in out and out.endswith(f"--model-dir {tmp_path / 'out'}\n")
    model, golden, _ = load_verified_model(tmp_path / "out")
    assert [feature.name for feature in model.features] == list("abcd") and golden.model == "model.onnx"
    # The label column is the truth here, because the estimator answers for itself.
    assert (tmp_path / "out/training.csv").read_text().splitlines()[1].endswith(",high")


def test_text_that_looks_like_numbers_stays_text_where_the_estimator_learned_text(tmp_path, capsys):
    pandas = require_package("pandas")
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pandas.DataFrame({"a": ROWS[:, 0], "code": ["1", "02", "NA", "true"] * 10})
    encoder = make_column_transformer((OneHotEncoder(), ["code"]), remainder="passthrough")
    fitted = make_pipeline(encoder, LogisticRegression()).fit(table, [0, 1, 1, 0] * 10)
    importlib.import_module("joblib").dump(fitted, tmp_path / "codes.joblib")
    for name, codes in (("mixed", table["code"]), ("numbers", ["1"] * 40)):
        table.assign(code=codes).to_csv(tmp_path / f"{name}.csv", index=False)
        words = [str(tmp_path / "codes.joblib"), "--rows", str(tmp_path / f"{name}.csv"), "--out", str(tmp_path / name)]
        assert main(["pack", *words]) == 0, capsys.readouterr().err
        golden = golden_of(tmp_path / name)
        assert golden["features"][1]["type"] == "string" and {row["row"][1] for row in golden["rows"]} == set(codes)


def test_an_onnx_file_is_compared_with_the_column_of_labels(tmp_path, graph, capsys):
    labels = logistic(LEVELS).predict(ROWS).tolist()
    path, csv = write_graph(tmp_path / "m", graph), write_csv(tmp_path / "rows.csv", ROWS, label=labels, truth=labels[::-1])
    words = ["pack", str(path), "--rows", str(csv), "--out", str(tmp_path / "out")]
    # The column truth is one feature too many.
    assert main(words) == 1 and "the rows have 5 columns for the features" in capsys.readouterr().err
    write_csv(tmp_path / "rows.csv", ROWS, label=labels)
    assert main(words) == 0 and "proof: expected" in capsys.readouterr().out
    assert main([*words, "--ignore-expected"]) == 0 and "no outside result was compared" in capsys.readouterr().out
    assert main([*words, "--label-column", "other"]) == 1
    assert "the rows have 5 columns for the features (a, b, c, d, label)" in capsys.readouterr().err


def test_a_label_file_is_read_from_its_path(tmp_path, graph, capsys):
    path, csv = write_graph(tmp_path / "m", graph), write_csv(tmp_path / "rows.csv", ROWS)
    (tmp_path / "names.json").write_text('{"high": "High!", "low": "Low!", "mid": "Mid!"}')
    words = ["pack", str(path), "--rows", str(csv), "--out", str(tmp_path / "out"), "--labels", str(tmp_path / "names.json")]
    assert main(words) == 0 and {row["label"] for row in golden_of(tmp_path / "out")["rows"]} <= {"High!", "Low!", "Mid!"}
    (tmp_path / "names.json").write_text('{"0": "low", "1": "high", "2": "mid"}')
    capsys.readouterr()
    assert main(words) == 1
    assert "names.json has the labels in another order than the graph: the labels of the graph are high, low, mid, and the names"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["model.txt", "--out", "out"], 1, "model.txt must be an .onnx, .joblib, or .pkl file"),
        (["none.onnx", "--out", "out"], 1, "none.onnx cannot be read: No such file or directory"),
        (["none.pkl", "--rows", "rows.csv", "--out", "out"], 1, "none.pkl cannot be read"),
        (["empty.pkl", "--rows", "rows.csv", "--out", "out"], 1, "empty.pkl cannot be loaded: "),
        (["other.pkl", "--rows", "rows.csv", "--out", "out"], 1, "other.pkl needs the package no_such_library"),
        (["empty.pkl", "--out", "out"], 1, "an estimator needs rows to compare its export with"),
        (["none.onnx", "--rows", "none.csv", "--out", "out"], 1, "cannot be read"),
        (["none.onnx"], 2, "the following arguments are required: --out"),
        (["none.onnx", "--out", "out", "--label", "first"], 2, "invalid choice: 'first'"),
        (["none.onnx", "--out", "out", "--name", "a b"], 1, "the name 'a b' must have letters"),
    ],
)
def test_a_refusal_is_one_line(tmp_path, monkeypatch, capsys, words, status, message):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "rows.csv", ROWS)
    (tmp_path / "empty.pkl").write_bytes(b"")
    (tmp_path / "other.pkl").write_bytes(b"cno_such_library\nThing\n.")
    try:
        found = main(["pack", *words])
    except SystemExit as error:
        found = error.code
    out, err = capsys.readouterr()
    assert found == status and out == "" and message in err.splitlines()[-1] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "skl2onnx", "joblib"])
def test_a_missing_package_is_named_with_the_solution(tmp_path, graph, saved, monkeypatch, capsys, package):
    path = write_graph(tmp_path / "m", graph) if package == "onnx" else saved
    csv = write_csv(tmp_path / "rows.csv", ROWS)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["pack", str(path), "--rows", str(csv), "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert package in err and ("bin/setup pack" in err or "pip install" in err)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, graph, capsys):
    path = write_graph(tmp_path / "m", graph)
    (tmp_path / "file").write_text("")
    assert main(["pack", str(path), "--out", str(tmp_path / "file")]) == 1
    assert "file cannot be written: File exists" in capsys.readouterr().err
    (tmp_path / "m/golden.json").mkdir()
    assert main(["pack", str(path), "--out", str(tmp_path / "m")]) == 1
    assert "golden.json cannot be written: Is a directory" in capsys.readouterr().err


def test_golden_json_is_written_to_the_target_of_a_link_and_never_into_a_fifo(tmp_path, graph, capsys):
    path = write_graph(tmp_path, graph)
    golden, real = tmp_path / "golden.json", tmp_path / "real.json"
    real.write_text("{}")
    golden.symlink_to(real)
    assert main(["pack", str(path), "--out", str(tmp_path)]) == 0
    assert golden.is_symlink() and "rows" in real.read_text()
    golden.unlink()
    os.mkfifo(golden)
    assert main(["pack", str(path), "--out", str(tmp_path)]) == 1
    assert "cannot be written: it is a FIFO, not a regular file" in capsys.readouterr().err and golden.is_fifo()


def test_help_says_that_a_pickle_runs_code(capsys):
    with pytest.raises(SystemExit):
        main(["pack", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "Loading such a file runs the code in it" in out and "a pickle runs code when it is loaded" in out
