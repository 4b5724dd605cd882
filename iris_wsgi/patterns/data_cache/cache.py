"""Data cache: items and their predictions in memory, valid until a server writes the item."""

import threading
from collections.abc import Callable
from random import random
from struct import Struct
from time import monotonic
from typing import Literal, NamedTuple

from iris_wsgi.errors import BackendUnavailable, NotCached
from iris_wsgi.http.cache_headers import DEFAULT, NOT_CACHED, CacheDirectives
from iris_wsgi.observability.metrics import Counter, Gauge, Registry
from iris_wsgi.patterns.data_cache.read_through import GROUPS, CacheTimes, InvalidationStamps, ReadThrough, Stamp, group_of
from iris_wsgi.resilience.single_flight import PendingResult, SingleFlight
from iris_wsgi.storage.lru import LRUCache

# A random part of the TTL is cut, so that items read together do not expire together.
JITTER = 0.1
# The event loop serves an entry only if it stays valid for this time.
MARGIN_SECONDS = 0.01
ITEM, PREDICTION = b"i", b"p"
# Sources of an item: memory (an item, or a negative entry; fresh, or stale), another request, Redis, the database, none.
ITEM_SOURCES = ("hit", "negative", "stale", "collapsed", "redis", "database", "unavailable")
# Sources of a prediction also are the previous prediction of the same row, and a run of the model.
PREDICTION_SOURCES = (*ITEM_SOURCES, "again", "run")
WRITES = ("created", "replaced", "unavailable")
CAUSES = ("put", "check")
LEVELS = ("redis", "database")

Source = Literal["hit", "negative", "stale", "collapsed", "redis", "database", "again", "run"]
# The kind and the id, the stamp, and the number of changes before the read.
Key = tuple[bytes, Stamp, int]
# From the id of an item, its version, and its row to a response body; for a prediction with a deadline.
ShowItem = Callable[[str, int, bytes], bytes]
PredictItem = Callable[[str, int, bytes, float], bytes]

# The stamp, the version, the times, and the size of the row.
HEADER = Struct("<QQQddI")


class Entry(NamedTuple):
    """An item or a prediction, and the stamp of the item from before the read. Version 0 is an unknown id, without row and body.

    Times are monotonic.
    """

    stamp: Stamp
    version: int
    read_at: float
    expires: float
    row: bytes
    body: bytes

    def pack(self) -> bytes:
        return HEADER.pack(*self.stamp, self.version, self.read_at, self.expires, len(self.row)) + self.row + self.body


def unpack(value: bytes) -> Entry:
    written, uncertain, version, read_at, expires, size = HEADER.unpack_from(value)
    end = HEADER.size + size
    return Entry((written, uncertain), version, read_at, expires, value[HEADER.size : end], value[end:])


class ItemMetrics:
    """Metrics of the data cache in one registry."""

    def __init__(self, registry: Registry) -> None:
        counter = registry.counter
        self.items = counter("item_lookups_total", "Item lookups, by source.", "source", ITEM_SOURCES)
        self.predictions = counter("item_predictions_total", "Lookups of predictions, by source.", "source", PREDICTION_SOURCES)
        self.writes = counter("item_writes_total", "Item writes, by outcome.", "outcome", WRITES)
        self.invalidated = counter(
            "item_invalidations_total", "Invalidated items: by a PUT of this server, or by a check of the database.", "by", CAUSES
        )
        self.failures = counter("item_store_failures_total", "Failed calls and invalid values, by store.", "of", LEVELS)
        self.evicted = Counter(registry, "item_cache_evictions_total", "Entries evicted from memory to make room.")
        self.entries = Gauge(registry, "item_cache_entries", "Items and predictions in memory.")
        self.bytes = Gauge(registry, "item_cache_bytes", "Memory of these entries, in bytes.")

    def record_size(self, entries: LRUCache) -> None:
        self.entries.set(len(entries.entries))
        self.bytes.set(entries.bytes)


class ItemLookup(NamedTuple):
    """Result of a lookup. `stored` is true if memory has the entry now.

    `reason` is why the cache did not serve an entry from memory, as Cache-Status reports it: "request", "stale", or "uri-miss".
    """

    entry: Entry
    source: Source
    stored: bool = False
    reason: str = ""


