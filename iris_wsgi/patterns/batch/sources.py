"""Where rows come from: a file or standard input, under gzip or not, from its start or from where a run has come to."""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from iris_wsgi.errors import Stopped
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.columns import BLANK, SEPARATORS, split_record
from iris_wsgi.tabular.paths import STANDARD, FileSpec
from iris_wsgi.tabular.record_splitter import (
    BOM,
    CARRIAGE_RETURN,
    CHUNK_BYTES,
    READ_BYTES,
    SWAPPED,
    Chunk,
    Position,
    RecordSplitter,
    line_end,
)

# What a file begins with that is not UTF-8 text, and what to do about it.
UTF_16 = "is UTF-16, as Excel's Unicode Text is; save it as CSV UTF-8, or convert it: iconv -f UTF-16 -t UTF-8"
NO_TEXT = {
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"\x1f\x8b": "is compressed with gzip; give it a name that ends in .gz",
    b"PK\x03\x04": "is a ZIP archive, as an Excel workbook is; save it as CSV UTF-8",
}
LINE_ENDS = b"\r\n"
DELIMITERS = {"csv": ",", "tsv": "\t", "jsonl": None, "parquet": None}


class Source(Protocol):
    """`total` is how much there is, in `unit`, None if that is not known; `first` and `schema` tell what columns there are.

    With `swapped` carriage returns and line feeds are swapped in its chunks, because the former end its lines.
    """

    total: int | None
    unit: str
    first: bytes
    schema: Any
    swapped: bool
    delimiter: str | None

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        """From a position on. Raises Stopped where reading ends early."""

    def done(self, position: Position) -> int:
        """How much of `total` is behind it, about."""


def source_of(place: FileSpec, header: bool, delimiter: str = "") -> Source:
    """Without a `delimiter` it is that of the format, or of the header.

    Raises BadSetting for what cannot be opened, and Stopped for what cannot be read.
    """
    if place.format == "parquet":
        from iris_wsgi.tabular.parquet import ParquetSource

        return ParquetSource(place.path)
    return TextSource(place, header, delimiter)


def delimiter_of(cutter: RecordSplitter) -> str:
    """The comma, unless the first record has none and one of the other delimiters."""
    for one in SEPARATORS:
        cutter.delimiter = one
        if len(split_record(cutter.buffer[: cutter.first_end()].decode("utf-8", "replace"), one)) > 1:
            return one
    return SEPARATORS[0]


class TextSource:
    """Lines of text. Without a `header` the first record of CSV stays where it is."""

    unit, schema = "B", None

    def __init__(self, place: FileSpec, header: bool, delimiter: str) -> None:
        self.place, self.delimiter, self.swapped = place, delimiter or DELIMITERS[place.format], False
        try:
            # Of a closed descriptor Python makes no object.
            self.raw: BinaryIO = os.fdopen(0, "rb", closefd=False) if place.path == STANDARD else open(place.path, "rb")  # noqa: SIM115
            self.total = None if place.is_stream else os.fstat(self.raw.fileno()).st_size
        except OSError as error:
            raise BadSetting(f"{place.path} cannot be read: {error.strerror}") from None
        self.stream = gzip.GzipFile(fileobj=self.raw, mode="rb") if place.packed else self.raw
        self.cutter = RecordSplitter(self, Position(), self.delimiter)
        for start, why in NO_TEXT.items():
            if self.cutter.buffer.startswith(start):
                raise BadSetting(f"{place.path} {why}")
        if self.cutter.buffer.startswith(BOM):
            self.cutter.take(len(BOM), chunks=0)
        self.exchange()
        if place.format == "csv" and header and not delimiter:
            self.skip_blank(BLANK + SEPARATORS.encode())
            self.delimiter = self.cutter.delimiter = delimiter_of(self.cutter)
        self.first = self.first_record(header) if self.delimiter else b""

    def exchange(self) -> None:
        """Looks how lines end, and from here on exchanges carriage returns and line feeds where the former end them."""
        head = self.cutter.buffer
        end = line_end(head, whole=len(head) <= CHUNK_BYTES) or line_end(self.cutter.whole_lines(), whole=True)
        if end == CARRIAGE_RETURN:
            self.swapped = True
            self.cutter.buffer = self.cutter.buffer.translate(SWAPPED)

    def first_record(self, header: bool) -> bytes:
        """Returns the first record as it is in the file, behind blank lines; before a header lines of empty fields are blank."""
        self.skip_blank(BLANK + (self.delimiter or "").encode() if header else LINE_ENDS)
        end = self.cutter.first_end()
        first = self.cutter.take(end, chunks=0) if header else self.cutter.buffer[:end]
        return first.translate(SWAPPED) if self.swapped else first

    def skip_blank(self, blank: bytes) -> None:
        """Leaves out the records before the first one that has other characters than these."""
        while self.cutter.buffer and not self.cutter.buffer[: (end := self.cutter.first_end())].strip(blank):
            self.cutter.take(end, chunks=0)

    def read(self, count: int, /) -> bytes:
        try:
            data: bytes = self.stream.read(count)
        except (OSError, EOFError, zlib.error) as error:
            told = getattr(error, "strerror", None) or error
            raise Stopped(f"{self.place.path} cannot be read to its end: {told}") from None
        return data.translate(SWAPPED) if self.swapped else data

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        """From there, or from behind the names where that is later."""
        if start.offset > self.cutter.position.offset:
            self.skip(start.offset)
            self.cutter = RecordSplitter(self, start, self.delimiter)
        yield from self.cutter.chunks()
        if self.total is not None and not self.place.packed and self.cutter.position.offset < self.total:
            raise Stopped(f"{self.place.path} was cut off while it was read")

    def skip(self, offset: int) -> None:
        self.stream.seek(0 if self.place.packed else offset)
        while (left := offset - self.stream.tell()) > 0 and self.read(min(left, READ_BYTES)):
            pass

    def done(self, position: Position) -> int:
        return self.raw.tell() if self.place.packed and not self.place.is_stream else position.offset
