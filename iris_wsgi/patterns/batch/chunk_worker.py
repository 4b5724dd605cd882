"""Work of a pool process: it loads the model once, and scores the chunks of one file after the other."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.batch.options import Options
from iris_wsgi.patterns.batch.sources import DELIMITERS, TextLayout
from iris_wsgi.settings import Settings
from iris_wsgi.tabular.chunk_scorer import ChunkScorer, RowReader, RowWriter, ScoredChunk
from iris_wsgi.tabular.columns import csv_columns, feature_names, spelled_names
from iris_wsgi.tabular.csv_reader import CsvReader
from iris_wsgi.tabular.jsonl_reader import JsonReader
from iris_wsgi.tabular.writers import CsvWriter, JsonWriter

if TYPE_CHECKING:
    from iris_wsgi.patterns.batch.sources import Layout


class OpenFile(NamedTuple):
    """Request before the first chunk of a file."""

    options: Options
    layout: "Layout"


class OutputHead(NamedTuple):
    """Result of OpenFile: the model for the checkpoint, the labels, the first output bytes, the columns to read."""

    model: dict[str, Any]
    labels: tuple[str, ...]
    start: bytes
    columns: list[str]


class ScoreChunk(NamedTuple):
    """Request with the data of a chunk and the number of its first line."""

    data: bytes
    line: int


Request: TypeAlias = OpenFile | ScoreChunk


class ChunkWorker:
    """Scorer of the chunks of the file that was opened last."""

    def __init__(self, model: Model, seal: str) -> None:
        self.model = model
        self.metadata = {"name": model.name, "version": model.version, "digest": model.digest, "seal": seal}

    def __call__(self, request: Request) -> OutputHead | ScoredChunk:
        return self.open(request) if isinstance(request, OpenFile) else self.score(request)

    def open(self, request: OpenFile) -> OutputHead:
        """Raises BadSetting for missing columns."""
        options, layout = request
        features = feature_names(self.model, options.features)
        if not isinstance(layout, TextLayout) and not options.features:
            features = spelled_names(features, layout.names)
        reader = make_reader(self.model, features, options, layout)
        writer = make_writer(self.model, options, reader)
        pack: Callable[[bytes], bytes] = compress if options.target.gzip else bytes
        self.scorer, self.pack = ChunkScorer(self.model, reader, writer), pack
        columns = [*dict.fromkeys((*features, *options.keep))]
        return OutputHead(self.metadata, self.model.labels, pack(writer.start), columns)

    def score(self, request: ScoreChunk) -> ScoredChunk:
        try:
            scored = self.scorer.score(*request)
        except BadModel as error:
            raise BadModel(f"{error} It was run on the rows from line {request.line} on.") from None
        except Exception as error:
            # Must not look like a killed process, after which users repeat the command.
            raise Stopped(f"a defect at the rows from line {request.line} on: {error!r}"[:300]) from None
        return scored._replace(data=self.pack(scored.data))


def load_worker(settings: Settings) -> ChunkWorker:
    """Raises BadModel."""
    model, golden, _ = load_verified_model(Path(settings.model_dir), settings.model_seal)
    return ChunkWorker(model, golden.seal)


def compress(data: bytes) -> bytes:
    """Returns a separate gzip member, so that a run can resume after any chunk. Without a time it is reproducible."""
    return gzip.compress(data, 6, mtime=0) if data else b""


def make_reader(model: Model, features: Sequence[str], options: Options, layout: "Layout") -> RowReader:
    """Raises BadSetting if a column is missing."""
    if not isinstance(layout, TextLayout):
        from iris_wsgi.tabular.parquet import ParquetReader

        return ParquetReader(layout, model.schema, features, options.keep, options.target.format != "parquet")
    if layout.delimiter is None:
        return JsonReader(model.schema, features, options.keep, similar=not options.features)
    columns = csv_columns(model, layout.first, layout.delimiter, options.header, options.features, options.keep)
    return CsvReader(columns, layout.delimiter, model.schema, layout.swapped)


def make_writer(model: Model, options: Options, reader: RowReader) -> RowWriter:
    if options.target.format == "parquet":
        from iris_wsgi.tabular.parquet import ArrowWriter

        return ArrowWriter(model, options.keep, getattr(reader, "kept_types", None), options.digest)
    delimiter = DELIMITERS[options.target.format]
    if delimiter is None:
        return JsonWriter(model, options.keep, options.digest)
    return CsvWriter(model, options.keep, options.digest, delimiter)
