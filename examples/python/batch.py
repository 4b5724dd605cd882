"""Batch: scores a CSV file with the command bin/batch, and counts the rows of each class. It needs no server.

Usage: batch.py
"""

import csv
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    source = ROOT / "model/training.csv"
    with tempfile.TemporaryDirectory() as folder:
        scored = Path(folder) / "scored.csv"
        # The column of the true label is not a feature, so it is copied only on request.
        subprocess.run([ROOT / "bin/batch", source, scored, "--quiet"], check=True)
        with scored.open(newline="") as file:
            rows = list(csv.DictReader(file))
    print("columns:", *rows[0])
    for label, count in sorted(Counter(row["label"] for row in rows).items()):
        print(f"{label:<12}{count} rows")
    if len(rows) != len(source.read_text().splitlines()) - 1:
        sys.exit(f"expected a result for every row of {source}, not {len(rows)}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
