"""Decimal numbers of a whole chunk: the same digits and values as Python's for each number."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_wsgi.codec.model_schema import Feature, RowSchema
from iris_wsgi.tabular.columns import Columns
from iris_wsgi.tabular.csv_reader import CsvReader
from iris_wsgi.tabular.decimals import FORMAT, format_floats, parse_decimals

is_plain = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)").fullmatch
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same_digits(values: np.ndarray) -> None:
    assert [text.replace(b"\0", b"").decode() for text in format_floats(values).tolist()] == [
        FORMAT % item for item in values.tolist()
    ]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32) | FLOATS))
def test_any_float32_is_written_as_by_python(values):
    same_digits(np.array(values, np.float32))


def test_floats_around_each_power_of_ten_are_written_as_by_python():
    for power in range(-12, 2):
        first_bits = int(np.float32(10.0**power).view(np.uint32))
        same_digits(np.arange(first_bits - 3000, first_bits + 3000, dtype=np.uint32).view(np.float32))


def test_floats_halfway_between_two_of_nine_digits_are_written_as_by_python():
    same_digits((np.arange(1 << 16) / (1 << 16)).astype(np.float32))
    same_digits((np.arange(1 << 11) / (1 << 24)).astype(np.float32))


@settings(deadline=None)
@given(st.lists(st.text("0123456789.", max_size=9) | st.text("0123456789.+-eé x\0\x1e:/", max_size=10), min_size=1))
def test_fields_are_read_as_by_python_or_left_to_it(fields):
    data = ",".join(fields).encode() + b"\n"
    field_ends = np.flatnonzero(np.isin(np.frombuffer(data, np.uint8), (ord(","), ord("\n"))))
    values, odd = parse_decimals(data, np.concatenate([[0], field_ends[:-1] + 1]), field_ends)
    for field, value, is_odd in zip(fields, values.tolist(), odd.tolist(), strict=True):
        assert is_odd == (not is_plain(field) or len(field.lstrip("+-")) > 8)
        assert is_odd or repr(value) == repr(float(field))


@pytest.mark.parametrize("text", ["1,2,3,4,", "1,2,3,4", ",,,,", "x,1,2,3,4\n1,2,3,", "1,2,3,4,\n", "\n1,2,3,4,5", "é,1,2,3,4"])
def test_an_end_without_a_line_feed_is_read_like_one_with_a_line_feed(text):
    reader = CsvReader(Columns(5, list("abcde"), [1, 2, 3, 4], [0]), ",", RowSchema([Feature(name) for name in "bcde"]))
    without_end, with_end = reader.rows(text.encode(), 1), reader.rows(text.encode() + b"\n", 1)
    careful = reader.parse_strict(text.encode(), 1)
    for item in (without_end, with_end):
        assert item.values.tolist() == careful.values.tolist()
        assert (list(item.lines), item.kept, item.bad_rows) == (list(careful.lines), careful.kept, careful.bad_rows)
