"""How a process of a run gets ready: the model, what reads its rows, what writes its answers."""

import gzip
import json
import struct
from pathlib import Path

from iris_wsgi.batch import columns
from iris_wsgi.batch.csv_rows import CsvReader
from iris_wsgi.batch.json_rows import JsonReader
from iris_wsgi.batch.options import Options
from iris_wsgi.batch.scorer import Outcome, Reader, Scorer, Writer, packed, unpacked
from iris_wsgi.batch.sources import DELIMITERS, Broken
from iris_wsgi.batch.team import Work
from iris_wsgi.batch.writers import CsvWriter, JsonWriter
from iris_wsgi.errors import BadModel
from iris_wsgi.golden import self_test
from iris_wsgi.model import Model, load_model
from iris_wsgi.settings import BadSetting, Settings

# How an answer begins that is none, but says why there are no more.
REFUSED = b"!"
line_of = struct.Struct("<Q")


def prepared(settings: Settings, options: Options, header: bytes, first: bytes) -> tuple[bytes, Work]:
    """A greeting that tells of the model, or why there can be no run; and what turns chunks into answers."""
    try:
        model, golden = load_model(Path(settings.model_dir), settings.model_seal)
        self_test(model, golden.cases, golden.tolerance)
        reader = reader_for(model, options, header, first)
        writer = writer_for(model, options, reader)
    except (BadModel, BadSetting) as error:
        return json.dumps({"error": str(error), "model": isinstance(error, BadModel)}).encode(), bytes
    scorer = Scorer(model, reader, writer)
    rows = getattr(reader, "total", None)
    told = {"name": model.name, "version": model.version, "digest": model.digest, "seal": golden.seal}
    start = compressed(writer.start) if options.target.packed and writer.start else writer.start
    greeting = {"model": told, "labels": list(model.labels), "start": start.hex(), "rows": rows}
    return json.dumps(greeting).encode(), work(scorer, options.target.packed)


def work(scorer: Scorer, packs: bool) -> Work:
    def answer(message: bytes) -> bytes:
        (line,) = line_of.unpack_from(message)
        try:
            outcome = scorer.score(message[line_of.size :], line)
        except Broken as broken:
            return REFUSED + str(broken).encode()
        except Exception as error:
            # Not a killed process, for which the same command would be tried again and again.
            return REFUSED + f"a defect at the rows from line {line} on: {error!r}"[:300].encode()
        if packs and outcome.data:
            outcome = outcome._replace(data=compressed(outcome.data))
        return packed(outcome)

    return answer


def outcome_of(answer: bytes) -> Outcome:
    """Raises Broken."""
    if answer.startswith(REFUSED):
        raise Broken(answer[len(REFUSED) :].decode())
    return unpacked(answer)


def message_of(data: bytes, line: int) -> bytes:
    return line_of.pack(line) + data


def compressed(data: bytes) -> bytes:
    """A member of gzip of its own, so that a run can go on behind any chunk; without a time, so that it is always the same."""
    return gzip.compress(data, 6, mtime=0)


def reader_for(model: Model, options: Options, header: bytes, first: bytes) -> Reader:
    """Raises BadSetting where the columns are not there."""
    features = columns.features_of(model, options.features)
    if options.source.format == "parquet":
        from iris_wsgi.batch.parquet import ParquetReader

        return ParquetReader(options.source.path, features, options.keep, options.target.format != "parquet")
    delimiter = DELIMITERS[options.source.format]
    if delimiter is None:
        return JsonReader(features, options.keep)
    if options.header:
        return CsvReader(columns.named(header, delimiter, features, options.keep), delimiter)
    return CsvReader(columns.numbered(first, delimiter, model.width, options.features, options.keep), delimiter)


def writer_for(model: Model, options: Options, reader: Reader) -> Writer:
    if options.target.format == "parquet":
        from iris_wsgi.batch.parquet import ArrowWriter

        return ArrowWriter(model, options.keep, getattr(reader, "kept_types", None), options.digest)
    delimiter = DELIMITERS[options.target.format]
    if delimiter is None:
        return JsonWriter(model, options.keep, options.digest)
    return CsvWriter(model, options.keep, options.digest, delimiter)
