"""Reads and writes items where they are: in the database, with Redis in front of it where there is one."""

import threading
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Literal

from iris_wsgi.http.cache_control import CacheDirectives
from iris_wsgi.patterns.data_cache.invalidation import Marks
from iris_wsgi.patterns.data_cache.item_store import MOST_CHANGES, Item, ItemStore
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker

if TYPE_CHECKING:
    from iris_wsgi.patterns.data_cache.redis_tier import RedisItems


class Reader:
    """What is in the second level counts only while looks at the database tell what was written: it may lack what another server
    wrote when it could not reach it. `seconds` is how long it keeps anything, `check` how long a look counts.
    """

    def __init__(
        self,
        database: ItemStore,
        breaker: CircuitBreaker,
        shared: "RedisItems | None",
        seconds: float,
        check: float,
        marks: Marks,
    ) -> None:
        self.database, self.breaker, self.shared, self.marks = database, breaker, shared, marks
        self.seconds, self.check = seconds, check
        self.lock = threading.Lock()
        self.cursor: str | None = None
        self.place: str | None = None
        # When the last look began that was successful, and the one that is under way (monotonic).
        self.checked = self.began = float("-inf")
        # When the first one began.
        self.first = float("inf")
        # What the second level must be told, since it may have what was before.
        self.untold: dict[str, int] = {}
        self.distrusted_until = 0.0

    def get(self, item_id: str, wishes: CacheDirectives) -> tuple[Item | None, float, Literal["redis", "database"]]:
        """The item, when it was so for certain (monotonic), and who told. Raises BackendUnavailable."""
        now, checked, place = monotonic(), self.checked, self.place
        shared = self.shared if wishes.accept(now - checked, inf) and place is not None and now <= checked + self.check else None
        if shared is not None and place is not None and self.told(item_id, now):
            item = shared.get(place, item_id)
            if item is not None:
                return item, checked, "redis"
            now = monotonic()
        item = self.breaker.call(self.database.get, item_id)
        if wishes.store and self.shared is not None and self.place is not None and item is not None:
            self.shared.put(self.place, {item_id: item})
        return item, now, "database"

    def put(self, item_id: str, row: bytes) -> int:
        version = self.breaker.call(self.database.put, item_id, row)
        if self.shared is not None and (self.place is None or not self.shared.put(self.place, {item_id: Item(version, row)})):
            with self.lock:
                self.untold[item_id] = max(version, self.untold.get(item_id, 0))
            # The other processes of this server must know before they are told of the write. Once this is over a look has told
            # them, or they do not believe the second level at all.
            self.marks.untold(item_id, monotonic() + self.check)
        return version

    def told(self, item_id: str, now: float) -> bool:
        """Whether the second level knows what was written, as far as is known here."""
        return item_id not in self.untold and now >= max(self.distrusted_until, self.marks.untold_until(item_id))

    def changes(self) -> dict[str, int] | None:
        """The versions of what was written since the last look, None for too much. To be followed by `seen` and `tell`."""
        began = monotonic()
        if self.shared is not None and self.place is None:
            self.place = self.breaker.call(self.database.identity)
        # What is in the second level was put there after these, or its time is over; twice, because clocks differ.
        change = self.breaker.call(self.database.changes, self.cursor, 2 * self.seconds if self.shared else 0.0)
        if self.shared is not None:
            with self.lock:
                for item_id, version in (change.versions or {}).items():
                    self.untold[item_id] = max(version, self.untold.get(item_id, 0))
                if change.versions is None or len(self.untold) > MOST_CHANGES:
                    self.untold.clear()
                    self.distrusted_until = began + 2 * self.seconds
                    # It may be another database.
                    self.place = None
        self.cursor, self.began = change.cursor, began
        return change.versions

    def seen(self) -> None:
        """What the look told is taken note of."""
        self.checked, self.first = self.began, min(self.first, self.began)

    def tell(self) -> None:
        """Tells the second level what it must no longer give."""
        with self.lock:
            untold = dict(self.untold)
        if untold and self.shared is not None and self.place is not None:
            told = self.shared.put(self.place, {item_id: Item(version, b"") for item_id, version in untold.items()})
            with self.lock:
                for item_id, version in untold.items() if told else ():
                    if self.untold.get(item_id) == version:
                        del self.untold[item_id]
