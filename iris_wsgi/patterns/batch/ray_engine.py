"""Engine ray of the command batch: tasks of a Ray cluster score pieces of the files, and each writes a part of the output."""

import logging
import os
import pickle
import re
import secrets
import signal
import socket
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from iris_wsgi.console import ProgressReporter, print_notice, remedy_for_extra
from iris_wsgi.cpu_limits import worker_count
from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.chunk_worker import ChunkWorker, OpenFile, ScoreChunk
from iris_wsgi.patterns.batch.exit_status import ExitStatus, Miscounted, RowCounts, StopSignal, report, run_to_end, summary
from iris_wsgi.patterns.batch.file_set import check_directory, find_files, is_file_set, named_failures
from iris_wsgi.patterns.batch.options import (
    BAD_ROWS,
    STANDARD,
    TABLE_ONLY,
    Options,
    check_file_options,
    first_given,
    format_of,
    parse_file_options,
)
from iris_wsgi.patterns.batch.part_folder import ERRORS, PartFolder, Parts, ScoredPiece
from iris_wsgi.patterns.batch.process_pool import call
from iris_wsgi.patterns.batch.results import Progress, Results, file_identity
from iris_wsgi.patterns.batch.sources import TextSource, open_source
from iris_wsgi.scorer import Scorer
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.storage.remote_files import check_writable, is_pattern_url, is_url
from iris_wsgi.tabular.record_splitter import Position

is_address = re.compile(r"(?:\w+://)?(.+):(\d{1,5})").fullmatch
LOCAL_ONLY = ("table", *TABLE_ONLY, "shard", "checkpoint", "errors")
# The minimum number of rows of a piece of a Parquet file; the last piece has the rest. A text file is one piece.
PIECE_ROWS = 1 << 20
# Only requests and counts go through the object store of a local cluster.
STORE_BYTES = 100 << 20
POLL_SECONDS, CONNECT_SECONDS = 0.2, 10.0
# The ends after which the bad rows are listed.
HAVE_ERRORS = (ExitStatus.GOOD, ExitStatus.TOO_MANY_BAD)
# The number of processes that may die of one piece.
MAX_DEATHS = 4


class Piece(NamedTuple):
    """Number of a file, and the range of its row groups; without `groups` the whole file."""

    file: int
    groups: tuple[int, int] | None


class PieceScorer:
    """Scores pieces of files into parts, in any process of a cluster. It contains the files of the model."""

    def __init__(self, scorer: Scorer, files: Sequence[Options], pieces: Sequence[Piece], parts: Parts) -> None:
        self.scorer, self.files, self.pieces, self.parts = scorer, files, pieces, parts

    def __call__(self, number: int) -> ScoredPiece:
        """Raises BadSetting, BadModel, and Stopped, each with the name of the file."""
        name = self.files[self.pieces[number].file].source.name
        try:
            with named_failures(name):
                return self.score(number)
        except OSError as error:
            raise Stopped(f"{error.filename or name}: {error.strerror}") from None

    def score(self, number: int) -> ScoredPiece:
        # Ray repeats a task forever.
        if self.parts.unfinished(number) >= MAX_DEATHS:
            raise Stopped(f"{MAX_DEATHS} processes of the cluster died while they scored it, perhaps because memory is short")
        part = f"{number}-{secrets.token_hex(8)}.{self.files[self.pieces[number].file].target.format}"
        with self.parts.writing(part) as path:
            progress = self.write(number, path)
        return ScoredPiece(number, part, progress.ok, progress.bad, progress.labels)

    def write(self, number: int, path: Path) -> Progress:
        file, groups = self.pieces[number]
        options = part_options(self.files[file], path)
        worker = ChunkWorker(self.scorer.model, self.scorer.digest)
        with closing(open_source(options.source, options.header, options.delimiter)) as source:
            head = worker.open(OpenFile(options, source.layout))
            # Lines of bad rows count from the start of the file.
            before = 0 if groups is None or isinstance(source, TextSource) else source.select(*groups)
            with closing(Results(options, {}, head.labels, head.start)) as results:
                results.begin()
                for chunk in source.chunks(Position(), head.columns):
                    results.add(chunk, worker.score(ScoreChunk(chunk.data, chunk.start.line + before)))
                results.finish()
        return results.progress


def part_options(options: Options, part: Path) -> Options:
    """Returns the options of a run that writes one part. A killed run starts again, so checkpoints would be in vain."""
    target, errors = options.target._replace(path=str(part)), options.errors._replace(path=str(part) + BAD_ROWS)
    return options._replace(target=target, errors=errors, checkpoint_seconds=inf)


