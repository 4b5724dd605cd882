"""The batch command on Parquet files whose row groups and columns do not match its batches."""

import subprocess
import sys
from decimal import Decimal

import numpy as np
import pyarrow as arrow
import pytest
from project import MODEL
from pyarrow.parquet import read_table, write_table

from iris_wsgi.model.session import load_model

pytestmark = pytest.mark.long

FEATURES = [feature.name for feature in load_model(MODEL)[0].features]
ROWS = 20_000


@pytest.mark.parametrize("group", [1000, 4096, 10_000, ROWS])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_categories_in_groups_of_any_size_lose_no_row(tmp_path, group, workers):
    """pyarrow ends a batch where the categories of a column change, which is at each row group."""
    words = arrow.array([f"k{i // 7 % 500}" for i in range(ROWS)])
    values = np.random.default_rng(1).random((len(FEATURES), ROWS)) * 5
    table = arrow.table({"kind": words.dictionary_encode(), "id": range(ROWS), **dict(zip(FEATURES, values, strict=True))})
    write_table(table, tmp_path / "in.parquet", row_group_size=group)
    command = [sys.executable, "-m", "iris_wsgi", "batch", "in.parquet", "out.parquet", "--keep", "id,kind"]
    command += ["--workers", workers, "--model-dir", str(MODEL)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    found = read_table(tmp_path / "out.parquet")
    assert found["id"].to_pylist() == list(range(ROWS))
    assert found["kind"].to_pylist() == words.to_pylist()


COLUMNS = {
    "stamp": arrow.array([1, None, 3], arrow.timestamp("ns")),
    "day": arrow.array([1, 2, None], arrow.date32()),
    "price": arrow.array([Decimal("1.50"), None, Decimal("-2.25")]),
    "words": arrow.array([["a"], [], None]),
    "times": arrow.array([[1], [], None], arrow.list_(arrow.timestamp("us"))),
    "blob": arrow.array([b"\xff", None, b""]),
}


def score(tmp_path, target: str, keep: list[str]) -> subprocess.CompletedProcess:
    values = {name: arrow.array([1.0, None, 2.0] if name == FEATURES[2] else [1.0, 1.0, 1.0]) for name in FEATURES}
    write_table(arrow.table({**COLUMNS, **values}), tmp_path / "in.parquet")
    command = [sys.executable, "-m", "iris_wsgi", "batch", "in.parquet", target, "--keep", ",".join(keep)]
    return subprocess.run([*command, "--model-dir", str(MODEL)], cwd=tmp_path, capture_output=True, timeout=120)


def test_columns_of_any_type_are_kept_unchanged_next_to_bad_rows(tmp_path):
    result = score(tmp_path, "out.parquet", list(COLUMNS))
    assert result.returncode == 0, result.stderr.decode()
    found = read_table(tmp_path / "out.parquet")
    for name, column in COLUMNS.items():
        assert found[name].combine_chunks().equals(column.take(arrow.array([0, 2])))


def test_dates_times_and_decimals_become_text(tmp_path):
    names = [name for name in COLUMNS if name != "blob"]
    result = score(tmp_path, "out.csv", names)
    assert result.returncode == 0, result.stderr.decode()
    rows = [line.partition(",setosa")[0] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    first = '1970-01-01 00:00:00.000000001,1970-01-02,1.50,"[""a""]","[""1970-01-01 00:00:00.000001""]"'
    assert rows == [first, "1970-01-01 00:00:00.000000003,,-2.25,,"]


def test_bytes_are_not_text(tmp_path):
    result = score(tmp_path, "out.csv", ["blob"])
    assert (result.returncode, result.stderr.decode()) == (
        2,
        "iris_wsgi: the column 'blob' of IN holds binary, which OUT cannot hold\n",
    )
