"""Removes expired jobs, little by little, so that those who want to write meanwhile are not kept waiting."""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.asynchronous.job import JobStore, Stop
from iris_wsgi.resilience.background import pause

# How long it waits where there is nothing to remove, and how many jobs it removes at once.
IDLE_SECONDS, AT_ONCE = 5.0, 50
# For so many times as long as a removal took the store is left to the others.
SHARE = 4


def sweep(
    store: JobStore, stopping: Stop, clock: Callable[[], float] = monotonic, pause: Callable[[float], None] = pause
) -> None:
    """Until the end. Several may sweep one store; what one removed is nothing to the others."""
    while not stopping():
        began, removed = clock(), 0
        # The worker beside it tells the log of a store that is down.
        with suppress(BackendUnavailable):
            removed = store.sweep(AT_ONCE)
        pause(min(IDLE_SECONDS, SHARE * (clock() - began)) if removed else IDLE_SECONDS)
