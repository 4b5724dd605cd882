"""LRU cache with a TTL for each entry and a limit in bytes."""

from collections import OrderedDict

# Overhead of an entry: two objects, a tuple, a time, and a slot in a dictionary (a test measures it).
ENTRY_BYTES = 270
# A value, and its monotonic expiry time. A plain tuple, which the garbage collector does not track after its first visit.
Entry = tuple[bytes, float]


class LRUCache:
    """Not thread-safe; callers must hold a lock."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        # The last entry is the most recently used. A plain dictionary would be rebuilt often, because moves leave holes in it.
        self.entries: OrderedDict[bytes, Entry] = OrderedDict()
        self.bytes = 0
        self.evicted = self.expired = 0

    def get(self, key: bytes, now: float) -> Entry | None:
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry[1] <= now:
            self.discard(key)
            self.expired += 1
            return None
        self.entries.move_to_end(key)
        return entry

    def put(self, key: bytes, value: bytes, expires: float) -> bool:
        """Evicts other entries if necessary. Returns False for an entry larger than the whole cache."""
        size = entry_bytes(key, value)
        self.discard(key)
        if size > self.max_bytes:
            return False
        while self.bytes + size > self.max_bytes:
            self.discard(next(iter(self.entries)))
            self.evicted += 1
        self.entries[key] = value, expires
        self.bytes += size
        return True

    def discard(self, key: bytes) -> None:
        if key in self.entries:
            self.bytes -= entry_bytes(key, self.entries.pop(key)[0])

    def clear(self) -> None:
        self.entries.clear()
        self.bytes = 0


def entry_bytes(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
