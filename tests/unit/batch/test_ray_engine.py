"""The pieces, the directory, and the record of batch with --engine ray, without a cluster."""

import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from shutil import copy
from threading import Thread, current_thread
from typing import Any

import pytest
from batch_command import batch, text_of
from optional_programs import require_package
from packed_models import KINDS, write_model
from project import MODEL, ROOT

from iris_wsgi.cli.main import read_words
from iris_wsgi.console import ProgressReporter
from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.exit_status import ExitStatus, StopSignal, run_to_end
from iris_wsgi.patterns.batch.options import MaxBad
from iris_wsgi.patterns.batch.part_folder import LocalParts, PartFolder, RemoteParts
from iris_wsgi.patterns.batch.process_pool import call
from iris_wsgi.patterns.batch.ray_engine import ClusterRun, PieceScorer, cluster, parse_files, plan, ranges
from iris_wsgi.scorer import Scorer
from iris_wsgi.settings import BadSetting

require_package("pyarrow", "parquet")


OUT = "memory:///lake/out"


class LocalRun(ClusterRun):
    """Run whose pieces are scored in this process, each twice and the last one first."""

    thread: Thread | None = None

    def receive(self, found: SimpleQueue) -> None:
        self.thread = current_thread()
        score = PieceScorer(self.scorer, self.files, self.pieces, self.output.parts)
        for i in reversed(range(len(self.pieces))):
            for _ in range(2):
                found.put(call(score, i))
        found.put(None)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with three files of ten rows and a bad one each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / f"in/{i}.csv").write_text(text_of(10, seed=i) + "bad,5,3,1,x\n")
    return tmp_path


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Object storage in the memory of this process, with two files."""
    system = require_package("fsspec", "storage").filesystem("memory")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    system.store.clear()
    for name in "xy":
        system.pipe_file(f"/lake/{name}", b"id\n")
    yield system
    system.store.clear()


@pytest.fixture
def run(inputs: Path, restored_signals: None) -> Callable[..., tuple[ExitStatus, str, ClusterRun]]:
    """Function that runs the command from in in this process. It returns the status, the reason, and the run."""

    def run_here(
        *words: str, limit: MaxBad | None = None, model: Path = MODEL, target: str = "out"
    ) -> tuple[ExitStatus, str, ClusterRun]:
        files = parse_files(given("in", target, *words))
        scorer = Scorer(model, ship=True)
        pieces, run_of = plan(files, scorer)
        output, found = PartFolder(target, run_of), None
        try:
            output.finished_run(force="--force" in words)
            found = LocalRun(files, pieces, scorer, output)
            status, reason = run_to_end(
                found, target, limit or MaxBad(), StopSignal(), ProgressReporter(3, " pieces", quiet=True)
            )
            return status, reason, found
        finally:
            if found and found.thread:
                found.thread.join()
            output.close()

    return run_here


def given(*words: str) -> dict:
    return dict(read_words(["batch", "--engine", "ray", *words])[1])


def test_a_piece_that_was_scored_twice_counts_once_and_parts_are_in_the_order_of_the_files(run, inputs):
    status, _, found = run("--keep", "id")
    assert (status, found.counts) == (ExitStatus.GOOD, (30, 3))
    assert sorted(os.listdir("out")) == ["_errors.csv", "_run.json", *(f"part-0000{i}.csv" for i in range(3))]
    lines = [f"{inputs}/in/{i}.csv,12,petal_width,is not a number" for i in range(3)]
    assert Path("out/_errors.csv").read_text().splitlines() == ["file,line,column,reason", *lines]
    assert all(Path(f"out/part-0000{i}.csv").read_text().startswith("id,label,") for i in range(3))


def test_a_run_with_too_many_bad_rows_writes_the_list_of_them_and_no_part(run):
    status, reason, _ = run(limit=MaxBad(rows=2))
    assert (status, reason) == (ExitStatus.TOO_MANY_BAD, "3 bad rows are more than --max-bad 2")
    assert sorted(os.listdir("out")) == ["_errors.csv", "_run.json"]
    assert json.loads(Path("out/_run.json").read_text())["status"] == "failed"
    assert run(limit=MaxBad(rows=3))[0] is ExitStatus.GOOD


def test_a_file_that_changed_since_the_plan_stops_the_run_with_its_name(run, inputs, monkeypatch):
    original = plan

    def replaced(*arguments):
        found = original(*arguments)
        (inputs / "in/1.csv").write_text("a,b\n1,2\n")
        return found

    monkeypatch.setitem(globals(), "plan", replaced)
    with pytest.raises(BadSetting, match=r"in/1\.csv: IN has no column 'sepal_length'"):
        run()


def test_a_piece_of_which_each_process_dies_stops_the_run(inputs):
    files = parse_files(given("in", "out"))
    scorer = Scorer(MODEL, ship=True)
    pieces, _ = plan(files, scorer)
    folder = inputs / "parts"
    folder.mkdir()
    for i in range(3):
        (folder / f"1-{i}.csv.partial").touch()
    # Four processes die of the piece 11, and three of the piece 1.
    for i in range(4):
        (folder / f"11-{i}.csv.partial").touch()
    score = PieceScorer(scorer, files, pieces, LocalParts(folder))
    assert score(1).ok == 10
    (folder / "1-3.csv.partial").touch()
    with pytest.raises(Stopped, match=r"in/1\.csv: 4 processes of the cluster died while they scored it"):
        score(1)


def test_an_output_of_another_run_is_replaced_only_by_force(run):
    assert run()[0] is ExitStatus.GOOD
    with pytest.raises(BadSetting, match="out is of another run: its options differ; --force starts again"):
        run("--digest")
    assert run("--digest", "--force")[0] is ExitStatus.GOOD
    Path("out/_run.json").unlink()
    with pytest.raises(BadSetting, match="out has parts without the record of their run; --force overwrites them"):
        run()


def test_a_run_removes_what_a_killed_run_has_left(run):
    run()
    record = json.loads(Path("out/_run.json").read_text())
    Path("out/_run.json").write_text(json.dumps(record | {"status": "running"}))
    Path("out/_parts/old").mkdir(parents=True)
    Path("out/_parts/old/1.csv").write_text("id\n")
    Path("out/part-00009.csv").write_text("id\n")
    assert run()[0] is ExitStatus.GOOD
    assert sorted(os.listdir("out")) == ["_errors.csv", "_run.json", *(f"part-0000{i}.csv" for i in range(3))]


def test_a_directory_with_other_files_is_refused_even_by_force(run):
    Path("out").mkdir()
    Path("out/mine.csv").write_text("id\n")
    for words in ((), ("--force",)):
        with pytest.raises(BadSetting, match=r"out has files that are not of a run, such as mine\.csv; name an empty directory"):
            run(*words)
    assert os.listdir("out") == ["mine.csv"]


def test_a_directory_may_have_the_name_of_a_scheme(run):
    assert run(target="https")[0] is ExitStatus.GOOD


def test_two_runs_do_not_write_one_directory(run):
    output = PartFolder("out", {})
    with pytest.raises(BadSetting, match="another run is writing out"):
        run()
    output.close()


def test_two_runs_do_not_write_one_directory_of_object_storage(run, storage):
    output = PartFolder(OUT, {})
    with pytest.raises(BadSetting, match=f"another run is writing {OUT}"):
        run(target=OUT)
    output.close()


def test_a_directory_of_object_storage_has_the_files_of_a_local_one(run, storage):
    storage.store |= {"/lake/out/_parts/old/1.csv": storage.store.pop("/lake/x"), "/lake/out2/a.csv": storage.store["/lake/y"]}
    status, _, found = run("--keep", "id", "--force", target=OUT)
    assert (status, found.counts) == (ExitStatus.GOOD, (30, 3))
    run("--keep", "id")
    names = {name: f"/lake/out/{name}" for name in os.listdir("out")}
    assert {*storage.find("/lake/out")} == {*names.values()}
    assert all(storage.cat(names[name]) == Path("out", name).read_bytes() for name in names if name != "_run.json")
    records = [json.loads(text) for text in (storage.cat(names["_run.json"]), Path("out/_run.json").read_bytes())]
    assert {(one["status"], one["parts"], str(one["rows"]), str(one["of"])) for one in records} == {
        ("succeeded", 3, "{'ok': 30, 'bad': 3}", str(records[0]["of"]))
    }


def test_a_directory_of_object_storage_is_replaced_only_by_force(run, storage):
    assert run(target=OUT)[0] is ExitStatus.GOOD
    run_of = json.loads(storage.cat("/lake/out/_run.json"))["of"]
    output = PartFolder(OUT, run_of)
    assert output.finished_run(force=False)
    output.close()
    with pytest.raises(BadSetting, match="/lake/out is of another run: its options differ; --force starts again"):
        run("--digest", target=OUT)
    storage.rm("/lake/out/part-00001.csv")
    output = PartFolder(OUT, run_of)
    assert not output.finished_run(force=False)
    output.close()
    assert run("--digest", "--force", target=OUT)[0] is ExitStatus.GOOD
    storage.pipe_file("/lake/out/mine.csv", b"id\n")
    with pytest.raises(BadSetting, match=r"/lake/out has files that are not of a run, such as mine\.csv"):
        run("--force", target=OUT)
    assert storage.exists("/lake/out/part-00002.csv")


def test_a_run_with_too_many_bad_rows_writes_the_list_of_them_to_object_storage(run, storage):
    assert run(limit=MaxBad(rows=2), target=OUT)[0] is ExitStatus.TOO_MANY_BAD
    assert sorted(storage.find("/lake/out")) == ["/lake/out/_errors.csv", "/lake/out/_run.json"]
    assert storage.cat("/lake/out/_errors.csv").count(b"\n") == 4


def test_a_piece_of_object_storage_of_which_each_process_dies_stops_the_run(inputs, storage):
    files = parse_files(given("in", OUT))
    scorer = Scorer(MODEL, ship=True)
    pieces, _ = plan(files, scorer)
    score = PieceScorer(scorer, files, pieces, RemoteParts(f"{OUT}/_parts/1"))
    for i in range(3):
        storage.pipe_file(f"/lake/out/_parts/1/1-{i}.csv.partial", b"")
    part = score(1).part
    assert storage.exists(f"/lake/out/_parts/1/{part}") and not storage.exists(f"/lake/out/_parts/1/{part}.partial")
    storage.pipe_file("/lake/out/_parts/1/1-3.csv.partial", b"")
    with pytest.raises(Stopped, match=r"in/1\.csv: 4 processes of the cluster died while they scored it"):
        score(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("in", "out", "--shard", "0/2"), "--shard is for --engine local, and not for ray"),
        (("in", "out", "--checkpoint", "2"), "--checkpoint is for --engine local, and not for ray"),
        (("in", "out", "--errors", "bad.csv"), "--errors is for --engine local, and not for ray"),
        (("--table", "items"), "--table is for --engine local, and not for ray"),
        (("-", "out", "--in-format", "csv"), "--engine ray reads and writes files, and not standard streams"),
        (("in", "-"), "--engine ray reads and writes files, and not standard streams"),
        (("in", "in/0.csv"), "OUT must be a directory with --engine ray: in/0.csv"),
        (("in", "https://example.org/out"), "OUT cannot be https://example.org/out: a web server takes no files"),
        (("in", "s3://lake/out*"), "OUT must be a directory with --engine ray: s3://lake/out*"),
        (("in", "in/out"), "OUT is in the directory of IN"),
        (("/dev/null", "out", "--in-format", "csv"), "/dev/null is not a regular file, which --engine ray needs"),
        (("mixed", "out"), "IN has files of csv and jsonl: say --out-format"),
        (("none.csv", "out"), "none.csv: "),
        (("in", "out", "--keep", "day"), "in/0.csv: IN has no column 'day'"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(inputs, words, message):
    (inputs / "mixed").mkdir()
    for name in ("a.csv", "b.jsonl"):
        (inputs / "mixed" / name).touch()
    with pytest.raises(BadSetting) as refused:
        plan(parse_files(given(*words)), Scorer(MODEL, ship=True))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], [(0, 0)]),
        ([5], [(0, 1)]),
        ([1 << 20, 5], [(0, 1), (1, 2)]),
        ([1 << 19, 1 << 19, 1 << 19], [(0, 2), (2, 3)]),
        ([1 << 21, 1 << 21], [(0, 1), (1, 2)]),
    ],
)
def test_row_groups_are_joined_to_pieces_of_a_million_rows(rows, found):
    assert ranges(rows) == found


def test_a_cluster_that_cannot_be_reached_is_named(monkeypatch, restored_signals):
    require_package("ray", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Stopped, match=r"the Ray cluster of RAY_ADDRESS=127\.0\.0\.1:1 cannot be used: .*Connection refused"):
        cluster(2, StopSignal()).__enter__()


def test_an_output_of_another_model_is_refused(run, inputs):
    run()
    with pytest.raises(BadSetting, match="out is of another run: its model differ; --force starts again"):
        run(model=MODEL / "fast")


def test_the_script_installs_the_extra_for_the_engine(tmp_path):
    (tmp_path / "bin").mkdir()
    copy(ROOT / "bin/batch", tmp_path / "bin/batch")
    # The status of bin/setup after a help text ends the script.
    (tmp_path / "bin/setup").write_text('#!/bin/sh\necho "$1"; exit 64\n')
    (tmp_path / "bin/setup").chmod(0o755)
    for words, extras in (
        ("--engine ray a b", "batch,ray"),
        ("a b --engine=ray", "batch,ray"),
        ("a ray", "batch"),
        ("a b", "batch"),
    ):
        result = subprocess.run([tmp_path / "bin/batch", *words.split()], capture_output=True, text=True, check=True)
        assert result.stdout == f"{extras}\n"


@pytest.mark.parametrize("kind", ["regressor", "scores", "columns of several types", "weights in a second file"])
def test_a_model_of_another_kind_gives_the_bytes_of_a_local_run(inputs, kind):
    packed = KINDS[kind]
    folder, source = write_model(inputs / "model", kind), inputs / "rows.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([[name for name, *_ in packed.features], *packed.rows])
    batch(source, "local.csv", "--model-dir", folder)
    files, scorer = parse_files(given("rows.csv", "out")), Scorer(folder, ship=True)
    pieces, _ = plan(files, scorer)
    found = PieceScorer(scorer, files, pieces, LocalParts(inputs))(0)
    assert (inputs / found.part).read_bytes() == Path("local.csv").read_bytes()
    assert found.ok == len(packed.rows) and list(found.labels) == list(packed.labels)
