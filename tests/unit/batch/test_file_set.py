"""The batch command on directories and patterns: each file has its own output and record."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from batch_command import BAD_ARGUMENTS, FEATURES, GOOD, INTERRUPTED, TOO_MANY_BAD, batch, command, text_of
from http_clients import wait_until

from iris_wsgi.cli.main import read_words
from iris_wsgi.patterns.batch.file_set import is_file_set, output_name, parse_runs, root_of
from iris_wsgi.settings import BadSetting

BAD_ROW = "bad,5,3,1,x\n"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A directory with three files of rows, one bad row, and what other programs leave next to data."""
    folder = tmp_path / "in"
    (folder / "2026" / "11").mkdir(parents=True)
    (folder / "one.csv").write_text(text_of(30, seed=1))
    (folder / "2026" / "two.csv").write_text(text_of(20, seed=2) + BAD_ROW)
    (folder / "2026" / "11" / "three.csv").write_text(text_of(10, seed=3))
    for name in ("_SUCCESS", ".hidden.csv", "_temporary.csv", "notes.txt", "old.csv.errors.csv", "2026/_metadata.csv"):
        (folder / name).write_text("no rows")
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files but the records, by name."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".run.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def expected(inputs: Path, tmp_path: Path) -> dict[str, bytes]:
    """Returns what a run over each file alone writes."""
    for name in ("one.csv", "2026/two.csv", "2026/11/three.csv"):
        target = tmp_path / "alone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        batch(inputs / name, target, "--keep", "id")
    return outputs(tmp_path / "alone")


def test_each_file_of_a_directory_has_the_output_of_a_run_over_it_alone(inputs, tmp_path):
    result = batch(inputs, tmp_path / "out", "--keep", "id")
    assert outputs(tmp_path / "out") == expected(inputs, tmp_path)
    (line,) = result.stderr.decode().splitlines()
    assert f"wrote {tmp_path / 'out'}, 3 files, 60 rows: " in line and line.endswith("; 1 bad, listed in files *.errors.csv")


def test_a_complete_run_has_nothing_to_do_and_a_new_file_is_added(inputs, tmp_path):
    batch(inputs, tmp_path / "out")
    before = outputs(tmp_path / "out")
    assert b"nothing to do" in batch(inputs, tmp_path / "out").stderr
    (inputs / "zero.csv").write_text(text_of(5))
    assert b"4 files, 65 rows" in batch(inputs, tmp_path / "out").stderr
    assert {name: data for name, data in outputs(tmp_path / "out").items() if name != "zero.csv"} == before


@pytest.mark.long
def test_a_changed_file_is_named_and_not_overwritten(inputs, tmp_path):
    batch(inputs, tmp_path / "out")
    (inputs / "one.csv").write_text(text_of(31, seed=4))
    result = batch(inputs, tmp_path / "out", status=BAD_ARGUMENTS)
    assert f"{inputs / 'one.csv'}: {tmp_path / 'out/one.csv'} is of another run: its input differ".encode() in result.stderr
    assert b"61 rows" in batch(inputs, tmp_path / "out", "--force").stderr


@pytest.mark.long
def test_a_pattern_selects_files_and_another_format_renames_them(inputs, tmp_path):
    batch(f"{inputs}/*.csv", tmp_path / "flat", "--out-format", "jsonl")
    assert outputs(tmp_path / "flat").keys() == {"one.jsonl"}
    batch(f"{inputs}/**/t*.csv", tmp_path / "deep")
    assert outputs(tmp_path / "deep").keys() == {"2026/two.csv", "2026/two.csv.errors.csv", "2026/11/three.csv"}


