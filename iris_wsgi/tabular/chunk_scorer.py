"""Scorer of a chunk: reads its rows, runs the model, and writes the predictions."""

from collections.abc import Mapping, Sequence
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

    def text(self, kept: Sequence[Sequence[Any]], labels: NDArray[np.intp], values: Array) -> bytes:
        """Returns the rows as bytes: the kept columns, the number of each label, and the values [n, columns].

        A regressor has no labels. Raises InvalidOutput for another number of columns.
        """
        ...


class ChunkScorer:
    """Scores chunks independently of each other."""

    def __init__(self, model: Model, reader: RowReader, writer: RowWriter) -> None:
        self.model, self.reader, self.writer = model, reader, writer

    def score(self, data: bytes, line: int) -> ScoredChunk:
        rows, predictions = predict_rows(self.model, self.reader.rows(data, line))
        if not len(predictions):
            return ScoredChunk(b"", 0, {}, rows.bad_rows)
        numbers, counts = self.labels(predictions)
        try:
            text = self.writer.text(rows.kept, numbers, self.model.outputs.values(predictions))
        except InvalidOutput as error:
            raise BadModel(error.detail) from None
        return ScoredChunk(text, len(predictions), counts, rows.bad_rows)

    def labels(self, predictions: Array) -> tuple[NDArray[np.intp], dict[str, int]]:
        """Returns the number of each row's label, and the number of rows by label."""
        outputs = self.model.outputs
        if outputs.kind == REGRESSOR:
            return np.empty(0, np.intp), {}
        numbers = outputs.best(predictions)
        counts = np.bincount(numbers, minlength=len(outputs.labels)).tolist()
        return numbers, dict(zip(outputs.labels, counts, strict=True))


def predict_rows(model: Model, rows: Rows) -> tuple[Rows, Array]:
    """Returns the rows on which the model succeeds, and their predictions [n, outputs.width]. The others become bad rows.

    Raises BadModel if an output has another shape.
    """
    if not len(rows.values):
        return rows, np.empty((0, model.outputs.width), np.float32)
    predictions, reasons = predict_apart(model, rows.values)
    if not reasons and np.isfinite(predictions).all():
        return rows, predictions
    good = np.asarray(np.isfinite(predictions).all(axis=1))
    for i in np.flatnonzero(~good).tolist():
        reasons.setdefault(i, OUTPUT_NOT_FINITE)
    return select_rows(rows, reasons), predictions[good]


def predict_apart(model: Model, rows: Array) -> tuple[Array, dict[int, str]]:
    """Runs the model on all rows, and on each half of rows on which it fails.

    Returns the predictions, which are NaN for each row on which the model fails alone, and the reasons for these rows. Raises
    BadModel if the output has another shape: then no prediction can be assigned to a row.
    """
    reasons: dict[int, str] = {}
    found: list[Array] = []
    parts = [(0, len(rows))]
    while parts:
        start, end = parts.pop()
        try:
            found.append(model.predict(rows[start:end]))
        except InvalidOutput as error:
            raise BadModel(error.detail) from None
        except Exception as error:
            middle = (start + end) // 2
            if end - start == 1:
                reasons[start] = UNKNOWN_CATEGORY if isinstance(error, UnknownCategory) else MODEL_FAILS
                found.append(np.full((1, model.outputs.width), np.nan, np.float32))
            else:
                # The first half is the next part.
                parts += [(middle, end), (start, middle)]
    return found[0] if len(found) == 1 else np.concatenate(found), reasons


def select_rows(rows: Rows, reasons: Mapping[int, str]) -> Rows:
    """Returns the rows without those that have a reason, which become bad rows."""
    good = [i for i in range(len(rows.values)) if i not in reasons]
    bad = rows.bad_rows + [BadRow(rows.lines[i], "", reason) for i, reason in reasons.items()]
    kept = [select(column, good) for column in rows.kept]
    return Rows(rows.values[good], [rows.lines[i] for i in good], kept, sorted(bad))


def select(column: Sequence[Any], at: list[int]) -> Sequence[Any]:
    """Returns some values of a kept column, which is a list or an Arrow array."""
    if isinstance(column, list):
        return [column[i] for i in at]
    taken: Sequence[Any] = column.take(at)  # type: ignore[attr-defined]
    return taken
