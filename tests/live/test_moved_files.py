"""State files that are deleted, moved, or replaced under a running server: it acknowledges no write to an unlinked file."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from http_clients import RawConnection, fetch, http_request, wait_until
from job_store_invariants import invariant_violations

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.asynchronous.job import JobNotFound, Limits
from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore
from iris_wsgi.patterns.data_cache.item_store import Item
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItemStore

BODY = bytes(64)
ROW, OTHER = b"aaaa" * 4, b"bbbb" * 4
JOB = {"data": [[5.1, 3.5, 1.4, 0.2]]}
TIMEOUT_SECONDS = 60.0


def remove(*suffixes: str) -> Callable[[Path], None]:
    return lambda path: [Path(f"{path}{suffix}").unlink() for suffix in suffixes] and None


def empty_folder(path: Path) -> None:
    for item in path.parent.iterdir():
        item.unlink()


def rename_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_by_text(path: Path) -> None:
    path.with_name("new").write_bytes(b"no database at all, and long enough to be looked at" * 100)
    path.with_name("new").rename(path)


def replace_by_empty_file(path: Path) -> None:
    path.with_name("new").touch()
    path.with_name("new").rename(path)


def replace_by_other_database(path: Path) -> None:
    with closing(sqlite3.connect(path.with_name("new"))) as other:
        other.execute("CREATE TABLE t (a)")
    path.with_name("new").rename(path)


LOST = {
    "the database is deleted": remove(""),
    "all files are deleted": empty_folder,
    "the folder is deleted": remove_folder,
    "the folder is renamed": rename_folder,
    "an empty file is in its place": replace_by_empty_file,
    "a text is in its place": replace_by_text,
    "another database is in its place": replace_by_other_database,
}
RESCUED = {
    "the log is deleted": remove("-wal"),
    "the shared memory is deleted": remove("-shm"),
    "both are deleted": remove("-wal", "-shm"),
    "the gate is deleted": remove("-gate"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/jobs.db"


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_a_store_without_its_files_acknowledges_nothing_and_states_the_action(path, lose):
    with closing(SqliteJobStore(path)) as store:
        job = store.submit(BODY)
        assert store.get(job.id) == job
        lose(path)
        with pytest.raises(BackendUnavailable):
            store.submit(BODY)
        for use in (lambda: store.submit(BODY), lambda: store.get(job.id), store.counts, lambda: store.claim("w", 1, 30)):
            with pytest.raises(BackendUnavailable) as down:
                use()
            assert "put them back" in down.value.remedy, down.value


@pytest.mark.parametrize("lose", RESCUED.values(), ids=RESCUED)
def test_without_a_file_next_to_the_database_no_job_is_lost_and_the_store_continues(path, lose):
    with closing(SqliteJobStore(path)) as store, closing(SqliteJobStore(path)) as other:
        jobs = [item.submit(BODY).id for item in (store, other) * 20]
        lose(path)

        def submitted(item: SqliteJobStore) -> bool:
            with suppress(BackendUnavailable):
                jobs.append(item.submit(BODY).id)
                return True
            return False

        wait_until(lambda: all([submitted(item) for item in (store, other)]), "both stores continue")
        for item in (store, other):
            assert {item.get(job).id for job in jobs} == set(jobs) and invariant_violations(item) == []
    with closing(SqliteJobStore(path)) as store:
        assert {store.get(job).id for job in jobs} == set(jobs) and invariant_violations(store) == []


def test_a_folder_that_is_back_is_used_again(path):
    with closing(SqliteJobStore(path)) as store:
        job = store.submit(BODY)
        rename_folder(path)
        with pytest.raises(BackendUnavailable, match="no longer exists"):
            store.submit(BODY)
        path.parent.with_name("elsewhere").rename(path.parent)
        assert store.get(job.id) == job and store.submit(BODY).state == "queued" and invariant_violations(store) == []


@pytest.mark.parametrize("how", ["backup", "VACUUM INTO"])
def test_a_restored_backup_is_used_by_all_processes_after_one_refusal(path, how):
    with closing(SqliteJobStore(path)) as store, closing(SqliteJobStore(path)) as other:
        old = store.submit(BODY)
        copy = path.with_name("copy")
        with closing(sqlite3.connect(path)) as db:
            if how == "backup":
                with closing(sqlite3.connect(copy)) as target:
                    db.backup(target)
            else:
                db.execute("VACUUM INTO ?", (str(copy),))
        new = store.submit(BODY)
        assert other.get(new.id) == new
        copy.rename(path)
        for item in (store, other):
            with pytest.raises(BackendUnavailable, match="was replaced"):
                item.submit(BODY)
            assert item.get(old.id) == old
            with pytest.raises(JobNotFound):
                item.get(new.id)
            assert item.submit(BODY).state == "queued" and invariant_violations(item) == []


def test_a_commit_into_a_file_that_was_unlinked_meanwhile_is_not_acknowledged(path):
    with closing(SqliteJobStore(path)) as store:
        store.submit(BODY)
        with pytest.raises(BackendUnavailable, match="no longer exists"):
            store.database.write(lambda _: path.unlink())


def test_a_reader_in_the_middle_of_its_work_keeps_no_old_file_in_use(path):
    with closing(SqliteJobStore(path)) as store, store.database.read() as db:
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").rename(path)
        # A read is a snapshot. Until it ends, no process mixes the files.
        assert db.execute("SELECT count(*) FROM job").fetchone() == (0,)
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="was replaced"):
                store.submit(BODY)
    with closing(SqliteJobStore(path)) as store:
        assert store.submit(BODY).state == "queued"


def test_the_cache_forgets_the_items_of_a_replaced_database(tmp_path):
    path = tmp_path / "items.db"
    with closing(SqliteItemStore(path, {"a": ROW})) as store, closing(SqliteItemStore(tmp_path / "new.db", {"a": OTHER})):
        cursor = store.changes(None).cursor
        assert (store.put("a", OTHER), store.changes(cursor).versions) == (2, {"a": 2})
        cursor = store.changes(cursor).cursor
        with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "old.db")) as target:
            db.execute("UPDATE store SET clock = clock - 1")
            db.commit()
            db.backup(target)
        for name in ("old.db", "new.db"):
            (tmp_path / name).rename(path)
            with pytest.raises(BackendUnavailable, match="was replaced"):
                store.get("a")
            cursor, versions = store.changes(cursor)
            assert versions is None
        assert store.get("a") == Item(1, OTHER)


def test_many_threads_lose_no_acknowledged_job_while_the_files_change(path):
    backup = path.with_name("kept")
    with closing(SqliteJobStore(path, Limits(queued=10**6), busy_seconds=TIMEOUT_SECONDS)) as store:
        acknowledged, done = [], threading.Event()

        def submit() -> None:
            while not done.is_set():
                with suppress(BackendUnavailable):
                    acknowledged.append(store.submit(BODY).id)

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            count = len(acknowledged)
            wait_until(lambda count=count: len(acknowledged) > count + 5, "jobs are accepted")
            path.rename(backup)
            backup.rename(path)
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{path}{suffix}")
        done.set()
        for thread in threads:
            thread.join()
        wait_until(lambda: responds(store), "the store responds")
        assert {store.get(job_id).state for job_id in acknowledged} == {"queued"} and invariant_violations(store) == []


def responds(store: SqliteJobStore) -> bool:
    with suppress(BackendUnavailable):
        return bool(store.counts())
    return False


# A running server with traffic, and a separate worker process


def post(server) -> int:
    return fetch(server, http_request("POST", "/jobs", JOB)).status


def logged(server, text: str) -> bool:
    """Returns whether the log of a stopped server contains the text."""
    return text in server.process.communicate(timeout=TIMEOUT_SECONDS)[1]


@pytest.mark.long
@pytest.mark.parametrize("lose", [remove(""), empty_folder, rename_folder], ids=["deleted", "emptied", "renamed"])
def test_a_server_without_its_files_reports_this_and_accepts_no_job_until_it_is_restarted(run, tmp_path, lose):
    path = tmp_path / "state/jobs.db"
    state = {"IRIS_STATE_DIR": str(path.parent)}
    server = run("--role", "asynchronous", **state)
    worker = run(command="worker", **state)
    responses, done = [], threading.Event()

    def submit() -> None:
        with RawConnection(server) as connection:
            while not done.is_set():
                response = connection.exchange(http_request("POST", "/jobs", JOB))
                responses.append((response.status, b"put them back" in response.body))

    traffic = threading.Thread(target=submit)
    traffic.start()
    try:
        wait_until(lambda: len(responses) > 20, "there is traffic")
        lose(path)
        wait_until(lambda: (503, True) in responses, "jobs are refused")
        refused = responses.index((503, True))
        wait_until(lambda: len(responses) > refused + 20, "jobs are still refused")
        # On a busy machine the store may also be too slow for a request before, which has another message.
        assert {(202, False)} <= set(responses[:refused]) <= {(202, False), (503, False)}
        assert set(responses[refused:]) == {(503, True)}
        response = fetch(server, http_request("POST", "/jobs", JOB))
        assert "put them back, or restart the server" in response.json()["detail"] and "retry-after" not in response.headers
        for process in (server, worker):
            wait_until(
                lambda process=process: "put them back" in str(fetch(process, http_request("GET", "/readyz")).body),
                "the server is not ready",
            )
            assert {fetch(process, http_request("GET", "/livez")).status for _ in range(4)} == {200}
    finally:
        done.set()
        traffic.join()
    for process in (server, worker):
        process.process.terminate()
        assert logged(process, "no longer exists")
    again = run("--role", "asynchronous", **state)
    assert post(again) == 202


@pytest.mark.long
def test_without_traffic_a_server_notices_lost_files_of_items_and_serves_a_restored_backup(run, tmp_path):
    path = tmp_path / "items.db"
    server = run("--role", "data_cache", IRIS_STATE_DIR=str(tmp_path))
    put_request = http_request("PUT", "/items/a", JOB)
    assert fetch(server, put_request).status == 201
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "copy")) as target:
        db.backup(target)
    assert fetch(server, put_request).status == 200 and fetch(server, http_request("GET", "/items/a")).json()["version"] == 2
    path.unlink()
    wait_until(lambda: fetch(server, http_request("GET", "/readyz")).status == 503, "the server is not ready")
    assert "put them back" in fetch(server, put_request).json()["detail"]
    (tmp_path / "copy").rename(path)
    wait_until(lambda: fetch(server, http_request("GET", "/readyz")).status == 200, "the server is ready")
    wait_until(lambda: fetch(server, http_request("GET", "/items/a")).json()["version"] == 1, "the backup is served")
    wait_until(lambda: fetch(server, put_request).status == 200, "the item is written")
    server.process.terminate()
    assert logged(server, "no longer exists")
