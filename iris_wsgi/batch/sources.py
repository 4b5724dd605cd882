"""Where rows come from: a file or standard input, under gzip or not, from its start or from where a run has come to."""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from iris_wsgi.batch.cutter import BOM, READ_BYTES, Chunk, Cutter, Position
from iris_wsgi.batch.ending import Stopped
from iris_wsgi.batch.places import STANDARD, Place
from iris_wsgi.settings import BadSetting

DELIMITERS = {"csv": ",", "tsv": "\t", "jsonl": None}


class Source(Protocol):
    """`total` is how much there is, in `unit`, None if that is not known; `first` and `schema` tell what columns there are."""

    total: int | None
    unit: str
    first: bytes
    schema: Any

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        """From a position on. Raises Stopped where reading ends early."""

    def done(self, position: Position) -> int:
        """How much of `total` is behind it, about."""


def source_of(place: Place, header: bool) -> Source:
    """Raises BadSetting for what cannot be opened, and Stopped for what cannot be read."""
    if place.format == "parquet":
        from iris_wsgi.batch.parquet import ParquetSource

        return ParquetSource(place.path)
    return TextSource(place, header)


class TextSource:
    """Lines of text. Without a `header` the first record of CSV stays where it is."""

    unit, schema = "B", None

    def __init__(self, place: Place, header: bool) -> None:
        self.place, self.delimiter = place, DELIMITERS[place.format]
        try:
            # Of a closed descriptor Python makes no object.
            self.raw: BinaryIO = os.fdopen(0, "rb", closefd=False) if place.path == STANDARD else open(place.path, "rb")  # noqa: SIM115
            self.total = None if place.is_stream else os.fstat(self.raw.fileno()).st_size
        except OSError as error:
            raise BadSetting(f"{place.path} cannot be read: {error.strerror}") from None
        self.stream = gzip.GzipFile(fileobj=self.raw, mode="rb") if place.packed else self.raw
        self.cutter = Cutter(self, Position(), self.delimiter)
        if self.cutter.buffer[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise BadSetting(f"{place.path} is UTF-16; what is wanted is UTF-8")
        if self.cutter.buffer.startswith(BOM):
            self.cutter.take(len(BOM), chunks=0)
        self.first = b""
        if self.delimiter:
            self.first = self.cutter.header() if header else self.cutter.buffer[: self.cutter.end(1)]

    def read(self, count: int, /) -> bytes:
        try:
            return self.stream.read(count)
        except (OSError, EOFError, zlib.error) as error:
            told = getattr(error, "strerror", None) or error
            raise Stopped(f"{self.place.path} cannot be read to its end: {told}") from None

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        """From there, or from behind the names where that is later."""
        if start.offset > self.cutter.position.offset:
            self.skip(start.offset)
            self.cutter = Cutter(self, start, self.delimiter)
        return self.cutter.chunks()

    def skip(self, offset: int) -> None:
        self.stream.seek(0 if self.place.packed else offset)
        while (left := offset - self.stream.tell()) > 0 and self.read(min(left, READ_BYTES)):
            pass

    def done(self, position: Position) -> int:
        return self.raw.tell() if self.place.packed and not self.place.is_stream else position.offset
