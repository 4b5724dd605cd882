"""What a run leaves behind: its output, its bad rows, its record; and from where it goes on."""

import csv
import io
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from iris_wsgi.patterns.batch.checkpoint import Progress, Record, begun, read
from iris_wsgi.patterns.batch.exit_status import Miscounted
from iris_wsgi.patterns.batch.options import Options
from iris_wsgi.patterns.batch.setup import Greeting
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import AppendFile, StdStream, destination
from iris_wsgi.tabular.paths import RECORD, open_output
from iris_wsgi.tabular.record_splitter import Chunk, Position
from iris_wsgi.tabular.scorer import ScoredChunk

ERRORS_START = b"line,column,reason\n"


class Results:
    """All that a run writes. What its record notes is on the disk before; what is there beyond that is done again."""

    def __init__(self, options: Options, run_of: dict[str, Any], greeting: Greeting) -> None:
        """`run_of` makes this run the same as an earlier one. Raises BadSetting."""
        self.options, self.start = options, greeting.start
        self.target = Path(options.target.path)
        self.saved_at = time.monotonic()
        self.record = begun(record_path(options), run_of)
        self.progress = Progress(Position(), 0, 0, 0, 0, dict.fromkeys(greeting.labels, 0))
        with ExitStack() as opened:
            self.output = output_for(options)
            opened.callback(self.output.close)
            earlier = self.earlier()
            if earlier is not None:
                self.record, self.progress = earlier, earlier.progress()
            self.errors = errors_for(options)
            opened.callback(self.errors.close)
            if earlier is None and self.errors.size and not options.force:
                raise BadSetting(f"{options.errors.path} is there, and not of this run; --force writes over it")
            self.close = opened.pop_all().close

    def earlier(self) -> Record | None:
        """The record of the same run, if it is there and counts."""
        if self.options.force or self.options.target.is_stream:
            return None
        found = read(self.record.path)
        if found is None:
            if self.target.exists():
                raise BadSetting(f"{self.target} is there, and no record of a run beside it; --force writes over it")
            return None
        old, now = found.told["of"], self.record.told["of"]
        if differing := [name for name in now if old.get(name) != now[name]]:
            raise BadSetting(f"{self.target} is of another run: its {' and '.join(differing)} differ; --force begins anew")
        if now["input"] is None or (found.status == "succeeded" and not self.target.exists()):
            return None
        return found

    def begin(self) -> bool:
        """Goes on, or begins; False where nothing is left to do. Raises BadSetting."""
        at, status = self.progress, self.record.status
        if status in ("succeeded", "finishing") and self.output.size < at.output_bytes:
            # What is not there any more under its temporary name has been renamed.
            self.output.discard()
            if status == "finishing":
                self.record.save("succeeded", at)
            return False
        if self.output.size < at.output_bytes or self.errors.size < at.error_bytes:
            raise BadSetting(f"{self.target}.partial or {self.options.errors.path} was cut off; --force begins anew")
        # First of all, so that whatever a kill leaves behind is known to be of this run.
        self.save("running")
        self.output.begin(at.output_bytes)
        self.errors.begin(at.error_bytes)
        if at.error_bytes == 0:
            self.errors.write(ERRORS_START)
        if at.output_bytes == 0:
            self.output.write(self.start)
        self.note(self.progress)
        return True

    def note(self, progress: Progress) -> None:
        self.progress = progress._replace(output_bytes=self.output.length, error_bytes=self.errors.length)

    def add(self, chunk: Chunk, outcome: ScoredChunk) -> None:
        """The answers to a chunk, and from time to time a checkpoint. Raises OSError, and Miscounted if a row was lost."""
        faults, answered = chunk.bad_rows + outcome.bad_rows, sum(outcome.labels.values())
        if answered + len(faults) != chunk.records:
            found = f"{chunk.records} rows from line {chunk.start.line} on became {answered} answers and {len(faults)} bad rows"
            raise Miscounted(f"{found}; this is a defect of this program, and OUT was not written")
        self.output.write(outcome.data)
        if faults:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(faults)
            self.errors.write(text.getvalue().encode("utf-8", "backslashreplace"))
        labels = {name: count + outcome.labels.get(name, 0) for name, count in self.progress.labels.items()}
        read, bad = self.progress.read + chunk.records, self.progress.bad + len(faults)
        self.note(Progress(chunk.next, 0, 0, read, bad, labels))
        if time.monotonic() - self.saved_at >= self.options.checkpoint_seconds:
            self.save("running")

    def save(self, status: str) -> None:
        """What has been done until now is done for good."""
        if not self.options.target.is_stream:
            self.output.sync()
            self.errors.sync()
            self.record.save(status, self.progress)
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """The output gets its name. Raises Miscounted if rows in are not rows out and bad rows together."""
        if self.progress.read != self.progress.ok + self.progress.bad:
            counts = f"{self.progress.read} rows were read, {self.progress.ok} were answered, {self.progress.bad} were bad"
            raise Miscounted(f"{counts}; --force begins anew")
        self.save("finishing")
        self.output.finish()
        if not self.progress.bad:
            self.errors.discard()
        if not self.options.target.is_stream:
            self.record.save("succeeded", self.progress)


def record_path(options: Options) -> Path:
    """The path of the run's record, which only a run into a file has. Raises BadSetting."""
    path = Path(options.target.path + RECORD)
    try:
        return path if options.target.is_stream else destination(path)
    except OSError as error:
        raise BadSetting(f"{path} cannot be written: {error.strerror}") from None


def output_for(options: Options) -> AppendFile | StdStream:
    if options.target.is_stream:
        return StdStream(open_output(options.target, 1))
    if options.target.format == "parquet":
        from iris_wsgi.tabular.parquet import ParquetFile

        return ParquetFile(Path(options.target.path), temporary=True)
    return AppendFile(Path(options.target.path), temporary=True)


def errors_for(options: Options) -> AppendFile | StdStream:
    if options.errors.is_stream:
        return StdStream(open_output(options.errors, 2))
    return AppendFile(Path(options.errors.path), temporary=False)
