"""Roles asynchronous and worker: the job queue, its routes, and the job worker."""

import json
from contextlib import suppress
from functools import partial

from iris_wsgi.codec.rows import Encoder
from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.observability.metrics import MetricSample
from iris_wsgi.patterns.asynchronous import routes as jobs
from iris_wsgi.patterns.asynchronous.metrics import JobMetrics, store_samples
from iris_wsgi.patterns.asynchronous.sqlite_store import create_job_store
from iris_wsgi.patterns.asynchronous.worker import JobWorker, WorkerLimits, sweep
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.services import REQUEST_SECONDS, RoleContext
from iris_wsgi.wsgi.application import Route

# Timeout of the store for a worker, which can wait longer than a request.
WORKER_SECONDS = 2.0
# The maximum number of jobs that a worker claims together. One run of the model serves all of them.
MAX_CLAIMED = 64
# The time limit of a run on jobs, which is longer than any run on IRIS_MAX_ROWS rows. A job that exceeds it is retried.
RUN_SECONDS = 300.0
# The first pause before a retry. Each retry doubles it.
RETRY_SECONDS = 1.0
# The maximum wait of `Prefer: wait=N`, below the timeouts of common proxies (60 seconds).
MAX_WAIT_SECONDS = 30.0


def routes(context: RoleContext) -> list[Route]:
    return job_routes(context, create_queue(context))


def start_worker(context: RoleContext) -> list[Route]:
    """Adds the worker to the background tasks. The role has no routes."""
    context.background.add("worker", create_worker(context, create_queue(context).metrics).run)
    return []


def create_queue(context: RoleContext) -> jobs.JobQueue:
    """Returns the queue for requests, and adds the state of its store to the metrics and to the readiness route."""
    store = create_job_store(context.settings, REQUEST_SECONDS)
    breaker = CircuitBreaker(context.log.event, "jobs are rejected", "jobs are accepted again: the store is available")
    # Only the periodic counts() can detect a repaired store while there are no requests.
    context.readiness.checks.append(lambda: next(iter(breaker.remedies("counts")), None))
    context.readiness.warnings.append(breaker.remedies)
    latest: list[MetricSample] = []
    concerns: list[str] = []
    context.readiness.warnings.append(lambda: concerns)

    def update() -> None:
        nonlocal latest, concerns
        latest = store_samples(partial(breaker.call, store.counts))
        with suppress(BackendUnavailable):
            found = list(breaker.call(store.concerns)) if breaker.up else concerns
            for concern in found:
                if concern not in concerns:
                    context.log.event("warning", concern)
            concerns = found

    # Each second, so that a scrape never waits for the store.
    context.registry.sources.append(lambda: latest)
    context.background.repeat("check the job store", 1.0, update)
    metrics, stopping = JobMetrics(context.registry), context.background.is_stopping
    return jobs.JobQueue(store, breaker, metrics, lambda: None, stopping, context.model.schema)


def job_routes(context: RoleContext, queue: jobs.JobQueue) -> list[Route]:
    def predictions() -> object:
        return json.loads(Encoder(context.outputs).batch(context.sample.outputs))

    return jobs.routes(context.model, context.outputs, queue, context.settings.max_rows, MAX_WAIT_SECONDS, predictions)


def create_worker(context: RoleContext, metrics: JobMetrics) -> JobWorker:
    """Returns a worker with a separate connection to the store, which has a longer timeout than that of requests."""
    settings = context.settings
    limits = WorkerLimits(
        MAX_CLAIMED, settings.max_rows, settings.jobs_attempts, settings.lease_seconds, RUN_SECONDS, RETRY_SECONDS
    )
    stopping = context.background.is_stopping
    store = create_job_store(settings, WORKER_SECONDS)
    context.background.add("remove expired jobs", partial(sweep, store, stopping), drains=False)
    return JobWorker(store, context.model, Encoder(context.outputs), context.predict, limits, metrics, context.log, stopping)
