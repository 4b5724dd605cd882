"""The items that a new database begins with: the rows that the model was trained on."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from iris_wsgi.model import Graph

FILE = "training.csv"


def seed(model: Graph, folder: Path, tell: Callable[[str, str], None]) -> dict[str, bytes]:
    """Rows by ids 0000, 0001, …; none where the file is not there or is not of this model, which `tell` is told."""
    try:
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        if header[: model.width] != [feature.name for feature in model.features]:
            raise ValueError("it has other columns than the model has features")
        rows = np.array([line[: model.width] for line in lines], np.float32).reshape(-1, model.width)
        if not np.isfinite(rows).all():
            raise ValueError("it has values that are not finite")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        tell("warning", f"a new database of items begins empty: {folder / FILE} is not used: {why}")
        return {}
    return {f"{i:04d}": row.astype("<f4").tobytes() for i, row in enumerate(rows)}
