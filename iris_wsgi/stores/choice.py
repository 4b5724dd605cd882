"""Which store of jobs the settings name, and how any part of the server opens what they say of a Redis."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.stores.jobs import JobStore, Limits

T = TypeVar("T")

FILE = "jobs.db"
REMEMBER_SECONDS = 86400.0


def open_jobs(settings: Settings, seconds: float) -> JobStore:
    """Its calls end within about `seconds` where it hangs. Raises BadSetting, BadStore, and StoreDown of an embedded one."""
    limits = Limits(
        settings.jobs_queued,
        settings.jobs_attempts,
        settings.keep_seconds,
        settings.keep_failed_seconds,
        REMEMBER_SECONDS,
    )
    if not settings.redis_url:
        from iris_wsgi.stores.sqlite import SqliteJobs

        return SqliteJobs(Path(settings.state_dir) / FILE, limits, busy_seconds=seconds)

    def connect() -> JobStore:
        from iris_wsgi.stores.redis import RedisJobs

        return RedisJobs(settings.redis_url, limits, seconds=seconds)

    return with_redis("IRIS_REDIS_URL", connect)


def with_redis(name: str, connect: Callable[[], T]) -> T:
    """What `connect` makes of the address of a Redis in the setting of that name. Raises BadSetting."""
    try:
        return connect()
    except ImportError:
        raise BadSetting(
            f"{name} wants the package redis: bin/setup redis, pip install 'iris_wsgi[redis]', or the image `full`"
        ) from None
    except ValueError:
        # Its message could show the password.
        raise BadSetting(f"{name} is no address of a Redis: redis://[user:password@]host[:port][/database]") from None
