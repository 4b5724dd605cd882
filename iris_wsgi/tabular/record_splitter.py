"""Splitter of a byte stream into chunks of whole records, which depend on the content only: every run gets the same chunks."""

import csv
import io
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

CHUNK_BYTES = 1 << 18
RECORD_BYTES = 1 << 20
READ_BYTES = 1 << 18
BOM = b"\xef\xbb\xbf"
# Reasons of invalid rows that several formats share.
NOT_NUMBER, NOT_FINITE = "is not a number", "is not finite as a 32-bit float"
EMPTY, NOT_UTF8 = "is empty", "is not UTF-8"
TOO_LONG = f"is longer than {RECORD_BYTES} bytes"
NOT_CLOSED = f"has a quote that is not closed within {RECORD_BYTES} bytes"

CARRIAGE_RETURN, LINE_FEED = b"\r", b"\n"
# Files of old Macs and of some devices end lines in carriage returns. Both characters are then exchanged, byte for byte,
# so that the splitter and the readers see line feeds.
SWAPPED = bytes.maketrans(b"\r\n", b"\n\r")
SWAPPED_TEXT = str.maketrans("\r\n", "\n\r")

# A quote, or the end of a line; carriage returns before a line feed are part of the end.
tokens = re.compile(rb'"|\r++\n?|\n').finditer
blank_csv_lines = re.compile(rb"^\r*\n", re.MULTILINE).findall
blank_json_lines = re.compile(rb"^[\r \t\v\f]*\n", re.MULTILINE).findall


class BadRow(NamedTuple):
    """Invalid row: its first line, its column (empty for the whole record), and the reason."""

    line: int
    column: str
    reason: str


class Position(NamedTuple):
    """Number, first byte, and first line (from 1) of a chunk."""

    chunk: int = 0
    offset: int = 0
    line: int = 1


class Chunk(NamedTuple):
    """Whole records, or one unreadable record in `bad_rows`; `next` is the position of the following chunk.

    `records` is the number of records without blank lines: each must become a prediction or a bad row.
    """

    start: Position
    data: bytes
    bad_rows: list[BadRow]
    next: Position
    records: int


class Stream(Protocol):
    def read(self, count: int, /) -> bytes: ...


class RecordSplitter:
    """Chunks of a stream from a position. With a `delimiter` the format is CSV, in which a record may have several lines."""

    def __init__(self, stream: Stream, start: Position, delimiter: str | None) -> None:
        self.stream, self.position, self.delimiter = stream, start, delimiter
        self.buffer = b""
        csv.field_size_limit(2 * RECORD_BYTES)
        self.fill(CHUNK_BYTES)

    def fill(self, count: int) -> None:
        """Reads until the buffer has more than `count` bytes, or the stream ends."""
        while len(self.buffer) <= count and (data := self.stream.read(READ_BYTES)):
            self.buffer += data

    def first_end(self) -> int:
        """Returns the end of the first record of CSV, or of the available part of it."""
        return self.find_end(1)[0] or self.buffer.find(b"\n") + 1 or len(self.buffer)

    def chunks(self) -> Iterator[Chunk]:
        while self.buffer:
            start, (end, records) = self.position, self.find_end(CHUNK_BYTES)
            if end:
                data = self.take(end)
                records = count_lines(data, self.delimiter is None) if records is None else records
                yield Chunk(start, data, [], self.position, records)
            else:
                reason = NOT_CLOSED if self.whole_lines() else TOO_LONG
                self.skip_line()
                yield Chunk(start, b"", [BadRow(start.line, "", reason)], self.position, 1)

    def whole_lines(self) -> bytes:
        """Returns the whole lines within the length of a chunk and one record."""
        limit = CHUNK_BYTES + RECORD_BYTES
        self.fill(limit)
        return self.buffer if len(self.buffer) <= limit else self.buffer[: self.buffer.rfind(b"\n", 0, limit) + 1]

    def find_end(self, minimum: int) -> tuple[int, int | None]:
        """Returns the first end of a record at `minimum` bytes or later, else the last end in reach, or 0.

        The second value is the number of records before the end, or None if it is the number of lines.
        """
        end = self.buffer.find(b"\n", minimum - 1, CHUNK_BYTES + RECORD_BYTES) + 1
        if not end:
            # Rare: most lines end earlier, and the whole reach of the stream is not needed.
            lines = self.whole_lines()
            end = lines.find(b"\n", minimum - 1) + 1 or len(lines)
        if self.delimiter and b'"' in self.buffer[:end]:
            return find_csv_end(self.whole_lines(), minimum, self.delimiter)
        return end, None

    def take(self, end: int, chunks: int = 1) -> bytes:
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        at = self.position
        self.position = Position(at.chunk + chunks, at.offset + end, at.line + data.count(b"\n"))
        self.fill(CHUNK_BYTES)
        return data

    def skip_line(self) -> None:
        """Skips one line of any length."""
        chunks = 1
        while self.buffer and b"\n" not in self.buffer:
            self.take(len(self.buffer), chunks)
            chunks = 0
        self.take(self.buffer.find(b"\n") + 1, chunks)


def count_lines(data: bytes, json: bool) -> int:
    """Returns the number of lines that are not blank. In JSON Lines, a line of white space is also blank."""
    count = data.count(b"\n") + (not data.endswith(b"\n"))
    blank_lines, blanks = (blank_json_lines, b"\n\r \t\v\f") if json else (blank_csv_lines, b"\n\r")
    # Most chunks have no blank line, and a search for two bytes is many times faster than a regular expression.
    if data[0] in blanks or any(b"\n%c" % blank in data for blank in blanks):
        last = data[data.rfind(b"\n") + 1 :]
        count -= len(blank_lines(data)) + bool(last and not last.strip(blanks))
    return count


def find_csv_end(data: bytes, minimum: int, delimiter: str) -> tuple[int, int]:
    """Returns the first end of a CSV record at `minimum` or later, else the last end; and the number of records before it."""
    # Quotes, delimiters, and line ends are the same bytes in UTF-8 and in Latin-1.
    lines = io.StringIO(data.decode("latin-1"), newline="\n")
    exhausted = False

    def each() -> Iterator[str]:
        nonlocal exhausted
        yield from lines
        exhausted = True

    reader, end, records = csv.reader(each(), delimiter=delimiter), 0, 0
    while end < minimum:
        try:
            is_record = bool(next(reader, None))
        except csv.Error:
            # The CSV reader reports this carriage return.
            is_record = True
        # There is no further record, or its last lines are missing.
        if exhausted:
            break
        end, records = lines.tell(), records + is_record
    return end, records


def line_end(head: bytes, whole: bool) -> bytes | None:
    """Returns the end of the first line of a text that starts with `head`; None if more of the text is needed.

    A line end between quotes does not count, unless it is the only one. With `whole`, `head` is the whole text.
    """
    quoted, first = False, None
    for token in tokens(head):
        if token[0] == b'"':
            quoted = not quoted
            continue
        if token.end() == len(head) and not whole and token[0].endswith(CARRIAGE_RETURN):
            return None
        found = LINE_FEED if token[0].endswith(LINE_FEED) else CARRIAGE_RETURN
        if not quoted:
            return found
        first = first or found
    return (first or LINE_FEED) if whole else None
