"""The batch command on object storage and on web servers: the same output as from local files, and no row is lost."""

import gzip
import http.server
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.csv
import pytest
from batch_command import BAD_ARGUMENTS, FEATURES, STOPPED, batch, command, text_of
from http_clients import wait_until
from object_storage import empty_bucket, s3_environ, s3_server
from optional_programs import require_package
from pyarrow import parquet
from server_process import free_ports

# Python starts with this code. It ends a process that forks while it has several threads.
FORK = """
import os, threading
fork = os.fork
def checked():
    assert threading.active_count() == 1, threading.enumerate()
    print("forked", flush=True)
    return fork()
os.fork = checked
"""


class Storage:
    """A real S3 server, its bucket `lake`, and the environment in which commands reach it."""

    def __init__(self, port: int, folder: Path) -> None:
        self.environ = os.environ | s3_environ(port) | {"TMPDIR": str(folder)}
        self.staging = folder / f"iris-wsgi-{os.getuid()}"
        self.system = empty_bucket(port)

    def batch(self, *arguments: Any, **options: Any) -> subprocess.CompletedProcess:
        return batch(*arguments, env=self.environ, **options)

    def read(self, name: str) -> bytes:
        return self.system.cat_file(f"lake/{name}")

    def names(self, folder: str) -> set[str]:
        return {name.removeprefix(f"lake/{folder}/") for name in self.system.find(f"lake/{folder}")}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    (port,) = free_ports(1)
    with s3_server(port):
        yield port


@pytest.fixture
def storage(server, tmp_path) -> Storage:
    folder = tmp_path / "tmp"
    folder.mkdir()
    return Storage(server, folder)


def write_rows(folder: Path, name: str, count: int) -> Path:
    """Writes rows in the format of the name."""
    path, text = folder / name, text_of(count)
    if name.endswith(".parquet"):
        table = pyarrow.csv.read_csv(pyarrow.py_buffer(text.encode()))
        parquet.write_table(table, path, row_group_size=count // 3)
    elif name.endswith(".jsonl"):
        rows = (line.split(",") for line in text.splitlines()[1:])
        objects = ({"id": key, **dict(zip(FEATURES, map(float, values), strict=True))} for key, *values in rows)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in objects))
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.long
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.jsonl", "rows.parquet"])
def test_a_file_of_a_bucket_becomes_the_output_of_the_local_file(storage, tmp_path, name):
    source = write_rows(tmp_path, name, 20_000)
    storage.system.put_file(str(source), f"lake/{name}")
    batch(source, tmp_path / f"local-{name}", "--keep", "id")
    result = storage.batch(f"s3://lake/{name}", f"s3://lake/out/{name}", "--keep", "id")
    assert f"wrote s3://lake/out/{name}, 20000 rows" in result.stderr.decode()
    if name.endswith(".parquet"):
        (tmp_path / "remote.parquet").write_bytes(storage.read(f"out/{name}"))
        assert parquet.read_table(tmp_path / "remote.parquet").equals(parquet.read_table(tmp_path / f"local-{name}"))
    else:
        assert storage.read(f"out/{name}") == (tmp_path / f"local-{name}").read_bytes()
    # A run leaves no file on this machine.
    assert not [*storage.staging.iterdir()]
    assert b"nothing to do" in storage.batch(f"s3://lake/{name}", f"s3://lake/out/{name}", "--keep", "id").stderr


@pytest.mark.long
def test_a_directory_of_a_bucket_becomes_a_directory_of_another_one(storage, tmp_path):
    source = write_rows(tmp_path, "rows.parquet", 300)
    (tmp_path / "bad.csv").write_text(text_of(3) + "bad,1,2,3,x\n")
    names = ["year=2025/a.parquet", "year=2026/a.parquet"]
    for name in names:
        storage.system.put_file(str(source), f"lake/in/{name}")
    storage.system.put_file(str(tmp_path / "bad.csv"), "lake/in/bad.csv")
    storage.system.touch("lake/in/_SUCCESS")
    result = storage.batch("s3://lake/in", "s3://lake/out/", "--keep", "id")
    assert "wrote s3://lake/out/, 3 files, 603 rows: " in result.stderr.decode() and b"; 1 bad" in result.stderr
    files = [*names, "bad.csv"]
    assert storage.names("out") == {*files, *(f"{name}.run.json" for name in files), "bad.csv.errors.csv"}
    assert storage.read("out/bad.csv.errors.csv") == b"line,column,reason\n5,petal_width,is not a number\n"
    assert b"nothing to do" in storage.batch("s3://lake/in", "s3://lake/out/", "--keep", "id").stderr
    storage.batch("s3://lake/in/*/a.parquet", tmp_path / "local", "--out-format", "csv")
    assert {path.parent.name for path in (tmp_path / "local").rglob("a.csv")} == {"year=2025", "year=2026"}


