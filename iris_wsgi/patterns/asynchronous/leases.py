"""Keeps the leases of a worker's jobs while it works on them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.asynchronous.job import Claim, JobStore


class Leases:
    """What is held is extended three times in the time of a lease, by a thread that is there while anything may be held."""

    def __init__(self, store: JobStore, seconds: float) -> None:
        self.store, self.seconds = store, seconds
        self.held: dict[str, Claim] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.keep, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    @contextmanager
    def holding(self, claims: Sequence[Claim]) -> Iterator[None]:
        self.held = {one.job.id: one for one in claims}
        try:
            yield
        finally:
            self.held = {}

    def has(self, claim: Claim) -> bool:
        """Whether it is held, as far as is known: another may have it by now, or its job may be cancelled."""
        return claim.job.id in self.held

    def keep(self) -> None:
        while not self.over.wait(self.seconds / 3):
            held = self.held
            claims = list(held.values())
            if claims:
                # The store may be back before the leases are over; if not, it tells so when a result is written.
                with suppress(BackendUnavailable):
                    for one, ours in zip(claims, self.store.heartbeat(claims, self.seconds), strict=True):
                        if not ours:
                            held.pop(one.job.id, None)
