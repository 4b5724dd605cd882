"""Output of a file run: predictions, bad rows, and the checkpoint from which the next run continues."""

import csv
import io
import json
import os
import secrets
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.patterns.batch.exit_status import Miscounted
from iris_wsgi.patterns.batch.options import CHECKPOINT, FileSpec, Options, open_output
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import AppendFile, StdStream, destination, replace_file
from iris_wsgi.storage.remote_files import RemoteFiles, check_writable, is_url, staging_folder
from iris_wsgi.tabular.chunk_scorer import ScoredChunk
from iris_wsgi.tabular.record_splitter import Chunk, Position

ERRORS_HEADER = b"line,column,reason\n"


class Progress(NamedTuple):
    """The next chunk, the synced bytes of the output and of the bad rows, and the counts of rows.

    `read` is the number of input rows: the sum of `ok` and `bad`. A regressor has no labels.
    """

    next: Position
    output_bytes: int
    error_bytes: int
    read: int
    ok: int
    bad: int
    labels: dict[str, int]


class Checkpoint:
    """JSON file next to the output. `document["of"]` identifies the run: its input, model, and options."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path, self.document = path, document

    @property
    def status(self) -> str:
        return str(self.document["status"])

    def save(self, status: str, progress: Progress) -> None:
        """Replaces the file durably. Raises OSError."""
        now = timestamp()
        lengths = {"output_bytes": progress.output_bytes, "error_bytes": progress.error_bytes}
        self.document |= {
            "status": status,
            "updated": now,
            "finished": now if status in ("succeeded", "failed") else None,
            "rows": {"ok": progress.ok, "bad": progress.bad},
            "labels": progress.labels,
            "checkpoint": progress.next._asdict() | lengths | {"rows": progress.read},
        }
        replace_file(self.path, (json.dumps(self.document, indent=1) + "\n").encode())

    def progress(self) -> Progress:
        at = self.document["checkpoint"]
        position = Position(at["chunk"], at["offset"], at["line"])
        ok, bad = self.document["rows"]["ok"], self.document["rows"]["bad"]
        # Checkpoints of earlier releases lack the number of input rows.
        read = at.get("rows", ok + bad)
        return Progress(position, at["output_bytes"], at["error_bytes"], read, ok, bad, self.document["labels"])


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Returns the checkpoint of an earlier run, if any. Raises BadSetting for a file that is not a checkpoint."""
    try:
        return parse_checkpoint(path, path.read_bytes())
    except FileNotFoundError:
        return None


def parse_checkpoint(path: Path | str, text: bytes) -> Checkpoint:
    """Raises BadSetting if the content of a file is not a checkpoint."""
    try:
        checkpoint = Checkpoint(Path(path), json.loads(text))
        checkpoint.progress(), checkpoint.document["of"], checkpoint.document["run"], checkpoint.status
    except (ValueError, TypeError, KeyError):
        raise BadSetting(f"{path} is not the record of a run; --force starts again") from None
    return checkpoint