@pytest.mark.long
def test_a_run_killed_in_the_middle_continues_and_uploads_each_row_once(storage, tmp_path):
    source = write_rows(tmp_path, "rows.csv", 400_000)
    storage.system.put_file(str(source), "lake/rows.csv")
    words = ("s3://lake/rows.csv", "s3://lake/out.csv", "--keep", "id", "--checkpoint", "0")

    def is_growing() -> bool:
        return any(path.stat().st_size > 1 << 20 for path in storage.staging.glob("*/output.partial"))

    with subprocess.Popen(command(*words), env=storage.environ, stderr=subprocess.PIPE) as process:
        wait_until(lambda: process.poll() is not None or is_growing(), "the local output grows")
        process.kill()
    assert process.returncode == -signal.SIGKILL and not storage.system.exists("lake/out.csv")
    (record,) = storage.staging.glob("*/output.run.json")
    assert 0 < json.loads(record.read_text())["checkpoint"]["rows"] < 400_000
    storage.batch(*words)
    batch(source, tmp_path / "local.csv", "--keep", "id")
    assert storage.read("out.csv") == (tmp_path / "local.csv").read_bytes()


@pytest.mark.long
def test_an_output_that_could_not_be_uploaded_is_uploaded_by_the_next_run(storage, tmp_path):
    source = write_rows(tmp_path, "rows.csv", 100)
    # The bucket does not exist yet.
    result = storage.batch(source, "s3://other/out.csv", status=BAD_ARGUMENTS)
    assert b"s3://other/out.csv" in result.stderr
    (output,) = storage.staging.glob("*/output")
    written = output.stat().st_mtime_ns, output.read_bytes()
    storage.system.mkdir("other")
    assert b"nothing to do" in storage.batch(source, "s3://other/out.csv").stderr
    assert storage.system.cat_file("other/out.csv") == written[1] and not output.exists()
    storage.system.rm("other", recursive=True)


@pytest.mark.long
def test_an_object_of_another_run_is_not_overwritten_without_force(storage, tmp_path):
    for count in (10, 11):
        source = write_rows(tmp_path, f"rows{count}.csv", count)
        storage.system.put_file(str(source), "lake/rows.csv")
        if count == 10:
            storage.batch("s3://lake/rows.csv", "s3://lake/out.csv")
    storage.system.pipe_file("lake/foreign.csv", b"x")
    before = storage.read("out.csv")
    result = storage.batch("s3://lake/rows.csv", "s3://lake/out.csv", status=BAD_ARGUMENTS)
    assert b"s3://lake/out.csv is of another run: its input differ" in result.stderr and storage.read("out.csv") == before
    result = storage.batch("s3://lake/rows.csv", "s3://lake/foreign.csv", status=BAD_ARGUMENTS)
    assert b"s3://lake/foreign.csv exists and has no record of a run" in result.stderr
    storage.batch("s3://lake/rows.csv", "s3://lake/out.csv", "--force")
    assert storage.read("out.csv").count(b"\n") == 12


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("s3://lake/none.csv", "out.csv", "s3://lake/none.csv does not exist"),
        ("s3://none/none.csv", "out.csv", "s3://none/none.csv does not exist"),
        ("s3://lake/none/", "out", "IN has no file of CSV, TSV, JSON Lines, or Parquet: s3://lake/none/"),
        ("nothing://lake/none.csv", "out.csv", "nothing://lake/none.csv cannot be used: Protocol not known"),
        ("s3://lake/in/", "s3://lake/in/out/", "OUT is in the directory of IN"),
        ("s3://lake/rows.csv", "https://example.org/out.csv", "a web server takes no files"),
        ("s3://lake/rows.csv", "out.csv", "s3://lake/rows.csv is compressed with gzip"),
    ],
)
def test_a_location_that_cannot_be_used_is_named(storage, tmp_path, source, target, message):
    storage.system.pipe_file("lake/rows.csv", gzip.compress(b"a\n1\n"))
    result = storage.batch(source, target, status=BAD_ARGUMENTS, cwd=tmp_path)
    assert message in result.stderr.decode()


