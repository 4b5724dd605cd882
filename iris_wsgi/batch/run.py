"""A run over a file: chunks out of it, through the processes, into the output; and how it ends."""

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from types import FrameType
from typing import Any

from iris_wsgi.batch.cutter import Chunk
from iris_wsgi.batch.options import STANDARD, MaxBad, Options
from iris_wsgi.batch.progress import teller
from iris_wsgi.batch.record import Progress, identity
from iris_wsgi.batch.results import Results
from iris_wsgi.batch.scoring import message_of, outcome_of, prepared
from iris_wsgi.batch.sources import BatchSource, Broken, Source, TextSource
from iris_wsgi.batch.team import Lost, Team
from iris_wsgi.errors import BadModel
from iris_wsgi.settings import BadSetting, Settings

Say = Callable[[str], None]


class End(IntEnum):
    """How a run ends, as the status of its process. After INTERRUPTED and STOPPED the same command goes on."""

    GOOD = 0
    BAD_MODEL = 1
    BAD_ARGUMENTS = 2
    TOO_MANY_BAD = 3
    INTERRUPTED = 4
    STOPPED = 5


# What the record of a run says of that.
STATUS = {
    End.GOOD: "succeeded",
    End.TOO_MANY_BAD: "failed",
    End.INTERRUPTED: "interrupted",
    End.STOPPED: "interrupted",
}


class Wish:
    """SIGINT and SIGTERM: the run is to end soon; the second ends it at once, which loses nothing either."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.heard)

    def heard(self, number: int, _: FrameType | None) -> None:
        if self.number:
            os._exit(End.INTERRUPTED)
        self.number = number


def run_file(options: Options, settings: Settings, processes: int, say: Say) -> End:
    """The whole of it; lines for people go to `say`. Raises BadSetting and BadModel."""
    if "parquet" in (options.source.format, options.target.format):
        # Before the processes are there, so that they share its memory.
        import_parquet()
    try:
        text = None if options.source.format == "parquet" else TextSource(options.source, options.header)
        header, first = (text.header, text.first()) if text else (b"", b"")
        team = Team(processes, lambda: prepared(settings, options, header, first))
    except (Broken, Lost) as error:
        say(str(error))
        return End.STOPPED
    try:
        greeting = greeted(team)
        run_of = {
            "input": None if options.source.is_stream else identity(options.source.path),
            "model": greeting["model"],
            "options": what_counts(options),
        }
        results = Results(options, run_of, greeting["labels"], bytes.fromhex(greeting["start"]))
        try:
            return go(options, text or BatchSource(greeting["rows"]), team, results, say)
        finally:
            results.close()
    finally:
        team.end()


def import_parquet() -> None:
    """Raises BadSetting where there is no pyarrow."""
    try:
        import iris_wsgi.batch.parquet  # noqa: F401
    except ImportError:
        raise BadSetting("Parquet needs pyarrow: bin/setup parquet, or pip install 'iris_wsgi[parquet]'") from None


def greeted(team: Team) -> dict[str, Any]:
    """What the processes say of the model. Raises BadModel and BadSetting."""
    told: dict[str, Any] = json.loads(team.greeting)
    if "error" in told:
        raise (BadModel if told["model"] else BadSetting)(told["error"])
    return told


def what_counts(options: Options) -> dict[str, Any]:
    """The options that change the output."""
    return {
        "in_format": options.source.format,
        "out_format": options.target.format,
        "packed": options.target.packed,
        "features": list(options.features),
        "keep": list(options.keep),
        "header": options.header,
        "digest": options.digest,
        "shard": list(options.shard),
    }


def go(options: Options, source: Source, team: Team, results: Results, say: Say) -> End:
    """From where the results are to the end, or to whatever comes before."""
    if not results.begin():
        say(f"nothing to do: run {results.record.told['run']} has written {options.target.path}")
        return End.GOOD
    wish, told = Wish(), teller(source.total, source.unit, options.quiet)

    def chunks() -> Iterator[Progress]:
        for chunk, answer in team.map(messages(options, source, results.progress)):
            results.add(chunk, outcome_of(answer))
            at = results.progress
            told.tell(source.done(chunk.next), at.ok + at.bad, at.bad)
            yield at

    try:
        end, why = end_of(results.progress, chunks(), options.max_bad, wish)
        if end is End.GOOD:
            # What is left to do is done here, and the processes' memory is free for it.
            team.end()
            results.finish()
        else:
            results.save(STATUS[end])
    except BrokenPipeError:
        end, why = End.STOPPED, "nobody reads the output any more"
    except OSError as error:
        end, why = End.STOPPED, f"{error.filename or options.target.path}: {error.strerror}"
    except (Broken, Lost) as error:
        end, why = End.STOPPED, str(error)
    finally:
        told.end()
    if end is not End.GOOD or not options.quiet:
        at = results.progress
        bad = f"; {at.bad} bad{'' if options.errors == STANDARD else f', told in {options.errors}'}" if at.bad else ""
        goes_on = not options.source.is_stream and not options.target.is_stream
        say(summary(end, why, options.target.path, at.labels, bad, goes_on))
    return end


def messages(options: Options, source: Source, progress: Progress) -> Iterator[tuple[Chunk, bytes]]:
    """The chunks of this shard that are not done, as the processes want them."""
    which, of = options.shard
    for chunk in source.chunks(progress.next):
        if chunk.start.chunk % of == which:
            yield chunk, message_of(chunk.data, chunk.start.line)


def end_of(at: Progress, chunks: Iterable[Progress], limit: MaxBad, wish: Wish) -> tuple[End, str]:
    """How a run ends that has come so far and does these chunks, and why; they say how far it has come with each."""
    for at in chunks:
        if wish.number:
            return End.INTERRUPTED, signal.Signals(wish.number).name
        if limit.rows is not None and at.bad > limit.rows:
            break
    why = too_many(limit, at)
    return End.TOO_MANY_BAD if why else End.GOOD, why


def too_many(limit: MaxBad, at: Progress) -> str:
    """Why the bad rows fail the run; empty where they do not."""
    rows = at.ok + at.bad
    if limit.rows is not None and at.bad > limit.rows:
        return f"{at.bad} bad rows are more than --max-bad {limit.rows}"
    if limit.percent is not None and at.bad * 100 > limit.percent * rows:
        return f"{at.bad} bad rows of {rows} are more than --max-bad {limit.percent:g}%"
    if at.bad and not at.ok and limit == MaxBad():
        return f"all {rows} rows are bad"
    return ""


def summary(end: End, why: str, target: object, labels: Mapping[str, int], bad: str, goes_on: bool) -> str:
    """The last line for people; `goes_on` tells whether the same command would."""
    rows = f"{sum(labels.values())} rows: {', '.join(f'{count} {name}' for name, count in labels.items())}{bad}"
    if end is End.GOOD:
        return f"wrote {target}, {rows}"
    if end is End.TOO_MANY_BAD:
        return f"failed: {why}; {rows}"
    return f"stopped: {why}, after {rows}{'; the same command goes on' if goes_on else ''}"
