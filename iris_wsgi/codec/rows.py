"""Decodes and validates rows in JSON, and encodes predictions: every invalid value is reported with its JSON pointer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from math import isfinite
from typing import Any

import numpy as np

from iris_wsgi.codec.json_documents import MAX_LEVELS, MIN_BYTES, MIN_VALUES, decode_json, encode, encode_list, levels, too_deep
from iris_wsgi.codec.model_schema import FLOAT32_MAX as FLOAT32_MAX
from iris_wsgi.codec.model_schema import NUMBERS as NUMBERS
from iris_wsgi.codec.model_schema import REGRESSOR, SCORES, AmbiguousName, OutputSchema, RowSchema
from iris_wsgi.codec.model_schema import Array as Array
from iris_wsgi.codec.model_schema import is_float32 as is_float32
from iris_wsgi.errors import MAX_FIELD_ERRORS, FieldError, PredictionFailed, UnprocessableContent

# Without this limit, a small body of empty objects takes gigabytes for a model of thousands of features.
MAX_ABSENT = 1_000_000


def decode_rows(body: bytes, schema: RowSchema, max_rows: int, advice: str) -> Array:
    """Decodes `{"data": [[…], …]}` or `{"data": [{…}, …]}` to an array [rows, features], with 1 to `max_rows` rows.

    Every value fits the type of its feature. A missing number is NaN. `advice` says what a client with more rows can do.
    Raises BadRequest (400) or UnprocessableContent (422).
    """
    if len(body) >= MIN_BYTES and (matrix := rows_of_numbers(body, b"data", schema, max_rows)) is not None:
        return matrix
    document = decode_json(body)
    if type(document) is dict and len(document) == 1:
        rows = rows_of(document.get("data"), schema, max_rows)
        if rows is not None:
            return rows
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    raise UnprocessableContent(
        "The body does not fit the schema of this route.",
        list(islice(faults(document, schema, max_rows, advice), MAX_FIELD_ERRORS)),
    )


def rows_of_numbers(body: bytes, member: bytes, schema: RowSchema, max_rows: int) -> Array | None:
    """Decodes a body of regular rows of numbers several times faster than rows_of(). Returns None for every other body."""
    if not schema.is_float or (schema.has_missing and b"null" in body):
        return None
    # Most servers get short bodies only, and do not need its tables.
    from iris_wsgi.codec.decimals import decode_matrix

    matrix = decode_matrix(body, member, schema.width, schema.dtype, schema.max)
    return None if matrix is None or len(matrix) > max_rows else matrix


def decode_row(body: bytes, schema: RowSchema) -> list[float] | None:
    """Decodes `{"data": [[…]]}` with the numbers of one row. Returns None for every other document of JSON, valid or not.

    The numbers may be too large for the type of their features. Raises BadRequest (400).
    """
    document = decode_json(body)
    if type(document) is not dict or len(document) != 1:
        return None
    data = document.get("data")
    if type(data) is not list or len(data) != 1:
        return None
    row = data[0]
    if type(row) is not list or len(row) != schema.width or not schema.is_float or not set(map(type, row)) <= NUMBERS:
        return None
    return row if max(row) <= schema.max and min(row) >= -schema.max else None


def rows_of(data: Any, schema: RowSchema, max_rows: int) -> Array | None:
    """Converts 1 to `max_rows` rows to an array [rows, features], or returns None for invalid data."""
    if type(data) is not list or not 0 < len(data) <= max_rows:
        return None
    width = schema.width
    if all([type(row) is list and len(row) == width for row in data]):
        if schema.is_float:
            return schema.floats(list(chain.from_iterable(data)) if len(data) > 1 else data[0])
        return schema.from_values(data)
    if absent_values(data, schema) > MAX_ABSENT:
        return None
    rows: list[Any] = [by_position(row, schema) if type(row) is dict else row for row in data]
    if not all([type(row) is list and len(row) == width for row in rows]):
        return None
    return schema.from_values(rows)


def absent_values(data: Sequence[Any], schema: RowSchema) -> int:
    """Returns the number of values that rows by name lack."""
    return sum(schema.width - len(row) for row in data if type(row) is dict)


def by_position(row: Mapping[str, Any], schema: RowSchema) -> list[Any] | None:
    """Returns the values of a row by name in the order of the features, or None if a name is unknown, twice, or absent."""
    values: list[Any] = [None] * schema.width
    found = set[int]()
    for name, value in row.items():
        try:
            position = schema.names.find(name)
        except AmbiguousName:
            return None
        if position is None or position in found:
            return None
        values[position] = value
        found.add(position)
    return values if schema.required <= found else None


def faults(document: Any, schema: RowSchema, max_rows: int, advice: str) -> Iterator[FieldError]:
    """Yields the faults of a document of rows in document order. Names that the client sent are not repeated."""
    if not isinstance(document, dict):
        yield FieldError("#", 'must be an object: {"data": [[…]]}')
        return
    if set(document) - {"data"}:
        yield FieldError("#", 'has an unknown member; "data" is the only one')
    if "data" not in document:
        yield FieldError("#", 'lacks the member "data"')
        return
    yield from data_faults("#/data", document["data"], schema, max_rows, advice)


def data_faults(pointer: str, data: Any, schema: RowSchema, max_rows: int, advice: str) -> Iterator[FieldError]:
    """Yields the faults of a value that must be a list of 1 to `max_rows` rows."""
    if not isinstance(data, list) or not data:
        yield FieldError(pointer, f"must be a list of rows of {contents(schema)}, one row at least")
        return
    if set(map(type, data)) <= types_of(schema):
        yield FieldError(pointer, "is one row; it must be a list of rows, so put the row in brackets of its own: [[…]]")
        return
    if len(data) > max_rows:
        yield FieldError(pointer, f"has {len(data)} rows; this route takes {max_rows} at most: {advice}")
    elif absent_values(data, schema) > MAX_ABSENT:
        yield FieldError(pointer, f"lacks more than {MAX_ABSENT} values in all; send several requests")
        return
    for i, row in enumerate(data[:max_rows]):
        yield from row_faults(f"{pointer}/{i}", row, schema)


def types_of(schema: RowSchema) -> set[type]:
    """Returns the types of the JSON values of a row."""
    kinds = {feature.type for feature in schema.features}
    others = {str: "string" in kinds, bool: "bool" in kinds, type(None): schema.has_missing}
    return {*NUMBERS, *(kind for kind, is_used in others.items() if is_used)}


def contents(schema: RowSchema) -> str:
    return f"{schema.width} {'numbers' if schema.is_float else 'values'}"


def row_faults(pointer: str, row: Any, schema: RowSchema) -> Iterator[FieldError]:
    if isinstance(row, dict):
        yield from named_row_faults(pointer, row, schema)
    elif not isinstance(row, list):
        yield FieldError(pointer, f"must be a row: a list of {contents(schema)}")
    elif len(row) != schema.width:
        yield FieldError(pointer, f"has {len(row)} values; a row has {schema.width}")
    else:
        for j, value in enumerate(row):
            if error := schema.value_error(value, j):
                yield FieldError(f"{pointer}/{j}", error)


def named_row_faults(pointer: str, row: Mapping[str, Any], schema: RowSchema) -> Iterator[FieldError]:
    """Yields the faults of a row by name. A pointer ends in the model's own name of the feature."""
    found = set[int]()
    for name, value in row.items():
        try:
            position = schema.names.find(name)
        except AmbiguousName:
            yield FieldError(pointer, f"has a name that fits several features; use their exact names: {listed(schema)}")
            continue
        if position is None:
            yield FieldError(pointer, f"has an unknown feature; the features are {listed(schema)}")
            continue
        of_feature = f"{pointer}/{schema.features[position].name.replace('~', '~0').replace('/', '~1')}"
        if position in found:
            yield FieldError(of_feature, "occurs twice in this row, in two spellings")
        elif error := schema.value_error(value, position):
            yield FieldError(of_feature, error)
        found.add(position)
    absent = [f.name for j, f in enumerate(schema.features) if j not in found and not f.missing]
    if absent:
        yield FieldError(pointer, f"lacks the feature {absent[0]}" + (f" and {len(absent) - 1} more" if absent[1:] else ""))


