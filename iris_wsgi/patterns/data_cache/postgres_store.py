"""Items in PostgreSQL: the database for several machines."""

import select
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from math import inf
from time import monotonic
from typing import Any, LiteralString, TypeVar

import psycopg

from iris_wsgi.errors import BadStore, StoreDown
from iris_wsgi.patterns.data_cache.item_store import MOST_CHANGES, Change, Item
from iris_wsgi.patterns.data_cache.postgres_remedies import refusal

# Who looks is told by a snapshot: all transactions before its xmin had ended, so all writes since are of later ones.
SCRIPT = """
CREATE TABLE iris_items_store (identity text PRIMARY KEY);
INSERT INTO iris_items_store VALUES (md5(random()::text || clock_timestamp()::text));
CREATE TABLE iris_items (
    id text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    changed xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    features bytea NOT NULL
);
CREATE INDEX iris_items_changed ON iris_items (changed);
CREATE INDEX iris_items_at ON iris_items (at)"""
KNOWN = "SELECT to_regclass('iris_items_store')"
# Any number, the same in all processes: one of them makes the tables.
LOCK = "SELECT pg_advisory_xact_lock(1769107828)"
SEED = "INSERT INTO iris_items (id, features, at) VALUES (%s, %s, '-infinity')"
IDENTITY = "SELECT identity FROM iris_items_store"
GET = "SELECT version, features FROM iris_items WHERE id = %s"
# A commit is on the disk before it returns, whatever is usual there. That holds for this statement alone, which is a transaction
# of its own: a pool in transaction mode lends the connection to another application afterwards.
PUT = """
INSERT INTO iris_items (id, features) SELECT %s, %s::bytea WHERE set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) <> ''
ON CONFLICT (id) DO UPDATE
SET version = iris_items.version + 1, changed = pg_current_xact_id(), at = clock_timestamp(), features = excluded.features
RETURNING version"""
# One statement, so that both are of one moment.
CHANGES = """
SELECT pg_snapshot_xmin(pg_current_snapshot()), id, version
FROM (VALUES (1)) one LEFT JOIN (SELECT id, version FROM iris_items WHERE {} LIMIT %s) found ON true"""
BY_CURSOR, BY_TIME = (
    CHANGES.format(f"{column} %s::{kind}") for column, kind in (("changed >=", "xid8"), ("at > now() -", "interval"))
)
IDS = "SELECT id FROM iris_items WHERE id > %s ORDER BY id LIMIT %s"
# What the library itself needs at least to give up a connection, and how many may be attempted at once.
CONNECT_SECONDS, CONNECTING = 2, 32
# After these a machine that is gone is not waited for any more.
KEEPALIVE: dict[str, Any] = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
# What psycopg's generators wait for, and are told of, by number.
READ, WRITE = 1, 2
EVENTS = {READ: select.POLLIN, WRITE: select.POLLOUT, READ | WRITE: select.POLLIN | select.POLLOUT}

T = TypeVar("T")


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """Waits `until` a monotonic time for its server: psycopg and libpq have no end, TimeoutError is ours."""

    until = inf

    def wait(self, gen: Generator[int, int, T], *_: object, **__: object) -> T:
        poller, socket = select.poll(), self.pgconn.socket
        try:
            wanted = next(gen)
            while True:
                poller.register(socket, EVENTS[wanted])
                left = self.until - monotonic()
                if left <= 0 or not (found := poller.poll(None if left == inf else left * 1000)):
                    raise TimeoutError("no answer in time")
                # An error or an end is read.
                events = found[0][1]
                wanted = gen.send((READ if events & ~select.POLLOUT else 0) | (WRITE if events & select.POLLOUT else 0))
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]


