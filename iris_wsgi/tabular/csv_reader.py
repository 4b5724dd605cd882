"""Rows of CSV: a chunk at once where all is well with it, record by record where it is not."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.rows import FLOAT32_MAX
from iris_wsgi.tabular.decimals import numbers
from iris_wsgi.tabular.line_ends import EXCHANGED_TEXT
from iris_wsgi.tabular.record_splitter import EMPTY, NO_NUMBER, NOT_FINITE, NOT_UTF8, Fault
from iris_wsgi.tabular.scorer import Rows

LINE_FEED = ord("\n")
# Above this share of numbers that are not read at once, loadtxt reads all of them faster than Python each of these.
ODD_SHARE = 0.2
Places = NDArray[np.intp]

is_number = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*").fullmatch
has_decimal_comma = re.compile(r"[ \t]*[+-]?[0-9.]*,[0-9]+(?:[eE][+-]?[0-9]+)?[ \t]*").fullmatch
DECIMAL_COMMA = "is not a number: it has a decimal comma in place of a point"
is_not_finite = re.compile(r"[ \t]*[+-]?(?:nan|inf|infinity)[ \t]*", re.IGNORECASE).fullmatch
# What stands for bytes that are no UTF-8.
surrogate = re.compile("[\ud800-\udfff]").search
NUL, CARRIAGE = "has a NUL", "has a carriage return outside of quotes"
# In a file whose lines end in carriage returns.
FEED = "has a line feed outside of quotes"


class Columns(NamedTuple):
    """How many there are, what they are called, and where the features and what is kept are among them."""

    total: int
    names: Sequence[str]
    features: Sequence[int]
    keep: Sequence[int]


class CsvReader:
    """Text of CSV to rows. What a value may be is the same on both ways: a decimal number, finite as a float32."""

    def __init__(self, columns: Columns, delimiter: str, exchanged: bool = False) -> None:
        """With `exchanged` carriage returns and line feeds are exchanged in the text, and exchanged back in what is kept."""
        self.columns, self.delimiter, self.exchanged = columns, delimiter, exchanged

    def rows(self, data: bytes, line: int) -> Rows:
        return self.quickly(data, line) or self.carefully(data, line)

    def quickly(self, data: bytes, line: int) -> Rows | None:
        """None if anything is unusual."""
        if not data or b'"' in data or b"\0" in data:
            return None
        data = data.replace(b"\r\n", b"\n")
        data = data if data.endswith(b"\n") else data + b"\n"
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        bounds = self.bounds(data)
        if "\r" in text or bounds is None:
            return None
        starts, ends = bounds
        doubles = self.doubles(data, starts[:, self.columns.features], ends[:, self.columns.features])
        # loadtxt leaves out blank lines.
        if doubles is None or len(doubles) != len(starts):
            return None
        with np.errstate(over="ignore"):
            values = doubles.astype(np.float32)
        if not np.isfinite(values).all():
            return None
        return Rows(
            values,
            range(line, line + len(values)),
            [column_of(text, data, starts[:, i], ends[:, i]) for i in self.columns.keep],
            [],
        )

    def bounds(self, data: bytes) -> tuple[Places, Places] | None:
        """Where each field begins and ends [n, columns], of lines without quotes; None if they have not all as many columns."""
        characters = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero((characters == ord(self.delimiter)) | (characters == LINE_FEED))
        if len(ends) % self.columns.total:
            return None
        starts = np.empty_like(ends)
        starts[0], starts[1:] = 0, ends[:-1] + 1
        # All line feeds must be at ends of lines, so that what ends the other fields is a delimiter.
        lasts = ends[self.columns.total - 1 :: self.columns.total]
        if data.count(b"\n") != len(lasts) or not (characters[lasts] == LINE_FEED).all():
            return None
        return starts.reshape(-1, self.columns.total), ends.reshape(-1, self.columns.total)

    def doubles(self, data: bytes, starts: Places, ends: Places) -> NDArray[np.float64] | None:
        """The numbers in these fields; None if one is none."""
        values, odd = numbers(data, starts, ends)
        if odd.mean() > ODD_SHARE:
            lines = data.decode().removesuffix("\n").split("\n")
            try:
                return np.loadtxt(
                    lines, np.float64, comments=None, delimiter=self.delimiter, usecols=self.columns.features, ndmin=2
                )
            except ValueError:
                return None
        texts = [data[start:end].decode() for start, end in zip(starts[odd].tolist(), ends[odd].tolist(), strict=True)]
        if any(map(fault_of_number, texts)):
            return None
        values[odd] = list(map(float, texts))
        return values

    def carefully(self, data: bytes, line: int) -> Rows:
        """Record by record."""
        good: list[list[str]] = []
        lines: list[int] = []
        faults: list[Fault] = []
        for at, record in self.records(data, line, faults):
            why = self.fault_of(record)
            if why is None:
                good.append(record)
                lines.append(at)
            else:
                faults.append(Fault(at, *why))
        values = np.array([[float(record[i]) for i in self.columns.features] for record in good], np.float32)
        kept = [[record[i] for record in good] for i in self.columns.keep]
        if self.exchanged:
            kept = [[text.translate(EXCHANGED_TEXT) for text in column] for column in kept]
        return Rows(values.reshape(-1, len(self.columns.features)), lines, kept, faults)

    def records(self, data: bytes, line: int, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
        """Each record with the number of its line; one that cannot be taken apart becomes a fault."""
        text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="\n")
        reader = csv.reader(text, delimiter=self.delimiter)
        while True:
            at = line + reader.line_num
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error:
                # All else of which it complains does not get here.
                faults.append(Fault(at, "", FEED if self.exchanged else CARRIAGE))
                continue
            if record:
                yield at, record

    def fault_of(self, record: list[str]) -> tuple[str, str] | None:
        """The column and the reason of the first thing that is wrong with a record; no column is all of it."""
        if len(record) != self.columns.total:
            return "", f"has {len(record)} columns, not {self.columns.total}"
        text = "".join(record)
        if "\0" in text:
            return "", NUL
        if surrogate(text):
            return "", NOT_UTF8
        whys = ((self.columns.names[i], fault_of_number(record[i])) for i in self.columns.features)
        return next(((name, why) for name, why in whys if why), None)


def column_of(text: str, data: bytes, starts: Places, ends: Places) -> list[str]:
    """A column that is kept; `data` is the text's UTF-8, in which the fields are found."""
    bounds = zip(starts.tolist(), ends.tolist(), strict=True)
    if len(text) == len(data):
        return [text[start:end] for start, end in bounds]
    return [data[start:end].decode() for start, end in bounds]


def fault_of_number(text: str) -> str | None:
    if is_number(text):
        return None if abs(float(text)) <= FLOAT32_MAX else NOT_FINITE
    if is_not_finite(text):
        return NOT_FINITE
    if has_decimal_comma(text):
        return DECIMAL_COMMA
    return NO_NUMBER if text.strip(" \t") else EMPTY
