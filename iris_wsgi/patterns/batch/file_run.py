"""The command batch, and a run over a file: chunks out of it, through the processes, into the output."""

from collections.abc import Iterator, Mapping
from typing import Any

from iris_wsgi.console import Teller, tell
from iris_wsgi.cpu_limits import workers_for
from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.checkpoint import identity
from iris_wsgi.patterns.batch.exit_status import Counts, End, Wish, end_of, summary
from iris_wsgi.patterns.batch.options import Options, options_of, table_options_of
from iris_wsgi.patterns.batch.process_pool import Team
from iris_wsgi.patterns.batch.results import Results
from iris_wsgi.patterns.batch.setup import prepared
from iris_wsgi.patterns.batch.sources import DELIMITERS, Source, source_of
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.tabular.paths import STANDARD
from iris_wsgi.tabular.record_splitter import Chunk


def batch(settings: Settings, given: Mapping[str, Any]) -> int:
    """The status; 0 is good. Raises BadSetting and BadModel."""
    try:
        if given["table"] is None:
            return run_file(options_of(given), settings, workers_for(settings)[0])
        from iris_wsgi.patterns.batch.table_run import run_table

        return run_table(table_options_of(given, settings.database_url), settings, tell)
    except Stopped as stopped:
        tell(f"stopped: {stopped}")
        return End.STOPPED


def run_file(options: Options, settings: Settings, processes: int) -> End:
    """The whole of it. Raises BadSetting, BadModel and Stopped."""
    if "parquet" in (options.source.format, options.target.format):
        try:
            # Before the processes are there, so that they share its memory.
            import iris_wsgi.tabular.parquet  # noqa: F401
        except ImportError:
            raise BadSetting("Parquet needs pyarrow: bin/setup parquet, or pip install 'iris_wsgi[parquet]'") from None
    source = source_of(options.source, options.header, options.delimiter)
    if source.delimiter not in (DELIMITERS[options.source.format], options.delimiter) and not options.quiet:
        tell(f"the columns of IN are delimited by {source.delimiter!r}, as its header says; --delimiter names another character")
    team = Team(processes, lambda: prepared(settings, options, source))
    try:
        greeting = team.greeting()
        run_of = {
            "input": None if options.source.is_stream else identity(options.source.path),
            "model": greeting.model,
            "options": what_counts(options, source),
        }
        results = Results(options, run_of, greeting)
        try:
            return go(FileRun(options, source, greeting.columns, team, results))
        finally:
            results.close()
    finally:
        team.end()


def what_counts(options: Options, source: Source) -> dict[str, Any]:
    """The options that change the output."""
    other = {"delimiter": source.delimiter} if source.delimiter != DELIMITERS[options.source.format] else {}
    return other | {
        "in_format": options.source.format,
        "out_format": options.target.format,
        "packed": options.target.packed,
        "features": list(options.features),
        "keep": list(options.keep),
        "header": options.header,
        "digest": options.digest,
        "shard": list(options.shard),
    }


class FileRun:
    """From where the results are to the end of the file."""

    def __init__(self, options: Options, source: Source, columns: list[str], team: Team, results: Results) -> None:
        self.options, self.source, self.columns, self.team, self.results = options, source, columns, team, results

    @property
    def counts(self) -> Counts:
        return Counts(self.results.progress.ok, self.results.progress.bad)

    def chunks(self) -> Iterator[int]:
        for chunk, outcome in self.team.map(self.questions()):
            self.results.add(chunk, outcome)
            yield self.source.done(chunk.next)

    def questions(self) -> Iterator[tuple[Chunk, tuple[bytes, int]]]:
        """The chunks of this shard that are not done, as the processes want them."""
        which, of = self.options.shard
        for chunk in self.source.chunks(self.results.progress.next, self.columns):
            if chunk.start.chunk % of == which:
                yield chunk, (chunk.data, chunk.start.line)

    def finish(self, end: End) -> None:
        if end is End.GOOD:
            # What is left to do is done here, and the processes' memory is free for it.
            self.team.end()
            self.results.finish()
        else:
            self.results.save(end.status)


def go(run: FileRun) -> End:
    options, results, target = run.options, run.results, run.options.target
    if not results.begin():
        tell(f"nothing to do: run {results.record.told['run']} has written {target.path}")
        return End.GOOD
    teller = Teller(run.source.total, run.source.unit, options.quiet)
    end, why = end_of(run, target.path, options.max_bad, Wish(), teller)
    if end is not End.GOOD or not options.quiet:
        bad = results.progress.bad
        told = f"; {bad} bad{'' if options.errors.path == STANDARD else f', told in {options.errors.path}'}" if bad else ""
        goes_on = not options.source.is_stream and not target.is_stream
        tell(summary(end, why, target.path, results.progress.labels, told, goes_on))
    return end
