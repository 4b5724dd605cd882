"""The scorer on Spark: a million rows get the predictions of the command batch, each once, also after processes were killed."""

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as arrow
import pytest
from doc_examples import FENCES
from http_clients import wait_until
from iris_data import NAMES
from project import MODEL, ROOT
from pyarrow.parquet import read_table, write_table

# bin/test skips this file, because Spark is too large for CI: .ci/spark runs it.
pytest.importorskip("pyspark", reason="pyspark is not installed: .ci/spark")
pytestmark = pytest.mark.long

ROWS, FILES = 1_000_000, 16
EXAMPLE = ROOT / "examples/spark_batch.py"
DAEMON, EXECUTOR = "pyspark.daemon", "CoarseGrainedExecutorBackend"


class Reference(NamedTuple):
    """Folder of Parquet files, and the output of the command batch for the same rows: the predictions, and the errors by id."""

    folder: Path
    predictions: arrow.Table
    errors: dict[int, str]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    folder = tmp_path_factory.mktemp("spark")
    drawn = np.random.default_rng(7)
    columns = {name: arrow.array(drawn.uniform(0, 8, ROWS), mask=drawn.random(ROWS) < 0.0005) for name in NAMES}
    columns["petal_width"] = arrow.array(np.where(drawn.random(ROWS) < 0.0005, np.inf, drawn.uniform(0, 3, ROWS)))
    rows = arrow.table({"id": arrow.array(range(ROWS))} | columns)
    write_table(rows, folder / "in.parquet")
    (folder / "rows").mkdir()
    count = ROWS // FILES
    for i in range(FILES):
        write_table(rows.slice(i * count, count), folder / f"rows/{i:02}.parquet")
    command = [sys.executable, "-m", "iris_wsgi", "batch", "in.parquet", "out.parquet", "--keep", "id", "--quiet"]
    subprocess.run([*command, "--model-dir", MODEL], cwd=folder, check=True)
    predictions = read_table(folder / "out.parquet")
    with (folder / "out.parquet.errors.csv").open() as file:
        errors = {int(row["line"]) - 1: f"{row['column']} {row['reason']}" for row in csv.DictReader(file)}
    assert predictions.num_rows + len(errors) == ROWS and len(errors) > 1000
    return Reference(folder / "rows", predictions, errors)


class SparkRun:
    """Process that scores the rows on a master of Spark."""

    def __init__(self, master: str, program: list[str], folder: Path) -> None:
        options = {"spark.ui.enabled": "false", "spark.executor.memory": "1g", "spark.sql.files.maxPartitionBytes": "2m"}
        words = [word for name, value in options.items() for word in ("--conf", f"{name}={value}")]
        environ = os.environ | {
            "PYSPARK_SUBMIT_ARGS": " ".join(["--master", master, *words, "pyspark-shell"]),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_DIRS": str(folder / "local"),
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        self.out, self.log = folder / "out", folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=log, env=environ, text=True, cwd=folder)

    def committed(self) -> list[Path]:
        """Returns the outputs of the tasks that have ended, while others run."""
        return list(self.out.glob("_temporary/0/task_*"))

    def processes(self, word: str) -> list[int]:
        """Returns the ids of the processes under this one whose command line contains the word, parents first."""
        found, rest = [], [self.process.pid]
        while rest:
            children = children_of(rest.pop(0))
            found += [pid for pid in children if word in command_line(pid)]
            rest += children
        return found

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self, pids: Callable[[], list[int]]) -> int:
        """Kills processes after the first tasks have ended. Returns their number."""
        found: list[int] = []

        def can_kill() -> bool:
            found[:] = pids() if self.committed() else []
            return bool(found) or self.has_ended()

        # Spark itself may take a minute to start.
        wait_until(lambda: self.out.exists() or self.has_ended(), "the start of the tasks")
        wait_until(can_kill, "a process to kill, while tasks are left")
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return len(found)

    def finish(self) -> str:
        """Returns the output of the process after its end."""
        text, _ = self.process.communicate()
        assert self.process.returncode == 0, self.log.read_text()[-5000:]
        return text


def children_of(pid: int) -> list[int]:
    """Returns the processes that any thread of a process has started, and not only its main thread."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@pytest.fixture
def start(reference, tmp_path) -> Iterator[Callable[[str], SparkRun]]:
    """Function that starts the example on a master. The fixture ends it after a failed test."""
    started: list[SparkRun] = []

    def start_on(master: str) -> SparkRun:
        program = [sys.executable, str(EXAMPLE), str(reference.folder), str(tmp_path / "out")]
        started.append(SparkRun(master, program, tmp_path))
        return started[-1]

    yield start_on
    for run in started:
        if run.process.poll() is None:
            for pid in [*run.processes("")[::-1], run.process.pid]:
                os.kill(pid, signal.SIGKILL)
        if not run.process.stdout.closed:
            run.process.communicate()


def check(run: SparkRun, reference: Reference) -> None:
    """Compares the output with that of the command batch, row for row."""
    assert run.finish() == f"{ROWS} rows, {len(reference.errors)} of them bad\n"
    scored = read_table(run.out).sort_by("id")
    assert scored.column("id").to_pylist() == list(range(ROWS))
    good = scored.filter(scored.column("error").is_null()).drop_columns("error")
    expected = reference.predictions.cast(good.schema)
    assert good.equals(expected) and good.schema.names == expected.schema.names
    bad = scored.filter(scored.column("error").is_valid())
    assert dict(zip(bad.column("id").to_pylist(), bad.column("error").to_pylist(), strict=True)) == reference.errors
    assert bad.column("label").null_count == bad.num_rows


def test_spark_gives_the_predictions_of_the_command_batch(start, reference):
    check(start("local[2]"), reference)


def test_each_row_is_there_once_after_python_workers_were_killed(start, reference):
    run = start("local[2,4]")
    # The first process is the daemon, from which the workers are forked.
    assert run.kill(lambda: run.processes(DAEMON)[1:]) > 0
    check(run, reference)
    assert "Lost task" in run.log.read_text()


def test_each_row_is_there_once_after_an_executor_was_killed(start, reference):
    run = start("local-cluster[2,1,1024]")
    assert run.kill(lambda: run.processes(EXECUTOR)[:1]) == 1
    check(run, reference)
    assert re.search(r"Lost executor \d", run.log.read_text())


def test_the_example_of_the_documents_works(tmp_path):
    (text,) = {fence.text for fence in FENCES if fence.language == "python" and "pyspark" in fence.text}
    (tmp_path / "model").symlink_to(MODEL)
    (tmp_path / "rows").mkdir()
    rows = arrow.table({"id": ["a", "b"], **{name: [1.0, None] for name in NAMES}})
    write_table(rows, tmp_path / "rows/1.parquet")
    run = SparkRun("local[1]", [sys.executable, "-c", text.replace("/tmp/", f"{tmp_path}/")], tmp_path)
    run.finish()
    scored = read_table(tmp_path / "scored").sort_by("id").to_pylist()
    assert [(row["id"], row["label"], row["error"]) for row in scored] == [
        ("a", "setosa", None),
        ("b", None, "sepal_length is empty"),
    ]
