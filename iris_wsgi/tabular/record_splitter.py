"""Cuts a stream of bytes into chunks of whole records, by nothing but what is in it, so that every run cuts it alike."""

import csv
import io
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

CHUNK_BYTES = 1 << 18
RECORD_BYTES = 1 << 20
READ_BYTES = 1 << 18
BOM = b"\xef\xbb\xbf"
# Why a record is left out, as far as several formats say so.
NO_NUMBER, NOT_FINITE = "is not a number", "is not finite as a 32-bit float"
EMPTY, NOT_UTF8 = "is empty", "is not UTF-8"
TOO_LONG = f"is longer than {RECORD_BYTES} bytes"
NOT_CLOSED = f"has a quote that is not closed within {RECORD_BYTES} bytes"

blank_of_csv = re.compile(rb"^\r*\n", re.MULTILINE).findall
blank_of_json = re.compile(rb"^[\r \t\v\f]*\n", re.MULTILINE).findall


class Fault(NamedTuple):
    """A record that is left out: the line on which it begins, the column (empty for the whole record), and why."""

    line: int
    column: str
    reason: str


class Position(NamedTuple):
    """Where a chunk begins: its number, its first byte, its first line, counted from 1."""

    chunk: int = 0
    offset: int = 0
    line: int = 1


class Chunk(NamedTuple):
    """Whole records, or the fault of one that cannot be read; `next` is where the following chunk begins.

    `records` is their number without blank lines, counted by what cuts them: each must become an answer or a fault.
    """

    start: Position
    data: bytes
    faults: list[Fault]
    next: Position
    records: int


class Stream(Protocol):
    def read(self, count: int, /) -> bytes: ...


class Cutter:
    """Chunks of a stream from a position on; with a `delimiter` it is CSV, in which a record may go over several lines."""

    def __init__(self, stream: Stream, start: Position, delimiter: str | None) -> None:
        self.stream, self.position, self.delimiter = stream, start, delimiter
        self.buffer = b""
        csv.field_size_limit(2 * RECORD_BYTES)
        self.fill(CHUNK_BYTES)

    def fill(self, most: int) -> None:
        """Has more than so many bytes in the buffer, or all there is."""
        while len(self.buffer) <= most and (data := self.stream.read(READ_BYTES)):
            self.buffer += data

    def first_end(self) -> int:
        """The end of the first record of CSV, or of what there is of it."""
        return self.end(1)[0] or self.buffer.find(b"\n") + 1 or len(self.buffer)

    def chunks(self) -> Iterator[Chunk]:
        while self.buffer:
            start, (end, records) = self.position, self.end(CHUNK_BYTES)
            if end:
                data = self.take(end)
                records = lines_in(data, self.delimiter is None) if records is None else records
                yield Chunk(start, data, [], self.position, records)
            else:
                why = NOT_CLOSED if self.within_reach() else TOO_LONG
                self.skip_line()
                yield Chunk(start, b"", [Fault(start.line, "", why)], self.position, 1)

    def within_reach(self) -> bytes:
        """The whole lines in what a chunk and a record may take."""
        reach = CHUNK_BYTES + RECORD_BYTES
        self.fill(reach)
        return self.buffer if len(self.buffer) <= reach else self.buffer[: self.buffer.rfind(b"\n", 0, reach) + 1]

    def end(self, least: int) -> tuple[int, int | None]:
        """Of the first record that ends there or later, or of the last one that ends within reach; 0 if there is none.

        With it the number of records before it, where that is not the number of lines.
        """
        end = self.buffer.find(b"\n", least - 1, CHUNK_BYTES + RECORD_BYTES) + 1
        if not end:
            # Most lines end sooner, and so much of the stream is seldom wanted.
            lines = self.within_reach()
            end = lines.find(b"\n", least - 1) + 1 or len(lines)
        if self.delimiter and b'"' in self.buffer[:end]:
            return record_end(self.within_reach(), least, self.delimiter)
        return end, None

    def take(self, end: int, chunks: int = 1) -> bytes:
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        at = self.position
        self.position = Position(at.chunk + chunks, at.offset + end, at.line + data.count(b"\n"))
        self.fill(CHUNK_BYTES)
        return data

    def skip_line(self) -> None:
        """Leaves out one line, however long it is."""
        chunks = 1
        while self.buffer and b"\n" not in self.buffer:
            self.take(len(self.buffer), chunks)
            chunks = 0
        self.take(self.buffer.find(b"\n") + 1, chunks)


def lines_in(data: bytes, json: bool) -> int:
    """Returns the number of lines that are not blank; in JSON lines a line of blanks is blank too."""
    count = data.count(b"\n") + (not data.endswith(b"\n"))
    blank, blanks = (blank_of_json, b"\n\r \t\v\f") if json else (blank_of_csv, b"\n\r")
    # Most chunks have no blank line, and a search for two bytes is many times faster than a regular expression.
    if data[0] in blanks or any(b"\n%c" % one in data for one in blanks):
        last = data[data.rfind(b"\n") + 1 :]
        count -= len(blank(data)) + bool(last and not last.strip(blanks))
    return count


def record_end(data: bytes, least: int, delimiter: str) -> tuple[int, int]:
    """The end of the first record of CSV that ends there or later, or else of the last one; how many there are before it."""
    # Quotes, delimiters and line ends are the same bytes in UTF-8, and nothing else matters here.
    lines = io.StringIO(data.decode("latin-1"), newline="\n")
    ran_out = False

    def each() -> Iterator[str]:
        nonlocal ran_out
        yield from lines
        ran_out = True

    reader, end, records = csv.reader(each(), delimiter=delimiter), 0, 0
    while end < least:
        try:
            is_record = bool(next(reader, None))
        except csv.Error:
            # What it complains of, a carriage return, it complains of again to who reads the record.
            is_record = True
        # Then either there are no more, or this one wants more lines than there are.
        if ran_out:
            break
        end, records = lines.tell(), records + is_record
    return end, records
