"""Where rows come from: a file or standard input, under gzip or not, from its start or from where a run has come to."""

import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from iris_wsgi.batch.cutter import READ_BYTES, Chunk, Cutter, Position
from iris_wsgi.batch.options import Place
from iris_wsgi.settings import BadSetting

BOM = b"\xef\xbb\xbf"
DELIMITERS = {"csv": ",", "tsv": "\t", "jsonl": None}
# Rows of a batch of Parquet.
BATCH_ROWS = 8192
# What zlib, gzip and the system say of a file that ends too soon or is none.
BROKEN = (OSError, EOFError, zlib.error)


class Broken(Exception):
    """The input cannot be read on; the message is one line."""


class Source(Protocol):
    """Chunks from a position on. `total` is how much there is, in `unit`, None if that is not known."""

    total: int | None
    unit: str

    def chunks(self, start: Position) -> Iterator[Chunk]: ...

    def done(self, position: Position) -> int:
        """How much of `total` is behind it, about."""


class TextSource:
    """Lines of text. Raises BadSetting for what cannot be opened or is no UTF-8 text, and Broken where reading ends early."""

    unit = "B"

    def __init__(self, place: Place, header: bool) -> None:
        self.place, self.delimiter = place, DELIMITERS[place.format]
        try:
            self.raw: BinaryIO = sys.stdin.buffer if place.is_stream else open(place.path, "rb")  # noqa: SIM115
            self.total = None if place.is_stream else os.fstat(self.raw.fileno()).st_size
        except OSError as error:
            raise BadSetting(f"{place.path} cannot be read: {error.strerror}") from None
        self.stream = gzip.GzipFile(fileobj=self.raw, mode="rb") if place.packed else self.raw
        self.cutter = Cutter(self, Position(), self.delimiter)
        self.header = self.begin(header)

    def read(self, count: int, /) -> bytes:
        try:
            return self.stream.read(count)
        except BROKEN as error:
            told = getattr(error, "strerror", None) or error
            raise Broken(f"{self.place.path} cannot be read to its end: {told}") from None

    def begin(self, header: bool) -> bytes:
        """Leaves the byte order mark behind, and the names of CSV, which it gives."""
        self.cutter.more()
        if self.cutter.buffer[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise BadSetting(f"{self.place.path} is UTF-16; what is wanted is UTF-8")
        if self.cutter.buffer.startswith(BOM):
            self.cutter.take(len(BOM), chunks=0)
        return self.cutter.header() if header and self.delimiter else b""

    def first(self) -> bytes:
        """The first record, which stays where it is: without names it tells how many columns there are."""
        return self.cutter.buffer[: self.cutter.record_end(1)[0]] if self.delimiter else b""

    def chunks(self, start: Position) -> Iterator[Chunk]:
        """From there, or from behind the names where that is later."""
        if start.offset > self.cutter.position.offset:
            self.skip(start.offset)
            self.cutter = Cutter(self, start, self.delimiter)
        return self.cutter.chunks()

    def skip(self, offset: int) -> None:
        if not self.place.packed:
            self.raw.seek(offset)
            return
        self.stream.seek(0)
        while (left := offset - self.stream.tell()) > 0 and self.read(min(left, READ_BYTES)):
            pass

    def done(self, position: Position) -> int:
        return self.raw.tell() if self.place.packed else position.offset


class BatchSource:
    """Batches of Parquet by their number; who predicts reads them."""

    unit = " rows"

    def __init__(self, total: int) -> None:
        self.total: int | None = total
        self.batches = -(-total // BATCH_ROWS)

    def chunks(self, start: Position) -> Iterator[Chunk]:
        for number in range(start.chunk, self.batches):
            first, following = number * BATCH_ROWS, (number + 1) * BATCH_ROWS
            here = Position(number, first, first + 1)
            yield Chunk(here, str(number).encode(), [], Position(number + 1, following, following + 1))

    def done(self, position: Position) -> int:
        return position.offset
