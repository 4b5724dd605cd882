"""The batch command with a model of every kind: files of each format and tables give the predictions of the graph."""

import csv
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from packed_models import ALL_KINDS, BROKEN, KINDS, Input, PackedModel, answers_of, node, output, write, write_model
from pyarrow.parquet import read_table, write_table

LOOP = """
import contextlib, io, json, sys
from iris_wsgi.cli.main import main
for line in sys.stdin:
    with contextlib.redirect_stderr(io.StringIO()) as text:
        status = main(json.loads(line))
    print(json.dumps([status, text.getvalue()]), flush=True)
"""
FORMATS = ("csv", "jsonl", "parquet", "sqlite")
ARROW_TYPES = {"string": arrow.string(), "bool": arrow.bool_(), "float32": arrow.float32(), "float64": arrow.float64()}


def names_of(packed: PackedModel) -> list[str]:
    return [name for name, *_ in packed.features]


def write_rows(path: Path, packed: PackedModel, rows: list[list[Any]], names: list[str] | None = None) -> None:
    names = ["key", *(names or names_of(packed))]
    rows = [[f"k{i}", *row] for i, row in enumerate(rows)]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            cells = [["" if value is None else str(value) for value in row] for row in rows]
            csv.writer(file).writerows([names, *cells])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        kinds = [arrow.string(), *(ARROW_TYPES.get(kind, arrow.int64()) for _, kind, _ in packed.features)]
        columns = [arrow.array(values, kind) for values, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
        write_table(arrow.table(dict(zip(names, columns, strict=True))), path)
    else:
        with closing(sqlite3.connect(path)) as connection, connection:
            columns = ", ".join(f'"{name}"' for name in names[1:])
            connection.execute(f"CREATE TABLE items (key TEXT PRIMARY KEY, {columns})")
            connection.executemany(f"INSERT INTO items VALUES ({', '.join('?' * len(names))})", rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return read_table(path).to_pylist()
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM items_prediction ORDER BY key")]
    return [{name: v for name, v in row.items() if name not in ("run", "predicted", "model_digest", "error")} for row in found]


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen]:
    """Process that runs a command for each line of its input. Commands fork, which a process with threads should not."""
    with subprocess.Popen([sys.executable, "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def batch(process) -> Callable[..., tuple[int, Path, str]]:
    """Scores a file, or the table of a database. Returns the status, the path of the output, and standard error."""

    def run(folder: Path, source: Path, *options: str) -> tuple[int, Path, str]:
        target = source if source.suffix == ".sqlite" else source.with_name(f"out{source.suffix}")
        places = ["--table", "items", "--database", f"sqlite:///{source}"]
        if target is not source:
            places = [str(source), str(target), "--workers", "1", *([] if "--keep" in options else ["--keep", "key"])]
        process.stdin.write(json.dumps(["batch", "--model-dir", str(folder), *places, *options]) + "\n")
        process.stdin.flush()
        status, error = json.loads(process.stdout.readline())
        return status, target, error

    return run


def columns_of(packed: PackedModel) -> list[str]:
    kind = packed.members.get("kind", "classifier")
    if kind == "regressor":
        return list(packed.members["columns"])
    if kind == "scores":
        return ["label", *(f"score_{name}" for name in packed.members["columns"])]
    return ["label", *(f"probability_{label}" for label in packed.labels)]


def same_predictions(found: list[dict[str, Any]], packed: PackedModel, folder: Path, rows: list[list[Any]]) -> None:
    expected = answers_of(folder, packed, rows)
    assert [row["key"] for row in found] == [f"k{i}" for i in range(len(rows))]
    assert list(found[0]) == ["key", *columns_of(packed)]
    values = [[np.float32(v) for name, v in row.items() if name not in ("key", "label")] for row in found]
    assert values == [[np.float32(v) for v in row] for row in expected.values]
    if packed.labels:
        assert [row["label"] for row in found] == expected.labels


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_model_of_every_kind_scores_rows_of_each_format(tmp_path, kind, suffix, batch):
    packed = KINDS[kind]
    folder, source = write_model(tmp_path / "model", kind), tmp_path / f"in.{suffix}"
    write_rows(source, packed, packed.rows)
    status, target, error = batch(folder, source)
    assert status == 0
    same_predictions(read_rows(target), packed, folder, packed.rows)
    summary = error.splitlines()[-1]
    count = f"{len(packed.rows)} rows"
    assert summary.endswith(count) if not packed.labels else f", {count}: " in summary


# Of integers, a fraction.
BAD = {"float32": 1e39, "float64": "x", "int32": 2**31, "bool": 2, "string": None}


@pytest.mark.parametrize("suffix", ["jsonl", "sqlite"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_value_that_does_not_fit_its_feature_makes_a_bad_row_only(tmp_path, kind, suffix, batch):
    packed = KINDS[kind]
    folder, source = write_model(tmp_path / "model", kind), tmp_path / f"in.{suffix}"
    bad = [[*packed.rows[0][:j], BAD.get(feature[1], 1.5), *packed.rows[0][j + 1 :]] for j, feature in enumerate(packed.features)]
    write_rows(source, packed, [*packed.rows, *bad])
    status, target, _error = batch(folder, source)
    found = [row for row in read_rows(target) if row[columns_of(packed)[-1]] is not None]
    assert status == 0
    same_predictions(found, packed, folder, packed.rows)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("spell", [str.upper, lambda name: f" {name.replace('_', '.')} ", lambda name: f"{name} (cm)"])
def test_columns_are_found_in_other_spellings(tmp_path, suffix, spell, batch):
    kind = "columns of several types with missing values"
    packed = KINDS[kind]
    folder, source = write_model(tmp_path / "model", kind), tmp_path / f"in.{suffix}"
    write_rows(source, packed, packed.rows, [spell(name) for name in names_of(packed)])
    status, target, _error = batch(folder, source)
    assert status == 0
    same_predictions(read_rows(target), packed, folder, packed.rows)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "sqlite"])
def test_two_columns_for_one_feature_are_refused_with_both_names(tmp_path, suffix, batch):
    packed = KINDS["columns of several types"]
    folder, source = write_model(tmp_path / "model", "columns of several types"), tmp_path / f"in.{suffix}"
    wide = packed._replace(features=[("Age", "float32", False), *packed.features])
    rows = [[1.0, *row] for row in packed.rows]
    write_rows(source, wide, rows, ["Age", "age (years)", "city", "visits", "member"])
    status, _, error = batch(folder, source)
    assert status == 2
    assert "the columns of IN are ambiguous: 'Age' and 'age (years)' fit the feature 'age'" in error
    assert batch(folder, source, "--features", "age (years),city,visits,member")[0] == 0
    same_predictions(read_rows(source if suffix == "sqlite" else tmp_path / f"out.{suffix}"), packed, folder, packed.rows)


def test_an_exact_name_goes_before_another_spelling(tmp_path, batch):
    packed = KINDS["columns of several types"]
    folder, source = write_model(tmp_path / "model", "columns of several types"), tmp_path / "in.csv"
    wide = packed._replace(features=[("Age", "float32", False), *packed.features])
    write_rows(source, wide, [[1.0, *row] for row in packed.rows], ["AGE", *names_of(packed)])
    status, target, _error = batch(folder, source)
    assert status == 0
    same_predictions(read_rows(target), packed, folder, packed.rows)


def test_json_lines_may_spell_each_row_differently_and_leave_out_missing_values(tmp_path, batch):
    packed = KINDS["columns of several types with missing values"]
    folder, source = write_model(tmp_path / "model", "columns of several types with missing values"), tmp_path / "in.jsonl"
    spellings = [str.upper, str, str.title]
    objects = []
    for i, row in enumerate(packed.rows):
        pairs = zip(names_of(packed), row, strict=True)
        objects.append({"key": f"k{i}"} | {spellings[i % 3](name): value for name, value in pairs if value is not None})
    source.write_text("".join(json.dumps(row) + "\n" for row in objects))
    status, target, _error = batch(folder, source)
    assert status == 0
    same_predictions(read_rows(target), packed, folder, packed.rows)
    twice = {"AGE": 1.0, "Age": 2.0, "city": "Tokyo", "visits": 1, "member": True, "key": "twice"}
    other = tmp_path / "twice.jsonl"
    other.write_text(json.dumps(objects[0]) + "\n" + json.dumps(twice) + "\n")
    assert batch(folder, other, "--force")[0] == 0
    with (tmp_path / "out.jsonl.errors.csv").open() as file:
        assert list(csv.reader(file))[1:] == [["2", "", "is ambiguous: 'AGE' and 'Age' fit the feature 'age'"]]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", ["fewer rows", "another width", "an unknown label"])
def test_a_wrong_output_fails_the_run_and_nothing_is_written(tmp_path, kind, suffix, batch):
    packed = BROKEN[kind]
    folder, source = write_model(tmp_path / "model", kind), tmp_path / f"in.{suffix}"
    write_rows(source, packed, [*packed.rows, [101.0, 0, 0, 0]])
    status, target, error = batch(folder, source)
    assert (status, suffix != "sqlite" and target.exists()) == (1, False)
    assert ("one of its classes" if kind == "an unknown label" else "for 5 rows has the shape") in error
    if suffix == "sqlite":
        assert read_rows(target) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_prediction_that_is_not_finite_makes_a_bad_row(tmp_path, suffix, batch):
    packed = BROKEN["not a number"]
    folder, source = write_model(tmp_path / "model", "not a number"), tmp_path / f"in.{suffix}"
    write_rows(source, packed, [*packed.rows, [101.0, 0, 0, 0]])
    status, target, _error = batch(folder, source)
    assert status == 0
    found = [row for row in read_rows(target) if row["label"] is not None]
    same_predictions(found, packed, folder, packed.rows)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_target_with_the_name_of_a_kept_column_is_refused(tmp_path, suffix, batch):
    packed = KINDS["regressor"]
    folder, source = write_model(tmp_path / "model", "regressor", columns=["key"]), tmp_path / f"in.{suffix}"
    write_rows(source, packed, packed.rows)
    status, _, error = batch(folder, source)
    assert status == 2
    assert "--keep 'key': OUT has a column of this name already" in error


@pytest.mark.parametrize(("column", "status"), [("key", 2), ("Error", 2), ("label", 0)])
def test_a_table_of_predictions_has_columns_of_different_names(tmp_path, column, status, batch):
    packed = KINDS["regressor"]
    folder, source = write_model(tmp_path / "model", "regressor", columns=[column]), tmp_path / "in.sqlite"
    write_rows(source, packed, packed.rows)
    assert batch(folder, source)[0] == status
    if not status:
        assert [[row["label"]] for row in read_rows(source)] == answers_of(folder, packed, packed.rows).values


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_values_of_a_regressor_have_any_size_and_sign(tmp_path, suffix, batch):
    packed = KINDS["regressor of three targets"]
    folder, source = write_model(tmp_path / "model", "regressor of three targets"), tmp_path / f"in.{suffix}"
    sizes = (10.0**power * sign for power in range(-37, 34, 2) for sign in (1, -1))
    rows = [[size, size / 3, 0.0, 0.0] for size in sizes]
    write_rows(source, packed, rows)
    status, target, _error = batch(folder, source)
    assert status == 0
    same_predictions(read_rows(target), packed, folder, rows)
    with_key = read_rows(target)
    assert batch(folder, source, "--keep", names_of(packed)[3], "--force")[0] == 0
    assert [next(iter(row)) for row in read_rows(target)] == [names_of(packed)[3]] * len(rows)
    assert [list(row.values())[1:] for row in read_rows(target)] == [list(row.values())[1:] for row in with_key]


def test_a_run_of_a_regressor_is_resumed_and_recorded(tmp_path, batch):
    packed = KINDS["regressor"]
    folder, source = write_model(tmp_path / "model", "regressor"), tmp_path / "in.csv"
    write_rows(source, packed, [*packed.rows, ["x", 1, 1, 1]])
    status, target, _error = batch(folder, source)
    record = json.loads(Path(f"{target}.run.json").read_text())
    assert (status, record["status"], record["rows"], record["labels"]) == (0, "succeeded", {"ok": 4, "bad": 1}, {})
    assert batch(folder, source)[0] == 0


def test_a_string_may_look_like_numbers_with_another_separator(tmp_path, batch):
    packed = KINDS["columns of several types"]
    folder, source = write_model(tmp_path / "model", "columns of several types"), tmp_path / "in.csv"
    rows = [[31.5, "1;2", 3, True], [18.0, "Tokyo", 1, False]]
    source.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    status, target, _ = batch(folder, source, "--no-header", "--keep", "2")
    assert status == 0
    found = [{"key": f"k{i}"} | {name: v for name, v in row.items() if name != "2"} for i, row in enumerate(read_rows(target))]
    same_predictions(found, packed, folder, rows)


def cities(folder: Path) -> tuple[PackedModel, Path]:
    """Writes a model that fails on a city that it does not know."""
    nodes = [
        node("OneHotEncoder", "city", "encoded", "ai.onnx.ml", cats_strings=["Osaka", "Tokyo"], zeros=0),
        node("Reshape", "encoded two", "probabilities"),
    ]
    known: list[list[Any]] = [["Tokyo"], ["Osaka"]]
    inputs, outputs = [Input("city", "string", 1)], [output("probabilities", shape=[None, 2])]
    constants, features = {"two": np.array([-1, 2])}, [("city", "string", False)]
    members = {"classes": [0, 1]}
    packed = PackedModel(nodes, inputs, outputs, constants, features, known, ("west", "east"), members)
    return packed, write(folder, packed)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_category_that_the_model_did_not_learn_makes_a_bad_row(tmp_path, suffix, batch):
    packed, folder = cities(tmp_path / "model")
    source, unknown = tmp_path / f"in.{suffix}", {5, 6, 40, 299}
    rows = [["Paris"] if i in unknown else [("Tokyo", "Osaka")[i % 3 == 0]] for i in range(300)]
    write_rows(source, packed, rows)
    status, target, _ = batch(folder, source)
    assert status == 0
    found = [row for row in read_rows(target) if row["label"] is not None]
    kept = [i for i in range(300) if i not in unknown]
    same_predictions(
        [row | {"key": f"k{i}"} for i, row in enumerate(sorted(found, key=lambda row: int(row["key"][1:])))],
        packed,
        folder,
        [rows[i] for i in kept],
    )
    reason = "has a value that is not one of the categories of the model"
    if suffix == "sqlite":
        with closing(sqlite3.connect(source)) as connection:
            bad = connection.execute("SELECT key, error FROM items_prediction WHERE error IS NOT NULL").fetchall()
        assert sorted(bad) == sorted((f"k{i}", reason) for i in unknown)
    else:
        with Path(f"{target}.errors.csv").open() as file:
            first = 2 if suffix == "csv" else 1
            assert list(csv.reader(file))[1:] == [[str(i + first), "", reason] for i in sorted(unknown)]
