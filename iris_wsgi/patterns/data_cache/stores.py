"""Which database of items the settings name, and which second level."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from iris_wsgi.errors import BadStore
from iris_wsgi.patterns.data_cache.item_store import ItemStore
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItems
from iris_wsgi.resilience.circuit_breaker import LogEvent
from iris_wsgi.setting_types import SQLITE
from iris_wsgi.settings import BadSetting, Settings

if TYPE_CHECKING:
    from iris_wsgi.patterns.data_cache.redis_tier import RedisItems

FILE = "items.db"


def open_items(settings: Settings, rows: Mapping[str, bytes], seconds: float) -> ItemStore:
    """With these rows where it is new. Its calls end within about `seconds` where it hangs.

    Raises BadSetting, BadStore, and BackendUnavailable of an embedded one.
    """
    url = settings.database_url
    if not url or url.startswith(SQLITE):
        return SqliteItems(path_of(settings), rows, seconds)
    try:
        from iris_wsgi.patterns.data_cache.postgres_store import PostgresItems
    except ImportError:
        raise BadSetting(
            "IRIS_DATABASE_URL wants the package psycopg: bin/setup postgres, "
            "pip install 'iris_wsgi[postgres]', or the image `full`"
        ) from None
    return PostgresItems(url, rows, seconds)


def open_known(settings: Settings, seconds: float) -> ItemStore:
    """The database as a server has made it; for commands, which make none. Raises as `open_items` does."""
    if settings.database_url.startswith(SQLITE) or not settings.database_url:
        path = path_of(settings)
        if not path.exists():
            raise BadStore(f"there are no items: {path} does not exist; a server makes it")
    return open_items(settings, {}, seconds)


def path_of(settings: Settings) -> Path:
    url = settings.database_url
    return Path(url.removeprefix(SQLITE)) if url else Path(settings.state_dir) / FILE


def open_shared(settings: Settings, seconds: float, tell: LogEvent, failed: Callable[[], object]) -> "RedisItems | None":
    """None where there is none; its calls end within about `seconds`. Raises BadSetting."""
    if not settings.cache_redis_url:
        return None
    from iris_wsgi.patterns.data_cache.redis_tier import RedisItems

    return RedisItems(settings.cache_redis_url, settings.items_seconds, seconds, tell, failed)
