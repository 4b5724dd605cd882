"""Reads the training rows of a model, if its folder has them."""

import csv
from pathlib import Path

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.session import Graph

FILE = "training.csv"
# The column of the class, after the features.
LABEL = "label"


def read_training(model: Graph, folder: Path, max_rows: int | None = None) -> tuple[Array, list[str]]:
    """Returns float32 [rows, features], at most `max_rows` of them at even distances, and the class names if the file has them.

    Raises OSError, and ValueError for a file that does not belong to this model.
    """
    try:
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
    except csv.Error:
        raise ValueError("it is not a CSV") from None
    width = model.width
    if header[:width] != [feature.name for feature in model.features]:
        raise ValueError("it has other columns than the model has features")
    if max_rows is not None and len(lines) > max_rows:
        lines = [lines[i * len(lines) // max_rows] for i in range(max_rows)]
    rows = np.array([line[:width] for line in lines], np.float32).reshape(-1, width)
    if not np.isfinite(rows).all():
        raise ValueError("it has values that are not finite")
    has_labels = header[width : width + 1] == [LABEL]
    return rows, ["".join(line[width : width + 1]) for line in lines] if has_labels else []
