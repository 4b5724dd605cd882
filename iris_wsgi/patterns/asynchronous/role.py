"""Jobs as roles serve them: their queue, their routes, the hybrid ones, and who works on them."""

from contextlib import suppress
from functools import partial

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.observability.process_metrics import Figure
from iris_wsgi.patterns.asynchronous import routes as jobs
from iris_wsgi.patterns.asynchronous.metrics import JobMetrics, store_figures
from iris_wsgi.patterns.asynchronous.stores import create_job_store
from iris_wsgi.patterns.asynchronous.sweeper import sweep
from iris_wsgi.patterns.asynchronous.worker import JobWorker, WorkerLimits
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.services import REQUEST_SECONDS, RoleContext
from iris_wsgi.wsgi.application import Route

# How long the store may take to answer a worker, which has time.
WORKER_SECONDS = 2.0
# The maximum number of jobs that a worker claims together. One run of the model serves all of them.
MAX_CLAIMED = 64
# The time limit of a run on jobs, which is longer than any run on IRIS_MAX_ROWS rows. A job that exceeds it is retried.
RUN_SECONDS = 300.0
# The first pause before a retry. Each retry doubles it.
RETRY_SECONDS = 1.0
# The maximum wait of `Prefer: wait=N`, below the timeouts of common proxies (60 seconds).
MAX_WAIT_SECONDS = 30.0


def routes(parts: RoleContext) -> list[Route]:
    return job_routes(parts, queue_of(parts))


def start_worker(parts: RoleContext) -> list[Route]:
    """Adds the worker to the background tasks. The role has no routes of its own."""
    parts.background.add("worker", worker_of(parts, queue_of(parts).metrics).run)
    return []


def queue_of(parts: RoleContext) -> jobs.JobQueue:
    """The store of jobs as requests use it; the metrics tell how it is."""
    store = create_job_store(parts.settings, REQUEST_SECONDS)
    breaker = CircuitBreaker(parts.log.event, "jobs are refused", "jobs are taken again: the store is back")
    # Only the look itself can find out that they are mended while no traffic comes.
    parts.readiness.others.append(lambda: next(iter(breaker.remedies("counts")), None))
    parts.readiness.warnings.append(breaker.remedies)
    latest: list[Figure] = []
    concerns: list[str] = []
    parts.readiness.warnings.append(lambda: concerns)

    def look() -> None:
        nonlocal latest, concerns
        latest = store_figures(partial(breaker.call, store.counts))
        with suppress(BackendUnavailable):
            found = list(breaker.call(store.concerns)) if breaker.up else concerns
            for one in found:
                if one not in concerns:
                    parts.log.event("warning", one)
            concerns = found

    # Each second, so that no scrape waits for it.
    parts.registry.sources.append(lambda: latest)
    parts.background.repeat("look at the store", 1.0, look)
    return jobs.JobQueue(store, breaker, JobMetrics(parts.registry), lambda: None, parts.background.is_stopping)


def job_routes(parts: RoleContext, queue: jobs.JobQueue) -> list[Route]:
    return jobs.routes(parts.model, queue, parts.settings.max_rows, MAX_WAIT_SECONDS)


def worker_of(parts: RoleContext, metrics: JobMetrics) -> JobWorker:
    """With a connection of its own to the store, which may take longer to answer than one for requests."""
    settings = parts.settings
    rules = WorkerLimits(
        MAX_CLAIMED,
        settings.max_rows,
        settings.jobs_attempts,
        settings.lease_seconds,
        RUN_SECONDS,
        RETRY_SECONDS,
    )
    stopping = parts.background.is_stopping
    store = create_job_store(settings, WORKER_SECONDS)
    parts.background.add("remove expired jobs", partial(sweep, store, stopping), drains=False)
    return JobWorker(store, parts.model, parts.predict, rules, metrics, parts.log, stopping)
