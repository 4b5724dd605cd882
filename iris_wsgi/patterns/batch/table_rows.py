"""Rows of a database to rows of a model: what a value may be is what it may be in CSV."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iris_wsgi.codec.rows import NUMBERS, Array, is_float32
from iris_wsgi.errors import BadModel, InvalidOutput, Stopped
from iris_wsgi.model.session import Model, first_line
from iris_wsgi.patterns.batch.database import Answers, Row
from iris_wsgi.tabular.csv_reader import number_error
from iris_wsgi.tabular.record_splitter import NOT_FINITE, NOT_NUMBER
from iris_wsgi.tabular.scorer import OUTPUT_NOT_FINITE

NULL = "is NULL"


def answers(model: Model, names: Sequence[str], rows: Sequence[Row]) -> Answers:
    """Of rows of a key and the features called `names`, from one run of the model. Raises Stopped and BadModel."""
    width = len(names)
    features = [row[-width:] for row in rows]
    values, errors = checked(features, names)
    good = np.array([error is None for error in errors])
    probabilities = np.full((len(rows), len(model.labels)), np.nan, np.float32)
    try:
        if good.any():
            probabilities[good] = model.predict(values[good])
    except InvalidOutput as error:
        raise BadModel(error.detail) from None
    except Exception as error:
        raise Stopped(f"the model cannot be run on {good.sum()} rows: {first_line(error)}") from None
    classes = np.where(np.isfinite(probabilities).all(axis=1), probabilities.argmax(axis=1), -1).tolist()
    told: list[list[float | None]] = [
        [one if i >= 0 else None for one, i in zip(column, classes, strict=True)] for column in probabilities.T.tolist()
    ]
    labels = [None if i < 0 else model.labels[i] for i in classes]
    errors = [error or (None if i >= 0 else OUTPUT_NOT_FINITE) for error, i in zip(errors, classes, strict=True)]
    return Answers([row[:-width] for row in rows], labels, told, errors)


def checked(rows: Sequence[Row], names: Sequence[str]) -> tuple[Array, list[str | None]]:
    """float32 [rows, features], and for each row the first thing that is wrong with it, where something is."""
    errors: list[str | None] = [None] * len(rows)
    values = np.zeros((len(rows), len(names)), np.float32)
    for j, (name, column) in enumerate(zip(names, zip(*rows, strict=True), strict=True)):
        if set(map(type, column)) <= NUMBERS:
            doubles = np.array(column, np.float64)
            with np.errstate(over="ignore"):
                wrong = np.flatnonzero(~np.isfinite(doubles.astype(np.float32))).tolist()
            doubles[wrong] = 0
        else:
            whys = [fault_of(value) for value in column]
            doubles = np.array([0.0 if why else float(value) for value, why in zip(column, whys, strict=True)])
            wrong = [i for i, why in enumerate(whys) if why]
        for i in wrong:
            errors[i] = errors[i] or f"{name} {fault_of(column[i])}"
        values[:, j] = doubles
    return values, errors


def fault_of(value: Any) -> str | None:
    if value is None:
        return NULL
    if isinstance(value, str):
        return number_error(value)
    if type(value) not in NUMBERS:
        return NOT_NUMBER
    return None if is_float32(value) else NOT_FINITE
