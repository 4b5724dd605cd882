"""Item stores of the data cache."""

from pathlib import Path

from iris_wsgi.patterns.data_cache.item_store import ItemStore
from iris_wsgi.patterns.data_cache.postgres_store import PostgresItemStore
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItemStore


def open_item_store(place: str, rows: dict[str, bytes] | None = None, seconds: float = 10.0) -> ItemStore:
    """Opens the PostgreSQL or SQLite store. The long timeout allows for a busy disk."""
    return PostgresItemStore(place, rows or {}, seconds) if "://" in place else SqliteItemStore(Path(place), rows or {}, seconds)