def score_piece(row: Mapping[str, Any], scorer: Any) -> dict[str, Any]:
    """Task of the cluster: scores a piece with the PieceScorer in the object store. Returns the pickled result or exception."""
    import ray

    return {"result": pickle.dumps(call(ray.get(scorer[0]), int(row["piece"])))}


class ClusterRun:
    """Run over all pieces. Each piece counts once, however often the cluster has repeated it after the death of a process."""

    def __init__(self, files: Sequence[Options], pieces: Sequence[Piece], scorer: Scorer, output: PartFolder) -> None:
        self.files, self.pieces, self.scorer, self.output = files, pieces, scorer, output
        self.done: dict[int, ScoredPiece] = {}

    @property
    def counts(self) -> RowCounts:
        return RowCounts(sum(piece.ok for piece in self.done.values()), sum(piece.bad for piece in self.done.values()))

    @property
    def labels(self) -> Mapping[str, int]:
        total: Counter[str] = Counter(dict.fromkeys(self.scorer.model.labels, 0))
        for piece in self.done.values():
            total.update(piece.labels)
        return total

    def chunks(self) -> Iterator[int]:
        """Yields the number of finished pieces after each piece, and often enough for a signal to end the run."""
        self.output.begin()
        # A signal may have arrived while the cluster was starting.
        yield 0
        found: SimpleQueue[ScoredPiece | Exception | None] = SimpleQueue()
        Thread(target=self.receive, args=(found,), daemon=True).start()
        while True:
            try:
                piece = found.get(timeout=POLL_SECONDS)
            except Empty:
                yield len(self.done)
                continue
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            self.done[piece.piece] = piece
            yield len(self.done)

    def receive(self, found: "SimpleQueue[ScoredPiece | Exception | None]") -> None:
        """Puts the result of each piece, and None after the last one."""
        import ray

        try:
            pieces = [{"piece": i} for i in range(len(self.pieces))]
            # In a list, because Ray would replace the reference alone by its object in each task.
            scorer = [ray.put(PieceScorer(self.scorer, self.files, self.pieces, self.output.parts))]
            dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces))
            for row in dataset.map(score_piece, fn_kwargs={"scorer": scorer}).iter_rows():
                found.put(pickle.loads(row["result"]))
            found.put(None)
        except Exception as error:
            found.put(Stopped(f"the Ray cluster failed: {reason_of(error)}"))

    def finish(self, status: ExitStatus) -> None:
        pieces = [self.done[i] for i in sorted(self.done)]
        rows = {"rows": self.counts._asdict(), "labels": dict(self.labels)}
        if status is ExitStatus.GOOD and len(pieces) != len(self.pieces):
            raise Miscounted(f"{len(pieces)} of {len(self.pieces)} pieces have a result; this is a defect of this program")
        if status in HAVE_ERRORS:
            self.output.write_errors(pieces, [self.files[self.pieces[i].file].source.name for i in sorted(self.done)])
        if status is ExitStatus.GOOD:
            self.output.commit(pieces, **rows)
        else:
            self.output.save(status.run_status, **rows)


def run_on_ray(given: Mapping[str, Any], settings: Settings) -> ExitStatus:
    """Scores the files of IN on a Ray cluster. Raises BadSetting, BadModel, and Stopped."""
    files = parse_files(given)
    load_ray()
    scorer = Scorer(settings.model_dir, seal=settings.model_seal, ship=True)
    pieces, run_of = plan(files, scorer)
    with closing(PartFolder(given["target"], run_of)) as output:
        if earlier := output.finished_run(given["force"]):
            print_notice(f"nothing to do: run {earlier} has written {output.name}")
            return ExitStatus.GOOD
        stop, run = StopSignal(), ClusterRun(files, pieces, scorer, output)
        with cluster(worker_count(settings)[0], stop):
            progress = ProgressReporter(len(pieces), " pieces", given["quiet"])
            status, reason = run_to_end(run, output.name, files[0].max_bad, stop, progress)
    if status is not ExitStatus.GOOD or not given["quiet"]:
        ok, bad = run.counts
        listed = f", listed in {output.name}/{ERRORS}" if status in HAVE_ERRORS else ""
        report(
            status, summary(status, reason, output.name, ok, run.labels, f"; {bad} bad{listed}" if bad else "", resumable=False)
        )
    return status


