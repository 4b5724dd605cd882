"""What a process of a run does: rows of a chunk out of their text, through the model, and into text again."""

import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from iris_wsgi.batch.cutter import Fault
from iris_wsgi.model import Model
from iris_wsgi.payload import Array

NOT_FINITE = "the model gives a value that is not a finite number"


class Rows(NamedTuple):
    """The good rows of a chunk [n, features] and the line of each, what is kept of each of them by column, and the bad ones."""

    values: Array
    lines: Sequence[int]
    kept: list[list[str]]
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
    """Kept columns, the class of each row and its probabilities [n, classes] to bytes."""

    def text(self, kept: list[list[str]], classes: list[int], probabilities: Array) -> bytes: ...


class Scorer:
    """One chunk after another, each on its own."""

    def __init__(self, model: Model, reader: Reader, writer: Writer) -> None:
        self.model, self.reader, self.writer = model, reader, writer

    def score(self, data: bytes, line: int) -> Outcome:
        rows = self.reader.rows(data, line)
        if not len(rows.values):
            return Outcome(b"", {}, rows.faults)
        probabilities = self.model.predict(rows.values)
        if not np.isfinite(probabilities).all():
            rows, probabilities = without_unusable(rows, probabilities)
        classes = probabilities.argmax(axis=1)
        counts = np.bincount(classes, minlength=len(self.model.labels)).tolist()
        text = self.writer.text(rows.kept, classes.tolist(), probabilities)
        return Outcome(text, dict(zip(self.model.labels, counts, strict=True)), rows.faults)


def without_unusable(rows: Rows, probabilities: Array) -> tuple[Rows, Array]:
    """Rows whose answer is none become faults."""
    good = np.isfinite(probabilities).all(axis=1)
    at = np.flatnonzero(good).tolist()
    faults = rows.faults + [Fault(rows.lines[i], "", NOT_FINITE) for i in np.flatnonzero(~good).tolist()]
    kept = [[column[i] for i in at] for column in rows.kept]
    return Rows(rows.values[good], [rows.lines[i] for i in at], kept, sorted(faults)), probabilities[good]


def packed(outcome: Outcome) -> bytes:
    """For a pipe: a line of JSON, then the data."""
    return json.dumps([outcome.labels, outcome.faults]).encode() + b"\n" + outcome.data


def unpacked(message: bytes) -> Outcome:
    about, _, data = message.partition(b"\n")
    labels, faults = json.loads(about)
    return Outcome(data, labels, [Fault(*one) for one in faults])
