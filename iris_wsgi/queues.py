"""Jobs as roles serve them: their queue, their routes, the hybrid ones, and who works on them."""

from contextlib import suppress
from functools import partial
from pathlib import Path

from iris_wsgi.breaker import Breaker
from iris_wsgi.errors import BadModel, StoreDown
from iris_wsgi.folder import fast_folder
from iris_wsgi.golden import proven_model
from iris_wsgi.job_metrics import JobMetrics, store_figures
from iris_wsgi.parts import REQUEST_SECONDS, Parts
from iris_wsgi.predictors import within_deadline
from iris_wsgi.processes import Figure
from iris_wsgi.routes import hybrid, jobs
from iris_wsgi.stores.choice import open_jobs
from iris_wsgi.sweeper import sweep
from iris_wsgi.watch import Watch
from iris_wsgi.worker import Rules, Worker
from iris_wsgi.wsgi import Route

# How long the store may take to answer a worker, which has time.
WORKER_SECONDS = 2.0


def asynchronous(parts: Parts) -> list[Route]:
    return job_routes(parts, queue_of(parts))


def sync_async(parts: Parts) -> list[Route]:
    """The fast model answers, and the routes of jobs tell the full one's answer."""
    queue = queue_of(parts)
    return [*hybrid_routes(parts, queue), *job_routes(parts, queue)]


def worker(parts: Parts) -> list[Route]:
    """No routes of its own."""
    parts.companions.add("worker", worker_of(parts, queue_of(parts).metrics).run)
    return []


def queue_of(parts: Parts) -> jobs.Queue:
    """The store of jobs as requests use it; the metrics tell how it is."""
    store = open_jobs(parts.settings, REQUEST_SECONDS)
    breaker = Breaker(parts.log.event, "jobs are refused", "jobs are taken again: the store is back")
    # Only the look itself can find out that they are mended while no traffic comes.
    parts.readiness.others.append(lambda: next(iter(breaker.remedies("counts")), None))
    parts.readiness.warnings.append(breaker.remedies)
    latest: list[Figure] = []
    concerns: list[str] = []
    parts.readiness.warnings.append(lambda: concerns)

    def look() -> None:
        nonlocal latest, concerns
        latest = store_figures(partial(breaker.call, store.counts))
        with suppress(StoreDown):
            found = list(breaker.call(store.concerns)) if breaker.up else concerns
            for one in found:
                if one not in concerns:
                    parts.log.event("warning", one)
            concerns = found

    # Each second, so that no scrape waits for it.
    parts.registry.sources.append(lambda: latest)
    parts.companions.repeat("look at the store", 1.0, look)
    return jobs.Queue(store, breaker, JobMetrics(parts.registry), lambda: None, parts.companions.is_ending)


def job_routes(parts: Parts, queue: jobs.Queue) -> list[Route]:
    return jobs.routes(parts.model, queue, parts.settings.max_rows, parts.settings.wait_seconds)


def hybrid_routes(parts: Parts, queue: jobs.Queue) -> list[Route]:
    """Raises BadModel if the fast model cannot be served, or answers something else than the full one."""
    settings, full = parts.settings, parts.model
    folder = fast_folder(Path(settings.model_dir), settings.fast_model_dir)
    fast, _, _ = proven_model(folder)
    if (fast.labels, fast.width) != (full.labels, full.width):
        raise BadModel(
            f"{folder} takes {fast.width} features for {', '.join(fast.labels)}; the full model takes {full.width}"
            f" for {', '.join(full.labels)}"
        )
    return hybrid.routes(fast, within_deadline(fast, Watch()), queue, parts.log, settings.escalate_below)


def worker_of(parts: Parts, metrics: JobMetrics) -> Worker:
    """With a connection of its own to the store, which may take longer to answer than one for requests."""
    settings = parts.settings
    rules = Rules(
        settings.jobs_claimed,
        settings.max_rows,
        settings.jobs_attempts,
        settings.lease_seconds,
        settings.job_seconds,
        settings.retry_seconds,
    )
    ending = parts.companions.is_ending
    store = open_jobs(settings, WORKER_SECONDS)
    parts.companions.add("remove expired jobs", partial(sweep, store, ending), finishes=False)
    return Worker(store, parts.model, parts.predict, rules, metrics, parts.log, ending)
