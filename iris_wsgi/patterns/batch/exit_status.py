"""How a run over a file or a table ends: at its end, by too many bad rows, by a signal, by what it cannot do."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import IntEnum
from types import FrameType
from typing import NamedTuple, Protocol

from iris_wsgi.console import Teller
from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.patterns.batch.options import MaxBad


class End(IntEnum):
    """As the status of its process. After INTERRUPTED and STOPPED the same command goes on."""

    GOOD = 0
    BAD_MODEL = 1
    BAD_ARGUMENTS = 2
    TOO_MANY_BAD = 3
    INTERRUPTED = 4
    STOPPED = 5
    MISCOUNTED = 6

    @property
    def status(self) -> str:
        """What the record of a run says of it."""
        failed = self in (End.TOO_MANY_BAD, End.BAD_MODEL, End.MISCOUNTED)
        return "succeeded" if self is End.GOOD else "failed" if failed else "interrupted"


class Miscounted(Stopped):
    """Rows in are not rows out and bad rows together."""


class Counts(NamedTuple):
    """How many rows are done."""

    ok: int
    bad: int


ENDS = {BadModel: End.BAD_MODEL, Miscounted: End.MISCOUNTED}


class Run(Protocol):
    """What is left to do. Whatever is done in it raises Stopped, BadModel or OSError."""

    @property
    def counts(self) -> Counts: ...

    def chunks(self) -> Iterator[int]:
        """Begins, and after each chunk tells how much is behind it."""

    def finish(self, end: End) -> None: ...


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


def end_of(run: Run, target: object, limit: MaxBad, wish: Wish, told: Teller) -> tuple[End, str]:
    """Carries out a run into `target`: how it ended, and why."""
    try:
        end, why = come_to(run, limit, wish, told)
        run.finish(end)
    except (Stopped, BadModel, OSError) as error:
        end, why = ENDS.get(type(error), End.STOPPED), str(error)
        if isinstance(error, OSError):
            why = f"{error.filename or target}: {error.strerror}"
        if isinstance(error, BrokenPipeError):
            why = "nobody reads the output any more"
        # It may be that only the next rows are the trouble.
        with suppress(Stopped, OSError):
            run.finish(end)
    finally:
        told.end()
    return end, why


def come_to(run: Run, limit: MaxBad, wish: Wish, told: Teller) -> tuple[End, str]:
    for done in run.chunks():
        told.tell(done, sum(run.counts), run.counts.bad)
        if wish.number:
            return End.INTERRUPTED, signal.Signals(wish.number).name
        if limit.rows is not None and run.counts.bad > limit.rows:
            break
    why = too_many(limit, *run.counts)
    return End.TOO_MANY_BAD if why else End.GOOD, why


def too_many(limit: MaxBad, ok: int, bad: int) -> str:
    """Why the bad rows fail the run; empty where they do not."""
    if limit.rows is not None and bad > limit.rows:
        return f"{bad} bad rows are more than --max-bad {limit.rows}"
    if limit.percent is not None and bad * 100 > limit.percent * (ok + bad):
        return f"{bad} bad rows of {ok + bad} are more than --max-bad {limit.percent:g}%"
    if bad and not ok and limit == MaxBad():
        return f"all {bad} rows are bad"
    return ""


def summary(end: End, why: str, target: object, labels: Mapping[str, int], bad: str, goes_on: bool = True) -> str:
    """The last line for people; `goes_on` tells whether the same command would."""
    rows = f"{sum(labels.values())} rows: {', '.join(f'{count} {name}' for name, count in labels.items())}{bad}"
    if end is End.GOOD:
        return f"wrote {target}, {rows}"
    if end.status == "failed":
        return f"failed: {why}; {rows}"
    return f"stopped: {why}, after {rows}{'; the same command goes on' if goes_on else ''}"
