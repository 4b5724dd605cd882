"""The batch command with --engine ray on a real cluster of two CPUs: the rows of a local run, each once, also after kills."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from batch_command import BAD_ARGUMENTS, FEATURES, GOOD, HEADER, INTERRUPTED, batch, command, text_of
from doc_examples import FENCES
from http_clients import NO_COVERAGE, is_alive, wait_until
from object_storage import BUCKET, empty_bucket, s3_environ, s3_server
from optional_programs import require_package
from project import MODEL
from server_process import free_ports

pytestmark = pytest.mark.long

# A cluster that ends with its standard input.
CLUSTER = """
import sys
import ray
cluster = ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
print(cluster.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}


def untraced(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment in which coverage does not trace the many processes of Ray."""
    return {**environment, **NO_COVERAGE}


@pytest.fixture(scope="module")
def s3_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def cluster(s3_port: int) -> Iterator[dict[str, str]]:
    """The environment of a driver of a running cluster."""
    require_package("ray", "ray")
    environment = os.environ | QUIET | s3_environ(s3_port)
    pipe = subprocess.PIPE
    words = [sys.executable, "-W", "ignore", "-c", CLUSTER]
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=untraced(environment)) as head:
        yield environment | {"RAY_ADDRESS": head.stdout.readline().decode().strip()}
        head.stdin.close()


# Starts the command with small pieces.
SMALL_PIECES = """
import sys
from iris_wsgi.cli.main import main
from iris_wsgi.patterns.batch import ray_engine
ray_engine.PIECE_ROWS = 100
sys.exit(main())
"""


def ray(*arguments: str | Path, status: int = GOOD, **options) -> str:
    """Runs the command and returns its messages."""
    return batch("--engine", "ray", *arguments, status=status, **options).stderr.decode()


def bad_text(count: int, seed: int) -> str:
    """Returns CSV in which two rows are bad, one of them with too few columns."""
    lines = text_of(count, seed=seed).splitlines()
    lines[7], lines[90] = lines[7].replace("r6", "r6,x", 1), lines[90].rpartition(",")[0]
    return "\n".join(lines) + "\n"


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*"))


def record(folder: Path) -> dict:
    return json.loads((folder / "_run.json").read_text())


def run_id(folder: Path) -> str:
    """Returns the id of the last run, or an empty string."""
    return record(folder)["run"] if (folder / "_run.json").exists() else ""


def check_complete(folder: Path, count: int, suffix: str) -> None:
    """Checks that a directory has the files of a complete run only."""
    names = {path.name for path in folder.iterdir()} - {"_errors.csv"}
    assert names == {"_run.json", *(f"part-{i:05}.{suffix}" for i in range(count))}
    assert record(folder)["status"] == "succeeded"


def test_files_of_csv_have_the_same_bytes_as_in_a_local_run(tmp_path, cluster):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / f"in/{i}.csv").write_text(bad_text(200, i))
    message = ray("in", "out", "--keep", "id", "--digest", cwd=tmp_path, env=cluster)
    batch("in", "local", "--keep", "id", "--digest", "--quiet", cwd=tmp_path)
    check_complete(tmp_path / "out", 3, "csv")
    errors = [["file", "line", "column", "reason"]]
    for i, part in enumerate(parts(tmp_path / "out")):
        assert part.read_bytes() == (tmp_path / f"local/{i}.csv").read_bytes()
        errors += [[str(tmp_path / f"in/{i}.csv"), *row] for row in rows_of(tmp_path / f"local/{i}.csv.errors.csv")[1:]]
    assert rows_of(tmp_path / "out/_errors.csv") == errors
    labels = ", ".join(f"{count} {name}" for name, count in record(tmp_path / "out")["labels"].items())
    assert message.splitlines()[-1] == f"iris_wsgi: wrote out, 594 rows: {labels}; 6 bad, listed in out/_errors.csv"
    assert ray("in", "out", "--keep", "id", "--digest", cwd=tmp_path, env=cluster).startswith("iris_wsgi: nothing to do: run ")
    assert "its options differ; --force starts again" in ray("in", "out", cwd=tmp_path, env=cluster, status=BAD_ARGUMENTS)


def test_row_groups_of_parquet_are_pieces_with_the_rows_of_a_local_run(tmp_path, cluster):
    arrow, parquet = require_package("pyarrow", "parquet"), require_package("pyarrow.parquet", "parquet")
    (tmp_path / "in").mkdir()
    for i, (count, size) in enumerate([(350, 100), (130, 60)]):
        columns = {
            name: arrow.array([1.5 + (7 * j + k) % 5 if j % 75 else None for j in range(count)])
            for k, name in enumerate(FEATURES)
        }
        parquet.write_table(arrow.table({"id": range(count), **columns}), tmp_path / f"in/{i}.parquet", row_group_size=size)
    words = [sys.executable, "-c", SMALL_PIECES, *command("--engine", "ray", "in", "out", "--keep", "id")[3:]]
    messages = subprocess.run(words, cwd=tmp_path, env=cluster, capture_output=True, timeout=300).stderr.decode()
    assert messages.splitlines()[-1].endswith("; 7 bad, listed in out/_errors.csv"), messages
    batch("in", "local", "--keep", "id", "--quiet", cwd=tmp_path)
    # The groups of 60 rows are joined, and the last one is the rest.
    check_complete(tmp_path / "out", 4 + 2, "parquet")
    local = [parquet.read_table(tmp_path / f"local/{i}.parquet") for i in range(2)]
    assert arrow.concat_tables(map(parquet.read_table, parts(tmp_path / "out"))).equals(arrow.concat_tables(local))
    errors = [row for i in range(2) for row in rows_of(tmp_path / f"local/{i}.parquet.errors.csv")[1:]]
    assert [row[1:] for row in rows_of(tmp_path / "out/_errors.csv")[1:]] == errors


def writers(folder: str) -> list[int]:
    """Returns the processes that are writing a part into a folder of parts, which has these words in its path."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        # The process may close the file at any time.
        with suppress(OSError):
            target = os.readlink(path)
            if folder in target and target.endswith(".partial"):
                found.append(int(path.parts[2]))
    return found


def many_rows(folder: Path, files: int = 4, rows: int = 150_000) -> list[str]:
    """Writes CSV with this number of rows in each file. Returns the ids of all rows."""
    folder.mkdir()
    ends = [line[line.index(",") :] for line in text_of(2000).splitlines()[1:]]
    for i in range(files):
        (folder / f"{i}.csv").write_text("\n".join([HEADER, *(f"{i}x{j}{ends[j % 2000]}" for j in range(rows)), ""]))
    return [f"{i}x{j}" for i in range(files) for j in range(rows)]


@contextmanager
def driver_with_writers(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """Starts the command from in to out, and waits until processes of the cluster write parts. Yields both."""
    before = run_id(folder / "out")
    words = command("--engine", "ray", "in", "out", "--keep", "id", "--quiet", "--workers", "2")
    with subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE) as driver:
        found: list[int] = []

        def has_writers() -> bool:
            run = run_id(folder / "out")
            # Tasks of an earlier driver may still write.
            found.extend(writers(f"{folder}/out/_parts/{run}") if run != before else ())
            return bool(found) or driver.poll() is not None

        wait_until(has_writers, "a part is written")
        assert found, driver.stderr.read().decode()
        yield driver, found


def test_each_row_is_there_once_after_the_driver_and_a_process_of_the_cluster_were_killed(tmp_path, cluster):
    ids = many_rows(tmp_path / "in")
    with driver_with_writers(tmp_path, cluster) as (driver, _):
        driver.terminate()
        messages = driver.communicate(timeout=300)[1].decode()
    assert driver.returncode == INTERRUPTED and messages.startswith("iris_wsgi: stopped: SIGTERM, after "), messages
    assert record(tmp_path / "out")["status"] == "interrupted" and os.listdir(tmp_path / "out") == ["_run.json"]
    # A cluster that the command has started dies with it.
    alone = {name: value for name, value in untraced(cluster).items() if name != "RAY_ADDRESS"}
    with driver_with_writers(tmp_path, alone) as (driver, pids):
        driver.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "the processes of the cluster end")
    assert record(tmp_path / "out")["status"] == "running" and not parts(tmp_path / "out")
    with driver_with_writers(tmp_path, cluster) as (driver, pids):
        os.kill(pids[0], signal.SIGKILL)
        messages = driver.communicate(timeout=300)[1].decode()
    assert (driver.returncode, messages) == (GOOD, "")
    assert [row[0] for part in parts(tmp_path / "out") for row in rows_of(part)[1:]] == ids
    check_complete(tmp_path / "out", 4, "csv")
    assert record(tmp_path / "out")["rows"] == {"ok": len(ids), "bad": 0}


