"""Command batch over files: a pool of processes scores the chunks of one file after the other."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from iris_wsgi.console import ProgressReporter, print_error, print_notice, remedy_for_extra
from iris_wsgi.cpu_limits import worker_count
from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.chunk_worker import OpenFile, OutputHead, ScoreChunk, load_worker
from iris_wsgi.patterns.batch.exit_status import ExitStatus, RowCounts, RunProgress, StopSignal, report, run_to_end, summary
from iris_wsgi.patterns.batch.file_set import FileSet, named_failures, parse_runs
from iris_wsgi.patterns.batch.options import BAD_ROWS, STANDARD, Options, parse_table_options
from iris_wsgi.patterns.batch.process_pool import ProcessPool
from iris_wsgi.patterns.batch.results import Progress, RemoteOutput, Results, file_identity
from iris_wsgi.patterns.batch.sources import DELIMITERS, TextSource, open_source
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.storage.remote_files import is_url
from iris_wsgi.tabular.record_splitter import Chunk

if TYPE_CHECKING:
    from iris_wsgi.patterns.batch.sources import RowSource


def batch(settings: Settings, given: Mapping[str, Any]) -> int:
    """Runs the command and returns its exit status. Raises BadSetting and BadModel."""
    try:
        if given["engine"] == "ray":
            return ray_engine()(given, settings)
        if given["table"] is None:
            return run_files(given, settings, worker_count(settings)[0])
        from iris_wsgi.patterns.batch.table_run import run_table

        return run_table(parse_table_options(given, settings.database_url), settings)
    except Stopped as stopped:
        print_error(f"stopped: {stopped}")
        return ExitStatus.STOPPED


def ray_engine() -> Callable[[Mapping[str, Any], Settings], ExitStatus]:
    """Returns the function that runs the command on Ray. Raises BadSetting in the image, which has neither its module nor Ray."""
    try:
        from iris_wsgi.patterns.batch.ray_engine import run_on_ray
    except ImportError:
        raise BadSetting(f"--engine ray needs the package ray: {remedy_for_extra('ray')}") from None
    return run_on_ray


def run_files(given: Mapping[str, Any], settings: Settings, processes: int) -> ExitStatus:
    """Scores the files of IN one after the other. Raises BadSetting, BadModel, and Stopped."""
    # The connections to object storage have threads, which a fork does not keep. So a URL is opened after the fork.
    files = None if is_url(given["source"] or "") else parse_runs(given)
    if files is None:
        with suppress(ImportError):
            load_parquet()
    else:
        require_packages(files)
    pool = ProcessPool(processes, lambda: load_worker(settings))
    try:
        if files is None:
            files = parse_runs(given)
            require_packages(files)
        pool.wait_ready()
        return run_single(files.runs[0], pool) if files.is_single else run_set(files, pool)
    finally:
        pool.close()


def load_parquet() -> None:
    """Imports the code of Parquet, which the processes of a pool share if this is before the fork. Raises ImportError."""
    import iris_wsgi.tabular.parquet  # noqa: F401


def require_packages(files: FileSet) -> None:
    """Raises BadSetting if a file is Parquet, and pyarrow is missing."""
    if any("parquet" in (run.source.format, run.target.format) for run in files.runs):
        try:
            load_parquet()
        except ImportError:
            raise BadSetting(f"Parquet needs the package pyarrow: {remedy_for_extra('parquet')}") from None


class RunEnd(NamedTuple):
    """End of a run over a file: its status and reason, its counts, and the id of the earlier run that had finished it, if any."""

    status: ExitStatus
    reason: str
    progress: Progress
    earlier: str


def run_single(options: Options, pool: ProcessPool) -> ExitStatus:
    def reporter(source: "RowSource") -> ProgressReporter:
        return ProgressReporter(source.total, source.unit, options.quiet)

    status, reason, progress, earlier = run_file(options, pool, StopSignal(), reporter, is_last=True)
    if earlier:
        print_notice(f"nothing to do: run {earlier} has written {options.target.name}")
    elif status is not ExitStatus.GOOD or not options.quiet:
        listed = "" if options.errors.path == STANDARD else f", listed in {options.errors.name}"
        resumable = not options.source.is_stream and not options.target.is_stream
        bad = f"; {progress.bad} bad{listed}" if progress.bad else ""
        report(status, summary(status, reason, options.target.name, progress.ok, progress.labels, bad, resumable))
    return status


def run_set(files: FileSet, pool: ProcessPool) -> ExitStatus:
    """Scores all files until one fails. Each has its own output and record, so that a repetition continues with this file."""
    stop, reporter = StopSignal(), ProgressReporter(len(files.runs), " files", files.quiet)
    ends: list[RunEnd] = []
    progress = SetProgress(reporter)
    try:
        for options in files.runs:
            ends.append(run_of_set(options, pool, stop, progress, len(ends) + 1 == len(files.runs)))
            progress.add(ends[-1])
            if stop.number or ends[-1].status is not ExitStatus.GOOD:
                break
    finally:
        reporter.end()
    status, reason = (ends[-1].status, ends[-1].reason) if ends else (ExitStatus.GOOD, "")
    if len(ends) < len(files.runs) and status is ExitStatus.GOOD:
        status, reason = ExitStatus.INTERRUPTED, signal.Signals(stop.number).name
    if status is ExitStatus.GOOD and all(end.earlier for end in ends):
        print_notice(f"nothing to do: {files.target} has the predictions of all {len(ends)} files of this run")
    elif status is not ExitStatus.GOOD or not files.quiet:
        labels: Counter[str] = Counter()
        for end in ends:
            labels.update(end.progress.labels)
        done = sum(end.status is ExitStatus.GOOD for end in ends)
        listed = f"; {progress.bad} bad, listed in files *{BAD_ROWS}" if progress.bad else ""
        written = f"{files.target}, {done} file{'s' * (done != 1)}"
        report(status, summary(status, reason, written, progress.rows - progress.bad, labels, listed))
    return status


def run_of_set(options: Options, pool: ProcessPool, stop: StopSignal, progress: "SetProgress", is_last: bool) -> RunEnd:
    """Scores a file of a set. Names it in exceptions and in the reason."""
    try:
        if not is_url(options.target.path):
            os.makedirs(os.path.dirname(options.target.path), exist_ok=True)
        with named_failures(options.source.name):
            end = run_file(options, pool, stop, progress.of, is_last)
    except OSError as error:
        raise BadSetting(f"{error.filename} cannot be written: {error.strerror}") from None
    return end._replace(reason=f"{options.source.name}: {end.reason}" if end.reason else "")


class SetProgress:
    """Progress in files over a set of files, in which parts of a file count as fractions."""

    def __init__(self, reporter: ProgressReporter) -> None:
        self.reporter = reporter
        self.files = self.rows = self.bad = 0

    def add(self, end: RunEnd) -> None:
        self.files += 1
        self.rows += end.progress.read
        self.bad += end.progress.bad

    def of(self, source: "RowSource") -> "SetProgress":
        self.size = source.total
        return self

    def update(self, done: float, rows: int, bad: int) -> None:
        part = min(done / self.size, 1) if self.size else 0
        self.reporter.update(self.files + part, self.rows + rows, self.bad + bad)

    def end(self) -> None:
        """The progress of the set continues."""


def run_file(
    options: Options,
    pool: ProcessPool,
    stop: StopSignal,
    progress_of: Callable[["RowSource"], RunProgress],
    is_last: bool,
) -> RunEnd:
    """Scores a file. Raises BadSetting, BadModel, and Stopped."""
    remote = RemoteOutput(options) if is_url(options.target.path) else None
    options = remote.options if remote else options
    with closing(open_source(options.source, options.header, options.delimiter)) as source:
        if source.delimiter not in (DELIMITERS[options.source.format], options.delimiter) and not options.quiet:
            separator = f"the separator of the columns of IN is {source.delimiter!r}"
            print_notice(f"{separator}, from its header; --delimiter sets another one")
        head: OutputHead = pool.broadcast(OpenFile(options, source.layout))
        run_of = {
            "input": None if options.source.is_stream else file_identity(options.source.path),
            "model": head.model,
            "options": output_options(options, source),
        }
        if remote and (found := remote.finished(run_of)):
            remote.close()
            return RunEnd(ExitStatus.GOOD, "", found.progress(), str(found.document["run"]))
        with closing(Results(options, run_of, head.labels, head.start)) as results:
            end = execute(FileRun(options, source, head.columns, pool, results, is_last), stop, progress_of(source))
    if remote and end.status is ExitStatus.GOOD:
        remote.upload()
    return end


def output_options(options: Options, source: "RowSource") -> dict[str, Any]:
    """Returns the options that affect the output."""
    other: dict[str, Any] = {"delimiter": source.delimiter} if source.delimiter != DELIMITERS[options.source.format] else {}
    # Earlier versions read other batches of Parquet, and wrote labels as texts. Their unfinished files cannot be continued.
    other |= {} if isinstance(source, TextSource) else {"batch_rows": source.batch_rows}
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

    def __init__(
        self, options: Options, source: "RowSource", columns: list[str], pool: ProcessPool, results: Results, is_last: bool
    ) -> None:
        """`is_last` means that no other run needs the pool."""
        self.options, self.source, self.columns, self.pool, self.results = options, source, columns, pool, results
        self.is_last = is_last

    @property
    def counts(self) -> RowCounts:
        return RowCounts(self.results.progress.ok, self.results.progress.bad)

    def chunks(self) -> Iterator[int]:
        for chunk, scored in self.pool.map(self.requests()):
            self.results.add(chunk, scored)
            yield self.source.done(chunk.next)

    def requests(self) -> Iterator[tuple[Chunk, ScoreChunk]]:
        """Yields the remaining chunks of this shard with their requests."""
        index, count = self.options.shard
        for chunk in self.source.chunks(self.results.progress.next, self.columns):
            if chunk.start.chunk % count == index:
                yield chunk, ScoreChunk(chunk.data, chunk.start.line)

    def finish(self, status: ExitStatus) -> None:
        if status is ExitStatus.GOOD:
            if self.is_last:
                # Frees the memory of the processes before a conversion to Parquet.
                self.pool.close()
            self.results.finish()
        else:
            self.results.save(status.run_status)


def execute(run: FileRun, stop: StopSignal, progress: RunProgress) -> RunEnd:
    results = run.results
    if not results.begin():
        return RunEnd(ExitStatus.GOOD, "", results.progress, str(results.checkpoint.document["run"]))
    status, reason = run_to_end(run, run.options.target.name, run.options.max_bad, stop, progress)
    return RunEnd(status, reason, results.progress, "")
