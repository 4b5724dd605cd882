"""What is counted of the prediction cache."""

from collections.abc import Mapping

from iris_wsgi.observability.metrics import Counter, Family, Gauge, Registry
from iris_wsgi.storage.lru import Shelf

RESULTS = ("hit", "coalesced", "shared", "run", "bypassed")
REASONS = ("size", "expired")


class CacheMetrics:
    """Families of one registry. Rows, and not requests: a request of several rows may find some of them.

    All but the failures are written by one cache of this process, under its own lock.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry, self.cells = registry, registry.cells
        self.rows = registry.counter("prediction_cache_rows_total", "Rows, by where their answers came from.", "result", RESULTS)
        self.evictions = registry.counter(
            "prediction_cache_evictions_total",
            "Answers that were removed, for want of room or because their time was over.",
            "reason",
            REASONS,
        )
        self.entries = Gauge(registry, "prediction_cache_entries", "Answers in the caches of all processes.")
        self.bytes = Gauge(registry, "prediction_cache_bytes", "Bytes that these take, keys and bookkeeping included.")
        self.failures = Counter(
            registry,
            "prediction_cache_shared_failures_total",
            "Calls of the second level that failed, and values of it that were wrong.",
        )
        self.hit, self.coalesced, self.shared, self.run, self.bypassed = (self.rows.first[result,] for result in RESULTS)

    def keep(self, shelf: Shelf) -> None:
        """What the shelf is now, and what it has removed so far."""
        self.entries.set(len(shelf.entries))
        self.bytes.set(shelf.bytes)
        if shelf.evicted or shelf.expired:
            self.cells[self.evictions.first["size",]] += shelf.evicted
            self.cells[self.evictions.first["expired",]] += shelf.expired
            shelf.evicted = shelf.expired = 0

    def totals(self) -> Mapping[str, object]:
        """Of all processes of the service."""

        def total(family: Family, *key: str) -> int:
            return self.registry.total(family.first[key])

        return {
            "entries": total(self.entries),
            "bytes": total(self.bytes),
            "rows": {result: total(self.rows, result) for result in RESULTS},
            "evictions": {reason: total(self.evictions, reason) for reason in REASONS},
            "shared_failures": total(self.failures),
        }