def parse_files(given: Mapping[str, Any]) -> list[Options]:
    """Returns the options of each file of IN, with the format of the parts in their targets. Raises BadSetting and Stopped."""
    if flag := first_given(given, LOCAL_ONLY):
        raise BadSetting(f"{flag} is for --engine local, and not for ray")
    check_file_options(given)
    source, target = given["source"], given["target"]
    if STANDARD in (source, target):
        raise BadSetting("--engine ray reads and writes files, and not standard streams")
    check_writable(target, "OUT")
    is_file = os.path.lexists(target) and not os.path.isdir(target)
    if is_pattern_url(target) if is_url(target) else is_file:
        raise BadSetting(f"OUT must be a directory with --engine ray: {target}")
    found = [source]
    if is_file_set(source):
        check_directory(source, target)
        found = [file.path for file in find_files(source, given["in_format"])]
    formats = {given["in_format"] or format_of(path)[0] for path in found}
    if len(formats) > 1 and not given["out_format"]:
        raise BadSetting(f"IN has files of {' and '.join(sorted(map(str, formats)))}: say --out-format")
    files = []
    root = target.rstrip("/") if is_url(target) else os.path.abspath(target)
    for name in found:
        path = name if is_url(name) else os.path.abspath(name)
        out_format = given["out_format"] or format_of(path)[0] or given["in_format"] or "csv"
        part = f"{root}/part-00000.{out_format}"
        files.append(parse_file_options({**given, "source": path, "target": part, "out_format": out_format}))
        if files[-1].source.is_stream:
            raise BadSetting(f"{name} is not a regular file, which --engine ray needs")
    return files


def plan(files: Sequence[Options], scorer: Scorer) -> tuple[list[Piece], dict[str, Any]]:
    """Opens each file. Returns the pieces, and the identity of the run. Raises BadSetting for missing columns, and BadModel."""
    worker, pieces = ChunkWorker(scorer.model, scorer.digest), []
    for i, options in enumerate(files):
        with (
            named_failures(options.source.name),
            closing(open_source(options.source, options.header, options.delimiter)) as source,
        ):
            head = worker.open(OpenFile(options, source.layout))
            groups = [None] if isinstance(source, TextSource) else ranges(source.group_rows)
        pieces += [Piece(i, one) for one in groups]
    options = files[0]
    run_of = {
        "input": [file_identity(one.source.path) for one in files],
        "model": head.model,
        "options": {
            "out_format": options.target.format,
            "features": list(options.features),
            "keep": list(options.keep),
            "header": options.header,
            "delimiter": options.delimiter,
            "digest": options.digest,
        },
    }
    return pieces, run_of


def ranges(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Returns ranges of row groups with PIECE_ROWS or more rows each, except for the last one. `rows` are those of each group."""
    found, start, count = [], 0, 0
    for i, group in enumerate(rows):
        count += group
        if count >= PIECE_ROWS:
            found.append((start, i + 1))
            start, count = i + 1, 0
    return [*found, (start, len(rows))] if start < len(rows) or not found else found


def load_ray() -> None:
    """Imports Ray without its messages. Raises BadSetting if it is not installed."""
    # Ray would send statistics over the network.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The thread that receives results would connect again after an interruption.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if "RAY_ADDRESS" not in os.environ:
        # Ray would write the token of the cluster into the home directory.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    warnings.filterwarnings("ignore", module=r"ray\b")
    try:
        with muted():
            import ray
            import ray.data
    except ImportError:
        raise BadSetting(f"--engine ray needs the package ray: {remedy_for_extra('ray')}") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False


@contextmanager
def muted() -> Iterator[None]:
    """Drops what the libraries of Ray write to standard error, past the logging of Python."""
    with open(os.devnull, "w") as null:
        kept = os.dup(2)
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def cluster(processes: int, stop: StopSignal) -> Iterator[None]:
    """Connects to the cluster of RAY_ADDRESS, or starts one on this machine for the time of the run. Raises Stopped."""
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    local = {"num_cpus": processes, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        check_reachable(address)
        with muted():
            ray.init(address=address or "local", **({} if address else local), **quiet)
    except SystemExit:
        # Raised by Ray's handler of the signal, which replaces that of the run.
        stop.number = signal.SIGTERM
    except Exception as error:
        where = f"the Ray cluster of RAY_ADDRESS={address}" if address else "a Ray cluster on this machine"
        raise Stopped(f"{where} cannot be used: {reason_of(error)}") from None
    signal.signal(signal.SIGTERM, stop.on_signal)
    try:
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raises OSError if no server listens at HOST:PORT or SCHEME://HOST:PORT, for which Ray would wait for many minutes."""
    if found := is_address(address):
        socket.create_connection((found[1].strip("[]"), int(found[2])), CONNECT_SECONDS).close()


def reason_of(error: Exception) -> str:
    """Returns the first line of an exception."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)[:300]
