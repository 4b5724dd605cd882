"""Values of features of every type: JSON bodies, CSV, JSON Lines, Parquet, and tables take the same ones, as the same rows."""

import csv
import io
import json
import math

import numpy as np
import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from iris_wsgi.codec.model_schema import Feature, RowSchema
from iris_wsgi.codec.rows import decode_rows
from iris_wsgi.errors import Problem
from iris_wsgi.patterns.batch.table_run import convert_features
from iris_wsgi.tabular.columns import Columns
from iris_wsgi.tabular.csv_reader import CsvReader
from iris_wsgi.tabular.feature_values import FeatureValues
from iris_wsgi.tabular.jsonl_reader import JsonReader
from iris_wsgi.tabular.parquet import ParquetReader
from iris_wsgi.tabular.record_splitter import SWAPPED

TYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint64", "bool", "string")
EDGES = [0, -1, 1, 127, 128, -129, 255, 256, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**39, 10**309]
EDGES += [2.0**63, 2.0**64, -(2.0**63), 2.0**53, 127.0, 128.0, 0.5]
NUMBERS = st.sampled_from(EDGES) | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
VALUES = {
    "bool": st.booleans() | st.sampled_from([0, 1, 0.0, 1.0, 2, -1, 0.5]),
    "string": TEXTS,
} | {kind: NUMBERS | st.floats(-100, 100, width=32) | st.integers(-300, 300) for kind in TYPES[:8]}


@st.composite
def schemas(draw: st.DrawFn) -> RowSchema:
    kinds = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4) | st.sampled_from(TYPES).map(lambda kind: [kind] * 2))
    optional = [kind.startswith("float") and draw(st.booleans()) for kind in kinds]
    pairs = enumerate(zip(kinds, optional, strict=True))
    return RowSchema([Feature(f"x{j}", type=kind, missing=missing) for j, (kind, missing) in pairs])


@st.composite
def schemas_and_rows(draw: st.DrawFn) -> tuple[RowSchema, list[list]]:
    schema = draw(schemas())
    values = [VALUES[feature.type] | (st.none() if feature.missing else st.nothing()) for feature in schema.features]
    return schema, draw(st.lists(st.tuples(*values).map(list), min_size=1, max_size=4))


def decoded(schema: RowSchema, row: list) -> np.ndarray | None:
    try:
        return decode_rows(json.dumps({"data": [row]}).encode(), schema, 1, "")
    except Problem:
        return None


def expected(schema: RowSchema, rows: list[list]) -> tuple[list[list], list[int]]:
    """Returns the values of the rows that a JSON request may have, and their line numbers from 1."""
    arrays = [decoded(schema, row) for row in rows]
    return [exact(array)[0] for array in arrays if array is not None], [i for i, a in enumerate(arrays, 1) if a is not None]


def exact(rows: np.ndarray) -> list[list]:
    """Returns the values with the bits of numbers as text. NaN differs from NaN."""
    return [[repr(value) for value in row] for row in rows.tolist()]


def names_of(schema: RowSchema) -> list[str]:
    return [feature.name for feature in schema.features]


def csv_reader(schema: RowSchema) -> CsvReader:
    # The first column is neither a feature nor kept, so that no line is blank.
    names = ["key", *names_of(schema)]
    return CsvReader(Columns(len(names), names, range(1, len(names)), [0]), ",", schema)


def csv_text(rows: list[list]) -> bytes:
    buffer = io.StringIO()
    cells = [["" if v is None else json.dumps(v) if not isinstance(v, str) else v for v in row] for row in rows]
    csv.writer(buffer, lineterminator="\n").writerows([["k", *row] for row in cells])
    return buffer.getvalue().encode()


def same(schema: RowSchema, rows: list[list], found) -> None:
    values, lines = expected(schema, rows)
    assert (found.values.dtype, exact(found.values), list(found.lines)) == (schema.dtype, values, lines)
    assert [bad.line for bad in found.bad_rows] == [i for i in range(1, len(rows) + 1) if i not in lines]


@settings(deadline=None, max_examples=examples(500))
@given(schemas_and_rows())
def test_csv_takes_the_values_of_a_json_request(case):
    schema, rows = case
    # A line feed in a quoted field would change the line numbers.
    rows = [[v.replace("\n", "").replace("\r", "") if isinstance(v, str) else v for v in row] for row in rows]
    reader, data = csv_reader(schema), csv_text(rows)
    same(schema, rows, reader.parse_strict(data, 1))
    same(schema, rows, reader.rows(data, 1))
    if decoded_all := expected(schema, rows)[0]:
        good = [row for row in rows if decoded(schema, row) is not None]
        fast = reader.parse_fast(csv_text(good), 1)
        assert fast is None or exact(fast.values) == decoded_all


@settings(deadline=None, max_examples=examples(500))
@given(schemas_and_rows(), st.booleans())
def test_json_lines_take_the_values_of_a_json_request(case, absent):
    schema, rows = case
    objects = [{name: v for name, v in zip(names_of(schema), row, strict=True) if v is not None or not absent} for row in rows]
    data = "".join(json.dumps(row) + "\n" for row in objects).encode()
    reader = JsonReader(schema, names_of(schema), [], similar=True)
    same(schema, rows, reader.parse_strict(data, 1))
    same(schema, rows, reader.rows(data, 1))
    lists = "".join(json.dumps(row) + "\n" for row in rows).encode()
    same(schema, rows, JsonReader(schema, [str(i + 1) for i in range(schema.width)], [], similar=False).rows(lists, 1))


