"""Opens the database of items that the settings name."""

from collections.abc import Mapping
from pathlib import Path

from iris_wsgi.errors import BadStore
from iris_wsgi.patterns.data_cache.item_store import ItemStore
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItemStore
from iris_wsgi.setting_types import SQLITE
from iris_wsgi.settings import BadSetting, Settings

FILE = "items.db"


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
            "IRIS_DATABASE_URL requires the package psycopg: bin/setup postgres, "
            "pip install 'iris_wsgi[postgres]', or the image `full`"
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