def test_the_example_of_ray_data_gives_the_rows_of_the_command(tmp_path, cluster):
    arrow, parquet = require_package("pyarrow", "parquet"), require_package("pyarrow.parquet", "parquet")
    (tmp_path / "model").symlink_to(MODEL)
    (tmp_path / "rows").mkdir()
    for i in range(2):
        columns = {name: [1.5 + (7 * j + k + i) % 5 for j in range(200)] for k, name in enumerate(FEATURES)}
        parquet.write_table(arrow.table({"id": range(200 * i, 200 * i + 200), **columns}), tmp_path / f"rows/{i}.parquet")
    (example,) = [fence for fence in FENCES if fence.language == "python" and "import ray" in fence.text]
    words = [sys.executable, "-c", example.text.replace("/tmp/", f"{tmp_path}/")]
    subprocess.run(words, cwd=tmp_path, env=cluster, capture_output=True, timeout=300, check=True)
    batch("rows", "local", "--keep", "id", "--quiet", cwd=tmp_path)
    local = arrow.concat_tables(parquet.read_table(path) for path in sorted((tmp_path / "local").glob("*.parquet")))
    found = arrow.concat_tables(parquet.read_table(path) for path in (tmp_path / "scored").glob("*.parquet"))
    assert found.column("error").null_count == 400
    assert found.drop_columns("error").sort_by("id").to_pylist() == local.to_pylist()


