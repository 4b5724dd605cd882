"""Predictions on a device: of one row, and of a stream of CSV or JSON Lines, line by line."""

from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from typing import NamedTuple

from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.codec.rows import finite
from iris_wsgi.console import script
from iris_wsgi.errors import BadModel, Problem, UnknownCategory
from iris_wsgi.model.session import Model, reason
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import StdStream
from iris_wsgi.tabular.chunk_scorer import ChunkScorer
from iris_wsgi.tabular.columns import BLANK, SEPARATORS, csv_columns, feature_names, split_record
from iris_wsgi.tabular.csv_reader import CsvReader
from iris_wsgi.tabular.feature_values import FeatureValues, InvalidValue, is_number
from iris_wsgi.tabular.jsonl_reader import JsonReader
from iris_wsgi.tabular.record_splitter import BOM, CARRIAGE_RETURN, RECORD_BYTES, SWAPPED, TOO_LONG, BadRow, line_end
from iris_wsgi.tabular.writers import CsvWriter, JsonWriter

READ_BYTES = 8192
LOST = "got no prediction, which is a defect of this program"


class StreamOptions(NamedTuple):
    """Columns of the features, columns to copy to the output, whether CSV has a header, and its delimiter."""

    features: tuple[str, ...]
    keep: tuple[str, ...]
    header: bool
    delimiter: str = ""


def check_kind(model: Model) -> None:
    """Raises BadModel for a model without probabilities."""
    if model.outputs.kind != CLASSIFIER:
        raise BadModel(
            f"edge is for classifiers; the model gives {model.outputs.name} in place of probabilities, "
            f"so serve it with {script('serve')}"
        )


def predict_row(model: Model, texts: Sequence[str]) -> tuple[str, list[float]]:
    """Returns the label and the probabilities. Raises BadSetting for an invalid row, and BadModel if the model fails."""
    names = [feature.name for feature in model.features]
    if len(texts) != model.width:
        what = "numbers" if model.schema.is_float else "values"
        raise BadSetting(f"{len(texts)} {what} are given, and the model takes {model.width}: {', '.join(names)}")
    features, row = FeatureValues(model.schema), []
    for j, (name, text) in enumerate(zip(names, texts, strict=True)):
        try:
            row.append(features.checked(features.from_text(text, j), j))
        except InvalidValue as error:
            raise BadSetting(f"{name} {error}") from None
    try:
        (output,) = finite(model.predict(model.schema.convert([row])))
    except UnknownCategory as problem:
        raise BadSetting(problem.detail) from None
    except Problem as problem:
        raise BadModel(problem.detail) from None
    except Exception as error:
        raise BadModel(f"the model fails on this row: {reason(error)}") from None
    return model.labels[model.outputs.best_of(output)], output[: len(model.labels)]


def predict_stream(
    model: Model, options: StreamOptions, source: BufferedIOBase, target: StdStream, report: Callable[[BadRow], None]
) -> int:
    """Answers each row before it waits for the next, and returns the number of bad rows. Raises BadSetting."""
    scorer, count, lines = None, 0, LineReader(source)
    for number, line in lines.numbered():
        bad_rows = []
        if line is None:
            bad_rows = [BadRow(number, "", TOO_LONG)]
        elif line.strip() and (scorer is not None or line.strip(BLANK + SEPARATORS.encode())):
            is_row = True
            if scorer is None:
                scorer, is_row = make_scorer(model, options, line, lines.swaps)
                target.write(scorer.writer.start)
            bad_rows = score_line(scorer, line, number, target) if is_row else []
        for bad_row in bad_rows:
            report(bad_row)
        count += len(bad_rows)
    return count


def score_line(scorer: ChunkScorer, line: bytes, number: int, target: StdStream) -> list[BadRow]:
    scored = scorer.score(line, number)
    target.write(scored.data)
    # Every row is answered or reported.
    return scored.bad_rows if scored.bad_rows or scored.ok == 1 else [BadRow(number, "", LOST)]


def make_scorer(model: Model, options: StreamOptions, first: bytes, swapped: bool) -> tuple[ChunkScorer, bool]:
    """Derives the format from the first line. Returns the scorer, and whether this line is a row and not a header."""
    start = first.lstrip()[:1]
    if start in (b"{", b"["):
        # Features in a list have positions in place of names.
        positions = tuple(str(i + 1) for i in range(model.width)) if start == b"[" else ()
        features = feature_names(model, options.features or positions)
        reader = JsonReader(model.schema, features, options.keep, similar=not (options.features or positions))
        return ChunkScorer(model, reader, JsonWriter(model, options.keep, False)), True
    text = first.decode("utf-8", "replace")
    delimiter = options.delimiter or next((one for one in SEPARATORS if len(split_record(text, one)) > 1), ",")
    # A line of numbers only, and of empty fields where a feature may be missing, is not a header.
    fields = split_record(text, delimiter)
    header = options.header and not all(is_number(field) or (model.schema.has_missing and not field.strip()) for field in fields)
    columns = csv_columns(model, first, delimiter, header, options.features, options.keep)
    writer = CsvWriter(model, options.keep, False, ",")
    return ChunkScorer(model, CsvReader(columns, delimiter, model.schema, swapped), writer), not header


class LineReader:
    """Reader that returns lines as soon as they arrive. All lines end like the first: in a line feed or a carriage return."""

    def __init__(self, source: BufferedIOBase) -> None:
        self.source, self.buffer, self.end = source, b"", b""

    @property
    def swaps(self) -> bool:
        """State of the exchange of line feeds and carriage returns in readline()."""
        return self.end == CARRIAGE_RETURN

    def readline(self, limit: int) -> bytes:
        """Returns a line with its end, or `limit` bytes of a longer line, or the last bytes of the stream."""
        searched = 0
        while True:
            self.end = self.end or line_end(self.buffer, whole=False) or b""
            if self.end and (at := self.buffer.find(self.end, searched) + 1):
                return self.take(min(at, limit))
            searched = len(self.buffer)
            if searched >= limit:
                return self.take(limit)
            if not (data := self.source.read1(READ_BYTES)):
                self.end = self.end or line_end(self.buffer, whole=True) or b""
                return self.take(self.buffer.find(self.end) + 1 or searched)
            self.buffer += data

    def take(self, count: int) -> bytes:
        line, self.buffer = self.buffer[:count], self.buffer[count:]
        return line.translate(SWAPPED) if self.swaps else line

    def numbered(self) -> Iterator[tuple[int, bytes | None]]:
        """Yields each line with its number, from 1; None in place of a line that is too long."""
        number = 0
        while line := self.readline(RECORD_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(BOM)
            whole = len(line) <= RECORD_BYTES or line.endswith(b"\n")
            yield number, line if whole else None
            while not whole:
                rest = self.readline(RECORD_BYTES)
                whole = not rest or rest.endswith(b"\n")
