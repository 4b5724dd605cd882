"""Items in PostgreSQL: the database for several machines."""

import select
import threading
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq

from iris_wsgi.items.store import MOST_CHANGES, Change, Item
from iris_wsgi.stores.jobs import BadStore, StoreDown

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
GET = "SELECT version, encode(features, 'hex') FROM iris_items WHERE id = $1"
PUT = """
INSERT INTO iris_items (id, features) VALUES ($1, decode($2, 'hex')) ON CONFLICT (id) DO UPDATE
SET version = iris_items.version + 1, changed = pg_current_xact_id(), at = clock_timestamp(), features = excluded.features
RETURNING version"""
# One statement, so that both are of one moment.
CHANGES = """
SELECT pg_snapshot_xmin(pg_current_snapshot()), id, version
FROM (VALUES (1)) one LEFT JOIN (SELECT id, version FROM iris_items WHERE {} LIMIT $2) found ON true"""
BY_CURSOR, BY_TIME = (
    CHANGES.format(f"{column} $1::{kind}") for column, kind in (("changed >=", "xid8"), ("at > now() -", "interval"))
)
IDS = "SELECT id FROM iris_items WHERE id > $1 ORDER BY id LIMIT $2"
# What the library itself needs at least to give up a connection, and how many may be attempted at once.
CONNECT_SECONDS, CONNECTING = 2, 32
# After these a machine that is gone is not waited for any more.
KEEPALIVE: dict[str, Any] = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
ROWS = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)

Row = tuple[str | None, ...]
Connection = psycopg.Connection[tuple[object, ...]]


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
        return Item(int(found[0][0] or 0), bytes.fromhex(found[0][1] or "")) if found else None

    def put(self, item_id: str, row: bytes) -> int:
        return int(self.ask(PUT, item_id, row.hex())[0][0] or 0)

    def changes(self, cursor: str | None, seconds: float = 0.0) -> Change:
        most = str(MOST_CHANGES + 1)
        found = self.ask(BY_TIME, f"{seconds} seconds", most) if cursor is None else self.ask(BY_CURSOR, cursor, most)
        versions = {one: int(version or 0) for _, one, version in found if one is not None}
        return Change(str(found[0][0]), versions if len(versions) <= MOST_CHANGES else None)

    def ids(self, after: str, most: int) -> Sequence[str]:
        return [one for (one,) in self.ask(IDS, after, str(most)) if one is not None]

    def close(self) -> None:
        with self.lock:
            free, self.free = self.free, []
        for connection in free:
            connection.close()

    def ask(self, sql: str, *values: str) -> list[Row]:
        """The rows of one statement; where a connection has broken since it was used last, by the next one."""
        until = monotonic() + self.seconds
        while True:
            connection, used = self.connection(until)
            try:
                rows = execute(connection.pgconn, sql, values, until)
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
        new = Connecting(self)
        # In a thread, because neither a name server nor a server that hangs keeps to our time.
        threading.Thread(target=new.run, daemon=True, name="connect to the database").start()
        return new.result(until), False

    def prepare(self, connection: Connection) -> None:
        """What a new connection needs. A commit is on the disk before it returns, whatever is usual there."""
        connection.execute("SET synchronous_commit TO on")
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
        return StoreDown(f"the database at {self.place} does not do its work: {reason[:200]}")


class Connecting:
    """A connection that is being made; if nobody waits any more once it is there, it is for the next, who wants one alone."""

    def __init__(self, store: PostgresItems) -> None:
        self.store = store
        self.done = threading.Event()
        self.given_up = False
        self.connection: Connection | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        connection = None
        try:
            connection = psycopg.connect(self.store.url, autocommit=True, connect_timeout=CONNECT_SECONDS, **KEEPALIVE)
            self.store.prepare(connection)
        except Exception as error:
            if connection is not None:
                connection.close()
            connection, self.error = None, error
        with self.store.lock:
            self.store.connecting -= 1
            if not self.given_up:
                self.connection = connection
            elif connection is not None and not self.store.free:
                self.store.free.append(connection)
            elif connection is not None:
                connection.close()
        self.done.set()

    def result(self, until: float) -> Connection:
        """Raises StoreDown."""
        self.done.wait(max(0.0, until - monotonic()))
        with self.store.lock:
            self.given_up = self.connection is None and self.error is None
        if self.connection is not None:
            return self.connection
        raise self.store.down(self.error or TimeoutError("no connection in time"))


def execute(connection: pq.abc.PGconn, sql: str, values: Sequence[str], until: float) -> list[Row]:
    """One statement and its rows, as text. libpq's own calls have no end, so this waits itself: TimeoutError.

    (libpq, "Asynchronous Command Processing".)
    """
    connection.send_query_params(sql.encode(), [value.encode() for value in values])
    poller, socket = select.poll(), connection.socket
    while connection.flush():
        poller.register(socket, select.POLLIN | select.POLLOUT)
        wait(poller, until)
        connection.consume_input()
    poller.register(socket, select.POLLIN)
    results = []
    while True:
        while connection.is_busy():
            wait(poller, until)
            connection.consume_input()
        result = connection.get_result()
        if result is None:
            break
        results.append(result)
    for result in results:
        if result.status not in ROWS:
            raise psycopg.DatabaseError(result.error_message.decode("utf-8", "replace"))
    return [
        tuple(None if (value := one.get_value(i, j)) is None else value.decode() for j in range(one.nfields))
        for one in results
        for i in range(one.ntuples)
    ]


def wait(poller: "select.poll", until: float) -> None:
    left = until - monotonic()
    if left <= 0 or not poller.poll(left * 1000):
        raise TimeoutError("no answer in time")
