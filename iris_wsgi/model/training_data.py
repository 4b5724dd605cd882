"""The rows that the model was trained on, where the model's folder has them."""

import csv
from pathlib import Path

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.session import Graph

FILE = "training.csv"
# The column of the class, behind those of the features.
LABEL = "label"


def read_training(model: Graph, folder: Path, most: int | None = None) -> tuple[Array, list[str]]:
    """float32 [rows, features], at most so many, evenly taken, and the classes' names; none where the file does not tell them.

    Raises OSError, and ValueError for a file that is not of this model.
    """
    try:
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
    except csv.Error:
        raise ValueError("it is no CSV") from None
    width = model.width
    if header[:width] != [feature.name for feature in model.features]:
        raise ValueError("it has other columns than the model has features")
    if most is not None and len(lines) > most:
        lines = [lines[i * len(lines) // most] for i in range(most)]
    rows = np.array([line[:width] for line in lines], np.float32).reshape(-1, width)
    if not np.isfinite(rows).all():
        raise ValueError("it has values that are not finite")
    told = header[width : width + 1] == [LABEL]
    return rows, ["".join(line[width : width + 1]) for line in lines] if told else []
