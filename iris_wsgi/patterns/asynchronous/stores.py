"""Which store of jobs the settings name."""

from pathlib import Path

from iris_wsgi.patterns.asynchronous.job import JobStore, Limits
from iris_wsgi.settings import Settings
from iris_wsgi.storage.optional_redis import with_redis

FILE = "jobs.db"
REMEMBER_SECONDS = 86400.0
# A week is enough time to examine a dead letter and to put it back into the queue.
KEEP_FAILED_SECONDS = 7 * 86400.0


def create_job_store(settings: Settings, seconds: float) -> JobStore:
    """Opens the store. Its calls end within about `seconds`. Raises BadSetting, BadStore, and BackendUnavailable (SQLite)."""
    limits = Limits(
        settings.jobs_queued,
        settings.jobs_attempts,
        settings.keep_seconds,
        KEEP_FAILED_SECONDS,
        REMEMBER_SECONDS,
    )
    if not settings.redis_url:
        from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore

        return SqliteJobStore(Path(settings.state_dir) / FILE, limits, busy_seconds=seconds)

    def connect() -> JobStore:
        from iris_wsgi.patterns.asynchronous.redis_store import RedisJobStore

        return RedisJobStore(settings.redis_url, limits, seconds=seconds)

    return with_redis("IRIS_REDIS_URL", connect)
