"""Sources of rows: a file or a stream, compressed or not, read from its start or from the position of a checkpoint."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.options import STANDARD, FileSpec
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.remote_files import RemoteFiles, is_url, shown
from iris_wsgi.tabular.columns import BLANK, SEPARATORS, split_record
from iris_wsgi.tabular.record_splitter import BOM, CHUNK_BYTES, SWAPPED, Chunk, Position, RecordSplitter, line_end

if TYPE_CHECKING:
    from pyarrow import Schema

    from iris_wsgi.tabular.parquet import ParquetSource

    RowSource: TypeAlias = "TextSource | ParquetSource"
    Layout: TypeAlias = "TextLayout | Schema"

# First bytes of files that are not UTF-8 text, and the remedy.
UTF_16 = "is UTF-16, as Excel's Unicode Text is; save it as CSV UTF-8, or convert it: iconv -f UTF-16 -t UTF-8"
OTHER_FILES = {
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"\x1f\x8b": "is compressed with gzip; give it a name that ends in .gz",
    b"PK\x03\x04": "is a ZIP archive, as an Excel workbook is; save it as CSV UTF-8",
}
LINE_ENDS = b"\r\n"
DELIMITERS = {"csv": ",", "tsv": "\t", "jsonl": None, "parquet": None}


class TextLayout(NamedTuple):
    """Properties of a CSV or JSON Lines file that the reader of its chunks needs."""

    delimiter: str | None
    first: bytes
    swapped: bool


def open_source(spec: FileSpec, header: bool, delimiter: str = "") -> "RowSource":
    """Opens the input. The default delimiter is that of the format, or of the header.

    Raises BadSetting if the input cannot be opened, and Stopped if it cannot be read.
    """
    if spec.format == "parquet":
        from iris_wsgi.tabular.parquet import ParquetSource

        return ParquetSource(shown(spec.path), *(RemoteFiles(spec.path).open()[:1] if is_url(spec.path) else ()))
    return TextSource(spec, header, delimiter)


def open_input(spec: FileSpec) -> tuple[BinaryIO, int | None]:
    """Returns the opened file and its size, if known. Raises BadSetting, and Stopped for a URL that cannot be reached."""
    if is_url(spec.path):
        file, size = RemoteFiles(spec.path).open()
        return io.BufferedReader(file), size
    try:
        # open() rejects a descriptor that is closed.
        raw: BinaryIO = os.fdopen(0, "rb", closefd=False) if spec.path == STANDARD else open(spec.path, "rb")  # noqa: SIM115
        return raw, None if spec.is_stream else os.fstat(raw.fileno()).st_size
    except OSError as error:
        raise BadSetting(f"{spec.path} cannot be read: {error.strerror}") from None


class TextSource:
    """CSV or JSON Lines. `total` is the size in `unit`, if known; `first` is the first record, which names or counts the columns.

    Without a `header` it is a row. With `swapped`, carriage returns end the lines, and in the chunks they are exchanged with
    line feeds.
    """

    unit = "B"

    def __init__(self, spec: FileSpec, header: bool, delimiter: str) -> None:
        self.spec, self.delimiter, self.swapped = spec, delimiter or DELIMITERS[spec.format], False
        self.raw, self.total = open_input(spec)
        self.stream = gzip.GzipFile(fileobj=self.raw, mode="rb") if spec.gzip else self.raw
        self.splitter = RecordSplitter(self, Position(), self.delimiter)
        for start, reason in OTHER_FILES.items():
            if self.splitter.buffer.startswith(start):
                raise BadSetting(f"{shown(spec.path)} {reason}")
        if self.splitter.buffer.startswith(BOM):
            self.splitter.take(len(BOM), chunks=0)
        self.detect_line_end()
        if spec.format == "csv" and header and not delimiter:
            self.skip_blank(BLANK + SEPARATORS.encode())
            self.delimiter = self.splitter.delimiter = self.detect_delimiter()
        self.first = self.first_record(header) if self.delimiter else b""

    @property
    def layout(self) -> TextLayout:
        return TextLayout(self.delimiter, self.first, self.swapped)

    def detect_line_end(self) -> None:
        """Exchanges carriage returns and line feeds from here on if carriage returns end the lines."""
        head = self.splitter.buffer
        end = line_end(head, whole=len(head) <= CHUNK_BYTES) or line_end(self.splitter.whole_lines(), whole=True)
        if end == b"\r":
            self.swapped = True
            self.splitter.buffer = self.splitter.buffer.translate(SWAPPED)

    def detect_delimiter(self) -> str:
        """Returns the comma, unless the header contains another separator only."""
        for separator in SEPARATORS:
            self.splitter.delimiter = separator
            header = self.splitter.buffer[: self.splitter.first_end()].decode("utf-8", "replace")
            if len(split_record(header, separator)) > 1:
                return separator
        return SEPARATORS[0]

    def first_record(self, header: bool) -> bytes:
        """Returns the first record after blank lines, and removes a header. Lines of empty fields before a header are blank."""
        self.skip_blank(BLANK + (self.delimiter or "").encode() if header else LINE_ENDS)
        end = self.splitter.first_end()
        first = self.splitter.take(end, chunks=0) if header else self.splitter.buffer[:end]
        return first.translate(SWAPPED) if self.swapped else first

    def skip_blank(self, blank: bytes) -> None:
        """Skips the first records as long as they have no characters except these."""
        while self.splitter.buffer and not self.splitter.buffer[: (end := self.splitter.first_end())].strip(blank):
            self.splitter.take(end, chunks=0)

    def read(self, count: int, /) -> bytes:
        try:
            data: bytes = self.stream.read(count)
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise Stopped(f"{shown(self.spec.path)} cannot be read to its end: {reason}") from None
        return data.translate(SWAPPED) if self.swapped else data

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yields the chunks from a position, or from the end of the header if that is later."""
        if start.offset > self.splitter.position.offset:
            self.seek(start.offset)
            self.splitter = RecordSplitter(self, start, self.delimiter)
        yield from self.splitter.chunks()
        if self.total is not None and not self.spec.gzip and self.splitter.position.offset < self.total:
            raise Stopped(f"{shown(self.spec.path)} was truncated during the run")

    def seek(self, offset: int) -> None:
        self.stream.seek(0 if self.spec.gzip else offset)
        while (left := offset - self.stream.tell()) > 0 and self.read(min(left, CHUNK_BYTES)):
            pass

    def done(self, position: Position) -> int:
        """Returns approximately how much of `total` precedes a position."""
        return self.raw.tell() if self.spec.gzip and not self.spec.is_stream else position.offset

    def close(self) -> None:
        self.raw.close()