@pytest.mark.long
def test_files_of_several_formats_are_one_set(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(text_of(3))
    (tmp_path / "in" / "b.jsonl").write_text(f"{json.dumps(dict.fromkeys(FEATURES, 1.5))}\n" * 3)
    assert b"2 files, 6 rows" in batch(tmp_path / "in", tmp_path / "out").stderr
    assert outputs(tmp_path / "out").keys() == {"a.csv", "b.jsonl"}


@pytest.mark.long
def test_shards_of_a_directory_are_different_files_and_together_all(inputs, tmp_path):
    for i in range(4):
        batch(inputs, tmp_path / "out", "--keep", "id", "--shard", f"{i}/4")
        assert len(list((tmp_path / "out").rglob("*.run.json"))) == min(i + 1, 3)
    assert outputs(tmp_path / "out") == expected(inputs, tmp_path)


def test_too_many_bad_rows_of_a_file_end_the_run_and_earlier_files_stay(inputs, tmp_path):
    (inputs / "2026" / "11" / "three.csv").write_text(text_of(0) + BAD_ROW)
    (inputs / "2026" / "11" / "a.csv").write_text(text_of(2))
    result = batch(inputs, tmp_path / "out", status=TOO_MANY_BAD)
    assert f"failed: {inputs}/2026/11/three.csv: all 1 rows are bad".encode() in result.stderr
    assert outputs(tmp_path / "out").keys() >= {"2026/11/a.csv", "2026/11/three.csv.errors.csv"}
    assert "2026/11/three.csv" not in outputs(tmp_path / "out")


def test_an_unusable_file_is_named(inputs, tmp_path):
    (inputs / "2026" / "two.csv").write_text("a,b\n1,2\n")
    result = batch(inputs, tmp_path / "out", status=BAD_ARGUMENTS)
    assert f"{inputs}/2026/two.csv: IN has no column".encode() in result.stderr


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("in", "in", (), "OUT is in the directory of IN"),
        ("in", "in/2026/out", (), "OUT is in the directory of IN"),
        ("in/**/*.csv", "in/out", (), "OUT is in the directory of IN"),
        ("in", "-", (), "OUT must be a directory"),
        ("in", "in/one.csv", (), "OUT must be a directory"),
        ("in/*.csv", "in", (), "IN and OUT are the same file"),
        ("in", "out", ("--errors", "bad.csv"), "--errors is for one file"),
        ("in/*.tsv", "out", (), "IN has no file of CSV, TSV, JSON Lines, or Parquet: in/*.tsv"),
        ("in", "out", ("--shard", "4/4"), "must be like 0/4"),
        ("twins", "out", ("--out-format", "jsonl"), "two files of IN would become a.jsonl"),
    ],
)
def test_a_set_without_a_safe_place_for_each_output_is_refused(inputs, tmp_path, monkeypatch, source, target, options, message):
    (tmp_path / "twins").mkdir()
    for name in ("a.csv", "a.tsv"):
        (tmp_path / "twins" / name).write_text(text_of(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSetting) as refused:
        parse_runs(read_words(["batch", source, target, *options])[1])
    assert message in str(refused.value)


def wait_for_part(process: subprocess.Popen, path: Path, size: int) -> None:
    wait_until(lambda: process.poll() is not None or (path.exists() and path.stat().st_size > size), f"{path} grows")
    assert process.poll() is None, "the run ended before"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_in_a_file_continues_with_this_file(tmp_path, number):
    (tmp_path / "in").mkdir()
    for i, count in enumerate((1000, 400_000, 1000)):
        (tmp_path / "in" / f"{i}.csv").write_text(text_of(count, seed=i))
    out = tmp_path / "out"
    with subprocess.Popen(command(tmp_path / "in", out, "--keep", "id", "--checkpoint", "0"), stderr=subprocess.PIPE) as process:
        wait_for_part(process, out / "1.csv.partial", 1 << 20)
        process.send_signal(number)
        assert process.wait() == (INTERRUPTED if number == signal.SIGTERM else -number)
        lines = process.stderr.read().decode()
    assert ("the same command resumes the run" in lines) == (number == signal.SIGTERM)
    at = json.loads((out / "1.csv.run.json").read_text())["checkpoint"]["rows"]
    first = os.stat(out / "0.csv").st_mtime_ns
    assert 0 < at < 400_000 and not (out / "2.csv").exists()
    batch(tmp_path / "in", out, "--keep", "id")
    assert os.stat(out / "0.csv").st_mtime_ns == first
    batch(tmp_path / "in", tmp_path / "again", "--keep", "id", status=GOOD)
    assert outputs(out) == outputs(tmp_path / "again")


@pytest.mark.parametrize(
    ("location", "root"),
    [
        ("a/b", "a/b/"),
        ("a/b/", "a/b/"),
        ("a/b*/c.csv", "a/"),
        ("*.csv", ""),
        ("s3://lake/rows", "s3://lake/rows/"),
        ("s3://lake/**/x?.csv", "s3://lake/"),
    ],
)
def test_names_of_outputs_start_after_the_directory(location, root):
    assert root_of(location) == root


@pytest.mark.parametrize(
    ("name", "out_format", "output"),
    [
        ("a/b.csv", None, "a/b.csv"),
        ("a/b.csv.gz", None, "a/b.csv.gz"),
        ("a/b.csv.gz", "parquet", "a/b.parquet"),
        ("a.b/c", "csv", "a.b/c.csv"),
        ("v1.2.csv", "jsonl", "v1.2.jsonl"),
    ],
)
def test_an_output_has_the_name_of_its_input_with_the_suffix_of_its_format(name, out_format, output):
    assert output_name(name, out_format) == output


def test_a_file_whose_name_has_special_characters_is_no_pattern(tmp_path):
    (tmp_path / "a[1].csv").write_text(text_of(1))
    assert not is_file_set(str(tmp_path / "a[1].csv"))
    batch(tmp_path / "a[1].csv", tmp_path / "b.csv")
