"""Reads and writes items in the database, through Redis if there is one, and finds the changes of other servers."""

import threading
from math import inf
from secrets import randbits
from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple
from zlib import crc32

from iris_wsgi.http.cache_headers import CacheDirectives
from iris_wsgi.observability.shared_memory import MARKS
from iris_wsgi.patterns.data_cache.item_store import MAX_CHANGES, Item, ItemStore
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker

if TYPE_CHECKING:
    from iris_wsgi.storage.redis_tier import VersionedTier

GROUPS = MARKS // 3
Stamp = tuple[int, int]


class CacheTimes(NamedTuple):
    """Seconds: TTL of an item, TTL of an unknown id, time to serve an expired item as stale, and validity of a check.

    A check asks the database for the changes of other servers. Without a successful check in that time, no entry is valid.
    """

    item: float
    missing: float
    stale: float
    check: float


class InvalidationStamps:
    """Stamps of items in the memory that all processes of a server share. A reader notes the stamp before it reads the item.

    A stamp is two words, which the items of a group share. The first changes with each write, the second with each write of
    unknown outcome. Words are random: two processes that count at the same time could restore an old number. A third word is
    the time until which Redis may have an older version.
    """

    def __init__(self, words: "memoryview[int]") -> None:
        self.words = words

    def of(self, item_id: str) -> Stamp:
        group = group_of(item_id)
        return self.words[group], self.words[GROUPS + group]

    def mark_written(self, item_id: str) -> None:
        self.words[group_of(item_id)] = randbits(64)

    def mark_uncertain(self, item_id: str) -> None:
        self.words[GROUPS + group_of(item_id)] = randbits(64)

    def mark_unpublished(self, item_id: str, until: float) -> None:
        """`until` is a monotonic time, which is the same in all processes."""
        self.words[2 * GROUPS + group_of(item_id)] = int(until * 1e9)

    def unpublished_until(self, item_id: str) -> float:
        return self.words[2 * GROUPS + group_of(item_id)] / 1e9


def group_of(item_id: str) -> int:
    return crc32(item_id.encode()) % GROUPS


class ReadThrough:
    """Redis is used only while checks succeed: it may lack a version of a server that could not reach Redis."""

    def __init__(
        self,
        database: ItemStore,
        breaker: CircuitBreaker,
        tier: "VersionedTier | None",
        times: CacheTimes,
        stamps: InvalidationStamps,
    ) -> None:
        self.database, self.breaker, self.tier, self.times, self.stamps = database, breaker, tier, times, stamps
        self.lock = threading.Lock()
        self.cursor: str | None = None
        self.database_id: str | None = None
        # Monotonic start times: of the last successful check, of the one in progress, and of the first one.
        self.checked = self.began = -inf
        self.first_check = inf
        # Versions that Redis has not accepted yet.
        self.unpublished: dict[str, int] = {}
        self.tier_invalid_until = 0.0

    def get(self, item_id: str, directives: CacheDirectives) -> tuple[Item | None, float, Literal["redis", "database"]]:
        """Returns the item, the monotonic time at which it was valid, and its source. Raises BackendUnavailable."""
        now, checked, database_id = monotonic(), self.checked, self.database_id
        if (
            self.tier is not None
            and database_id is not None
            and now <= checked + self.times.check
            and directives.accept(now - checked, inf)
            and self.is_published(item_id, now)
        ):
            if found := self.tier.get(database_id, item_id):
                return Item(*found), checked, "redis"
            now = monotonic()
        item = self.breaker.call(self.database.get, item_id)
        if directives.store and self.tier is not None and self.database_id is not None and item is not None:
            self.tier.put(self.database_id, {item_id: item})
        return item, now, "database"

    def put(self, item_id: str, row: bytes) -> int:
        version = self.breaker.call(self.database.put, item_id, row)
        if self.tier is not None and (self.database_id is None or not self.tier.put(self.database_id, {item_id: (version, row)})):
            with self.lock:
                self.unpublished[item_id] = max(version, self.unpublished.get(item_id, 0))
            # For the other processes of this server, before the response. After this time, they have made another check,
            # or they do not use Redis.
            self.stamps.mark_unpublished(item_id, monotonic() + self.times.check)
        return version

    def is_published(self, item_id: str, now: float) -> bool:
        """Returns whether Redis has the last write of the item that this process knows."""
        return item_id not in self.unpublished and now >= max(self.tier_invalid_until, self.stamps.unpublished_until(item_id))

    def changes(self) -> dict[str, int] | None:
        """Starts a check: returns the versions written since the last one, None if too many. Raises BackendUnavailable.

        The caller applies the changes, and then calls finish_check() and publish().
        """
        began = monotonic()
        if self.tier is not None and self.database_id is None:
            self.database_id = self.breaker.call(self.database.identity)
        # The first check looks back over all that Redis may contain, twice, because clocks differ.
        change = self.breaker.call(self.database.changes, self.cursor, 2 * self.times.item if self.tier else 0.0)
        if self.tier is not None:
            with self.lock:
                for item_id, version in (change.versions or {}).items():
                    self.unpublished[item_id] = max(version, self.unpublished.get(item_id, 0))
                if change.versions is None or len(self.unpublished) > MAX_CHANGES:
                    self.unpublished.clear()
                    self.tier_invalid_until = began + 2 * self.times.item
                    # Another database may have replaced it.
                    self.database_id = None
        self.cursor, self.began = change.cursor, began
        return change.versions

    def finish_check(self) -> None:
        self.checked, self.first_check = self.began, min(self.first_check, self.began)

    def publish(self) -> None:
        """Writes to Redis which versions are too old."""
        with self.lock:
            unpublished = dict(self.unpublished)
        if not unpublished or self.tier is None or self.database_id is None:
            return
        if self.tier.put(self.database_id, {item_id: (version, b"") for item_id, version in unpublished.items()}):
            with self.lock:
                for item_id, version in unpublished.items():
                    if self.unpublished.get(item_id) == version:
                        del self.unpublished[item_id]
