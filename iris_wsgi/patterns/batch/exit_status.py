"""End of a run over a file or a table: exit status, signals, the limit of bad rows, and the summary."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import IntEnum
from types import FrameType
from typing import NamedTuple, Protocol

from iris_wsgi.console import print_error, print_notice
from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.patterns.batch.options import MaxBad

# Maximum number of labels in the summary.
MAX_LABELS = 20


class ExitStatus(IntEnum):
    """Exit status of the process. After INTERRUPTED and STOPPED, the same command resumes the run."""

    GOOD = 0
    BAD_MODEL = 1
    BAD_ARGUMENTS = 2
    TOO_MANY_BAD = 3
    INTERRUPTED = 4
    STOPPED = 5
    MISCOUNTED = 6

    @property
    def run_status(self) -> str:
        """The status in the checkpoint of a file run and in the record of a table run."""
        failed = self in (ExitStatus.TOO_MANY_BAD, ExitStatus.BAD_MODEL, ExitStatus.MISCOUNTED)
        return "succeeded" if self is ExitStatus.GOOD else "failed" if failed else "interrupted"


class Miscounted(Stopped):
    """The number of input rows is not the number of predictions and bad rows."""


class RowCounts(NamedTuple):
    ok: int
    bad: int


STATUS_OF = {BadModel: ExitStatus.BAD_MODEL, Miscounted: ExitStatus.MISCOUNTED}


class Run(Protocol):
    """Remaining work of a run. Each method raises Stopped, BadModel, or OSError."""

    @property
    def counts(self) -> RowCounts: ...

    def chunks(self) -> Iterator[int]:
        """Starts the run; yields the finished amount of input after each chunk."""

    def finish(self, status: ExitStatus) -> None: ...


class RunProgress(Protocol):
    """Display of the progress of a run."""

    def update(self, done: float, rows: int, bad: int) -> None: ...
    def end(self) -> None: ...


class StopSignal:
    """Handler of SIGINT and SIGTERM. The first ends the run after a chunk; the second ends the process at once, safely."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, _: FrameType | None) -> None:
        if self.number:
            os._exit(ExitStatus.INTERRUPTED)
        self.number = number


def run_to_end(run: Run, target: object, limit: MaxBad, stop: StopSignal, progress: RunProgress) -> tuple[ExitStatus, str]:
    """Executes a run that writes `target`. Returns its status and the reason."""
    try:
        status, reason = consume(run, limit, stop, progress)
        run.finish(status)
    except (Stopped, BadModel, OSError) as error:
        status, reason = STATUS_OF.get(type(error), ExitStatus.STOPPED), str(error)
        if isinstance(error, OSError):
            reason = f"{error.filename or target}: {error.strerror}"
        if isinstance(error, BrokenPipeError):
            reason = "the reader of the output closed it"
        # The finished rows can often still be saved.
        with suppress(Stopped, OSError):
            run.finish(status)
    finally:
        progress.end()
    return status, reason


def consume(run: Run, limit: MaxBad, stop: StopSignal, progress: RunProgress) -> tuple[ExitStatus, str]:
    for done in run.chunks():
        progress.update(done, sum(run.counts), run.counts.bad)
        if stop.number:
            return ExitStatus.INTERRUPTED, signal.Signals(stop.number).name
        if limit.rows is not None and run.counts.bad > limit.rows:
            break
    reason = too_many_bad(limit, *run.counts)
    return ExitStatus.TOO_MANY_BAD if reason else ExitStatus.GOOD, reason


def too_many_bad(limit: MaxBad, ok: int, bad: int) -> str:
    """Returns the reason for which bad rows fail the run, or an empty string."""
    if limit.rows is not None and bad > limit.rows:
        return f"{bad} bad rows are more than --max-bad {limit.rows}"
    if limit.percent is not None and bad * 100 > limit.percent * (ok + bad):
        return f"{bad} bad rows of {ok + bad} are more than --max-bad {limit.percent:g}%"
    if bad and not ok and limit == MaxBad():
        return f"all {bad} rows are bad"
    return ""


def most_frequent(labels: Mapping[str, int]) -> Mapping[str, int]:
    """Returns the number of rows by label, and only the most frequent of many labels."""
    if len(labels) <= MAX_LABELS:
        return labels
    return dict(sorted(labels.items(), key=lambda item: -item[1])[:MAX_LABELS])


def summary(
    status: ExitStatus, reason: str, target: object, ok: int, labels: Mapping[str, int], bad: str, resumable: bool = True
) -> str:
    """Returns the last line of output; `resumable` states whether the same command resumes the run."""
    by_label = ", ".join(f"{count} {name}" for name, count in most_frequent(labels).items())
    by_label += f", … ({len(labels)} labels)" if len(labels) > MAX_LABELS else ""
    rows = f"{ok} rows{': ' if by_label else ''}{by_label}{bad}"
    if status is ExitStatus.GOOD:
        return f"wrote {target}, {rows}"
    if status.run_status == "failed":
        return f"failed: {reason}; {rows}"
    return f"stopped: {reason}, after {rows}{'; the same command resumes the run' if resumable else ''}"


def report(status: ExitStatus, line: str) -> None:
    """Prints the last line of a run."""
    (print_notice if status is ExitStatus.GOOD else print_error)(line)