def arrow_column(values: list, kind: str) -> arrow.Array | None:
    """Returns a column of one Arrow type that holds the values unchanged, or None."""
    types = {type(value) for value in values if value is not None}
    if kind == "string":
        return arrow.array(values, arrow.string())
    if types <= {bool}:
        return arrow.array(values, arrow.bool_()) if kind == "bool" else None
    if types <= {int}:
        present = [value for value in values if value is not None]
        for width, low, high in ((arrow.int64(), -(2**63), 2**63), (arrow.uint64(), 0, 2**64)):
            if all(low <= value < high for value in present):
                return arrow.array(values, width)
        return None
    return arrow.array(values, arrow.float64()) if types <= {float} else None


@settings(deadline=None, max_examples=examples(500))
@given(schemas_and_rows())
def test_parquet_takes_the_values_of_a_json_request(case):
    schema, rows = case
    columns = [
        arrow_column(list(values), feature.type) for values, feature in zip(zip(*rows, strict=True), schema.features, strict=True)
    ]
    if any(column is None for column in columns):
        return
    batch = arrow.RecordBatch.from_arrays(columns, names_of(schema))
    reader = ParquetReader(batch.schema, schema, names_of(schema), [], False)
    same(schema, rows, reader.rows(batch.serialize().to_pybytes(), 1))


@settings(deadline=None, max_examples=examples(500))
@given(schemas_and_rows())
def test_tables_take_the_values_of_a_json_request(case):
    schema, rows = case
    values, errors = convert_features([tuple(row) for row in rows], names_of(schema), FeatureValues(schema))
    good = [i for i, error in enumerate(errors, 1) if error is None]
    assert (exact(values[[i - 1 for i in good]]), good) == expected(schema, rows)


REASONS = [
    ("float32", "1e39", "is not finite as a 32-bit float"),
    ("float64", "1e309", "is not finite as a 64-bit float"),
    ("float64", "nan", "is not finite as a 64-bit float"),
    ("int8", "128", "is not a whole number from -128 to 127"),
    ("int64", "1.5", "is not a whole number from -9223372036854775808 to 9223372036854775807"),
    ("int64", "9" * 401, "is not a whole number from -9223372036854775808 to 9223372036854775807"),
    ("int32", "one", "is not a number"),
    ("int32", "1,5", "is not a number: it has a decimal comma in place of a point"),
    ("int32", "", "is empty"),
    ("bool", "2", "is not true or false"),
    ("bool", "yes", "is not true or false"),
    ("bool", " ", "is empty"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), REASONS)
def test_a_text_that_does_not_fit_gives_the_reason(kind, text, reason):
    schema = RowSchema([Feature("x", type=kind)])
    row = csv_text([["1" if kind == "bool" else "7"], [text]])
    found = csv_reader(schema).rows(row, 1)
    assert (found.values.tolist(), [(bad.line, bad.column, bad.reason) for bad in found.bad_rows]) == (
        [[True if kind == "bool" else 7]],
        [(2, "x", reason)],
    )


@pytest.mark.parametrize(("word", "value"), [("true", 1), ("FALSE", 0), ("True", 1), (" 1 ", 1), ("0.0", 0)])
def test_truth_values_have_several_spellings(word, value):
    assert csv_reader(RowSchema([Feature("x", type="bool")])).rows(f"k,{word}\n".encode(), 1).values.tolist() == [[bool(value)]]


def test_an_empty_field_is_missing_only_where_the_feature_may_be_missing():
    schema = RowSchema([Feature("a", missing=True), Feature("b")])
    found = csv_reader(schema).rows(b"k,,1\nk,1,\nk, ,2\nk,nan,3\n", 1)
    assert [[None if math.isnan(v) else v for v in row] for row in found.values.tolist()] == [[None, 1.0], [None, 2.0]]
    assert [(bad.line, bad.column, bad.reason) for bad in found.bad_rows] == [
        (2, "b", "is empty"),
        (4, "a", "is not finite as a 32-bit float"),
    ]


@pytest.mark.parametrize("digits", [3, 17])
def test_empty_fields_stay_in_the_fast_parser(digits):
    schema = RowSchema([Feature("a", missing=True), Feature("b", missing=True), Feature("c", missing=True)])
    numbers = np.random.default_rng(1).random((200, 3))
    cells = [[f"{value:.{digits}f}" if (i + j) % 3 else "" for j, value in enumerate(row)] for i, row in enumerate(numbers)]
    data = "".join(f"k,{','.join(row)}\n" for row in [*cells, ["", "", ""]]).encode()
    found = csv_reader(schema).parse_fast(data, 1)
    assert found is not None and exact(found.values) == exact(csv_reader(schema).parse_strict(data, 1).values)
    assert csv_reader(schema).parse_fast(data.replace(b"k,,0", b"k,nan,0", 1), 1) is None


def test_a_blank_line_of_the_only_column_is_not_a_missing_value():
    schema = RowSchema([Feature("a", missing=True)])
    reader = CsvReader(Columns(1, ["a"], [0], []), ",", schema)
    assert reader.rows(b"1\n\n2\n", 1).values.tolist() == [[1.0], [2.0]]


def test_line_ends_in_a_string_stay_as_they_are_where_carriage_returns_end_the_lines():
    schema = RowSchema([Feature("a", type="string")])
    reader = CsvReader(Columns(2, ["key", "a"], [1], [0]), ",", schema, swapped=True)
    data = b'k,"a\nb\rc"\rl,d\r'.translate(SWAPPED)
    assert reader.rows(data, 1).values.tolist() == [["a\nb\rc"], ["d"]]
