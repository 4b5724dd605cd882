"""The batch command on tables whose columns have the types of the features, in SQLite and PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_models import KINDS, PackedModel, answers_of, write_model
from postgres_server import PostgresServer
from scored_tables import ScoringDatabase

from iris_wsgi.cli.main import main
from iris_wsgi.model.session import Model

pytestmark = pytest.mark.usefixtures("restored_signals")

# Of other integers, numeric.
COLUMN_TYPES = {
    "float32": "real",
    "float64": "double precision",
    "int64": "bigint",
    "int32": "integer",
    "bool": "boolean",
    "string": "text",
}


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ScoringDatabase]:
    """Empty database."""
    if request.param == "sqlite":
        (tmp_path / "items.db").touch()
        yield ScoringDatabase(f"sqlite:///{tmp_path}/items.db")
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    found = ScoringDatabase(server.url)
    found.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    yield found
    found.close()


def fill(database: ScoringDatabase, packed: PackedModel, rows: list[list[Any]], types: dict[str, str] | None = None) -> None:
    """Creates the table of items, with the key `id` and a column for each feature."""
    columns = [f'"{name}" {(types or {}).get(name, COLUMN_TYPES.get(kind, "numeric"))}' for name, kind, _ in packed.features]
    database.execute(f"CREATE TABLE items (id integer PRIMARY KEY, {', '.join(columns)})")
    marks = ", ".join("?" * (len(columns) + 1))
    database.execute(f"INSERT INTO items VALUES ({marks})", rows=[(i, *row) for i, row in enumerate(rows)])


def score(database: ScoringDatabase, folder: Path) -> int:
    return main(["batch", "--table", "items", "--database", database.url, "--model-dir", str(folder)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_scores_a_table_with_a_bad_row(database, tmp_path, kind, capsys):
    packed = KINDS[kind]
    folder = write_model(tmp_path / "model", kind)
    width = len(packed.features)
    optional = [missing for *_, missing in packed.features]
    # A missing value is bad where the feature may not be missing. NULL in every column is then bad, too.
    fill(database, packed, [*packed.rows, [None] * width])
    assert all(optional) or score(database, folder) == 0
    expected = answers_of(folder, packed, packed.rows)
    *found, last = database.predictions()
    start = 2 if packed.labels else 1
    columns = len(expected.values[0])
    assert [[np.float32(value) for value in row[start : start + columns]] for row in found] == [
        [np.float32(value) for value in row] for row in expected.values
    ]
    if packed.labels:
        assert [row[1] for row in found] == expected.labels
    required = next(name for name, _, missing in packed.features if not missing)
    assert (set(last[1 : start + columns]), last[-1]) == ({None}, f"{required} is NULL")
    ((run),) = database.runs()
    assert (run["status"], run["ok"], run["bad"]) == ("succeeded", len(packed.rows), 1)
    assert sum(run["labels"].values()) == (len(packed.rows) if packed.labels else 0)
    assert f"{len(packed.rows)} rows" in capsys.readouterr().err


def rows_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Returns a list that receives the rows that models are run on."""
    found: list[list[Any]] = []
    predict = Model.predict

    def record(self, rows, options=None):
        found.extend(rows.tolist())
        return predict(self, rows, options)

    monkeypatch.setattr(Model, "predict", record)
    return found


@pytest.mark.parametrize("column", ["bigint", "text", "numeric"])
def test_integers_are_exact(database, tmp_path, column, monkeypatch):
    packed = KINDS["int64 input"]
    folder = write_model(tmp_path / "model", "int64 input")
    rows = [[2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]]
    fill(
        database,
        packed,
        [[str(v) if column == "text" else v for v in row] for row in rows],
        dict.fromkeys(["x0", "x1", "x2", "x3"], column),
    )
    found = rows_of_runs(monkeypatch)
    assert score(database, folder) == 0 and found[-1:] == rows


@pytest.mark.parametrize(("kind", "value"), [("integer", 12345), ("double precision", 1.5), ("numeric", 1.5), ("boolean", True)])
def test_a_number_is_not_a_string(database, tmp_path, kind, value):
    packed = KINDS["columns of several types"]
    folder = write_model(tmp_path / "model", "columns of several types")
    fill(database, packed, [[31.5, value, 3, True]], {"city": kind})
    assert score(database, folder) == 3
    assert [row[-1] for row in database.predictions()] == ["city is not a string"]


@pytest.mark.parametrize("kind", ["varchar(20)", "text"])
def test_texts_are_read_as_in_csv(database, tmp_path, kind, monkeypatch):
    packed = KINDS["columns of several types"]
    folder = write_model(tmp_path / "model", "columns of several types")
    rows = [
        ["31.5", "Tokyo", "3", "true"],
        [" 1e1 ", "", "2.0", "0"],
        ["x", "a", "1", "1"],
        ["1", "a", "1.5", "1"],
        ["1", "a", "1", "yes"],
    ]
    fill(database, packed, rows, dict.fromkeys(("age", "city", "visits", "member"), kind))
    found = rows_of_runs(monkeypatch)
    assert score(database, folder) == 0
    assert found[-2:] == [[31.5, "Tokyo", 3.0, 1.0], [10.0, "", 2.0, 0.0]]
    errors = ["age is not a number", "visits is not a whole number from -9007199254740992 to 9007199254740992"]
    assert [row[-1] for row in database.predictions()][2:] == [*errors, "member is not true or false"]