def listed(schema: RowSchema) -> str:
    names = [feature.name for feature in schema.features]
    return ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")


class Encoder:
    """Encodes predictions [rows, columns] as the JSON responses of the web-single routes, in the style of encode_json().

    The members are "probabilities" for a classifier, "scores" for a classifier without probabilities, and "values" for a
    regressor, which has "targets" in place of "classes" and "labels".
    """

    def __init__(self, outputs: OutputSchema) -> None:
        self.outputs, self.columns = outputs, len(outputs.columns)
        # A plain function: for one row, a method of the schema takes as long as the search.
        self.best_of: Callable[[list[float]], int] = outputs.best_of if outputs.has_label_column else best
        self.names = [encode(label) for label in outputs.labels]
        self.label_answers = [f'{{"prediction":{name}}}\n'.encode() for name in self.names]
        self.proba_starts = [f'{{"label":{name},"probability":' for name in self.names]
        columns = ",".join(map(encode, outputs.columns))
        if outputs.kind == REGRESSOR:
            self.row_start, self.batch_start = f'{{"targets":[{columns}],"values":[', f'{{"targets":[{columns}]'
        else:
            self.row_start, self.batch_start = '{"prediction":[', f'{{"classes":[{",".join(self.names)}],"labels":['

    def label(self, prediction: list[float]) -> bytes:
        return self.label_answers[self.best_of(prediction)]

    def row(self, prediction: list[float]) -> bytes:
        values = ",".join(map(repr, prediction[: self.columns]))
        if self.outputs.kind == SCORES:
            return f'{{"label":{self.names[self.best_of(prediction)]},"scores":[{values}]}}\n'.encode()
        return f"{self.row_start}{values}]}}\n".encode()

    def proba(self, prediction: list[float]) -> bytes:
        pairs = zip(self.proba_starts, prediction[: self.columns], strict=True)
        return f'{{"prediction":[{",".join(f"{start}{p!r}}}" for start, p in pairs)}]}}\n'.encode()

    def batch(self, predictions: Array) -> bytes:
        values = encode_rows(self.outputs.values(predictions))
        if self.outputs.kind == REGRESSOR:
            return b'%b,"values":%b}\n' % (self.batch_start.encode(), values)
        labels = ",".join(map(self.names.__getitem__, self.outputs.best(predictions).tolist()))
        return b"%b%b}\n" % (f'{self.batch_start}{labels}],"{self.outputs.name}":'.encode(), values)

    def fields(self, predictions: Array) -> dict[str, Any]:
        """Returns the members that describe the prediction of one row, such as label and probabilities."""
        row = finite(predictions)[0]
        values = row[: len(self.outputs.columns)]
        if self.outputs.kind == REGRESSOR:
            return {"targets": self.outputs.columns, "values": values}
        return {"classes": self.outputs.labels, "label": self.outputs.labels[self.best_of(row)], self.outputs.name: values}


def encode_rows(values: Array) -> bytes:
    """Encodes float32 [rows, columns] as lists. Raises PredictionFailed for values that JSON cannot express."""
    if values.size < MIN_VALUES:
        return encode_list(finite(values)).encode()
    if not np.isfinite(values).all():
        raise not_finite()
    from iris_wsgi.codec.decimals import encode_floats

    return encode_floats(values)


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
