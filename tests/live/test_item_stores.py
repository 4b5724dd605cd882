"""Item stores: one suite for both databases, and the failures of each."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from http_clients import wait_until
from item_stores import open_item_store
from project import MODEL, ROOT

from iris_wsgi.errors import BackendUnavailable, BadStore
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.data_cache import sqlite_store
from iris_wsgi.patterns.data_cache.item_store import MAX_CHANGES, Item, ItemStore
from iris_wsgi.patterns.data_cache.postgres_store import PostgresItemStore
from iris_wsgi.patterns.data_cache.role import seed_rows
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItemStore

A, B, C = b"aaaa" * 4, b"bbbb" * 4, b"cccc" * 4
# An unavailable database is reported in a quarter of a second on an idle machine. The tests only assert that the store does not
# hang.
BOUND_SECONDS = 5.0
Open = Callable[..., ItemStore]


@pytest.fixture(params=["sqlite", "UTF8", "SQL_ASCII", "LATIN1", "EUC_JP"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Location of an empty database: SQLite, or PostgreSQL of an encoding."""
    if request.param == "sqlite":
        return str(tmp_path / "items.db")
    return request.getfixturevalue("postgres_server").create_database(f"items_{os.urandom(6).hex()}", request.param)


@pytest.fixture
def store(location: str) -> Iterator[ItemStore]:
    store = open_item_store(location)
    yield store
    store.close()


def test_an_item_can_be_read_after_its_put_and_each_put_is_a_version(store):
    assert store.get("a") is None
    assert [store.put("a", A), store.put("a", B), store.put("b", C)] == [1, 2, 1]
    assert (store.get("a"), store.get("b"), store.get("A")) == (Item(2, B), Item(1, C), None)


def test_ids_are_in_their_order_with_every_collation(store):
    for text in ("b", "B", "_", "-", "0", "aa", "a"):
        store.put(text, A)
    assert list(store.ids("", 4)) == ["-", "0", "B", "_"]
    assert list(store.ids("_", 10)) == ["a", "aa", "b"]


def test_the_encoding_of_the_client_is_utf_8_whatever_the_url_and_the_environment_say(postgres_server, monkeypatch):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    for name, parameter in (
        ("variable", ""),
        ("parameter", "&client_encoding=SQL_ASCII"),
        ("option", "&options=-cclient_encoding%3DEUC_JP"),
    ):
        url = postgres_server.create_database(f"encoding_{name}", "SQL_ASCII") + parameter
        with closing(PostgresItemStore(url, {"a": A}, 10)) as store:
            assert store.ids("", 9) == ["a"] and store.pool.free[0].query("SHOW client_encoding") == [("UTF8",)]


def test_a_new_database_has_the_seed_once(location):
    with closing(open_item_store(location, {"0000": A, "0001": B})) as store:
        assert (store.get("0000"), store.get("0001")) == (Item(1, A), Item(1, B))
        store.put("0000", C)
        identity = store.identity()
    with closing(open_item_store(location, {"0000": A, "0001": A, "0002": A})) as store:
        assert (store.get("0000"), store.get("0001"), store.get("0002")) == (Item(2, C), Item(1, B), None)
        assert store.identity() == identity


def test_of_many_processes_that_open_a_new_database_at_once_one_writes_the_seed(location):
    rows = {f"{i:04d}": A for i in range(150)}

    def open_and_read(_):
        with closing(open_item_store(location, rows)) as store:
            return store.identity(), len(store.ids("", 1000)), store.get("0149")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(open_and_read, range(8)))) == 1


def test_changes_lists_the_writes_since_the_previous_call(store):
    store.put("a", A)
    cursor, versions = store.changes(None)
    assert versions == {}
    assert store.changes(cursor).versions in ({}, {"a": 1})
    store.put("a", B)
    store.put("b", B)
    cursor, versions = store.changes(cursor)
    assert (versions["a"], versions["b"]) == (2, 1)
    store.put("c", C)
    assert store.changes(cursor).versions["c"] == 1


def test_a_first_call_of_changes_lists_the_latest_writes(store):
    store.put("a", A)
    assert store.changes(None, 3600).versions == {"a": 1}


def test_changes_misses_no_write_of_concurrent_writers(store):
    done, result = threading.Event(), {}

    def write(name):
        for i in range(60):
            store.put(f"{name}-{i % 7}", A)

    def poll_changes():
        cursor = store.changes(None).cursor
        looking.set()
        while True:
            last = done.is_set()
            cursor, versions = store.changes(cursor)
            result.update(versions)
            if last:
                return

    looking = threading.Event()
    looker = threading.Thread(target=poll_changes)
    looker.start()
    assert looking.wait(60)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "wxyz"))
    done.set()
    looker.join(60)
    assert result == {job_id: store.get(job_id).version for job_id in store.ids("", 100)}


def test_too_many_changes_are_reported_as_such(store, monkeypatch):
    for module in ("sqlite_store", "postgres_store"):
        monkeypatch.setattr(f"iris_wsgi.patterns.data_cache.{module}.MAX_CHANGES", 3)
    cursor = store.changes(None).cursor
    for item in "abc":
        store.put(item, A)
    assert len(store.changes(cursor).versions) == 3
    store.put("d", A)
    assert store.changes(cursor).versions is None
    assert MAX_CHANGES == 10_000


def test_many_threads_that_write_one_item_lose_no_write(store):
    with ThreadPoolExecutor(16) as pool:
        versions = list(pool.map(lambda _: store.put("a", A), range(64)))
    assert sorted(versions) == list(range(1, 65))


WRITER = """
import sys
sys.path.insert(0, "tests/support")
from item_stores import open_item_store
store = open_item_store(sys.argv[1])
i = 0
while True:
    i += 1
    store.put(f"{sys.argv[2]}-{i}", b"aaaa" * 4)
    print(i, flush=True)
"""


