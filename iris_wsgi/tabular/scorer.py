"""Scorer of a chunk: reads its rows, runs the model, and writes the predictions."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.model_schema import REGRESSOR, Array
from iris_wsgi.errors import BadModel, InvalidOutput, UnknownCategory
from iris_wsgi.model.session import Model
from iris_wsgi.tabular.record_splitter import BadRow

MODEL_FAILS = "the model fails on it"
UNKNOWN_CATEGORY = "has a value that is not one of the categories of the model"
OUTPUT_NOT_FINITE = "the model gives a value that is not a finite number"


class Rows(NamedTuple):
    """Valid rows [n, features] of a chunk, the line of each, the kept columns, and the bad rows."""

    values: Array
    lines: Sequence[int]
    kept: Sequence[Sequence[Any]]
    bad_rows: list[BadRow]


class ScoredChunk(NamedTuple):
    """Output bytes of a chunk, the number of predicted rows, their number by label, and the bad rows.

    A regressor has no labels.
    """

    data: bytes
    ok: int
    labels: dict[str, int]
    bad_rows: list[BadRow]


class RowReader(Protocol):
    def rows(self, data: bytes, line: int) -> Rows:
        """Parses a chunk that starts at the line number `line`."""
        ...


class RowWriter(Protocol):
    """Writer of an output that begins with `start`."""

    start: bytes

    def text(self, kept: Sequence[Sequence[Any]], labels: list[int], values: Array) -> bytes:
        """Returns the rows as bytes: the kept columns, the number of each label, and the values [n, columns].

        A regressor has no labels. Raises InvalidOutput for another number of columns.
        """
        ...


class Scorer:
    """Scores chunks independently of each other."""

    def __init__(self, model: Model, reader: RowReader, writer: RowWriter) -> None:
        self.model, self.reader, self.writer = model, reader, writer

    def score(self, data: bytes, line: int) -> ScoredChunk:
        rows = self.reader.rows(data, line)
        if not len(rows.values):
            return ScoredChunk(b"", 0, {}, rows.bad_rows)
        rows, predictions = self.predict(rows)
        if not np.isfinite(predictions).all():
            good = np.asarray(np.isfinite(predictions).all(axis=1))
            rows, predictions = select_rows(rows, good, [OUTPUT_NOT_FINITE] * len(good)), predictions[good]
        numbers, counts = self.labels(predictions)
        try:
            text = self.writer.text(rows.kept, numbers, self.model.outputs.values(predictions))
        except InvalidOutput as error:
            raise BadModel(error.detail) from None
        return ScoredChunk(text, len(predictions), counts, rows.bad_rows)

    def labels(self, predictions: Array) -> tuple[list[int], dict[str, int]]:
        """Returns the number of each row's label, and the number of rows by label."""
        outputs = self.model.outputs
        if outputs.kind == REGRESSOR:
            return [], {}
        numbers = outputs.best(predictions)
        counts = np.bincount(numbers, minlength=len(outputs.labels)).tolist()
        return numbers.tolist(), dict(zip(outputs.labels, counts, strict=True))

    def predict(self, rows: Rows) -> tuple[Rows, Array]:
        """Runs the model on all rows, or row by row if that fails. Returns the rows that succeed and their predictions.

        Raises BadModel if the output has the wrong shape: then no prediction can be assigned to a row.
        """
        try:
            return rows, self.model.predict(rows.values)
        except InvalidOutput as error:
            raise BadModel(error.detail) from None
        except Exception:
            predictions, reasons = predict_each(self.model, rows.values)
        good = np.array([not reason for reason in reasons])
        return select_rows(rows, good, reasons), predictions[good]


def predict_each(model: Model, rows: Array) -> tuple[Array, list[str]]:
    """Runs the model row by row. Returns the predictions [n, columns], and the reason for each row that failed, or "".

    Raises BadModel if the output has the wrong shape.
    """
    predictions = np.full((len(rows), model.outputs.width), np.nan, np.float32)
    reasons = [""] * len(rows)
    for i in range(len(rows)):
        try:
            predictions[i] = model.predict(rows[i : i + 1])[0]
        except InvalidOutput as error:
            raise BadModel(error.detail) from None
        except UnknownCategory:
            reasons[i] = UNKNOWN_CATEGORY
        except Exception:
            reasons[i] = MODEL_FAILS
    return predictions, reasons


def select_rows(rows: Rows, good: NDArray[np.bool_], reasons: Sequence[str]) -> Rows:
    """Returns the good rows; the others become bad rows with their reasons."""
    at = np.flatnonzero(good).tolist()
    bad = rows.bad_rows + [BadRow(rows.lines[i], "", reasons[i]) for i in np.flatnonzero(~good).tolist()]
    kept = [select(column, at) for column in rows.kept]
    return Rows(rows.values[good], [rows.lines[i] for i in at], kept, sorted(bad))


def select(column: Sequence[Any], at: list[int]) -> Sequence[Any]:
    """Returns some values of a kept column, which is a list or an Arrow array."""
    if isinstance(column, list):
        return [column[i] for i in at]
    taken: Sequence[Any] = column.take(at)  # type: ignore[attr-defined]
    return taken
