"""Opens an item store by its place."""

from pathlib import Path

from iris_wsgi.patterns.data_cache.item_store import ItemStore
from iris_wsgi.patterns.data_cache.postgres_store import PostgresItems
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItems


def open_item_store(place: str, rows: dict[str, bytes] | None = None, seconds: float = 10.0) -> ItemStore:
    # Nothing hangs here, but a busy disk may be slow.
    return PostgresItems(place, rows or {}, seconds) if "://" in place else SqliteItems(Path(place), rows or {}, seconds)
