"""Removal of expired jobs, with pauses for other writers."""

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.asynchronous.worker import SWEEP_IDLE_SECONDS, SWEEP_JOBS, SWEEP_PAUSE_FACTOR, sweep


class Store:
    """Store that removes the given numbers of jobs, with a given duration for each step."""

    def __init__(self, *removals: int | None, seconds: float) -> None:
        self.removals, self.seconds, self.now, self.pauses = list(removals), seconds, 0.0, []

    def sweep(self, max_jobs: int) -> int:
        assert max_jobs == SWEEP_JOBS
        self.now += self.seconds
        if (removed := self.removals.pop(0)) is None:
            raise BackendUnavailable("it is not there")
        return removed

    def pauses_of_a_sweeper(self) -> list[float]:
        sweep(self, lambda: not self.removals, lambda: self.now, self.pauses.append)
        return self.pauses


def test_while_jobs_expire_the_store_is_free_for_others_most_of_the_time():
    assert Store(50, 50, 7, seconds=0.25).pauses_of_a_sweeper() == [SWEEP_PAUSE_FACTOR * 0.25] * 3
    assert Store(50, seconds=100.0).pauses_of_a_sweeper() == [SWEEP_IDLE_SECONDS]


def test_without_expired_jobs_or_a_store_the_sweeper_waits():
    assert Store(0, None, 50, 0, seconds=0.25).pauses_of_a_sweeper() == [
        SWEEP_IDLE_SECONDS,
        SWEEP_IDLE_SECONDS,
        SWEEP_PAUSE_FACTOR * 0.25,
        SWEEP_IDLE_SECONDS,
    ]
