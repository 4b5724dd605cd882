"""Cuts a stream of bytes into chunks of whole records, by nothing but what is in it, so that every run cuts it alike."""

import csv
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

CHUNK_BYTES = 1 << 18
RECORD_BYTES = 1 << 20
READ_BYTES = 1 << 18
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
        self.ended = False
        csv.field_size_limit(2 * RECORD_BYTES)

    def header(self) -> bytes:
        """The first record of CSV, or what there is of it."""
        while len(self.buffer) < CHUNK_BYTES and self.more():
            pass
        end, whole = self.record_end(1)
        return self.take(end if whole else self.line_end(0) or len(self.buffer), chunks=0)

    def chunks(self) -> Iterator[Chunk]:
        while chunk := self.next():
            yield chunk

    def next(self) -> Chunk | None:
        """None at the end of the stream."""
        while len(self.buffer) < CHUNK_BYTES and self.more():
            pass
        if not self.buffer:
            return None
        start, end, why = self.position, self.line_end(CHUNK_BYTES - 1), TOO_LONG
        if self.delimiter and b'"' in self.buffer[: end or None]:
            end, whole = self.record_end(CHUNK_BYTES)
            if not whole:
                why = TOO_LONG if self.line_end(end) is None else NOT_CLOSED
        elif end is None:
            # The last line has no end within reach; what is before it has.
            end = self.buffer.rfind(b"\n", 0, CHUNK_BYTES) + 1
        if end:
            return Chunk(start, self.take(end), [], self.position)
        self.skip_line()
        return Chunk(start, b"", [Fault(start.line, "", why)], self.position)

    def more(self) -> bool:
        """Reads on; whether there was anything."""
        data = b"" if self.ended else self.stream.read(READ_BYTES)
        self.ended = not data
        self.buffer += data
        return not self.ended

    def line_end(self, start: int) -> int | None:
        """The end of the line in which `start` is, which is the end of the stream too; None if it is too far away."""
        looked = start
        while (found := self.buffer.find(b"\n", looked)) < 0:
            looked = len(self.buffer)
            if looked - start > RECORD_BYTES:
                return None
            if not self.more():
                return len(self.buffer)
        return found + 1 if found - start <= RECORD_BYTES else None

    def record_end(self, least: int) -> tuple[int, bool]:
        """The end of the first record of CSV that ends there or later; or the start of one that has no end, and False."""
        lines = Lines(self)
        reader = csv.reader(lines, delimiter=self.delimiter or ",")
        start = 0
        while start < least:
            # What it complains of, a carriage return, it complains of again to who reads the record.
            with suppress(csv.Error):
                if next(reader, None) is None:
                    return start, not lines.cut
            if lines.ran_out:
                return start, False
            start = lines.start = lines.end
        return start, True

    def take(self, end: int, chunks: int = 1) -> bytes:
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        at = self.position
        self.position = Position(at.chunk + chunks, at.offset + end, at.line + data.count(b"\n"))
        return data

    def skip_line(self) -> None:
        """Leaves out one line, however long it is."""
        first = True
        while True:
            end = self.buffer.find(b"\n") + 1
            self.take(end or len(self.buffer), chunks=int(first))
            first = False
            if end or not self.more():
                return


class Lines:
    """The lines of a cutter's buffer as the csv module wants them, and how far it has gone."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.start = self.end = 0
        # Whether another line was wanted where there was none, and whether that is because there may be no more of it.
        self.ran_out = self.cut = False

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        within = self.end - self.start <= RECORD_BYTES
        end = self.cutter.line_end(self.end) if within else None
        if end is None or end == self.end:
            self.ran_out, self.cut = True, end is None
            raise StopIteration
        # Quotes, delimiters and line ends are the same bytes in UTF-8, and nothing else matters here.
        line = self.cutter.buffer[self.end : end].decode("latin-1")
        self.end = end
        return line
