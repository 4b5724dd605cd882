"""The data cache: items, and what the model says of them, kept in memory as long as nobody has written them."""

import threading
from collections.abc import Callable
from random import random
from time import monotonic
from typing import Literal, NamedTuple
from zlib import crc32

from iris_wsgi.errors import BackendUnavailable, NotCached
from iris_wsgi.http.cache_control import DEFAULT, NOT_CACHED, CacheDirectives
from iris_wsgi.patterns.data_cache.entry import Entry, unpack
from iris_wsgi.patterns.data_cache.invalidation import Mark, Marks
from iris_wsgi.patterns.data_cache.metrics import ItemMetrics
from iris_wsgi.patterns.data_cache.read_through import Reader
from iris_wsgi.resilience.single_flight import Flight
from iris_wsgi.storage.lru import Shelf

# What of a lifetime may be less by chance, so that what was read together is not read again together.
JITTER = 0.1
# What the loop answers must still count so many seconds from now.
MARGIN_SECONDS = 0.01
ITEM, PREDICTION = b"i", b"p"
SLOTS = 4096

Source = Literal["hit", "negative", "stale", "collapsed", "redis", "database", "again", "run"]
Key = tuple[bytes, Mark, int]
# The body about an item by id, version and row, `until` a monotonic time.
Render = Callable[[str, int, bytes, float], bytes]


class Times(NamedTuple):
    """Seconds: how long an item is kept, that there is none, one beyond its time; and since when a look at the database for what
    others have written must have been successful, or nothing counts that was read before."""

    item: float
    missing: float
    stale: float
    check: float


class Found(NamedTuple):
    """What there is, where it came from, whether it is kept now, whether what had been kept did not count any more, and whether
    what is kept counts, but not for this request."""

    entry: Entry
    source: Source
    kept: bool = False
    outdated: bool = False
    refused: bool = False


