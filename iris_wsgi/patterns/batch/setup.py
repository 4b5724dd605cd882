"""How a process of a run gets ready: the model, what reads its rows, what writes its answers."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.batch.options import Options
from iris_wsgi.patterns.batch.sources import DELIMITERS, Source
from iris_wsgi.settings import Settings
from iris_wsgi.tabular.columns import csv_columns, feature_names
from iris_wsgi.tabular.csv_reader import CsvReader
from iris_wsgi.tabular.jsonl_reader import JsonReader
from iris_wsgi.tabular.scorer import RowReader, RowWriter, ScoredChunk, Scorer
from iris_wsgi.tabular.writers import CsvWriter, JsonWriter


class Greeting(NamedTuple):
    """The model, as the record has it; its labels; how the output starts; the columns that are read."""

    model: dict[str, Any]
    labels: tuple[str, ...]
    start: bytes
    columns: list[str]


def prepared(settings: Settings, options: Options, source: Source) -> tuple[Greeting, Callable[[bytes, int], ScoredChunk]]:
    """Raises BadModel, and BadSetting for columns that are not there; what turns chunks into answers raises Stopped."""
    model, golden, _ = load_verified_model(Path(settings.model_dir), settings.model_seal)
    features = feature_names(model, options.features)
    reader = reader_for(model, features, options, source)
    writer = writer_for(model, options, reader)
    pack = compressed if options.target.packed else bytes
    told = {"name": model.name, "version": model.version, "digest": model.digest, "seal": golden.seal}
    greeting = Greeting(told, model.labels, pack(writer.start), [*dict.fromkeys((*features, *options.keep))])
    return greeting, answerer(Scorer(model, reader, writer), pack)


def answerer(scorer: Scorer, pack: Callable[[bytes], bytes]) -> Callable[[bytes, int], ScoredChunk]:
    def answer(data: bytes, line: int) -> ScoredChunk:
        try:
            outcome = scorer.score(data, line)
        except BadModel as error:
            raise BadModel(f"{error} It was run on the rows from line {line} on.") from None
        except Exception as error:
            # Not a killed process, for which the same command would be tried again and again.
            raise Stopped(f"a defect at the rows from line {line} on: {error!r}"[:300]) from None
        return outcome._replace(data=pack(outcome.data))

    return answer


def compressed(data: bytes) -> bytes:
    """A member of gzip of its own, so that a run can go on behind any chunk; without a time, so that it is always the same."""
    return gzip.compress(data, 6, mtime=0) if data else b""


def reader_for(model: Model, features: Sequence[str], options: Options, source: Source) -> RowReader:
    """Raises BadSetting where the columns are not there."""
    if options.source.format == "parquet":
        from iris_wsgi.tabular.parquet import ParquetReader

        return ParquetReader(source.schema, features, options.keep, options.target.format != "parquet")
    delimiter = source.delimiter
    if delimiter is None:
        return JsonReader(features, options.keep)
    columns = csv_columns(model, source.first, delimiter, options.header, options.features, options.keep)
    return CsvReader(columns, delimiter, source.swapped)


def writer_for(model: Model, options: Options, reader: RowReader) -> RowWriter:
    if options.target.format == "parquet":
        from iris_wsgi.tabular.parquet import ArrowWriter

        return ArrowWriter(model, options.keep, getattr(reader, "kept_types", None), options.digest)
    delimiter = DELIMITERS[options.target.format]
    if delimiter is None:
        return JsonWriter(model, options.keep, options.digest)
    return CsvWriter(model, options.keep, options.digest, delimiter)
