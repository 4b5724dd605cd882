"""CSV reader: parses a regular chunk at once, and any other chunk record by record."""

import csv
import io
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.rows import is_float32
from iris_wsgi.tabular.columns import Columns
from iris_wsgi.tabular.decimals import parse_decimals
from iris_wsgi.tabular.record_splitter import EMPTY, NOT_FINITE, NOT_NUMBER, NOT_UTF8, SWAPPED_TEXT, BadRow
from iris_wsgi.tabular.scorer import Rows

LINE_FEED = ord("\n")
# With a higher share of numbers that parse_decimals() leaves out, loadtxt is faster than a loop in Python.
MAX_ODD_SHARE = 0.2
Offsets = NDArray[np.intp]

is_number = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*").fullmatch
has_decimal_comma = re.compile(r"[ \t]*[+-]?[0-9.]*,[0-9]+(?:[eE][+-]?[0-9]+)?[ \t]*").fullmatch
is_not_finite = re.compile(r"[ \t]*[+-]?(?:nan|inf|infinity)[ \t]*", re.IGNORECASE).fullmatch
# Stands for bytes that are not UTF-8.
surrogate = re.compile("[\ud800-\udfff]").search
DECIMAL_COMMA = "is not a number: it has a decimal comma in place of a point"
NUL, CARRIAGE_RETURN = "has a NUL", "has a carriage return outside of quotes"
# In a file whose lines end in carriage returns.
LINE_FEED_INSIDE = "has a line feed outside of quotes"


class CsvReader:
    """Converts CSV text to rows. Both parsers accept the same values: decimal numbers that are finite as float32."""

    def __init__(self, columns: Columns, delimiter: str, swapped: bool = False) -> None:
        """Takes the format; with `swapped`, carriage returns and line feeds are exchanged in the text, not in kept columns."""
        self.columns, self.delimiter, self.swapped = columns, delimiter, swapped

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
        doubles = self.parse_numbers(data, starts[:, self.columns.features], ends[:, self.columns.features])
        # loadtxt skips blank lines.
        if doubles is None or len(doubles) != len(starts):
            return None
        with np.errstate(over="ignore"):
            values = doubles.astype(np.float32)
        if not np.isfinite(values).all():
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

    def parse_numbers(self, data: bytes, starts: Offsets, ends: Offsets) -> NDArray[np.float64] | None:
        """Returns the numbers in these fields; None if a field is not a number."""
        values, odd = parse_decimals(data, starts, ends)
        if odd.mean() > MAX_ODD_SHARE:
            lines = data.decode().removesuffix("\n").split("\n")
            try:
                return np.loadtxt(
                    lines, np.float64, comments=None, delimiter=self.delimiter, usecols=self.columns.features, ndmin=2
                )
            except ValueError:
                return None
        texts = [data[start:end].decode() for start, end in zip(starts[odd].tolist(), ends[odd].tolist(), strict=True)]
        if any(map(number_error, texts)):
            return None
        values[odd] = list(map(float, texts))
        return values

    def parse_strict(self, data: bytes, line: int) -> Rows:
        """Parses record by record."""
        good: list[list[str]] = []
        lines: list[int] = []
        bad: list[BadRow] = []
        for at, record in self.records(data, line, bad):
            error = self.record_error(record)
            if error is None:
                good.append(record)
                lines.append(at)
            else:
                bad.append(BadRow(at, *error))
        values = np.array([[float(record[i]) for i in self.columns.features] for record in good], np.float32)
        kept = [[record[i] for record in good] for i in self.columns.keep]
        if self.swapped:
            kept = [[text.translate(SWAPPED_TEXT) for text in column] for column in kept]
        return Rows(values.reshape(-1, len(self.columns.features)), lines, kept, bad)

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

    def record_error(self, record: list[str]) -> tuple[str, str] | None:
        """Returns the column and the reason of the first error; the column is empty if the whole record is invalid."""
        if len(record) != self.columns.total:
            return "", f"has {len(record)} columns, not {self.columns.total}"
        text = "".join(record)
        if "\0" in text:
            return "", NUL
        if surrogate(text):
            return "", NOT_UTF8
        errors = ((self.columns.names[i], number_error(record[i])) for i in self.columns.features)
        return next(((name, error) for name, error in errors if error), None)


def column_texts(text: str, data: bytes, starts: Offsets, ends: Offsets) -> list[str]:
    """Returns the fields of a kept column; `data` is the UTF-8 encoding of `text`."""
    bounds = zip(starts.tolist(), ends.tolist(), strict=True)
    if len(text) == len(data):
        return [text[start:end] for start, end in bounds]
    return [data[start:end].decode() for start, end in bounds]


def number_error(text: str) -> str | None:
    """Returns the reason for which a text is not a valid feature; None if it is valid."""
    if is_number(text):
        return None if is_float32(float(text)) else NOT_FINITE
    if is_not_finite(text):
        return NOT_FINITE
    if has_decimal_comma(text):
        return DECIMAL_COMMA
    return NOT_NUMBER if text.strip(" \t") else EMPTY