class ItemCache:
    """Cache by item id in front of `reader`. `show_item` and `predict` create the bodies of a miss.

    An entry is valid until it expires, while the stamps of its item are unchanged and the last check is recent. An invalid entry
    is served as stale while the database is down, unless a server wrote the item since.
    """

    def __init__(
        self,
        reader: ReadThrough,
        show_item: ShowItem,
        predict: PredictItem,
        entries: LRUCache,
        times: CacheTimes,
        stamps: InvalidationStamps,
        metrics: ItemMetrics,
    ) -> None:
        self.reader, self.show_item, self.predict = reader, show_item, predict
        self.entries, self.times, self.stamps, self.metrics = entries, times, stamps, metrics
        self.lock = threading.Lock()
        self.flights = SingleFlight[Key]()
        # Number of changes by other servers to the items of a group. A read during such a change may return the older version.
        self.changes = [0] * GROUPS

    def is_cached(self, kind: bytes, item_id: str, directives: CacheDirectives = DEFAULT) -> bool:
        """Returns whether a lookup will not block."""
        if directives.only_cached:
            return True
        now, stamp = monotonic() + MARGIN_SECONDS, self.stamps.of(item_id)
        with self.lock:
            entry, item = self.entry(kind, item_id, now), self.entry(ITEM, item_id, now)
        found = entry if entry is not None or item is None or item.version else item
        return found is not None and self.is_valid(found, stamp, now) and accepts(directives, found, now)

    def item(self, item_id: str, deadline: float, directives: CacheDirectives = DEFAULT) -> ItemLookup:
        """Returns version 0 for an unknown id. Raises BackendUnavailable, and NotCached."""
        return self.lookup(
            self.metrics.items,
            lambda: self.fresh_item(item_id, deadline, directives),
            lambda: self.stale_entry(ITEM, item_id),
        )

    def prediction(self, item_id: str, deadline: float, directives: CacheDirectives = DEFAULT) -> ItemLookup:
        """Returns the prediction of an item. Raises the errors of item() and of the model."""

        def compute() -> tuple[Entry, Source]:
            item = self.fresh_item(item_id, deadline, directives)
            self.metrics.items.add((item.source,))
            if not item.entry.version:
                return item.entry, item.source
            return self.predicted(item_id, item.entry, deadline, directives)

        def stale() -> Entry | None:
            item = self.stale_entry(ITEM, item_id)
            return self.predicted(item_id, item, deadline, DEFAULT)[0] if item else self.stale_entry(PREDICTION, item_id)

        return self.lookup(
            self.metrics.predictions, lambda: self.fresh(PREDICTION, item_id, deadline, directives, compute), stale
        )

    def lookup(self, counter: Counter, fresh: Callable[[], ItemLookup], stale: Callable[[], Entry | None]) -> ItemLookup:
        try:
            found = fresh()
        except BackendUnavailable:
            entry = stale()
            counter.add(("stale" if entry else "unavailable",))
            if entry is None:
                raise
            return ItemLookup(entry, "stale")
        counter.add((found.source,))
        return found

    def put(self, item_id: str, row: bytes) -> tuple[int, bytes]:
        """Returns the version of the durable write, and the body. Later lookups in this server do not return older versions.

        Raises BackendUnavailable; then the outcome is unknown.
        """
        try:
            version = self.reader.put(item_id, row)
        except BackendUnavailable:
            self.stamps.mark_uncertain(item_id)
            self.metrics.writes.add(("unavailable",))
            raise
        self.stamps.mark_written(item_id)
        self.metrics.invalidated.add(("put",))
        self.metrics.writes.add(("created" if version == 1 else "replaced",))
        return version, self.show_item(item_id, version, row)

    def check(self) -> None:
        """Removes the entries of items that other servers wrote. Raises BackendUnavailable."""
        versions = self.reader.changes()
        with self.lock:
            if versions is None:
                self.entries.clear()
                self.changes = [count + 1 for count in self.changes]
            for item_id, version in (versions or {}).items():
                self.changes[group_of(item_id)] += 1
                for kind in (ITEM, PREDICTION):
                    entry = self.entry(kind, item_id, monotonic())
                    if entry is not None and entry.version < version:
                        self.entries.discard(kind + item_id.encode())
                        self.metrics.invalidated.add(("check",))
            self.reader.finish_check()
            self.metrics.record_size(self.entries)
        self.reader.publish()

    def fresh(
        self,
        kind: bytes,
        item_id: str,
        deadline: float,
        directives: CacheDirectives,
        compute: Callable[[], tuple[Entry, Source]],
    ) -> ItemLookup:
        """Returns a valid entry, or the result of `compute`, which concurrent requests share."""
        # A request that limits the age computes alone, because a shared result may be older.
        shares = directives.read and not directives.bounded
        while True:
            with self.lock:
                now = monotonic()
                old, stamp, changes = self.entry(kind, item_id, now), self.stamps.of(item_id), self.changes[group_of(item_id)]
                valid = old is not None and self.is_valid(old, stamp, now)
                if old is not None and valid and accepts(directives, old, now):
                    return ItemLookup(old, "hit" if old.version else "negative")
                if directives.only_cached:
                    raise NotCached(NOT_CACHED)
                key = (kind + item_id.encode(), stamp, changes)
                pending, leads = self.flights.join(key) if shares else (PendingResult(), True)
            reason = "request" if valid or not directives.read else "stale" if old is not None else "uri-miss"
            if leads:
                return self.lead(pending, key, item_id, compute, directives.store)._replace(reason=reason)
            value = pending.wait(deadline)
            if value is not None:
                return ItemLookup(unpack(value), "collapsed", False, reason)

    def lead(
        self, pending: PendingResult, key: Key, item_id: str, compute: Callable[[], tuple[Entry, Source]], may_store: bool
    ) -> ItemLookup:
        """Computes an entry, stores it, and wakes the waiters. A failure goes to them, and is not stored."""
        try:
            entry, source = compute()
        except BaseException as error:
            with self.lock:
                self.flights.leave({key: pending})
            pending.resolve(None, error)
            raise
        value = entry.pack()
        with self.lock:
            self.flights.leave({key: pending})
            stored = may_store and self.store(key, item_id, entry, value)
        pending.resolve(value)
        return ItemLookup(entry, source, stored)

    def store(self, key: Key, item_id: str, entry: Entry, value: bytes) -> bool:
        """Stores an entry, unless a server wrote the item meanwhile. Callers must hold the lock."""
        name, _, changes = key
        if self.changes[group_of(item_id)] != changes or self.stamps.of(item_id) != entry.stamp:
            return False
        # A negative entry is stored once, and not for the prediction too. It is never served as stale.
        if not entry.version and not name.startswith(ITEM):
            return False
        evicted = self.entries.evicted
        stored = self.entries.put(name, value, entry.expires + (self.times.stale if entry.version else 0.0))
        self.metrics.evicted.add((), self.entries.evicted - evicted)
        self.metrics.record_size(self.entries)
        return stored

    def fresh_item(self, item_id: str, deadline: float, directives: CacheDirectives) -> ItemLookup:
        def read() -> tuple[Entry, Source]:
            # Before the read, so that a write during the read changes it.
            stamp = self.stamps.of(item_id)
            item, read_at, source = self.reader.get(item_id, directives)
            ttl = (self.times.missing if item is None else self.times.item) * (1 - JITTER * random())
            if item is None:
                return Entry(stamp, 0, read_at, read_at + ttl, b"", b""), source
            body = self.show_item(item_id, item.version, item.row)
            return Entry(stamp, item.version, read_at, read_at + ttl, item.row, body), source

        return self.fresh(ITEM, item_id, deadline, directives, read)

    def predicted(self, item_id: str, item: Entry, deadline: float, directives: CacheDirectives) -> tuple[Entry, Source]:
        """Returns the prediction of this item, without a run of the model if memory has that of the same row and version."""
        with self.lock:
            old = self.entry(PREDICTION, item_id, monotonic()) if directives.store else None
        if old is not None and (old.version, old.row) == (item.version, item.row):
            return item._replace(body=old.body), "again"
        return item._replace(body=self.predict(item_id, item.version, item.row, deadline)), "run"

    def stale_entry(self, kind: bytes, item_id: str) -> Entry | None:
        """Returns an entry to serve while the database is down: not a negative one, and none of an item written since."""
        with self.lock:
            entry = self.entry(kind, item_id, monotonic())
        return entry if entry is not None and entry.version and entry.stamp[0] == self.stamps.of(item_id)[0] else None

    def entry(self, kind: bytes, item_id: str, now: float) -> Entry | None:
        """Returns a valid or invalid entry. Callers must hold the lock."""
        found = self.entries.get(kind + item_id.encode(), now)
        return None if found is None else unpack(found[0])

    def is_valid(self, entry: Entry, stamp: Stamp, now: float) -> bool:
        # No check reports a write before the first check, so a check does not prolong an entry read before it.
        last = max(self.reader.checked, entry.read_at) if entry.read_at >= self.reader.first_check else entry.read_at
        return entry.stamp == stamp and now < entry.expires and now <= last + self.times.check


def accepts(directives: CacheDirectives, entry: Entry, now: float) -> bool:
    return directives.accept(max(0.0, now - entry.read_at), entry.expires - now)
