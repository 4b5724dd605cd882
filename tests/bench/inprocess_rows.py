"""Runs a model on 1 row and on 32 rows at a time; prints the µs of a row. All rows differ."""

import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import rows

from iris_wsgi.model.session import ModelFiles, open_session

SIZES, RUNS = (1, 32), 300


def main(folder: str) -> None:
    (file,) = Path(folder).glob("*.onnx")
    run = open_session(ModelFiles(file.read_bytes(), str(file))).run
    drawn = np.array(rows.large_row_sets()[0], np.float32)
    json.dump({f"row_in_{size}": median(taken(run, drawn, size)[RUNS // 10 :]) / 1e3 / size for size in SIZES}, sys.stdout)


def taken(run, rows: np.ndarray, size: int) -> list[int]:
    """Returns the nanoseconds of each run."""
    found = []
    for i in range(RUNS):
        inputs = {"features": rows[i * size : (i + 1) * size]}
        began = time.perf_counter_ns()
        run(["probabilities"], inputs)
        found.append(time.perf_counter_ns() - began)
    return found


if __name__ == "__main__":
    main(sys.argv[1])
