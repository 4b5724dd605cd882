"""Entries and computations in progress of the prediction cache, shared by the threads of a process, and their metrics."""

import threading
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from time import monotonic
from typing import NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import Array
from iris_wsgi.errors import PARSED_TOO_LATE, DeadlineExceeded
from iris_wsgi.observability.metrics import Counter, Family, Gauge, Registry
from iris_wsgi.observability.shared_memory import SharedMemory
from iris_wsgi.resilience.single_flight import PendingResult, SingleFlight
from iris_wsgi.storage.lru import Entry, LRUCache

Values = dict[bytes, bytes]
RESULTS = ("hit", "coalesced", "shared", "run", "bypassed")
REASONS = ("size", "expired")
Pending = dict[bytes, PendingResult]


class CacheMetrics:
    """Metrics count rows and not requests: the cache may have only some rows of a request.

    One CacheStore of this process writes all of them under its own lock, except `failures`.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry, self.cells = registry, registry.cells
        self.rows = registry.counter("prediction_cache_rows_total", "Rows served, by source.", "result", RESULTS)
        self.evictions = registry.counter("prediction_cache_evictions_total", "Entries removed, by reason.", "reason", REASONS)
        self.entries = Gauge(registry, "prediction_cache_entries", "Entries in the caches of all processes.")
        self.bytes = Gauge(registry, "prediction_cache_bytes", "Memory of these entries, with keys and overhead, in bytes.")
        self.failures = Counter(
            registry, "prediction_cache_shared_failures_total", "Failed calls to the second level, and its invalid values."
        )
        self.hit, self.coalesced, self.shared, self.run, self.bypassed = (self.rows.first[result,] for result in RESULTS)

    def record(self, entries: LRUCache) -> None:
        """Records the size of the cache and its removals since the last call."""
        self.entries.set(len(entries.entries))
        self.bytes.set(entries.bytes)
        if entries.evicted or entries.expired:
            self.cells[self.evictions.first["size",]] += entries.evicted
            self.cells[self.evictions.first["expired",]] += entries.expired
            entries.evicted = entries.expired = 0

    def totals(self) -> Mapping[str, object]:
        """Returns the sums over all processes of the service."""

        def total(family: Family, *key: str) -> int:
            return self.registry.total(family.first[key])

        return {
            "entries": total(self.entries),
            "bytes": total(self.bytes),
            "rows": {result: total(self.rows, result) for result in RESULTS},
            "evictions": {reason: total(self.evictions, reason) for reason in REASONS},
            "shared_failures": total(self.failures),
        }


class CacheLookup(NamedTuple):
    """Values of a lookup, None for a miss. The caller must compute the misses in `owned`, and report them with put() or fail().

    Other requests compute the misses in `pending`. `ttl` is the time until the first value expires. `too_old` is the number of
    entries that the age limit of the request excludes.
    """

    values: list[bytes | None]
    owned: Pending
    pending: Pending
    generation: float
    ttl: float
    too_old: int


class CacheStore:
    """LRU cache and single-flight table under one lock. A clear by any process changes the generation in shared memory."""

    def __init__(self, entries: LRUCache, ttl: float, metrics: CacheMetrics, memory: SharedMemory) -> None:
        self.entries, self.ttl, self.metrics, self.memory = entries, ttl, metrics, memory
        self.cells = metrics.cells
        self.lock = threading.Lock()
        self.flights = SingleFlight[bytes]()
        self.generation = memory.generation()

    def get(self, key: bytes, deadline: float, min_ttl: float = 0.0) -> tuple[bytes, float] | None:
        """Returns the value of one row and its remaining seconds. Most requests need this method only, so it does little."""
        with self.lock:
            if self.memory.generation() != self.generation:
                self.apply_clear()
            now = now_before(deadline)
            entry: Entry | None = self.entries.get(key, now)
            if entry is None or entry[1] - now < min_ttl:
                return None
            self.cells[self.metrics.hit] += 1
        return entry[0], entry[1] - now

    def lookup(self, keys: Sequence[bytes], deadline: float, min_ttl: float = 0.0) -> CacheLookup:
        values: list[bytes | None] = []
        owned: Pending = {}
        pending: Pending = {}
        expires, hits, too_old = inf, 0, 0
        with self.lock:
            self.apply_clear()
            now = now_before(deadline)
            for key in keys:
                entry = self.entries.get(key, now)
                if entry is not None and entry[1] - now < min_ttl:
                    too_old += 1
                elif entry is not None:
                    values.append(entry[0])
                    expires = min(expires, entry[1])
                    hits += 1
                    continue
                values.append(None)
                if key not in owned:
                    result, is_leader = self.flights.join(key)
                    (owned if is_leader else pending)[key] = result
            self.cells[self.metrics.hit] += hits
            self.cells[self.metrics.coalesced] += len(keys) - hits - len(owned)
            return CacheLookup(values, owned, pending, self.generation, expires - now, too_old)

    def put(self, found: CacheLookup, fetched: Values, computed: Values, finite: Values) -> bool:
        """Stores the values of `found.owned`, of computed values only the finite ones. Returns whether it stored all."""
        with self.lock:
            self.cells[self.metrics.shared] += len(fetched)
            self.cells[self.metrics.run] += len(computed)
            stored = self.put_values(fetched | finite if fetched else finite, found.generation)
            self.flights.leave(found.owned)
        for key, result in found.owned.items():
            result.resolve(computed[key] if key in computed else fetched[key])
        return stored and len(finite) == len(computed)

    def fail(self, owned: Pending, error: BaseException | None) -> None:
        """Reports a failed computation. Without an error the waiters retry."""
        with self.lock:
            self.flights.leave(owned)
        for result in owned.values():
            result.resolve(None, error)

    def put_bypassed(self, rows: int, values: Values, generation: float) -> bool:
        """Stores values that a request computed without a lookup. `generation` is that from before the computation."""
        with self.lock:
            self.cells[self.metrics.bypassed] += rows
            return self.put_values(values, generation)

    def sync(self) -> None:
        """Applies a clear by another process at once, and not at the next request."""
        with self.lock:
            self.apply_clear()

    # Callers of these methods must hold the lock.

    def apply_clear(self) -> None:
        if (generation := self.memory.generation()) != self.generation:
            self.generation = generation
            self.entries.clear()
            self.metrics.record(self.entries)

    def put_values(self, values: Values, generation: float) -> bool:
        """Stores nothing that was computed before a clear. Returns whether it stored all values."""
        self.apply_clear()
        if generation != self.generation:
            return False
        expires = monotonic() + self.ttl
        stored = True
        for key, value in values.items():
            stored &= self.entries.put(key, value, expires)
        self.metrics.record(self.entries)
        return stored


def now_before(deadline: float) -> float:
    """Returns the monotonic time. Raises DeadlineExceeded like a predictor, even if the cache has the value."""
    if (now := monotonic()) >= deadline:
        raise DeadlineExceeded(PARSED_TOO_LATE)
    return now


def array(values: Sequence[bytes], width: int) -> Array:
    """Returns float32 [n, width]."""
    return np.frombuffer(values[0] if len(values) == 1 else b"".join(values), np.float32).reshape(len(values), width)


def values_of(keys: Sequence[bytes], outputs: Array) -> tuple[Values, Values]:
    """Returns the predictions of each key, and those of the keys whose predictions are finite."""
    if len(keys) == 1:
        value = {keys[0]: outputs.tobytes()}
        return value, value if all(map(isfinite, outputs[0].tolist())) else {}
    raw, size = outputs.tobytes(), outputs.itemsize * outputs.shape[1]
    values = {key: raw[i * size : (i + 1) * size] for i, key in enumerate(keys)}
    if np.isfinite(outputs).all():
        return values, values
    return values, {key: values[key] for key, row in zip(keys, outputs, strict=True) if np.isfinite(row).all()}
