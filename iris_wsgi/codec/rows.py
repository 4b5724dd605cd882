"""Decodes and validates rows in JSON, and encodes probabilities: every invalid value is reported with its JSON pointer."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.json_documents import MAX_LEVELS, decode_json, encode_list, levels, too_deep
from iris_wsgi.errors import MAX_FIELD_ERRORS, FieldError, PredictionFailed, UnprocessableContent

Array = NDArray[np.float32]

# The largest double that rounds to a finite float32. Values are compared with <= this one: < with the next double would round
# integers between the two.
FLOAT32_MAX = 3.4028235677973362e38
NUMBERS = {int, float}


def is_float32(value: float) -> bool:
    """Returns whether a number is finite as float32; NaN is not."""
    return -FLOAT32_MAX <= value <= FLOAT32_MAX


def decode_rows(body: bytes, width: int, max_rows: int, advice: str) -> Array:
    """Decodes `{"data": [[…], …]}` to float32 [rows, width], with 1 to `max_rows` rows.

    Every number is finite after rounding to float32. `advice` says what a client with more rows can do. Raises BadRequest
    (400) or UnprocessableContent (422).
    """
    document = decode_json(body)
    if type(document) is dict and len(document) == 1:
        rows = rows_of(document.get("data"), width, max_rows)
        if rows is not None:
            return rows
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    raise UnprocessableContent(
        "The body does not fit the schema of this route.",
        list(islice(faults(document, width, max_rows, advice), MAX_FIELD_ERRORS)),
    )


def rows_of(data: Any, width: int, max_rows: int) -> Array | None:
    """Converts 1 to `max_rows` lists of `width` numbers to float32 [rows, width], or returns None for invalid data."""
    if type(data) is list and 0 < len(data) <= max_rows and all([type(row) is list and len(row) == width for row in data]):
        flat = list(chain.from_iterable(data)) if len(data) > 1 else data[0]
        if set(map(type, flat)) <= NUMBERS and max(flat) <= FLOAT32_MAX and min(flat) >= -FLOAT32_MAX:
            return np.array(flat, np.float32).reshape(-1, width)
    return None


def faults(document: Any, width: int, max_rows: int, advice: str) -> Iterator[FieldError]:
    """Yields the faults of a document of rows in document order. Names that the client sent are not repeated."""
    if not isinstance(document, dict):
        yield FieldError("#", 'must be an object: {"data": [[…]]}')
        return
    if set(document) - {"data"}:
        yield FieldError("#", 'has an unknown member; "data" is the only one')
    if "data" not in document:
        yield FieldError("#", 'lacks the member "data"')
        return
    yield from data_faults("#/data", document["data"], width, max_rows, advice)


def data_faults(pointer: str, data: Any, width: int, max_rows: int, advice: str) -> Iterator[FieldError]:
    """Yields the faults of a value that must be a list of 1 to `max_rows` rows of `width` numbers."""
    if not isinstance(data, list) or not data:
        yield FieldError(pointer, f"must be a list of rows of {width} numbers, one row at least")
        return
    if set(map(type, data)) <= NUMBERS:
        yield FieldError(pointer, "is one row; it must be a list of rows, so put the row in brackets of its own: [[…]]")
        return
    if len(data) > max_rows:
        yield FieldError(pointer, f"has {len(data)} rows; this route takes {max_rows} at most: {advice}")
    for i, row in enumerate(data):
        yield from row_faults(f"{pointer}/{i}", row, width)


def row_faults(pointer: str, row: Any, width: int) -> Iterator[FieldError]:
    if not isinstance(row, list):
        yield FieldError(pointer, f"must be a row: a list of {width} numbers")
    elif len(row) != width:
        yield FieldError(pointer, f"has {len(row)} values; a row has {width}")
    else:
        for j, value in enumerate(row):
            if type(value) not in NUMBERS:
                yield FieldError(f"{pointer}/{j}", "must be a number")
            elif not is_float32(value):
                yield FieldError(f"{pointer}/{j}", "must be finite as a 32-bit float: at most 3.4028235e38 in size")


class Encoder:
    """Encodes probabilities [rows, classes] as the JSON responses of the web-single routes."""

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
    """Converts float32 [rows, classes] to lists of equal doubles. Raises PredictionFailed for values that JSON cannot express."""
    rows: list[list[float]] = probabilities.tolist()
    # For one row plain Python is several times faster than numpy.
    if not (all(map(isfinite, rows[0])) if len(rows) == 1 else np.isfinite(probabilities).all()):
        raise not_finite()
    return rows


def not_finite() -> PredictionFailed:
    return PredictionFailed("The model gave a value that is not a finite number for these rows.")


def best(row: list[float]) -> int:
    """Returns the index of the highest probability, and of equal ones the first, like numpy's argmax."""
    return row.index(max(row))
