"""Items in an SQLite file, for the threads and processes of one machine, and the choice of the database by the settings."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from iris_wsgi.console import remedy_for_extra
from iris_wsgi.errors import BadStore
from iris_wsgi.patterns.data_cache.item_store import MAX_CHANGES, Item, ItemChanges, ItemStore
from iris_wsgi.setting_types import SQLITE
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.storage.sqlite import BootClock, SqliteDatabase, SqliteSchema

FILE = "items.db"
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


def open_item_store(settings: Settings, seed: Mapping[str, bytes], seconds: float) -> ItemStore:
    """Opens the database, or creates it with the rows of `seed`. Its calls end within about `seconds`.

    Raises BadSetting, BadStore, and BackendUnavailable of an embedded database.
    """
    url = settings.database_url
    if not url or url.startswith(SQLITE):
        return SqliteItemStore(sqlite_path(settings), seed, seconds)
    try:
        from iris_wsgi.patterns.data_cache.postgres_store import PostgresItemStore
    except ImportError:
        raise BadSetting(
            f"IRIS_DATABASE_URL requires the package psycopg: {remedy_for_extra('postgres')}, or use the image `full`"
        ) from None
    return PostgresItemStore(url, seed, seconds)


def open_existing_item_store(settings: Settings, seconds: float) -> ItemStore:
    """Variant of open_item_store() for commands, which do not create a database."""
    if not settings.database_url or settings.database_url.startswith(SQLITE):
        path = sqlite_path(settings)
        if not path.exists():
            raise BadStore(f"there are no items: {path} does not exist; a server creates it")
    return open_item_store(settings, {}, seconds)


def sqlite_path(settings: Settings) -> Path:
    url = settings.database_url
    return Path(url.removeprefix(SQLITE)) if url else Path(settings.state_dir) / FILE
