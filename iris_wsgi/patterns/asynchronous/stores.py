"""Factory of the job store that the settings select."""

from pathlib import Path

from iris_wsgi.patterns.asynchronous.job import JobStore, Limits
from iris_wsgi.settings import Settings

FILE = "jobs.db"
REMEMBER_SECONDS = 86400.0


def create_job_store(settings: Settings, timeout_seconds: float) -> JobStore:
    """Returns the store. Its calls end within about the timeout. Raises BadSetting, BadStore, and BackendUnavailable."""
    limits = Limits(settings.jobs_queued, settings.jobs_attempts, settings.keep_seconds, remember_seconds=REMEMBER_SECONDS)
    if settings.redis_url:
        from iris_wsgi.patterns.asynchronous.redis_store import RedisJobStore

        return RedisJobStore(settings.redis_url, limits, timeout_seconds=timeout_seconds)
    from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore

    return SqliteJobStore(Path(settings.state_dir) / FILE, limits, busy_seconds=timeout_seconds)
