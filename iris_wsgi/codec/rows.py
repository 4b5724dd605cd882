"""Rows of JSON documents to arrays and back, checked by hand: what is accepted is exact, what is refused is told where."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.json_documents import MAX_LEVELS, decode_json, encode_list, levels, too_deep
from iris_wsgi.errors import MOST_FAULTS, Fault, NotValid, PredictFailed

Array = NDArray[np.float32]

# The largest double that rounds to a finite float32: the next one lies half a step above the largest float32. It is compared
# with <=, for an integer between the two would be rounded up to the second on its way.
FLOAT32_MAX = 3.4028235677973362e38
NUMBERS = {int, float}


def decode_rows(body: bytes, width: int, most: int, more: str) -> Array:
    """`{"data": [[…], …]}` to float32 [rows, width], 1 to `most` rows; `more` tells who has too many rows what to do.

    Every number is finite after rounding to float32. Raises NotDecodable (400) or NotValid (422).
    """
    document = decode_json(body)
    if type(document) is dict and len(document) == 1:
        rows = rows_of(document.get("data"), width, most)
        if rows is not None:
            return rows
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    raise NotValid(
        "The body does not fit the schema of this route.",
        list(islice(faults(document, width, most, more), MOST_FAULTS)),
    )


def rows_of(data: Any, width: int, most: int) -> Array | None:
    """float32 [rows, width] of 1 to `most` lists of `width` numbers; None if anything is wrong, and `data_faults` tells what."""
    if type(data) is list and 0 < len(data) <= most and all([type(row) is list and len(row) == width for row in data]):
        flat = list(chain.from_iterable(data)) if len(data) > 1 else data[0]
        if set(map(type, flat)) <= NUMBERS and max(flat) <= FLOAT32_MAX and min(flat) >= -FLOAT32_MAX:
            return np.array(flat, np.float32).reshape(-1, width)
    return None


def faults(document: Any, width: int, most: int, more: str) -> Iterator[Fault]:
    """Everything that is wrong with a document of rows, in its order. Names sent by the client are not repeated."""
    if not isinstance(document, dict):
        yield Fault("#", 'must be an object: {"data": [[…]]}')
        return
    if set(document) - {"data"}:
        yield Fault("#", 'has an unknown member; "data" is the only one')
    if "data" not in document:
        yield Fault("#", 'lacks the member "data"')
        return
    yield from data_faults("#/data", document["data"], width, most, more)


def data_faults(pointer: str, data: Any, width: int, most: int, more: str) -> Iterator[Fault]:
    """Everything that is wrong with what should be a list of 1 to `most` rows of `width` numbers."""
    if not isinstance(data, list) or not data:
        yield Fault(pointer, f"must be a list of rows of {width} numbers, one row at least")
        return
    if set(map(type, data)) <= NUMBERS:
        yield Fault(pointer, "is one row; it must be a list of rows, so put the row in brackets of its own: [[…]]")
        return
    if len(data) > most:
        yield Fault(pointer, f"has {len(data)} rows; this route takes {most} at most: {more}")
    for i, row in enumerate(data):
        yield from row_faults(f"{pointer}/{i}", row, width)


def row_faults(pointer: str, row: Any, width: int) -> Iterator[Fault]:
    if not isinstance(row, list):
        yield Fault(pointer, f"must be a row: a list of {width} numbers")
    elif len(row) != width:
        yield Fault(pointer, f"has {len(row)} values; a row has {width}")
    else:
        for j, value in enumerate(row):
            if type(value) not in NUMBERS:
                yield Fault(f"{pointer}/{j}", "must be a number")
            elif not -FLOAT32_MAX <= value <= FLOAT32_MAX:
                yield Fault(f"{pointer}/{j}", "must be finite as a 32-bit float: at most 3.4028235e38 in size")


class Encoder:
    """Turns probabilities [rows, classes] into the JSON answers of the web-single routes, for the class names given."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.names = [json.dumps(label) for label in labels]
        self.label_answers = [f'{{"prediction":{name}}}'.encode() for name in self.names]
        self.proba_starts = [f'{{"label":{name},"probability":' for name in self.names]
        self.batch_start = f'{{"classes":[{",".join(self.names)}],"labels":['

    def label(self, probabilities: Array) -> bytes:
        return self.label_answers[best(finite(probabilities)[0])]

    def row(self, probabilities: Array) -> bytes:
        return f'{{"prediction":[{",".join(map(repr, finite(probabilities)[0]))}]}}'.encode()

    def proba(self, probabilities: Array) -> bytes:
        pairs = zip(self.proba_starts, finite(probabilities)[0], strict=True)
        return f'{{"prediction":[{",".join(f"{start}{p!r}}}" for start, p in pairs)}]}}'.encode()

    def batch(self, probabilities: Array) -> bytes:
        labels = ",".join(map(self.names.__getitem__, probabilities.argmax(axis=1).tolist()))
        return f'{self.batch_start}{labels}],"probabilities":{encode_list(finite(probabilities))}}}'.encode()


def finite(probabilities: Array) -> list[list[float]]:
    """The array as lists of doubles, each equal to its float32; JSON has no word for a value that is not finite."""
    rows: list[list[float]] = probabilities.tolist()
    # On one row plain Python is several times faster than numpy.
    if not (all(map(isfinite, rows[0])) if len(rows) == 1 else np.isfinite(probabilities).all()):
        raise not_finite()
    return rows


def not_finite() -> PredictFailed:
    return PredictFailed("The model gave a value that is not a finite number for these rows.")


def best(row: list[float]) -> int:
    """The class of the highest probability; the first of equals, as numpy's argmax has it."""
    return row.index(max(row))
