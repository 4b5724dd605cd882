"""The command batch on Parquet whose groups and columns do not fit its batches."""

import subprocess
import sys

import numpy as np
import pyarrow as arrow
import pytest
from conftest import MODEL
from pyarrow.parquet import read_table, write_table

from iris_wsgi.model import load_model

FEATURES = [feature.name for feature in load_model(MODEL)[0].features]
ROWS = 20_000


@pytest.mark.parametrize("group", [1000, 8192, 10_000, ROWS])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_categories_in_groups_of_any_size_lose_no_row(tmp_path, group, workers):
    """pyarrow ends a batch where the words of a column change, which is with each group."""
    words = arrow.array([f"k{i // 7 % 500}" for i in range(ROWS)])
    values = np.random.default_rng(1).random((len(FEATURES), ROWS)) * 5
    table = arrow.table({"kind": words.dictionary_encode(), "id": range(ROWS), **dict(zip(FEATURES, values, strict=True))})
    write_table(table, tmp_path / "in.parquet", row_group_size=group)
    command = [sys.executable, "-m", "iris_wsgi", "batch", "in.parquet", "out.parquet", "--keep", "id,kind"]
    command += ["--workers", workers, "--model-dir", str(MODEL)]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert told.returncode == 0, told.stderr.decode()
    found = read_table(tmp_path / "out.parquet")
    assert found["id"].to_pylist() == list(range(ROWS))
    assert found["kind"].to_pylist() == words.to_pylist()