def check_same_run(target: object, old: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises BadSetting if an output is of another input, model, or options."""
    if differing := [name for name in now if old.get(name) != now[name]]:
        raise BadSetting(f"{target} is of another run: its {' and '.join(differing)} differ; --force starts again")


def timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def file_identity(path: str) -> dict[str, Any]:
    """Returns the size and the modification time or version of the input, which identify its content."""
    if is_url(path):
        return RemoteFiles(path).identity()
    status = os.stat(path)
    return {"path": path, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


class Results:
    """All output of a run. A checkpoint covers synced bytes only; the next run repeats the work after it."""

    def __init__(self, options: Options, run_of: dict[str, Any], labels: tuple[str, ...], start: bytes) -> None:
        """Takes the identity of the run, the labels, and the first bytes of the output. Raises BadSetting."""
        self.options, self.start = options, start
        self.target = Path(options.target.path)
        self.saved_at = time.monotonic()
        identity = {"run": secrets.token_hex(8), "status": "running", "started": timestamp(), "of": run_of}
        self.checkpoint = Checkpoint(checkpoint_path(options), identity)
        self.progress = Progress(Position(), 0, 0, 0, 0, 0, dict.fromkeys(labels, 0))
        with ExitStack() as opened:
            self.output = open_target(options.target, 1, temporary=True)
            opened.callback(self.output.close)
            earlier = self.earlier()
            if earlier is not None:
                self.checkpoint, self.progress = earlier, earlier.progress()
            self.errors = open_target(options.errors, 2, temporary=False)
            opened.callback(self.errors.close)
            if earlier is None and self.errors.size and not options.force:
                raise BadSetting(f"{options.errors.path} exists and is not of this run; --force overwrites it")
            self.close = opened.pop_all().close

    def earlier(self) -> Checkpoint | None:
        """Returns the checkpoint from which this run continues, if any."""
        if self.options.force or self.options.target.is_stream:
            return None
        found = read_checkpoint(self.checkpoint.path)
        if found is None:
            if self.target.exists():
                raise BadSetting(f"{self.options.target.name} exists and has no record of a run; --force overwrites it")
            return None
        old, now = found.document["of"], self.checkpoint.document["of"]
        check_same_run(self.options.target.name, old, now)
        if now["input"] is None or (found.status == "succeeded" and not self.target.exists()):
            return None
        return found

    def begin(self) -> bool:
        """Starts or continues the run. Returns False if it is complete. Raises BadSetting."""
        at, status = self.progress, self.checkpoint.status
        if status in ("succeeded", "finishing") and self.output.size < at.output_bytes:
            # The temporary file is gone: it was renamed.
            self.output.discard()
            if status == "finishing":
                self.checkpoint.save("succeeded", at)
            return False
        if self.output.size < at.output_bytes or self.errors.size < at.error_bytes:
            raise BadSetting(f"{self.target}.partial or {self.options.errors.path} was truncated; --force starts again")
        # Before the first byte of output, so that the output of a killed run has a checkpoint.
        self.save("running")
        self.output.begin(at.output_bytes)
        self.errors.begin(at.error_bytes)
        if at.error_bytes == 0:
            self.errors.write(ERRORS_HEADER)
        if at.output_bytes == 0:
            self.output.write(self.start)
        self.update(self.progress)
        return True

    def update(self, progress: Progress) -> None:
        self.progress = progress._replace(output_bytes=self.output.length, error_bytes=self.errors.length)

    def add(self, chunk: Chunk, scored: ScoredChunk) -> None:
        """Writes the results of a chunk and, at intervals, a checkpoint. Raises OSError, and Miscounted if a row was lost."""
        bad_rows = chunk.bad_rows + scored.bad_rows
        if scored.ok + len(bad_rows) != chunk.records:
            found = f"{chunk.records} rows from line {chunk.start.line} gave {scored.ok} predictions and {len(bad_rows)} bad rows"
            raise Miscounted(f"{found}; this is a defect of this program, and OUT was not written")
        self.output.write(scored.data)
        if bad_rows:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(bad_rows)
            self.errors.write(text.getvalue().encode("utf-8", "backslashreplace"))
        labels = {name: count + scored.labels.get(name, 0) for name, count in self.progress.labels.items()}
        read, ok, bad = self.progress.read + chunk.records, self.progress.ok + scored.ok, self.progress.bad + len(bad_rows)
        self.update(Progress(chunk.next, 0, 0, read, ok, bad, labels))
        if time.monotonic() - self.saved_at >= self.options.checkpoint_seconds:
            self.save("running")

    def save(self, status: str) -> None:
        """Syncs the output and saves the checkpoint."""
        if not self.options.target.is_stream:
            self.output.sync()
            self.errors.sync()
            self.checkpoint.save(status, self.progress)
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """Renames the output to its path. Raises Miscounted if predictions and bad rows do not add up to the input rows."""
        if self.progress.read != self.progress.ok + self.progress.bad:
            counts = f"{self.progress.read} rows were read, {self.progress.ok} were predicted, {self.progress.bad} were bad"
            raise Miscounted(f"{counts}; --force starts again")
        self.save("finishing")
        self.output.finish()
        if not self.progress.bad:
            self.errors.discard()
        if not self.options.target.is_stream:
            self.checkpoint.save("succeeded", self.progress)


class RemoteOutput:
    """Output of a run at URLs. The run writes local files with `options`, which are uploaded when they are complete."""

    def __init__(self, options: Options) -> None:
        """Takes the options with the URLs. Raises BadSetting."""
        check_writable(options.target.path, "OUT")
        folder = staging_folder(options.target.path)
        self.options = options._replace(target=staged(options.target, folder / "output"))
        if is_url(options.errors.path):
            check_writable(options.errors.path, "--errors")
            self.options = self.options._replace(errors=staged(options.errors, folder / "errors"))

    def finished(self, run_of: dict[str, Any]) -> Checkpoint | None:
        """Returns the record of this run if its output is complete. Raises BadSetting for the output of another run."""
        url = self.options.target.url
        if self.options.force:
            return None
        record = RemoteFiles(url + CHECKPOINT).read()
        if record is None:
            if RemoteFiles(url).exists():
                raise BadSetting(f"{url} exists and has no record of a run; --force overwrites it")
            return None
        found = parse_checkpoint(url + CHECKPOINT, record)
        check_same_run(url, found.document["of"], run_of)
        return found if found.status == "succeeded" and RemoteFiles(url).exists() else None

    def upload(self) -> None:
        """Uploads the files and removes them here. A repetition has the same result. Raises BadSetting and Stopped."""
        target, errors = self.options.target, self.options.errors
        pairs = [(target.path, target.url), *([(errors.path, errors.url)] if errors.url else [])]
        # An output without a record is incomplete.
        pairs.append((target.path + CHECKPOINT, target.url + CHECKPOINT))
        for path, url in pairs:
            if os.path.exists(path):
                RemoteFiles(url).upload(Path(path))
            elif self.options.force:
                # The bad rows of an earlier run.
                RemoteFiles(url).remove()
        for path, _ in pairs:
            Path(path).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Removes the local folder, unless a run has left files there."""
        with suppress(OSError):
            Path(self.options.target.path).parent.rmdir()


def staged(spec: FileSpec, path: Path) -> FileSpec:
    return spec._replace(path=str(path), url=spec.path)


def checkpoint_path(options: Options) -> Path:
    """Returns the path of the checkpoint, which a stream does not have. Raises BadSetting."""
    path = Path(options.target.path + CHECKPOINT)
    try:
        return path if options.target.is_stream else destination(path)
    except OSError as error:
        raise BadSetting(f"{path} cannot be written: {error.strerror}") from None


def open_target(target: FileSpec, standard: int, temporary: bool) -> AppendFile | StdStream:
    if target.is_stream:
        return StdStream(open_output(target, standard))
    if target.format == "parquet":
        from iris_wsgi.tabular.parquet import ParquetFile

        return ParquetFile(Path(target.path), temporary)
    return AppendFile(Path(target.path), temporary)
