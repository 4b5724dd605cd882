"""Rows of a database to rows of a model: what a value may be is what it may be in CSV."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iris_wsgi.batch.csv_rows import NO_NUMBER, NOT_FINITE, fault_of_number
from iris_wsgi.batch.scorer import NOT_FINITE as NO_ANSWER
from iris_wsgi.batch.tables import Answers, Failed, Row
from iris_wsgi.model import Model, first_line
from iris_wsgi.payload import FLOAT32_MOST, Array

NUMBERS = {int, float}
NULL = "is NULL"


def answers(model: Model, names: Sequence[str], rows: Sequence[Row]) -> Answers:
    """Of rows of a key and the features called `names`, from one run of the model. Raises Failed."""
    width = len(names)
    features = [row[-width:] for row in rows]
    values, errors = checked(features, names)
    good = np.array([error is None for error in errors])
    probabilities = np.full((len(rows), len(model.labels)), np.nan, np.float32)
    try:
        if good.any():
            probabilities[good] = model.predict(values[good])
    except Exception as error:
        raise Failed(f"the model cannot be run on {good.sum()} rows: {first_line(error)}") from None
    classes = np.where(np.isfinite(probabilities).all(axis=1), probabilities.argmax(axis=1), -1).tolist()
    told: list[list[float | None]] = [
        [one if i >= 0 else None for one, i in zip(column, classes, strict=True)] for column in probabilities.T.tolist()
    ]
    labels = [None if i < 0 else model.labels[i] for i in classes]
    errors = [error or (None if i >= 0 else NO_ANSWER) for error, i in zip(errors, classes, strict=True)]
    return Answers([row[:-width] for row in rows], labels, told, errors)


def checked(rows: Sequence[Row], names: Sequence[str]) -> tuple[Array, list[str | None]]:
    """float32 [rows, features], and for each row what is wrong with it, where something is."""
    if {type(value) for row in rows for value in row} <= NUMBERS:
        doubles = np.array(rows, np.float64)
        # NaN is neither more nor less than anything.
        if (np.abs(doubles) <= FLOAT32_MOST).all():
            return doubles.astype(np.float32), [None] * len(rows)
    errors = [fault_of_row(row, names) for row in rows]
    numbers = [[0.0] * len(names) if error else [float(value) for value in row] for row, error in zip(rows, errors, strict=True)]
    return np.array(numbers, np.float64).reshape(-1, len(names)).astype(np.float32), errors


def fault_of_row(row: Row, names: Sequence[str]) -> str | None:
    return next((f"{name} {why}" for name, value in zip(names, row, strict=True) if (why := fault_of(value))), None)


def fault_of(value: Any) -> str | None:
    if value is None:
        return NULL
    if isinstance(value, str):
        return fault_of_number(value)
    if type(value) not in NUMBERS:
        return NO_NUMBER
    return None if abs(value) <= FLOAT32_MOST else NOT_FINITE
