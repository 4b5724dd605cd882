"""Runs the model on 10,000 rows in one thread; prints runs/s and CPU, and writes the first result to a file."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import rows

from iris_wsgi.model.session import ModelFiles, open_session

WARM = 20


def main(folder: str, seconds: float, output: str) -> None:
    (file,) = Path(folder).glob("*.onnx")
    run = open_session(ModelFiles(file.read_bytes(), str(file))).run
    arrays = [np.array(one, np.float32) for one in rows.large_row_sets()]
    for array in arrays * (WARM // len(arrays)):
        run(["probabilities"], {"features": array})
    Path(output).write_bytes(run(["probabilities"], {"features": arrays[0]})[0].tobytes())
    done, began, spent = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds:
        run(["probabilities"], {"features": arrays[done % len(arrays)]})
        done += 1
    cpu = (time.process_time() - spent) / done
    json.dump({"rate": done / (time.perf_counter() - began), "cpu": cpu}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