@pytest.mark.long
def test_acknowledged_writes_of_a_killed_process_are_there(location, store):
    for name in "uvw":
        writer = subprocess.Popen([sys.executable, "-c", WRITER, location, name], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(10):
            assert writer.stdout.readline()
        writer.kill()
        output = writer.communicate()[0].split()
        for i in range(1, 11 + len(output)):
            assert store.get(f"{name}-{i}") == Item(1, A)


def test_a_damaged_or_foreign_file_is_refused_with_one_line(tmp_path):
    for content, reason in ((b"x" * 5000, "is not an SQLite database"), (b"", None)):
        file = tmp_path / "items.db"
        file.write_bytes(content)
        if reason:
            with pytest.raises(BadStore, match=reason):
                SqliteItemStore(file, {})
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (a)")
    with pytest.raises(BadStore, match="of another program"):
        SqliteItemStore(tmp_path / "other.db", {})


def test_while_another_process_holds_the_lock_items_can_be_read_and_not_written(tmp_path):
    store = SqliteItemStore(tmp_path / "items.db", {"a": A}, 0.05)
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.get("a") == Item(1, A)
        with pytest.raises(BackendUnavailable, match="is locked by another process"):
            store.put("a", B)
    assert store.put("a", B) == 2
    assert sqlite_store.APPLICATION != 0x69726A6F


def test_a_postgres_that_is_stopped_or_hangs_is_reported_within_the_bound_and_recovers(postgres_server):
    store = PostgresItemStore(postgres_server.create_database("faults"), {"a": A}, 0.2)
    wait_until(lambda: responds(store), "the database responds")
    for stop, go_on in (
        (lambda: postgres_server.signal(signal.SIGSTOP), lambda: postgres_server.signal(signal.SIGCONT)),
        (postgres_server.stop, postgres_server.start),
    ):
        stop()
        for call in (lambda: store.get("a"), lambda: store.put("a", B), lambda: store.changes(None)):
            with pytest.raises(BackendUnavailable, match="the database at .* failed"):
                call()
        go_on()
        wait_until(lambda: responds(store), "the database responds again")
    store.close()


def responds(store: ItemStore) -> bool:
    with suppress(BackendUnavailable):
        return store.get("a") is not None
    return False


def test_of_connections_after_a_timeout_only_one_is_kept(postgres_server):
    store = PostgresItemStore(postgres_server.create_database("vain"), {"a": A}, 0.2)
    wait_until(lambda: responds(store), "the database responds")
    postgres_server.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(lambda _: responds(store), range(16)))
    connecting_before = store.pool.connecting
    postgres_server.signal(signal.SIGCONT)
    wait_until(lambda: not store.pool.connecting, "all connections are opened or abandoned")
    assert connecting_before > 1 and len(store.pool.free) <= 1
    store.close()


def test_a_broken_connection_causes_no_error(postgres_server):
    store = PostgresItemStore(postgres_server.create_database("broken"), {"a": A}, 10)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.get("a"), range(16)))
    postgres_server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'broken'")
    assert store.get("a") == Item(1, A) and store.put("a", B) == 2
    store.close()


@pytest.mark.parametrize(
    "garbage", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 500, b"R\x00\x00\x00\x08\x00\x00\x00\x00Zgarbage"]
)
def test_a_server_that_sends_garbage_is_unavailable(garbage):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def respond_with_garbage():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(1000)
                        connection.sendall(garbage)

        threading.Thread(target=respond_with_garbage, daemon=True).start()
        store = PostgresItemStore(f"postgresql://user:secret@127.0.0.1:{listener.getsockname()[1]}/items", {}, 0.2)
        with pytest.raises(BackendUnavailable, match=r"the database at 127.0.0.1:\d+ failed") as error:
            store.get("a")
        assert "secret" not in str(error.value)


def test_an_invalid_address_is_not_shown(postgres_server):
    with pytest.raises(BadStore, match="IRIS_DATABASE_URL is not an address") as error:
        PostgresItemStore("postgresql://user:secret@h/d?nonsense=1", {}, 0.2)
    assert "secret" not in str(error.value)


def test_a_long_transaction_hides_no_change(postgres_server):
    import psycopg

    store = PostgresItemStore(postgres_server.create_database("lasting"), {}, 10)
    store.put("a", A)
    with psycopg.connect(store.pool.url) as other:
        # This write has a lower number than the others, and commits after them.
        other.execute("INSERT INTO iris_items (id, features) VALUES ('late', %s)", (A,))
        cursor, versions = store.changes(None)
        store.put("b", B)
        cursor, versions = store.changes(cursor)
        assert versions == {"b": 1}
        other.commit()
    assert store.changes(cursor).versions["late"] == 1
    store.close()


def test_the_seed_is_the_training_rows_or_empty(tmp_path):
    model, _ = load_model(MODEL)
    output = []
    rows = seed_rows(model, MODEL, lambda *arguments: output.append(arguments))
    assert (next(iter(rows)), list(rows)[-1], len(rows), output) == ("0000", "0149", 150, [])
    assert {len(row) for row in rows.values()} == {16}
    lines = (MODEL / "training.csv").read_text()
    for text in (lines.replace("sepal_width", "width"), lines.replace("5.1", "x"), lines.replace("5.1", "inf"), "", "a,b\n1\n"):
        (tmp_path / "training.csv").write_text(text)
        assert seed_rows(model, tmp_path, lambda *arguments: output.append(arguments)) == {}
    assert seed_rows(model, tmp_path / "none", lambda *arguments: output.append(arguments)) == {}
    assert len(output) == 6 and {level for level, _ in output} == {"warning"}
