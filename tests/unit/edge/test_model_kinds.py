"""The edge commands with a model of every kind: classifiers predict rows of any types, and other kinds are refused."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_models import KINDS, answers_of, write_model

from iris_wsgi.cli.main import main
from iris_wsgi.model.session import Model, load_model
from iris_wsgi.patterns.edge.stream import StreamOptions, predict_stream
from iris_wsgi.storage.files import StdStream
from iris_wsgi.tabular.record_splitter import BadRow

CLASSIFIERS = [kind for kind, packed in KINDS.items() if packed.members.get("kind", "classifier") == "classifier"]
OTHERS = [kind for kind in KINDS if kind not in CLASSIFIERS]


@pytest.fixture
def edge(tmp_path, monkeypatch, capfd):
    """Runs an edge command with a model of a folder. Returns its status, its output, and its standard error."""
    monkeypatch.setenv("IRIS_STATE_DIR", str(tmp_path / "state"))

    def run(command: str, folder: Path, *arguments: str) -> tuple[int, str, str]:
        return main(["edge", command, "--model-dir", str(folder), *arguments]), *capfd.readouterr()

    return run


def text_of(value: Any) -> str:
    return "" if value is None else str(value)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_predicts_a_row_of_texts(edge, tmp_path, kind):
    packed, folder = KINDS[kind], write_model(tmp_path / "model", kind)
    answers = answers_of(folder, packed, packed.rows)
    for row, label, values in zip(packed.rows, answers.labels, answers.values, strict=True):
        status, output, _ = edge("predict", folder, "--json", "--", *map(text_of, row))
        document = json.loads(output)
        assert (status, document["label"], document["classes"]) == (0, label, list(packed.labels))
        assert np.allclose(document["probabilities"], values, atol=1e-6)


@pytest.mark.parametrize("command", ["predict", "stream"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_without_probabilities_is_refused_in_one_sentence(edge, tmp_path, kind, command):
    packed, folder = KINDS[kind], write_model(tmp_path / "model", kind)
    name = "values" if packed.members["kind"] == "regressor" else "scores"
    assert edge(command, folder, *(["1"] if command == "predict" else [])) == (
        1,
        "",
        f"iris_wsgi: edge is for classifiers; the model gives {name} in place of probabilities, so serve it with bin/serve\n",
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["31", "Tokyo", "3"], "3 values are given, and the model takes 4: age, city, visits, member"),
        (["x", "Tokyo", "3", "true"], "age is not a number"),
        (["31", "\udcff", "3", "true"], "city is not UTF-8"),
        (["31", "Tokyo", "3.5", "true"], "visits is not a whole number from -9007199254740992 to 9007199254740992"),
        (["31", "Tokyo", "3", "yes"], "member is not true or false"),
        (["31", "Tokyo", "", "true"], "visits is empty"),
        (["", "Tokyo", "3", "true"], "age is empty"),
    ],
)
def test_an_invalid_row_is_reported_in_one_line(edge, tmp_path, values, words):
    folder = write_model(tmp_path / "model", "columns of several types")
    assert edge("predict", folder, "--", *values) == (2, "", f"iris_wsgi: {words}\n")


def streamed(model: Model, text: str, path: Path) -> tuple[list[str], list[BadRow]]:
    bad: list[BadRow] = []
    with path.open("wb") as target:
        options = StreamOptions((), (), True)
        count = predict_stream(model, options, io.BytesIO(text.encode()), StdStream(os.dup(target.fileno())), bad.append)
    assert count == len(bad)
    return path.read_text().splitlines(), bad


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_stream_of_csv_and_json_lines_gives_the_labels(tmp_path, kind):
    packed, folder = KINDS[kind], write_model(tmp_path / "model", kind)
    model, labels = load_model(folder)[0], answers_of(folder, packed, packed.rows).labels
    names = [name.upper() for name, *_ in packed.features]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([names, *([text_of(value) for value in row] for row in packed.rows)])
    output, bad = streamed(model, buffer.getvalue(), tmp_path / "out.csv")
    assert ([line.split(",")[0] for line in output[1:]], bad) == (labels, [])
    for rows in (packed.rows, [dict(zip(names, row, strict=True)) for row in packed.rows]):
        output, bad = streamed(model, "".join(json.dumps(row) + "\n" for row in rows), tmp_path / "out.jsonl")
        assert ([json.loads(line)["label"] for line in output], bad) == (labels, [])


def test_a_first_line_of_numbers_and_missing_values_is_not_a_header(tmp_path):
    kind = "missing values"
    packed, folder = KINDS[kind], write_model(tmp_path / "model", kind)
    rows = packed.rows[::-1]
    text = "".join(",".join(map(text_of, row)) + "\n" for row in rows)
    output, bad = streamed(load_model(folder)[0], text + "1,,1,1\n", tmp_path / "out.csv")
    assert [line.split(",")[0] for line in output[1:]] == answers_of(folder, packed, rows).labels
    assert bad == [BadRow(len(rows) + 1, "2", "is empty")]
