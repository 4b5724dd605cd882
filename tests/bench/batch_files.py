"""Writes the input files of the sections on batch and compares their outputs, with pandas and pyarrow."""

import sqlite3
import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow
from pyarrow.parquet import ParquetWriter, read_table, write_table
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


def write_engines(folder: Path, count: int, files: int) -> None:
    """Writes random rows as one Parquet file, as several, and as a table of SQLite."""
    low, high = np.array(RANGES).T
    chance = np.random.default_rng(1)
    (folder / "rows").mkdir(exist_ok=True)
    database = sqlite3.connect(folder / "rows.db")
    with database:
        database.execute(f"CREATE TABLE flowers (id INTEGER PRIMARY KEY, {', '.join(FEATURES)})")
    parts = []
    for i in range(files):
        size = count // files
        values = np.round(low + (high - low) * chance.random((size, len(FEATURES))), 4)
        ids = np.arange(i * size, (i + 1) * size)
        parts.append(pyarrow.table([ids, *values.T], ["id", *FEATURES]))
        write_table(parts[-1], folder / "rows" / f"{i:02}.parquet")
        with database:
            rows = ((int(key), *row) for key, row in zip(ids, values.tolist(), strict=True))
            database.executemany("INSERT INTO flowers VALUES (?, ?, ?, ?, ?)", rows)
    with ParquetWriter(folder / "rows.parquet", parts[0].schema) as writer:
        for part in parts:
            writer.write_table(part)


def compare_engines(folder: Path, pattern: str) -> None:
    """Exits with a line if the predictions in these files differ from those of the command. Without files, those of the table."""
    expected = frame([folder / "engines-command.parquet"])
    if pattern:
        found = frame(sorted(folder.glob(f"engines-{pattern}")))
    else:
        query = f"SELECT {', '.join(expected.columns)} FROM flowers_prediction ORDER BY id"
        found = pandas.read_sql_query(query, sqlite3.connect(folder / "rows.db")).astype(expected.dtypes)
    if len(found) != len(expected):
        sys.exit(f"{len(found)} rows instead of {len(expected)}")
    for name in expected.columns:
        if not (found[name].to_numpy() == expected[name].to_numpy()).all():
            sys.exit(f"values of {name} differ from those of the command")


def frame(paths: list[Path]) -> pandas.DataFrame:
    """Returns the predictions in all files, ordered by id, with labels as texts."""
    table = pyarrow.concat_tables([read_table(path) for path in paths], promote_options="permissive")
    names = ["id", "label", *(name for name in table.schema.names if name.startswith("probability_"))]
    return table.select(names).to_pandas().astype({"label": str}).sort_values("id", ignore_index=True)


if __name__ == "__main__":
    if sys.argv[1] == "write-engines":
        write_engines(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    elif sys.argv[1] == "compare-engines":
        compare_engines(Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "write":
        for size in sys.argv[3:]:
            write(Path(sys.argv[2]), int(size))
    else:
        compare(*sys.argv[2:])
