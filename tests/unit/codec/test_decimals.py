"""Decimal numbers of a whole chunk: the same digits and values as Python's for each number."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_wsgi.codec.decimals import FORMAT, encode_floats, float_texts, format_floats, parse_decimals, parse_pointed
from iris_wsgi.codec.json_documents import encode_list
from iris_wsgi.codec.model_schema import Feature, RowSchema
from iris_wsgi.tabular.columns import Columns
from iris_wsgi.tabular.csv_reader import CsvReader

is_plain = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)").fullmatch
is_pointed = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+").fullmatch
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


def same_texts(values: np.ndarray) -> None:
    for signed in (values, -values):
        texts = float_texts(signed)
        texts[:, -1] = ord(",")
        assert texts.tobytes().replace(b"\0", b"").decode().split(",")[:-1] == list(map(repr, signed.tolist()))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32) | st.floats(-20000, 20000, width=32) | FLOATS, min_size=1))
def test_any_float32_has_the_text_of_the_equal_double(values):
    same_texts(np.array(values, np.float32))


def test_floats_around_each_power_of_ten_and_of_two_have_the_text_of_the_equal_double():
    for power in [*(10.0**n for n in range(-12, 9)), *(2.0**n for n in range(-30, 20))]:
        first_bits = int(np.float32(power).view(np.uint32))
        same_texts(np.arange(first_bits - 300, first_bits + 300, dtype=np.uint32).view(np.float32))


def test_floats_with_exactly_halfway_digits_have_the_text_of_the_equal_double():
    # Multiples of 2^-17 have 17 digits after the point, so the last is halfway between two of 16.
    for first, power in ((0, 17), (60_000, 18), (0, 20), (5 << 14, 14), (3 << 20, 20)):
        same_texts((np.arange(first, first + (1 << 14)) / (1 << power)).astype(np.float32))


def test_short_and_long_numbers_in_one_array_keep_their_own_texts():
    same_texts(np.array([0, 1, 0.5, 2, 10, 100, 9999, 1e-5, 1e-7, 1e-8, 1e-45, 3.4e38, 12345, 0.1, 1 / 3, 4096.123], np.float32))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@settings(deadline=None)
@given(
    st.lists(
        st.from_regex(r"-?[0-9]{0,9}\.[0-9]{0,26}", fullmatch=True)
        | st.from_regex(r"-?(0|[1-9][0-9]{0,6})\.[0-9]{1,24}", fullmatch=True)
        | st.floats(-1e6, 1e6, width=32).map("{:.24f}".format)
        | st.tuples(st.text("0123456789-+e.x:/ ", max_size=9), st.text("0123456789-+e.x:/ ", max_size=26)).map(".".join),
        min_size=1,
    )
)
def test_fields_with_a_point_are_read_as_by_json_or_left_to_it(kind, fields):
    data = ",".join(fields).encode() + b","
    ends = np.cumsum([len(field) + 1 for field in fields]) - 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    points = starts + [field.index(".") for field in fields]
    values, left = parse_pointed(data, starts, points, ends, np.dtype(kind))
    for field, value, is_left in zip(fields, values.tolist(), left.tolist(), strict=True):
        is_json = is_pointed(field) is not None
        short = is_json and len(field.lstrip("-").partition(".")[0]) <= 7 and len(field.partition(".")[2]) <= 8
        assert not is_left if short else is_left or is_json
        assert is_left or kind(value).tobytes() == kind(float(field)).tobytes()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numbers_of_any_sizes_around_the_limits_are_read_as_by_json_or_left_to_it(kind):
    chance = random.Random(6)
    for digits in range(5, 10):
        for decimals in (1, 7, 8, 9, 15, 16, 17, 23, 24, 25):
            largest = [10**digits - 1 - chance.randrange(10**4) for _ in range(50)]
            fields = [f"{number}.{chance.randrange(10**decimals):0{decimals}d}" for number in largest]
            data, size = ",".join(fields).encode() + b",", digits + 1 + decimals
            starts = np.arange(len(fields)) * (size + 1)
            values, left = parse_pointed(data, starts, starts + digits, starts + size, np.dtype(kind))
            expected = np.array(list(map(float, fields)), kind)
            assert (left | (values.astype(kind) == expected)).all()
            assert not left.all() or digits > 7 or decimals > (24 if kind is np.float32 else 8)


def test_long_decimals_close_to_the_middle_of_two_float32_are_left_to_python():
    middle = 1 + 2.0**-24
    fields = [f"{value:.24f}" for value in (middle, np.nextafter(middle, 0), np.nextafter(middle, 2), 1 + 2.0**-23)]
    data, size = ",".join(fields).encode() + b",", len(fields[0])
    starts = np.arange(len(fields)) * (size + 1)
    _, left = parse_pointed(data, starts, starts + 1, starts + size, np.dtype(np.float32))
    assert left.tolist() == [True, True, True, False]


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


@pytest.mark.parametrize(
    "shape", [(0,), (0, 3), (1, 3), (199,), (200,), (5000,), (300, 1), (100, 3), (9000, 3), (3, 5000), (2, 1)]
)
def test_floats_are_encoded_as_the_list_of_them(shape):
    values = np.random.default_rng(5).uniform(-3, 3, shape).astype(np.float32)
    assert encode_floats(values).decode() == encode_list(values.tolist())


def test_other_arrays_are_encoded_as_the_list_of_them():
    values = np.random.default_rng(5).uniform(0, 1, (500, 4))
    for item in (
        values,
        values.astype(np.float32)[:, :3],
        (values * 1e9).astype(np.float32),
        np.float32(values) * np.float32(1e-9),
    ):
        assert encode_floats(item).decode() == encode_list(item.tolist())
