"""Command batch, and the run over a file: a pool of processes scores its chunks."""

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iris_wsgi.console import ProgressReporter, print_error, print_notice, remedy_for_extra
from iris_wsgi.cpu_limits import worker_count
from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.batch.exit_status import ExitStatus, RowCounts, StopSignal, report, run_to_end, summary
from iris_wsgi.patterns.batch.options import STANDARD, Options, parse_file_options, parse_table_options
from iris_wsgi.patterns.batch.process_pool import ProcessPool
from iris_wsgi.patterns.batch.results import Results, file_identity
from iris_wsgi.patterns.batch.sources import DELIMITERS, TextSource, open_source
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.tabular.chunk_scorer import ChunkScorer, RowReader, RowWriter, ScoredChunk
from iris_wsgi.tabular.columns import csv_columns, feature_names, spelled_names
from iris_wsgi.tabular.csv_reader import CsvReader
from iris_wsgi.tabular.jsonl_reader import JsonReader
from iris_wsgi.tabular.record_splitter import Chunk
from iris_wsgi.tabular.writers import CsvWriter, JsonWriter

if TYPE_CHECKING:
    from iris_wsgi.patterns.batch.sources import RowSource


class ReadyMessage(NamedTuple):
    """First message of a pool process: the model for the checkpoint, the labels, the first output bytes, the columns to read."""

    model: dict[str, Any]
    labels: tuple[str, ...]
    start: bytes
    columns: list[str]


def batch(settings: Settings, given: Mapping[str, Any]) -> int:
    """Runs the command and returns its exit status. Raises BadSetting and BadModel."""
    try:
        if given["table"] is None:
            return run_file(parse_file_options(given), settings, worker_count(settings)[0])
        from iris_wsgi.patterns.batch.table_run import run_table

        return run_table(parse_table_options(given, settings.database_url), settings)
    except Stopped as stopped:
        print_error(f"stopped: {stopped}")
        return ExitStatus.STOPPED


def run_file(options: Options, settings: Settings, processes: int) -> ExitStatus:
    """Scores a file. Raises BadSetting, BadModel, and Stopped."""
    if "parquet" in (options.source.format, options.target.format):
        try:
            # Before the fork, so that the processes share its memory.
            import iris_wsgi.tabular.parquet  # noqa: F401
        except ImportError:
            raise BadSetting(f"Parquet needs the package pyarrow: {remedy_for_extra('parquet')}") from None
    source = open_source(options.source, options.header, options.delimiter)
    if source.delimiter not in (DELIMITERS[options.source.format], options.delimiter) and not options.quiet:
        print_notice(f"the separator of the columns of IN is {source.delimiter!r}, from its header; --delimiter sets another one")
    pool = ProcessPool(processes, lambda: prepare(settings, options, source))
    try:
        ready = pool.ready_message()
        run_of = {
            "input": None if options.source.is_stream else file_identity(options.source.path),
            "model": ready.model,
            "options": output_options(options, source),
        }
        results = Results(options, run_of, ready.labels, ready.start)
        try:
            return execute(FileRun(options, source, ready.columns, pool, results))
        finally:
            results.close()
    finally:
        pool.close()


def output_options(options: Options, source: "RowSource") -> dict[str, Any]:
    """Returns the options that affect the output."""
    other = {"delimiter": source.delimiter} if source.delimiter != DELIMITERS[options.source.format] else {}
    # Earlier versions wrote the labels of an unfinished Parquet file as texts. Such a file cannot be continued.
    other |= {"labels": "dictionary"} if options.target.format == "parquet" else {}
    return other | {
        "in_format": options.source.format,
        "out_format": options.target.format,
        "packed": options.target.gzip,
        "features": list(options.features),
        "keep": list(options.keep),
        "header": options.header,
        "digest": options.digest,
        "shard": list(options.shard),
    }