def test_files_of_a_bucket_become_parts_in_a_bucket_with_each_row_once_after_a_kill(tmp_path, cluster, s3_port):
    ids = many_rows(tmp_path / "in", rows=400_000)
    with s3_server(s3_port):
        system = empty_bucket(s3_port)
        system.put(f"{tmp_path}/in", f"{BUCKET}/", recursive=True)
        words = command("--engine", "ray", f"s3://{BUCKET}/in/", f"s3://{BUCKET}/out", "--keep", "id")
        with subprocess.Popen(words, env=cluster, stderr=subprocess.PIPE) as driver:
            found: list[int] = []

            def has_writers() -> bool:
                found.extend(writers("/iris_wsgi-"))
                return bool(found) or driver.poll() is not None

            wait_until(has_writers, "a part is written")
            assert found, driver.stderr.read().decode()
            os.kill(found[0], signal.SIGKILL)
            messages = driver.communicate(timeout=300)[1].decode()
        assert messages.splitlines()[-1].startswith(f"iris_wsgi: wrote s3://{BUCKET}/out, {len(ids)} rows: "), messages
        names = {f"part-{i:05}.csv" for i in range(4)}
        assert {name.removeprefix(f"{BUCKET}/out/") for name in system.find(f"{BUCKET}/out")} == {"_run.json", *names}
        texts = [system.cat_file(f"{BUCKET}/out/{name}").decode() for name in sorted(names)]
    assert [line.partition(",")[0] for text in texts for line in text.splitlines()[1:]] == ids
