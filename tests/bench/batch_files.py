"""Writes the input files of the batch section and compares its outputs, with pandas and pyarrow."""

import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow
from pyarrow.parquet import ParquetWriter
from rows import RANGES

FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
PART_ROWS = 100_000
# Maximum difference of a probability, because the script rounds decimals when it reads and writes them.
TOLERANCE = 1e-6
READERS = {
    ".csv": pandas.read_csv,
    ".jsonl": lambda path: pandas.read_json(path, lines=True, precise_float=True),
    ".parquet": pandas.read_parquet,
}


def write(folder: Path, count: int) -> None:
    """Writes the same random rows with four decimals in three formats."""
    low, high = np.array(RANGES).T
    chance = np.random.default_rng(1)
    schema = pyarrow.schema([("id", pyarrow.int64()), *((name, pyarrow.float64()) for name in FEATURES)])
    with (
        open(folder / f"{count}.csv", "w") as csv,
        open(folder / f"{count}.jsonl", "w") as lines,
        ParquetWriter(folder / f"{count}.parquet", schema) as parquet,
    ):
        csv.write(",".join(schema.names) + "\n")
        record = "{" + ", ".join(f'"{name}": %s' for name in schema.names) + "}\n"
        for first in range(0, count, PART_ROWS):
            values = np.round(low + (high - low) * chance.random((min(PART_ROWS, count - first), len(FEATURES))), 4)
            rows = [(i, *row) for i, row in enumerate(values.tolist(), first)]
            csv.writelines(map("%s,%s,%s,%s,%s\n".__mod__, rows))
            lines.writelines(map(record.__mod__, rows))
            parquet.write_table(pyarrow.table([range(first, first + len(rows)), *values.T], schema=schema))


def compare(ours: str, other: str) -> None:
    """Exits with a line about the first difference of two outputs."""
    a, b = (READERS[Path(path).suffix](path) for path in (ours, other))
    if list(a.columns) != list(b.columns) or len(a) != len(b):
        sys.exit(f"{len(a)} rows of {list(a.columns)} instead of {len(b)} of {list(b.columns)}")
    for name in a.columns:
        numbers = name.startswith("probability_")
        same = (a[name] - b[name]).abs() <= TOLERANCE if numbers else a[name].astype(str) == b[name].astype(str)
        if not same.all():
            sys.exit(f"{int((~same).sum())} of {len(same)} values of {name} differ from those of the script")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        for size in sys.argv[3:]:
            write(Path(sys.argv[2]), int(size))
    else:
        compare(*sys.argv[2:])
