"""CSV reader: parses a regular chunk at once, and any other chunk record by record."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.decimals import parse_decimals
from iris_wsgi.codec.model_schema import Array, RowSchema
from iris_wsgi.tabular.chunk_scorer import Rows
from iris_wsgi.tabular.columns import Columns
from iris_wsgi.tabular.feature_values import FeatureValues, InvalidValue, is_number
from iris_wsgi.tabular.record_splitter import NOT_UTF8, SWAPPED_TEXT, BadRow

LINE_FEED = ord("\n")
# With a higher share of numbers that parse_decimals() leaves out, loadtxt is faster than a loop in Python.
MAX_ODD_SHARE = 0.2
Offsets = NDArray[np.intp]

# Stands for bytes that are not UTF-8.
surrogate = re.compile("[\ud800-\udfff]").search
NUL, CARRIAGE_RETURN = "has a NUL", "has a carriage return outside of quotes"
# In a file whose lines end in carriage returns.
LINE_FEED_INSIDE = "has a line feed outside of quotes"


class CsvReader:
    """Converts CSV text to rows. Both parsers accept the same values, which FeatureValues checks."""

    def __init__(self, columns: Columns, delimiter: str, schema: RowSchema, swapped: bool = False) -> None:
        """Takes the format; with `swapped`, carriage returns and line feeds are exchanged in the text, not in the values."""
        self.columns, self.delimiter, self.swapped = columns, delimiter, swapped
        self.schema, self.features = schema, FeatureValues(schema)

    def rows(self, data: bytes, line: int) -> Rows:
        return self.parse_fast(data, line) or self.parse_strict(data, line)

    def parse_fast(self, data: bytes, line: int) -> Rows | None:
        """Parses a chunk of regular rows; returns None for anything unusual."""
        if not data or b'"' in data or b"\0" in data:
            return None
        data = data.replace(b"\r\n", b"\n")
        data = data if data.endswith(b"\n") else data + b"\n"
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        bounds = self.field_bounds(data)
        if "\r" in text or bounds is None:
            return None
        starts, ends = bounds
        # A field of the only column is a blank line if it is empty.
        if self.columns.total == 1 and (starts == ends).any():
            return None
        parse = self.parse_floats if self.schema.is_float else self.parse_columns
        values = parse(text, data, starts[:, self.columns.features], ends[:, self.columns.features])
        if values is None:
            return None
        kept = [column_texts(text, data, starts[:, i], ends[:, i]) for i in self.columns.keep]
        return Rows(values, range(line, line + len(values)), kept, [])

    def field_bounds(self, data: bytes) -> tuple[Offsets, Offsets] | None:
        """Returns start and end of each field [n, columns] of lines without quotes; None if a line has too few or too many."""
        characters = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero((characters == ord(self.delimiter)) | (characters == LINE_FEED))
        if len(ends) % self.columns.total:
            return None
        starts = np.empty_like(ends)
        starts[0], starts[1:] = 0, ends[:-1] + 1
        # If every line feed ends the last field of a row, delimiters end all other fields.
        lasts = ends[self.columns.total - 1 :: self.columns.total]
        if data.count(b"\n") != len(lasts) or not (characters[lasts] == LINE_FEED).all():
            return None
        return starts.reshape(-1, self.columns.total), ends.reshape(-1, self.columns.total)

    def parse_floats(self, text: str, data: bytes, starts: Offsets, ends: Offsets) -> Array | None:
        """Returns the rows [n, features] of features of one float type; None if a field is not a number or empty."""
        empty = starts == ends if self.schema.has_missing else None
        if empty is not None and not empty.any():
            empty = None
        elif empty is not None and empty[:, [not optional for optional in self.features.optional]].any():
            return None
        doubles = self.parse_doubles(text, data, starts, ends, empty)
        # loadtxt skips blank lines.
        if doubles is None or len(doubles) != len(starts):
            return None
        with np.errstate(over="ignore"):
            values = doubles.astype(self.schema.dtype, copy=False)
        finite = np.isfinite(values)
        valid = finite.all() if empty is None else (finite != empty).all()
        return values if valid else None

    def parse_doubles(
        self, text: str, data: bytes, starts: Offsets, ends: Offsets, empty: NDArray[np.bool_] | None
    ) -> NDArray[np.float64] | None:
        """Returns the numbers in these fields, NaN for an empty field; None if a field is not a number."""
        values, odd = parse_decimals(data, starts, ends)
        if empty is not None:
            odd &= ~empty
            values[empty] = np.nan
        if odd.mean() > MAX_ODD_SHARE:
            return self.load_text(text if empty is None else self.with_nan(text))
        texts = [data[start:end].decode() for start, end in zip(starts[odd].tolist(), ends[odd].tolist(), strict=True)]
        if not all(map(is_number, texts)):
            return None
        values[odd] = list(map(float, texts))
        return values

    def load_text(self, text: str) -> NDArray[np.float64] | None:
        lines = text.removesuffix("\n").split("\n")
        try:
            return np.loadtxt(lines, np.float64, comments=None, delimiter=self.delimiter, usecols=self.columns.features, ndmin=2)
        except ValueError:
            return None

    def with_nan(self, text: str) -> str:
        """Returns lines of regular rows with "nan" in each empty field."""
        end = self.delimiter
        for _ in range(2):
            text = text.replace(end + end, f"{end}nan{end}")
        text = text.replace(f"\n{end}", f"\nnan{end}").replace(f"{end}\n", f"{end}nan\n")
        return f"nan{text}" if text.startswith(end) else text

    def parse_columns(self, text: str, data: bytes, starts: Offsets, ends: Offsets) -> Array | None:
        """Returns the rows [n, features] of features of any types; None if a field is invalid."""
        at = self.features.numeric
        numbers = self.parse_numbers(data, starts[:, at], ends[:, at])
        if numbers is None:
            return None
        if not self.schema.has_strings:
            return numbers.astype(self.schema.dtype, copy=False)
        found = np.empty(starts.shape, object)
        found[:, at] = numbers
        for j in self.features.strings:
            found[:, j] = column_texts(text, data, starts[:, j], ends[:, j])
        return found

    def parse_numbers(self, data: bytes, starts: Offsets, ends: Offsets) -> Array | None:
        """Returns the values [n, numeric features] that are not strings; None if a field is invalid."""
        values, odd = parse_decimals(data, starts, ends)
        values[odd] = 0
        if not self.features.numbers_fit(values):
            return None
        values = values.astype(self.features.number_type, copy=False)
        features = np.array(self.features.numeric)[np.nonzero(odd)[1]].tolist()
        texts = [data[start:end] for start, end in zip(starts[odd].tolist(), ends[odd].tolist(), strict=True)]
        fields = list(zip(features, texts, strict=True))
        try:
            # Words such as true repeat.
            found = {field: self.features.from_text(field[1].decode(), field[0]) for field in set(fields)}
        except InvalidValue:
            return None
        values[odd] = [found[field] for field in fields]
        return values

    def parse_strict(self, data: bytes, line: int) -> Rows:
        """Parses record by record."""
        good: list[list[Any]] = []
        kept: list[list[str]] = []
        lines: list[int] = []
        bad: list[BadRow] = []
        for at, record in self.records(data, line, bad):
            reason = self.record_error(record)
            if reason is not None:
                bad.append(BadRow(at, "", reason))
                continue
            if self.swapped:
                record = [field.translate(SWAPPED_TEXT) for field in record]
            row = self.parse_record(record)
            if isinstance(row, list):
                good.append(row)
                kept.append([record[i] for i in self.columns.keep])
                lines.append(at)
            else:
                bad.append(BadRow(at, *row))
        columns = [list(column) for column in zip(*kept, strict=True)] if kept else [[] for _ in self.columns.keep]
        return Rows(self.schema.convert(good), lines, columns, bad)

    def parse_record(self, record: list[str]) -> list[Any] | tuple[str, str]:
        """Returns the values of the features, or the column and the reason of the first error."""
        row = []
        for j, i in enumerate(self.columns.features):
            try:
                row.append(self.features.from_text(record[i], j))
            except InvalidValue as error:
                return self.columns.names[i], str(error)
        return row

    def records(self, data: bytes, line: int, bad: list[BadRow]) -> Iterator[tuple[int, list[str]]]:
        """Yields each record with its line number, and adds records that the csv module rejects to `bad`."""
        text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="\n")
        reader = csv.reader(text, delimiter=self.delimiter)
        while True:
            at = line + reader.line_num
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error:
                # The record splitter has removed all other causes.
                bad.append(BadRow(at, "", LINE_FEED_INSIDE if self.swapped else CARRIAGE_RETURN))
                continue
            if record:
                yield at, record

    def record_error(self, record: list[str]) -> str | None:
        """Returns the reason for which a whole record is invalid."""
        if len(record) != self.columns.total:
            return f"has {len(record)} columns, not {self.columns.total}"
        text = "".join(record)
        if "\0" in text:
            return NUL
        return NOT_UTF8 if surrogate(text) else None


def column_texts(text: str, data: bytes, starts: Offsets, ends: Offsets) -> list[str]:
    """Returns the fields of a kept column; `data` is the UTF-8 encoding of `text`."""
    bounds = zip(starts.tolist(), ends.tolist(), strict=True)
    if len(text) == len(data):
        return [text[start:end] for start, end in bounds]
    return [data[start:end].decode() for start, end in bounds]
