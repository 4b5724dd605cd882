"""Cuts a stream of bytes into chunks of whole records, by nothing but what is in it, so that every run cuts it alike."""

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
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
    """Whole records, or the fault of one that cannot be read; `next` is where the following chunk begins."""

    start: Position
    data: bytes
    faults: list[Fault]
    next: Position


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

    def header(self) -> bytes:
        """The first record of CSV, or what there is of it."""
        return self.take(self.end(1) or self.buffer.find(b"\n") + 1 or len(self.buffer), chunks=0)

    def chunks(self) -> Iterator[Chunk]:
        while self.buffer:
            start, end = self.position, self.end(CHUNK_BYTES)
            if end:
                yield Chunk(start, self.take(end), [], self.position)
            else:
                why = NOT_CLOSED if self.within_reach() else TOO_LONG
                self.skip_line()
                yield Chunk(start, b"", [Fault(start.line, "", why)], self.position)

    def within_reach(self) -> bytes:
        """The whole lines in what a chunk and a record may take."""
        reach = CHUNK_BYTES + RECORD_BYTES
        self.fill(reach)
        return self.buffer if len(self.buffer) <= reach else self.buffer[: self.buffer.rfind(b"\n", 0, reach) + 1]

    def end(self, least: int) -> int:
        """Of the first record that ends there or later, or of the last one that ends within reach; 0 if there is none."""
        end = self.buffer.find(b"\n", least - 1, CHUNK_BYTES + RECORD_BYTES) + 1
        if not end:
            # Most lines end sooner, and so much of the stream is seldom wanted.
            lines = self.within_reach()
            end = lines.find(b"\n", least - 1) + 1 or len(lines)
        if self.delimiter and b'"' in self.buffer[:end]:
            return record_end(self.within_reach(), least, self.delimiter)
        return end

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


def record_end(data: bytes, least: int, delimiter: str) -> int:
    """The end of the first record of CSV that ends there or later, or else of the last one."""
    # Quotes, delimiters and line ends are the same bytes in UTF-8, and nothing else matters here.
    lines = io.StringIO(data.decode("latin-1"), newline="\n")
    ran_out = False

    def each() -> Iterator[str]:
        nonlocal ran_out
        yield from lines
        ran_out = True

    reader, end = csv.reader(each(), delimiter=delimiter), 0
    while end < least:
        # What it complains of, a carriage return, it complains of again to who reads the record.
        with suppress(csv.Error):
            next(reader, None)
        # Then either there are no more, or this one wants more lines than there are.
        if ran_out:
            break
        end = lines.tell()
    return end
