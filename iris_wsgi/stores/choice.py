"""Which store of jobs the settings name."""

from pathlib import Path

from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.stores.jobs import JobStore, Limits

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
    try:
        from iris_wsgi.stores.redis import RedisJobs
    except ImportError:
        raise BadSetting("IRIS_REDIS_URL wants the package redis: pip install 'iris_wsgi[redis]', or the image `full`") from None
    try:
        return RedisJobs(settings.redis_url, limits, seconds=seconds)
    except ValueError:
        # Its message could show the password.
        raise BadSetting("IRIS_REDIS_URL is no address of a Redis: redis://[user:password@]host[:port][/database]") from None
