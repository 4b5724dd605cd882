"""Metrics of jobs: of requests, of workers, and of the job store."""

from collections.abc import Callable

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.observability.metrics import Counter, Histogram, MetricSample, Registry, metric_sample
from iris_wsgi.patterns.asynchronous.job import STATES, Claim, QueueDepth

# Jobs may take minutes; requests take seconds.
LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
SUBMISSIONS = ("accepted", "full", "conflict", "unavailable")
ATTEMPTS = ("succeeded", "failed", "retried", "refused")
UP = "Whether the job store is available, 1 or 0."
OLDEST = "Age of the oldest queued job in seconds."
SYNC_ASYNC = ("queued", "degraded", "unavailable", "confident")


class LongHistogram(Histogram):
    """Histogram of durations up to an hour."""

    bounds = LONG
    width = len(LONG) + 2


class JobMetrics:
    """Metric families of the roles with jobs."""

    def __init__(self, registry: Registry) -> None:
        counter = registry.counter
        self.submissions = counter("job_submissions_total", "Job submissions, by outcome.", "outcome", SUBMISSIONS)
        self.attempts = counter(
            "job_attempts_total",
            "Ended attempts, by outcome; refused: the lease was lost, or the job was cancelled.",
            "outcome",
            ATTEMPTS,
        )
        self.reclaimed = Counter(registry, "job_reclaimed_total", "Attempts that started after an expired lease.")
        self.queued = LongHistogram(
            registry, "job_queue_duration_seconds", "Time from the submission of a job to its first attempt in seconds."
        )
        self.finished = LongHistogram(
            registry, "job_result_duration_seconds", "Time from the submission of a job to its result in seconds."
        )
        self.sync_async = counter(
            "hybrid_answers_total", "Responses of /predict/hybrid, by the status of the full prediction.", "final", SYNC_ASYNC
        )
        self.agreements = counter(
            "hybrid_agreements_total",
            "Full predictions, by agreement with the provisional prediction.",
            "agrees",
            ("true", "false"),
        )

    def claimed(self, claims: list[Claim]) -> None:
        """Counts the starts of attempts."""
        for claim in claims:
            if claim.lost:
                self.reclaimed.add()
            elif claim.job.attempts == 1 and claim.job.started is not None:
                self.queued.observe(max(0.0, claim.job.started - claim.job.created))

    def succeeded(self, claim: Claim, seconds: float, agrees: bool | None) -> None:
        """Counts a success, `seconds` after its claim."""
        if claim.job.started is not None:
            self.finished.observe(max(0.0, claim.job.started - claim.job.created) + seconds)
        if agrees is not None:
            self.agreements.add((str(agrees).lower(),))


def store_samples(count: Callable[[], QueueDepth]) -> list[MetricSample]:
    """Returns the samples of the store. Every process and every pod reports the same values, so sums are meaningless."""
    try:
        counts = count()
    except BackendUnavailable:
        return [metric_sample("job_store_up", "gauge", UP, 0.0)]
    by_state = {f'{{state="{state}"}}': float(counts.by_state[state]) for state in STATES}
    return [
        metric_sample("job_store_up", "gauge", UP, 1.0),
        MetricSample("jobs", "gauge", "Jobs in the store, by state; failed jobs are the dead letters.", by_state),
        metric_sample("jobs_oldest_queued_seconds", "gauge", OLDEST, counts.oldest_seconds),
    ]
