"""What is counted of jobs: by requests, by workers, and in the store itself."""

from collections.abc import Callable

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.observability.metrics import Counter, Histogram, Registry
from iris_wsgi.observability.process_metrics import Figure, figure
from iris_wsgi.patterns.asynchronous.job import STATES, Claim, QueueDepth

# Jobs may wait for minutes, where a request is answered in seconds at most.
LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
SUBMISSIONS = ("accepted", "full", "conflict", "unavailable")
ATTEMPTS = ("succeeded", "failed", "retried", "refused")
UP = "Whether the store of jobs answers."
OLDEST = "Seconds since the oldest of the queued jobs began to wait."
HYBRID = ("queued", "degraded", "unavailable", "confident")


class Waits(Histogram):
    """Seconds that may be many."""

    bounds = LONG
    width = len(LONG) + 2


class JobMetrics:
    """Families of one registry, the same in every role that has to do with jobs."""

    def __init__(self, registry: Registry) -> None:
        counter = registry.counter
        self.submissions = counter("job_submissions_total", "Jobs handed in, by what became of them.", "outcome", SUBMISSIONS)
        self.attempts = counter(
            "job_attempts_total",
            "Attempts that have ended; a refused one had lost its lease, or its job was cancelled.",
            "outcome",
            ATTEMPTS,
        )
        self.reclaimed = Counter(registry, "job_reclaimed_total", "Attempts begun because a lease ran out.")
        self.queued = Waits(registry, "job_queue_duration_seconds", "Seconds from a job's coming to its first attempt.")
        self.finished = Waits(registry, "job_result_duration_seconds", "Seconds from a job's coming to its result.")
        self.hybrid = counter("hybrid_answers_total", "Answers of /predict/hybrid, by what its full answer is.", "final", HYBRID)
        self.agreements = counter(
            "hybrid_agreements_total",
            "Full answers to jobs with a provisional one, by whether they agree.",
            "agrees",
            ("true", "false"),
        )

    def claimed(self, claims: list[Claim]) -> None:
        """Workers have begun attempts."""
        for one in claims:
            if one.lost:
                self.reclaimed.add()
            elif one.job.attempts == 1 and one.job.started is not None:
                self.queued.observe(max(0.0, one.job.started - one.job.created))

    def succeeded(self, claim: Claim, seconds: float, agrees: bool | None) -> None:
        """A job has, so many seconds after it was claimed."""
        if claim.job.started is not None:
            self.finished.observe(max(0.0, claim.job.started - claim.job.created) + seconds)
        if agrees is not None:
            self.agreements.add((str(agrees).lower(),))


def store_figures(count: Callable[[], QueueDepth]) -> list[Figure]:
    """What the store itself tells. It is the same from every process and every pod, so nobody should add it up."""
    try:
        counts = count()
    except BackendUnavailable:
        return [figure("job_store_up", "gauge", UP, 0.0)]
    by_state = {f'{{state="{state}"}}': float(counts.by_state[state]) for state in STATES}
    return [
        figure("job_store_up", "gauge", UP, 1.0),
        Figure("jobs", "gauge", "Jobs by state; failed ones are the dead letters.", by_state),
        figure("jobs_oldest_queued_seconds", "gauge", OLDEST, counts.oldest_seconds),
    ]
