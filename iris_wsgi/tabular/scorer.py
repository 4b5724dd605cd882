"""What a process of a run does: rows of a chunk out of their text, through the model, and into text again."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import BadModel, BadOutput
from iris_wsgi.model.session import Model
from iris_wsgi.tabular.record_splitter import Fault

MODEL_FAILS = "the model fails on it"
NO_ANSWER = "the model gives a value that is not a finite number"


class Rows(NamedTuple):
    """The good rows of a chunk [n, features] and the line of each, what is kept of each of them by column, and the bad ones."""

    values: Array
    lines: Sequence[int]
    kept: Sequence[Sequence[Any]]
    faults: list[Fault]


class Outcome(NamedTuple):
    """What a chunk has come to: bytes for the output, rows by label, bad rows."""

    data: bytes
    labels: dict[str, int]
    faults: list[Fault]


class Reader(Protocol):
    """Text to rows; `line` is the number of its first line."""

    def rows(self, data: bytes, line: int) -> Rows: ...


class Writer(Protocol):
    """How an output starts; and kept columns, the class of each row and its probabilities [n, classes] to bytes."""

    start: bytes

    def text(self, kept: Sequence[Sequence[Any]], classes: list[int], probabilities: Array) -> bytes: ...


class Scorer:
    """One chunk after another, each on its own."""

    def __init__(self, model: Model, reader: Reader, writer: Writer) -> None:
        self.model, self.reader, self.writer = model, reader, writer

    def score(self, data: bytes, line: int) -> Outcome:
        rows = self.reader.rows(data, line)
        if not len(rows.values):
            return Outcome(b"", {}, rows.faults)
        rows, probabilities = self.predicted(rows)
        if not np.isfinite(probabilities).all():
            good = np.asarray(np.isfinite(probabilities).all(axis=1))
            rows, probabilities = only(rows, good, NO_ANSWER), probabilities[good]
        classes = probabilities.argmax(axis=1)
        counts = np.bincount(classes, minlength=len(self.model.labels)).tolist()
        text = self.writer.text(rows.kept, classes.tolist(), probabilities)
        return Outcome(text, dict(zip(self.model.labels, counts, strict=True)), rows.faults)

    def predicted(self, rows: Rows) -> tuple[Rows, Array]:
        """The rows that the model takes, with what it gives; one by one if it fails on all together.

        Raises BadModel if the model gives another number of rows or columns: then no answer can be assigned to its row.
        """
        try:
            return rows, self.model.predict(rows.values)
        except BadOutput as error:
            raise BadModel(error.detail) from None
        except Exception:
            answers = [self.alone(row[np.newaxis]) for row in rows.values]
        good = np.array([answer is not None for answer in answers])
        found = [answer for answer in answers if answer is not None]
        return only(rows, good, MODEL_FAILS), np.concatenate([np.empty((0, len(self.model.labels)), np.float32), *found])

    def alone(self, row: Array) -> Array | None:
        try:
            return self.model.predict(row)
        except BadOutput as error:
            raise BadModel(error.detail) from None
        except Exception:
            return None


def only(rows: Rows, good: NDArray[np.bool_], why: str) -> Rows:
    """The good rows of these; the others become faults."""
    at = np.flatnonzero(good).tolist()
    faults = rows.faults + [Fault(rows.lines[i], "", why) for i in np.flatnonzero(~good).tolist()]
    kept = [picked(column, at) for column in rows.kept]
    return Rows(rows.values[good], [rows.lines[i] for i in at], kept, sorted(faults))


def picked(column: Sequence[Any], at: list[int]) -> Sequence[Any]:
    """Some values of a kept column, a list or one of Arrow's arrays."""
    if isinstance(column, list):
        return [column[i] for i in at]
    taken: Sequence[Any] = column.take(at)  # type: ignore[attr-defined]
    return taken
