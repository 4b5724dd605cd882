"""Items, the interface of their databases, and the database in an SQLite file."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from iris_wsgi.storage.clock import BootClock
from iris_wsgi.storage.sqlite import SqliteDatabase, SqliteSchema

ID_PATTERN = "[A-Za-z0-9_-]{1,64}"
# If a check finds more changes, the cache is emptied, which costs less.
MAX_CHANGES = 10_000
# `changed` is the write counter of the store. `at` is the time, which a step of the system clock does not move.
SCRIPT = """
CREATE TABLE store (identity TEXT NOT NULL, clock INTEGER NOT NULL) STRICT;

INSERT INTO store VALUES (lower(hex(randomblob(8))), 0);

CREATE TABLE item (
    id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    at REAL NOT NULL,
    features BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX item_changed ON item (changed);

CREATE INDEX item_at ON item (at)
"""
APPLICATION, VERSION = 0x69726974, 1
IDS = "SELECT id FROM item WHERE id > ? ORDER BY id LIMIT ?"
GET = "SELECT version, features FROM item WHERE id = ?"
PUT = """
INSERT INTO item VALUES (?, 1, ?, ?, ?) ON CONFLICT (id) DO UPDATE
SET version = version + 1, changed = excluded.changed, at = excluded.at, features = excluded.features RETURNING version"""


class Item(NamedTuple):
    """Number of writes, and the row as little-endian float32."""

    version: int
    row: bytes


class ItemChanges(NamedTuple):
    """Opaque cursor, and the versions of items written since the previous one (None if there are too many)."""

    cursor: str
    versions: dict[str, int] | None


class ItemStore(Protocol):
    """Database of items. Every method may raise BackendUnavailable within the timeout of the store, and is thread-safe."""

    def identity(self) -> str:
        """Returns a text that no other database has."""

    def get(self, item_id: str) -> Item | None: ...

    def put(self, item_id: str, row: bytes) -> int:
        """Returns the version of the durable write, 1 for a new item. After BackendUnavailable the outcome is unknown."""

    def changes(self, cursor: str | None, seconds: float = 0.0) -> ItemChanges:
        """Returns the changes since `cursor`, or without a cursor those of the last `seconds`.

        Each acknowledged write is in the next result, and may also be in later ones.
        """

    def ids(self, after: str, limit: int) -> Sequence[str]:
        """Returns the next ids in their order."""

    def close(self) -> None: ...


class SqliteItemStore:
    """ItemStore in a file. The transaction that creates the tables of a new file also inserts the rows of `seed`."""

    def __init__(self, path: Path, seed: Mapping[str, bytes], busy_seconds: float = 0.15) -> None:
        """Raises BadStore for a file of another kind, and BackendUnavailable."""
        rows = ",\n".join(f"('{item_id}', 1, 0, 0, x'{row.hex()}')" for item_id, row in seed.items())
        script = f"{SCRIPT};\n\nINSERT INTO item VALUES {rows}" if rows else SCRIPT
        self.clock = BootClock("SELECT max(at) FROM item")
        self.database = SqliteDatabase(path, SqliteSchema(APPLICATION, VERSION, script, self.clock.anchor), busy_seconds)

    def identity(self) -> str:
        with self.database.read() as db:
            return str(db.execute("SELECT identity FROM store").fetchone()[0])

    def get(self, item_id: str) -> Item | None:
        with self.database.read() as db:
            found = db.execute(GET, (item_id,)).fetchone()
        return None if found is None else Item(*found)

    def put(self, item_id: str, row: bytes) -> int:
        def work(db: sqlite3.Connection) -> int:
            (clock,) = db.execute("UPDATE store SET clock = clock + 1 RETURNING clock").fetchone()
            (version,) = db.execute(PUT, (item_id, clock, self.clock(), row)).fetchone()
            return int(version)

        return self.database.write(work)

    def changes(self, cursor: str | None, seconds: float = 0.0) -> ItemChanges:
        # SQLite serializes writes, so a snapshot with a counter has all writes before it.
        before, _, last = (cursor or "").rpartition(" ")
        where, bound = ("at > ?", self.clock() - seconds) if cursor is None else ("changed > ?", int(last))
        with self.database.read() as db:
            # One transaction, so that the counter and the changes belong to the same snapshot.
            db.execute("BEGIN")
            identity, clock = db.execute("SELECT identity, clock FROM store").fetchone()
            found = db.execute(f"SELECT id, version FROM item WHERE {where} LIMIT ?", (bound, MAX_CHANGES + 1)).fetchall()
            db.execute("COMMIT")
        # The file was replaced by another database, or by a backup.
        replaced = cursor is not None and (identity != before or clock < int(last))
        return ItemChanges(f"{identity} {clock}", dict(found) if len(found) <= MAX_CHANGES and not replaced else None)

    def ids(self, after: str, limit: int) -> Sequence[str]:
        with self.database.read() as db:
            return [item_id for (item_id,) in db.execute(IDS, (after, limit))]

    def close(self) -> None:
        self.database.close()
