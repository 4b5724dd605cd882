"""Items in PostgreSQL, for servers on several machines."""

import re
from collections.abc import Mapping, Sequence

from iris_wsgi.errors import BackendUnavailable, BadStore, OperationDenied
from iris_wsgi.patterns.data_cache.item_store import MAX_CHANGES, Item, ItemChanges
from iris_wsgi.storage.postgres import NOT_CONVERTIBLE, ConnectionPool, PostgresConnection, PostgresError, Row, parse_url

# The cursor is the xmin of a snapshot: all transactions before it had ended, so later writes belong to later transactions.
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
TABLE_EXISTS = "SELECT to_regclass('iris_items_store')"
# An arbitrary number, the same in all processes, so that one of them creates the tables.
LOCK = "SELECT pg_advisory_xact_lock(1769107828)"
SEED = "INSERT INTO iris_items (id, features, at) VALUES (%s, %s, '-infinity')"
IDENTITY = "SELECT identity FROM iris_items_store"
GET = "SELECT version, features FROM iris_items WHERE id = %s"
# A commit is on the disk before it returns, even if the server's default differs. The setting applies to this one transaction,
# because a pool in transaction mode then lends the connection to another application.
PUT = """
INSERT INTO iris_items (id, features) SELECT %s, %s::bytea WHERE set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) <> ''
ON CONFLICT (id) DO UPDATE
SET version = iris_items.version + 1, changed = pg_current_xact_id(), at = clock_timestamp(), features = excluded.features
RETURNING version"""
# One statement, so that the cursor and the changes belong to the same snapshot.
CHANGES = """
SELECT pg_snapshot_xmin(pg_current_snapshot()), id, version
FROM (VALUES (1)) one LEFT JOIN (SELECT id, version FROM iris_items WHERE {} LIMIT %s) found ON true"""
BY_CURSOR, BY_TIME = (
    CHANGES.format(f"{column} %s::{kind}") for column, kind in (("changed >=", "xid8"), ("at > now() -", "interval"))
)
IDS = "SELECT id FROM iris_items WHERE id > %s ORDER BY id LIMIT %s"

GRANT = (
    "The role of IRIS_DATABASE_URL lacks a privilege: grant it SELECT, INSERT, and UPDATE on iris_items, and SELECT on"
    " iris_items_store. If these tables do not exist yet, grant it USAGE and CREATE on their schema."
)
SIGN_IN = "The database rejects the role or the password of IRIS_DATABASE_URL: correct them, or grant the role LOGIN and CONNECT."
CREATE = "The database in IRIS_DATABASE_URL does not exist: create it, or correct the name."
RESTART = "The tables iris_items and iris_items_store are missing or changed: restore them, or restart the server."
ENCODING = "The encoding of the database in IRIS_DATABASE_URL has no conversion to UTF-8: create it with ENCODING 'UTF8'."
PRIMARY = "The database is read-only: IRIS_DATABASE_URL must be the address of the primary, and its role must not be read-only."
# By the SQLSTATE or its class.
CONNECTION_REMEDIES = {"28": SIGN_IN, "3D": CREATE}
OPERATION_REMEDIES = {"42501": GRANT, "42P01": RESTART, "42703": RESTART, "3F": GRANT, "25006": PRIMARY}
# By a pattern in the message: libpq gives no SQLSTATE for a refused connection, and PgBouncer has its own messages.
MESSAGE_REMEDIES = {
    "role .*does not exist": SIGN_IN,
    "database .*does not exist": CREATE,
    "authentication failed": SIGN_IN,
    "pg_hba.conf": SIGN_IN,
    "not permitted to log in": SIGN_IN,
    r"no\ssuch user": SIGN_IN,
    r"no\ssuch database": CREATE,
    "permission denied for database": SIGN_IN,
    NOT_CONVERTIBLE: ENCODING,
}


class PostgresItemStore:
    """ItemStore in PostgreSQL. Each call ends within about `seconds`, even if the server hangs; the first call connects.

    The first process to connect creates the tables with the rows of `seed`, in one transaction.
    """

    def __init__(self, url: str, seed: Mapping[str, bytes], seconds: float) -> None:
        """Raises BadStore for an invalid URL; the message omits the URL, which may contain a password."""
        try:
            parameters = parse_url(url)
        except ValueError:
            raise BadStore(
                "IRIS_DATABASE_URL is not an address of a PostgreSQL: postgresql://[user:password@]host[:port]/database"
            ) from None
        self.rows, self.seconds = seed, seconds
        self.address = f"{parameters.get('host', 'localhost')}:{parameters.get('port', 5432)}"
        self.pool = ConnectionPool(url, self.create_tables)
        self.created = False

    def identity(self) -> str:
        return str(self.query(IDENTITY)[0][0])

    def get(self, item_id: str) -> Item | None:
        found = self.query(GET, item_id)
        return Item(*found[0]) if found else None

    def put(self, item_id: str, row: bytes) -> int:
        return int(self.query(PUT, item_id, row)[0][0])

    def changes(self, cursor: str | None, seconds: float = 0.0) -> ItemChanges:
        limit = MAX_CHANGES + 1
        found = self.query(BY_TIME, f"{seconds} seconds", limit) if cursor is None else self.query(BY_CURSOR, cursor, limit)
        versions = {item_id: version for _, item_id, version in found if item_id is not None}
        # A restored backup has an older snapshot.
        replaced = cursor is not None and int(found[0][0]) < int(cursor)
        return ItemChanges(str(found[0][0]), versions if len(versions) <= MAX_CHANGES and not replaced else None)

    def ids(self, after: str, limit: int) -> Sequence[str]:
        return [item_id for (item_id,) in self.query(IDS, after, limit)]

    def close(self) -> None:
        self.pool.close()

    def query(self, sql: str, *values: object) -> list[Row]:
        try:
            return self.pool.query(sql, values, self.seconds)
        except PostgresError as error:
            raise refusal(error, f"the database at {self.address} failed: {str(error)[:200]}") from None

    def create_tables(self, connection: PostgresConnection) -> None:
        if self.created:
            return
        with connection.transaction():
            connection.query(LOCK)
            if connection.query(TABLE_EXISTS) == [(None,)]:
                connection.execute(SCRIPT)
                connection.cursor().executemany(SEED, list(self.rows.items()))
        self.created = True


def refusal(error: PostgresError, why: str) -> BackendUnavailable:
    """Returns OperationDenied if the server refuses this operation, else BackendUnavailable; a remedy if no retry helps."""
    if remedy := OPERATION_REMEDIES.get(error.sqlstate) or OPERATION_REMEDIES.get(error.sqlstate[:2]):
        return OperationDenied(why, remedy)
    remedy = CONNECTION_REMEDIES.get(error.sqlstate[:2]) or next(
        (remedy for pattern, remedy in MESSAGE_REMEDIES.items() if re.search(pattern, error.details)), ""
    )
    return BackendUnavailable(why, remedy)