class ItemCache:
    """Answers by id. `reader` is asked for what is not here, `show` for the body about an item, `say` for what the model says.

    An entry counts until its time, while its marks are those of now, and while the last look at what others wrote is not too long
    ago. After that it is only for when the database is down, and not even for that once it is known that the item was written.
    """

    def __init__(
        self, reader: Reader, show: Render, say: Render, marks: Marks, shelf: Shelf, times: Times, metrics: ItemMetrics
    ) -> None:
        self.reader, self.show, self.say = reader, show, say
        self.marks, self.shelf, self.times, self.metrics = marks, shelf, times, metrics
        self.lock = threading.Lock()
        self.flights: dict[Key, Flight] = {}
        # How often others were seen to write one of the items of a slot: who reads meanwhile may have read what was before.
        self.seen = [0] * SLOTS

    def at_hand(self, kind: bytes, item_id: str, wishes: CacheDirectives = DEFAULT) -> bool:
        """Whether it can be told without asking anybody."""
        if wishes.only_cached:
            return True
        now, mark = monotonic() + MARGIN_SECONDS, self.marks.of(item_id)
        with self.lock:
            entry, item = self.kept(kind, item_id, now), self.kept(ITEM, item_id, now)
        found = entry if entry is not None or item is None or item.version else item
        return found is not None and self.counts(found, mark, now) and accepted(wishes, found, now)

    def item(self, item_id: str, until: float, wishes: CacheDirectives = DEFAULT) -> Found:
        """Version 0 where there is none. Raises BackendUnavailable where nothing can be told, and NotCached."""
        try:
            found = self.find_item(item_id, until, wishes)
        except BackendUnavailable:
            entry = self.old(ITEM, item_id)
            self.metrics.items.add(("stale" if entry else "unavailable",))
            if entry is None:
                raise
            return Found(entry, "stale")
        self.metrics.items.add((found.source,))
        return found

    def prediction(self, item_id: str, until: float, wishes: CacheDirectives = DEFAULT) -> Found:
        """The same for what the model says of the item."""
        try:
            found = self.find(PREDICTION, item_id, until, wishes, lambda: self.predicted(item_id, until, wishes))
        except BackendUnavailable:
            item = self.old(ITEM, item_id)
            entry = self.old(PREDICTION, item_id) if item is None else self.told(item_id, item, until, DEFAULT)[0]
            self.metrics.predictions.add(("stale" if entry else "unavailable",))
            if entry is None:
                raise
            return Found(entry, "stale")
        self.metrics.predictions.add((found.source,))
        return found

    def put(self, item_id: str, row: bytes) -> tuple[int, bytes]:
        """The version of what was written durably, and the body about it. From now on nobody here is told what was before.

        Raises BackendUnavailable where it may be written or not.
        """
        try:
            version = self.reader.put(item_id, row)
        except BackendUnavailable:
            self.marks.perhaps(item_id)
            self.metrics.writes.add(("unavailable",))
            raise
        self.marks.written(item_id)
        self.metrics.invalidated.add(("put",))
        self.metrics.writes.add(("created" if version == 1 else "replaced",))
        return version, self.show(item_id, version, row, 0.0)

    def check(self) -> None:
        """Looks at what was written, by others too, and forgets what was before. Raises BackendUnavailable."""
        versions = self.reader.changes()
        with self.lock:
            if versions is None:
                self.shelf.clear()
                self.seen = [count + 1 for count in self.seen]
            for item_id, version in (versions or {}).items():
                self.seen[slot(item_id)] += 1
                for kind in (ITEM, PREDICTION):
                    entry = self.kept(kind, item_id, monotonic())
                    if entry is not None and entry.version < version:
                        self.shelf.drop(kind + item_id.encode())
                        self.metrics.invalidated.add(("check",))
            self.reader.seen()
            self.metrics.holds(len(self.shelf.entries), self.shelf.bytes)
        self.reader.tell()

    def find(
        self, kind: bytes, item_id: str, until: float, wishes: CacheDirectives, work: Callable[[], tuple[Entry, Source]]
    ) -> Found:
        """What is here and counts; else what `work` gives, once for all who want the same and may be told the same."""
        # Who bounds the age is not told what others read, which may be older.
        use = wishes.read and not wishes.bounded
        while True:
            with self.lock:
                now = monotonic()
                old, mark, seen = self.kept(kind, item_id, now), self.marks.of(item_id), self.seen[slot(item_id)]
                counts = old is not None and self.counts(old, mark, now)
                if old is not None and counts and accepted(wishes, old, now):
                    return Found(old, "hit" if old.version else "negative")
                if wishes.only_cached:
                    raise NotCached(NOT_CACHED)
                key = (kind + item_id.encode(), mark, seen)
                flight = self.flights.get(key) if use else None
                mine = flight is None
                if flight is None:
                    flight = Flight()
                    if use:
                        self.flights[key] = flight
            outdated, refused = old is not None and not counts, counts and wishes.read
            if mine:
                return self.fly(flight, key, item_id, work, wishes.store)._replace(outdated=outdated, refused=refused)
            value = flight.wait(until)
            if value is not None:
                return Found(unpack(value), "collapsed", outdated=outdated)

    def fly(self, flight: Flight, key: Key, item_id: str, work: Callable[[], tuple[Entry, Source]], keep: bool) -> Found:
        """Does the work, keeps what came of it, and lets those who wait know; a failure is told to them and kept by nobody."""
        try:
            entry, source = work()
        except BaseException as error:
            with self.lock:
                self.land(flight, key)
            flight.land(None, error)
            raise
        value = entry.pack()
        with self.lock:
            self.land(flight, key)
            kept = keep and self.seen[slot(item_id)] == key[2] and self.marks.of(item_id) == entry.mark
            # That there is no item is kept once, and not for its prediction too; nor beyond its time.
            kept = kept and (entry.version > 0 or key[0].startswith(ITEM))
            if kept:
                evicted = self.shelf.evicted
                kept = self.shelf.put(key[0], value, entry.until + (self.times.stale if entry.version else 0.0))
                self.metrics.evicted.add((), self.shelf.evicted - evicted)
                self.metrics.holds(len(self.shelf.entries), self.shelf.bytes)
        flight.land(value)
        return Found(entry, source, kept)

    def land(self, flight: Flight, key: Key) -> None:
        """For who holds the lock."""
        if self.flights.get(key) is flight:
            del self.flights[key]

    def find_item(self, item_id: str, until: float, wishes: CacheDirectives) -> Found:
        return self.find(ITEM, item_id, until, wishes, lambda: self.read(item_id, until, wishes))

    def read(self, item_id: str, until: float, wishes: CacheDirectives) -> tuple[Entry, Source]:
        # Before it is read, or a mark that was set meanwhile would not be missed.
        mark = self.marks.of(item_id)
        item, read_at, source = self.reader.get(item_id, wishes)
        seconds = (self.times.missing if item is None else self.times.item) * (1 - JITTER * random())
        if item is None:
            return Entry(mark, 0, read_at, read_at + seconds, b"", b""), source
        body = self.show(item_id, item.version, item.row, until)
        return Entry(mark, item.version, read_at, read_at + seconds, item.row, body), source

    def predicted(self, item_id: str, until: float, wishes: CacheDirectives) -> tuple[Entry, Source]:
        """Counts as long as the item itself."""
        item = self.find_item(item_id, until, wishes)
        self.metrics.items.add((item.source,))
        return self.told(item_id, item.entry, until, wishes) if item.entry.version else (item.entry, item.source)

    def told(self, item_id: str, item: Entry, until: float, wishes: CacheDirectives) -> tuple[Entry, Source]:
        """What the model says of this item, or has said of the same row: then the look at the item has validated it."""
        with self.lock:
            old = self.kept(PREDICTION, item_id, monotonic()) if wishes.store else None
        if old is not None and (old.version, old.row) == (item.version, item.row):
            return item._replace(body=old.body), "again"
        return item._replace(body=self.say(item_id, item.version, item.row, until)), "run"

    def old(self, kind: bytes, item_id: str) -> Entry | None:
        """What may be told while the database is down: nothing that is known to be written since, nor that there is nothing."""
        with self.lock:
            entry = self.kept(kind, item_id, monotonic())
        return entry if entry is not None and entry.version and entry.mark[0] == self.marks.of(item_id)[0] else None

    def kept(self, kind: bytes, item_id: str, now: float) -> Entry | None:
        """For who holds the lock: what is here, whether it counts or not."""
        found = self.shelf.get(kind + item_id.encode(), now)
        return None if found is None else unpack(found[0])

    def counts(self, entry: Entry, mark: Mark, now: float) -> bool:
        # What was read before the first look may have been written before it, and no look would tell.
        last = max(self.reader.checked, entry.read_at) if entry.read_at >= self.reader.first else entry.read_at
        return entry.mark == mark and now < entry.until and now <= last + self.times.check


def accepted(wishes: CacheDirectives, entry: Entry, now: float) -> bool:
    return wishes.accept(max(0.0, now - entry.read_at), entry.until - now)


def slot(item_id: str) -> int:
    return crc32(item_id.encode()) % SLOTS
