"""Rows as they come, a line in and a line out, in CSV or in JSON lines."""

from collections.abc import Callable, Iterator
from io import BufferedIOBase
from typing import NamedTuple

from iris_wsgi.model.session import Model
from iris_wsgi.storage.files import StdStream
from iris_wsgi.tabular.columns import BLANK, SEPARATORS, csv_columns, feature_names, split_record
from iris_wsgi.tabular.csv_reader import CsvReader, number_error
from iris_wsgi.tabular.jsonl_reader import JsonReader
from iris_wsgi.tabular.record_splitter import BOM, CARRIAGE_RETURN, RECORD_BYTES, SWAPPED, TOO_LONG, BadRow, line_end
from iris_wsgi.tabular.scorer import Scorer
from iris_wsgi.tabular.writers import CsvWriter, JsonWriter

COMMA = ","
# What is read at once where there is more than a line.
PIECE_BYTES = 8192
LOST = "got no answer, which is a defect of this program"


class Wanted(NamedTuple):
    """The columns of the features and those that answers repeat, as they are called; without a header by numbers from 1."""

    features: tuple[str, ...]
    keep: tuple[str, ...]
    header: bool
    delimiter: str = ""


def stream(model: Model, wanted: Wanted, source: BufferedIOBase, target: StdStream, tell: Callable[[BadRow], None]) -> int:
    """Answers each row before it waits for the next one; how many were bad. Raises BadSetting for columns that are not there."""
    scorer, bad, lines = None, 0, LineReader(source)
    for number, line in numbered_lines(lines):
        if line is None:
            faults = [BadRow(number, "", TOO_LONG)]
        elif not line.strip() or (scorer is None and not line.strip(BLANK + SEPARATORS.encode())):
            continue
        elif scorer is None:
            scorer, is_row = prepared(model, wanted, line, lines.exchanges)
            target.write(scorer.writer.start)
            faults = answer(scorer, line, number, target) if is_row else []
        else:
            faults = answer(scorer, line, number, target)
        for fault in faults:
            tell(fault)
        bad += len(faults)
    return bad


def answer(scorer: Scorer, line: bytes, number: int, target: StdStream) -> list[BadRow]:
    outcome = scorer.score(line, number)
    target.write(outcome.data)
    # A row is answered or reported, whatever happens.
    return outcome.bad_rows if outcome.bad_rows or sum(outcome.labels.values()) == 1 else [BadRow(number, "", LOST)]


def prepared(model: Model, wanted: Wanted, first: bytes, swapped: bool) -> tuple[Scorer, bool]:
    """What the first line that is not empty asks for, and whether it is a row itself and not the names of the columns."""
    start = first.lstrip()[:1]
    if start in (b"{", b"["):
        # In a list features are where they are, and not under their names.
        places = tuple(str(i + 1) for i in range(model.width)) if start == b"[" else ()
        features = feature_names(model, wanted.features or places)
        return Scorer(model, JsonReader(features, wanted.keep), JsonWriter(model, wanted.keep, False)), True
    # Nobody calls all columns by numbers.
    text = first.decode("utf-8", "replace")
    delimiter = wanted.delimiter or next((one for one in SEPARATORS if len(split_record(text, one)) > 1), COMMA)
    header = wanted.header and any(map(number_error, split_record(text, delimiter)))
    reader = CsvReader(csv_columns(model, first, delimiter, header, wanted.features, wanted.keep), delimiter, swapped)
    return Scorer(model, reader, CsvWriter(model, wanted.keep, False, COMMA)), not header


class LineReader:
    """Lines of a stream as soon as they are there; all end as the first one does, in a line feed or a carriage return."""

    def __init__(self, source: BufferedIOBase) -> None:
        self.source, self.buffer, self.end = source, b"", b""

    @property
    def exchanges(self) -> bool:
        """Whether line feeds and carriage returns are swapped in what readline() returns."""
        return self.end == CARRIAGE_RETURN

    def readline(self, limit: int) -> bytes:
        """Returns a line with its end, or `limit` bytes of a longer one, or what there is before the end of the stream."""
        searched = 0
        while True:
            self.end = self.end or line_end(self.buffer, whole=False) or b""
            if self.end and (at := self.buffer.find(self.end, searched) + 1):
                return self.take(min(at, limit))
            searched = len(self.buffer)
            if searched >= limit:
                return self.take(limit)
            if not (data := self.source.read1(PIECE_BYTES)):
                self.end = self.end or line_end(self.buffer, whole=True) or b""
                return self.take(self.buffer.find(self.end) + 1 or searched)
            self.buffer += data

    def take(self, count: int) -> bytes:
        line, self.buffer = self.buffer[:count], self.buffer[count:]
        return line.translate(SWAPPED) if self.exchanges else line


def numbered_lines(source: LineReader) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number from 1, as soon as it is there; None in place of one that is too long to be a row."""
    number = 0
    while line := source.readline(RECORD_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        whole = len(line) <= RECORD_BYTES or line.endswith(b"\n")
        yield number, line if whole else None
        while not whole:
            rest = source.readline(RECORD_BYTES)
            whole = not rest or rest.endswith(b"\n")
