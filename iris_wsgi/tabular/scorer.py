"""Scorer of a chunk: reads its rows, runs the model, and writes the predictions."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import BadModel, InvalidOutput
from iris_wsgi.model.session import Model
from iris_wsgi.tabular.record_splitter import BadRow

MODEL_FAILS = "the model fails on it"
OUTPUT_NOT_FINITE = "the model gives a value that is not a finite number"


class Rows(NamedTuple):
    """Valid rows [n, features] of a chunk, the line of each, the kept columns, and the bad rows."""

    values: Array
    lines: Sequence[int]
    kept: Sequence[Sequence[Any]]
    bad_rows: list[BadRow]


class ScoredChunk(NamedTuple):
    """Output bytes of a chunk, the number of rows by label, and the bad rows."""

    data: bytes
    labels: dict[str, int]
    bad_rows: list[BadRow]


class RowReader(Protocol):
    def rows(self, data: bytes, line: int) -> Rows:
        """Parses a chunk that starts at the line number `line`."""
        ...


class RowWriter(Protocol):
    """Writer of an output that begins with `start`."""

    start: bytes

    def text(self, kept: Sequence[Sequence[Any]], classes: list[int], probabilities: Array) -> bytes:
        """Returns the rows as bytes: the kept columns, the class of each row, and the probabilities [n, classes]."""
        ...


class Scorer:
    """Scores chunks independently of each other."""

    def __init__(self, model: Model, reader: RowReader, writer: RowWriter) -> None:
        self.model, self.reader, self.writer = model, reader, writer

    def score(self, data: bytes, line: int) -> ScoredChunk:
        rows = self.reader.rows(data, line)
        if not len(rows.values):
            return ScoredChunk(b"", {}, rows.bad_rows)
        rows, probabilities = self.predict(rows)
        if not np.isfinite(probabilities).all():
            good = np.asarray(np.isfinite(probabilities).all(axis=1))
            rows, probabilities = select_rows(rows, good, OUTPUT_NOT_FINITE), probabilities[good]
        classes = self.model.outputs.best(probabilities)
        counts = np.bincount(classes, minlength=len(self.model.labels)).tolist()
        text = self.writer.text(rows.kept, classes.tolist(), probabilities)
        return ScoredChunk(text, dict(zip(self.model.labels, counts, strict=True)), rows.bad_rows)

    def predict(self, rows: Rows) -> tuple[Rows, Array]:
        """Runs the model on all rows, or row by row if that fails. Returns the rows that succeed and their probabilities.

        Raises BadModel if the output has the wrong shape: then no prediction can be assigned to a row.
        """
        try:
            return rows, self.model.predict(rows.values)
        except InvalidOutput as error:
            raise BadModel(error.detail) from None
        except Exception:
            predictions = [self.predict_one(row[np.newaxis]) for row in rows.values]
        good = np.array([prediction is not None for prediction in predictions])
        found = [prediction for prediction in predictions if prediction is not None]
        empty = np.empty((0, self.model.outputs.width), np.float32)
        return select_rows(rows, good, MODEL_FAILS), np.concatenate([empty, *found])

    def predict_one(self, row: Array) -> Array | None:
        try:
            return self.model.predict(row)
        except InvalidOutput as error:
            raise BadModel(error.detail) from None
        except Exception:
            return None


def select_rows(rows: Rows, good: NDArray[np.bool_], reason: str) -> Rows:
    """Returns the good rows; the others become bad rows with this reason."""
    at = np.flatnonzero(good).tolist()
    bad = rows.bad_rows + [BadRow(rows.lines[i], "", reason) for i in np.flatnonzero(~good).tolist()]
    kept = [select(column, at) for column in rows.kept]
    return Rows(rows.values[good], [rows.lines[i] for i in at], kept, sorted(bad))


def select(column: Sequence[Any], at: list[int]) -> Sequence[Any]:
    """Returns some values of a kept column, which is a list or an Arrow array."""
    if isinstance(column, list):
        return [column[i] for i in at]
    taken: Sequence[Any] = column.take(at)  # type: ignore[attr-defined]
    return taken