class FileRun:
    """Run over the rest of a file, from the position of the checkpoint."""

    def __init__(self, options: Options, source: "RowSource", columns: list[str], pool: ProcessPool, results: Results) -> None:
        self.options, self.source, self.columns, self.pool, self.results = options, source, columns, pool, results

    @property
    def counts(self) -> RowCounts:
        return RowCounts(self.results.progress.ok, self.results.progress.bad)

    def chunks(self) -> Iterator[int]:
        for chunk, scored in self.pool.map(self.requests()):
            self.results.add(chunk, scored)
            yield self.source.done(chunk.next)

    def requests(self) -> Iterator[tuple[Chunk, tuple[bytes, int]]]:
        """Yields the remaining chunks of this shard with the arguments for a pool process."""
        index, count = self.options.shard
        for chunk in self.source.chunks(self.results.progress.next, self.columns):
            if chunk.start.chunk % count == index:
                yield chunk, (chunk.data, chunk.start.line)

    def finish(self, status: ExitStatus) -> None:
        if status is ExitStatus.GOOD:
            # Frees the memory of the processes before a conversion to Parquet.
            self.pool.close()
            self.results.finish()
        else:
            self.results.save(status.run_status)


def execute(run: FileRun) -> ExitStatus:
    options, results, target = run.options, run.results, run.options.target
    if not results.begin():
        print_notice(f"nothing to do: run {results.checkpoint.document['run']} has written {target.path}")
        return ExitStatus.GOOD
    progress = ProgressReporter(run.source.total, run.source.unit, options.quiet)
    status, reason = run_to_end(run, target.path, options.max_bad, StopSignal(), progress)
    if status is not ExitStatus.GOOD or not options.quiet:
        bad = results.progress.bad
        listed = "" if options.errors.path == STANDARD else f", listed in {options.errors.path}"
        resumable = not options.source.is_stream and not target.is_stream
        counted = results.progress.ok, results.progress.labels, f"; {bad} bad{listed}" if bad else ""
        report(status, summary(status, reason, target.path, *counted, resumable))
    return status


def prepare(
    settings: Settings, options: Options, source: "RowSource"
) -> tuple[ReadyMessage, Callable[[bytes, int], ScoredChunk]]:
    """Sets up a pool process. Raises BadModel, and BadSetting for missing columns."""
    model, golden, _ = load_verified_model(Path(settings.model_dir), settings.model_seal)
    features = feature_names(model, options.features)
    if not isinstance(source, TextSource) and not options.features:
        features = spelled_names(features, source.schema.names)
    reader = make_reader(model, features, options, source)
    writer = make_writer(model, options, reader)
    pack = compress if options.target.gzip else bytes
    metadata = {"name": model.name, "version": model.version, "digest": model.digest, "seal": golden.seal}
    message = ReadyMessage(metadata, model.labels, pack(writer.start), [*dict.fromkeys((*features, *options.keep))])
    return message, chunk_scorer(ChunkScorer(model, reader, writer), pack)


def chunk_scorer(scorer: ChunkScorer, pack: Callable[[bytes], bytes]) -> Callable[[bytes, int], ScoredChunk]:
    def score(data: bytes, line: int) -> ScoredChunk:
        try:
            scored = scorer.score(data, line)
        except BadModel as error:
            raise BadModel(f"{error} It was run on the rows from line {line} on.") from None
        except Exception as error:
            # Must not look like a killed process, after which users repeat the command.
            raise Stopped(f"a defect at the rows from line {line} on: {error!r}"[:300]) from None
        return scored._replace(data=pack(scored.data))

    return score


def compress(data: bytes) -> bytes:
    """Returns a separate gzip member, so that a run can resume after any chunk. Without a time it is reproducible."""
    return gzip.compress(data, 6, mtime=0) if data else b""


def make_reader(model: Model, features: Sequence[str], options: Options, source: "RowSource") -> RowReader:
    """Raises BadSetting if a column is missing."""
    if not isinstance(source, TextSource):
        from iris_wsgi.tabular.parquet import ParquetReader

        return ParquetReader(source.schema, model.schema, features, options.keep, options.target.format != "parquet")
    if source.delimiter is None:
        return JsonReader(model.schema, features, options.keep, similar=not options.features)
    columns = csv_columns(model, source.first, source.delimiter, options.header, options.features, options.keep)
    return CsvReader(columns, source.delimiter, model.schema, source.swapped)


def make_writer(model: Model, options: Options, reader: RowReader) -> RowWriter:
    if options.target.format == "parquet":
        from iris_wsgi.tabular.parquet import ArrowWriter

        return ArrowWriter(model, options.keep, getattr(reader, "kept_types", None), options.digest)
    delimiter = DELIMITERS[options.target.format]
    if delimiter is None:
        return JsonWriter(model, options.keep, options.digest)
    return CsvWriter(model, options.keep, options.digest, delimiter)
