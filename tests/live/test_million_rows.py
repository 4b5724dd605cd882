"""One million rows through each form of batch: the predictions are the same, and each row is there once.

tests/spark and tests/live/test_ray_engine.py compare Spark and Ray with the command in the same way.
"""

import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from batch_command import FEATURES, batch
from project import MODEL
from pyarrow import compute, csv, parquet

from iris_wsgi.scorer import Scorer

pytestmark = [pytest.mark.long, pytest.mark.repeats]
COUNT = 1_000_000
VALUES = ["label", "probability_setosa", "probability_versicolor", "probability_virginica"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, arrow.Table, arrow.Table]:
    """A Parquet file, its rows, and their predictions by the command, ordered by id."""
    folder = tmp_path_factory.mktemp("rows")
    values = np.random.default_rng(24).uniform(0.1, 8, (COUNT, 4)).round(2)
    # Some rows are bad.
    columns = {name: arrow.array(column) for name, column in zip(FEATURES, values.T, strict=True)}
    columns["petal_width"] = arrow.array(values[:, 3], mask=np.arange(COUNT) % 99_991 == 17)
    table = arrow.table({"id": np.arange(COUNT), **columns})
    parquet.write_table(table, folder / "rows.parquet", row_group_size=100_000)
    result = batch(folder / "rows.parquet", folder / "scored.parquet", "--keep", "id")
    assert b"wrote" in result.stderr and b"; 11 bad" in result.stderr
    return folder / "rows.parquet", table, plain(parquet.read_table(folder / "scored.parquet"))


def plain(table: arrow.Table) -> arrow.Table:
    """Returns the id and the predictions of a table, ordered by id, with labels as texts."""
    at = table.schema.get_field_index("label")
    table = table.set_column(at, "label", table.column("label").cast(arrow.string()))
    return table.select(["id", *VALUES]).sort_by("id").combine_chunks()


def test_shards_together_have_the_predictions_of_the_command(rows, tmp_path):
    source, _, expected = rows
    parts = []
    for i in range(2):
        batch(source, tmp_path / f"{i}.parquet", "--keep", "id", "--shard", f"{i}/2")
        parts.append(parquet.read_table(tmp_path / f"{i}.parquet"))
    assert all(len(part) > COUNT // 3 for part in parts)
    assert plain(arrow.concat_tables(parts, promote_options="default")).equals(expected)


def test_a_directory_of_csv_has_the_predictions_of_the_command(rows, tmp_path):
    _, table, expected = rows
    (tmp_path / "in").mkdir()
    for i in range(2):
        csv.write_csv(table.slice(i * COUNT // 2, COUNT // 2), tmp_path / "in" / f"{i}.csv")
    batch(tmp_path / "in", tmp_path / "out", "--keep", "id", "--out-format", "parquet")
    parts = [parquet.read_table(tmp_path / "out" / f"{i}.parquet") for i in range(2)]
    found = arrow.concat_tables(parts).set_column(0, "id", arrow.concat_tables(parts).column("id").cast(arrow.int64()))
    assert plain(found).equals(expected)


def test_a_table_has_the_predictions_of_the_command(rows, tmp_path):
    _, table, expected = rows
    database = sqlite3.connect(tmp_path / "rows.db")
    with database:
        names = ", ".join(FEATURES)
        database.execute(f"CREATE TABLE flowers (id INTEGER PRIMARY KEY, {names})")
        columns = [table.column(name).to_pylist() for name in ("id", *FEATURES)]
        database.executemany("INSERT INTO flowers VALUES (?, ?, ?, ?, ?)", zip(*columns, strict=True))
    batch("--table", "flowers", "--database", f"sqlite:///{tmp_path / 'rows.db'}")
    found = database.execute(f"SELECT id, {', '.join(VALUES)} FROM flowers_prediction WHERE error IS NULL").fetchall()
    columns = dict(zip(["id", *VALUES], zip(*found, strict=True), strict=True))
    fields = [arrow.array(columns["id"], arrow.int64()), arrow.array(columns["label"])]
    fields += [arrow.array(np.array(columns[name], np.float32)) for name in VALUES[1:]]
    assert plain(arrow.table(fields, ["id", *VALUES])).equals(expected)


def test_a_scorer_has_the_predictions_of_the_command(rows):
    _, table, expected = rows
    scored = Scorer(MODEL, keep=["id"])(table)
    good = scored.filter(compute.is_null(scored.column("error")))
    assert len(scored) == COUNT and plain(good).equals(expected)