@pytest.mark.long
def test_a_list_of_bad_rows_at_a_web_server_is_refused_before_the_run(storage, tmp_path):
    source, words = write_rows(tmp_path, "rows.csv", 3), ("s3://lake/out.csv", "--errors", "https://example.org/bad.csv")
    result = storage.batch(source, *words, status=BAD_ARGUMENTS)
    assert b"--errors cannot be https://example.org/bad.csv: a web server takes no files" in result.stderr
    assert not storage.staging.exists() or not list(storage.staging.glob("*/*"))


@pytest.mark.long
def test_the_processes_of_a_run_are_forked_before_the_threads_of_the_storage(storage, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FORK)
    source = write_rows(tmp_path, "rows.csv", 3)
    storage.system.put_file(str(source), "lake/in/rows.csv")
    storage.environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for location in ("s3://lake/in/", "s3://lake/in/rows.csv", "s3://lake/in/*.csv"):
        result = storage.batch(location, f"s3://lake/out{len(location)}", "--in-format", "csv", "--workers", "2")
        assert b"3 rows" in result.stderr and result.stdout.count(b"forked") == 2


@pytest.mark.long
def test_a_server_that_cannot_be_reached_stops_the_run(storage, tmp_path):
    (port,) = free_ports(1)
    environ = storage.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"}
    result = batch("s3://lake/rows.csv", tmp_path / "out.csv", status=STOPPED, env=environ)
    assert b"stopped: s3://lake/rows.csv cannot be reached" in result.stderr


def test_a_missing_package_is_named_with_its_remedy(tmp_path):
    (tmp_path / "fsspec.py").write_text("raise ImportError('no fsspec')")
    for scheme, extra in (("s3", "s3"), ("gs", "gs"), ("https", "https")):
        environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        result = batch(f"{scheme}://lake/rows.csv", tmp_path / "out.csv", status=BAD_ARGUMENTS, env=environ)
        assert f"{scheme}://lake/rows.csv needs another package: run `bin/setup {extra}`".encode() in result.stderr


def test_a_folder_for_uploads_of_another_user_is_not_used(monkeypatch, tmp_path):
    from iris_wsgi.settings import BadSetting
    from iris_wsgi.storage.remote_files import staging_folder

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    (tmp_path / "iris-wsgi-4711").mkdir()
    with pytest.raises(BadSetting, match="iris-wsgi-4711 belongs to another user; set TMPDIR"):
        staging_folder("s3://lake/out.csv")


class WithoutParts(http.server.SimpleHTTPRequestHandler):
    """Web server that sends whole files only."""

    def log_message(self, *_: object) -> None: ...


class WithParts(WithoutParts):
    """Web server that sends parts of files. It breaks off in the part that has the byte `broken`."""

    broken = -1

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        is_broken = int(first) <= self.broken < int(first) + len(part)
        self.wfile.write(part[: len(part) // 2] if is_broken else part)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()


@contextmanager
def web_server(handler: type[http.server.SimpleHTTPRequestHandler], folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://user:password@127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("handler", [WithParts, WithoutParts])
@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_file_of_a_web_server_is_scored_and_no_secret_is_shown(tmp_path, handler, name):
    require_package("aiohttp", "storage")
    source = write_rows(tmp_path, name, 30_000)
    batch(source, tmp_path / "local.csv", "--keep", "id")
    with web_server(handler, tmp_path) as url:
        result = batch(f"{url}/{name}?signature=hidden", tmp_path / "remote.csv", "--keep", "id")
        again = batch(f"{url}/{name}?signature=other", tmp_path / "remote.csv", "--keep", "id")
    assert (tmp_path / "remote.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    assert b"nothing to do" in again.stderr
    shown = result.stderr.decode() + (tmp_path / "remote.csv.run.json").read_text()
    assert not [word for word in ("hidden", "password") if word in shown]


@pytest.mark.long
def test_a_web_server_that_breaks_off_stops_the_run_and_the_next_run_continues(tmp_path):
    require_package("aiohttp", "storage")
    source = write_rows(tmp_path, "rows.csv", 600_000)
    assert source.stat().st_size > 3 << 22
    batch(source, tmp_path / "local.csv", "--keep", "id")

    class BreaksOff(WithParts):
        broken = 1 << 23

    with web_server(BreaksOff, tmp_path) as url:
        stopped = batch(f"{url}/rows.csv", tmp_path / "remote.csv", "--keep", "id", status=STOPPED)
        assert b"rows.csv cannot be read to its end" in stopped.stderr and b"the same command resumes the run" in stopped.stderr
        BreaksOff.broken = -1
        batch(f"{url}/rows.csv", tmp_path / "remote.csv", "--keep", "id")
    assert (tmp_path / "remote.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