class PostgresItems:
    """An ItemStore; each call ends within about `seconds`, whatever the server does. Connects when it is first used.

    Whoever connects first makes the tables, with the rows of `seed`, in one transaction, so never again.
    """

    def __init__(self, url: str, seed: Mapping[str, bytes], seconds: float) -> None:
        """Raises BadStore for no address; its message never has the address, which may hold a password."""
        try:
            told = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:
            raise BadStore(
                "IRIS_DATABASE_URL is no address of a PostgreSQL: postgresql://[user:password@]host[:port]/database"
            ) from None
        self.url, self.rows, self.seconds = url, seed, seconds
        self.place = f"{told.get('host', 'localhost')}:{told.get('port', 5432)}"
        self.lock = threading.Lock()
        self.free: list[Connection] = []
        self.connecting = 0
        self.prepared = False

    def identity(self) -> str:
        return str(self.ask(IDENTITY)[0][0])

    def get(self, item_id: str) -> Item | None:
        found = self.ask(GET, item_id)
        return Item(*found[0]) if found else None

    def put(self, item_id: str, row: bytes) -> int:
        return int(self.ask(PUT, item_id, row)[0][0])

    def changes(self, cursor: str | None, seconds: float = 0.0) -> Change:
        most = MOST_CHANGES + 1
        found = self.ask(BY_TIME, f"{seconds} seconds", most) if cursor is None else self.ask(BY_CURSOR, cursor, most)
        versions = {one: version for _, one, version in found if one is not None}
        # An earlier copy of the database was put in its place.
        replaced = cursor is not None and int(found[0][0]) < int(cursor)
        return Change(str(found[0][0]), versions if len(versions) <= MOST_CHANGES and not replaced else None)

    def ids(self, after: str, most: int) -> Sequence[str]:
        return [one for (one,) in self.ask(IDS, after, most)]

    def close(self) -> None:
        with self.lock:
            free, self.free = self.free, []
        for connection in free:
            connection.close()

    def ask(self, sql: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """The rows of one statement; where a connection has broken since it was used last, by the next one."""
        until = monotonic() + self.seconds
        while True:
            connection, used = self.connection(until)
            connection.until = until
            try:
                rows = connection.execute(sql, values).fetchall()
            except (psycopg.Error, TimeoutError) as error:
                connection.close()
                if not used or isinstance(error, TimeoutError) or monotonic() >= until:
                    raise self.down(error) from None
            else:
                with self.lock:
                    self.free.append(connection)
                return rows

    def connection(self, until: float) -> tuple[Connection, bool]:
        """One for us alone, and whether it was used before."""
        with self.lock:
            if self.free:
                return self.free.pop(), True
            if self.connecting >= CONNECTING:
                raise StoreDown(f"the database at {self.place} does not answer, and enough wait for it")
            self.connecting += 1
        made: Future[Connection] = Future()
        # In a thread, because neither a name server nor a server that hangs keeps to our time.
        threading.Thread(target=self.connect, args=(made,), daemon=True, name="connect to the database").start()
        futures.wait([made], until - monotonic())
        if made.cancel():
            raise self.down(TimeoutError("no connection in time"))
        try:
            return made.result(), False
        except Exception as error:
            raise self.down(error) from None

    def connect(self, made: "Future[Connection]") -> None:
        """If nobody waits any more once it is there, it is for the next, who wants one alone."""
        connection = failed = None
        try:
            connection = Connection.connect(
                self.url, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_SECONDS, **KEEPALIVE
            )
            self.prepare(connection)
        except Exception as error:
            failed = error
        with self.lock:
            self.connecting -= 1
            wanted = made.set_running_or_notify_cancel()
            if left := connection is not None and not wanted and not failed and not self.free:
                self.free.append(connection)
        if failed and wanted:
            made.set_exception(failed)
        elif connection and wanted:
            made.set_result(connection)
        if connection and (failed or not (wanted or left)):
            connection.close()

    def prepare(self, connection: Connection) -> None:
        """Makes the tables where they are not there yet."""
        if self.prepared:
            return
        with connection.transaction():
            connection.execute(LOCK)
            known = connection.execute(KNOWN).fetchone()
            if known is None or known[0] is None:
                connection.execute(SCRIPT)
                connection.cursor().executemany(SEED, list(self.rows.items()))
        self.prepared = True

    def down(self, error: Exception) -> StoreDown:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        return refusal(error, f"the database at {self.place} does not do its work: {reason[:200]}")
