"""Bytes by key in memory: bounded in bytes, each for its time, the least recently used goes first."""

from collections import OrderedDict

# What a key and a value cost beyond their own bytes: two objects, a tuple, a time, a place in a dictionary (measured by a test).
ENTRY_BYTES = 270


# A value, and until when it counts (monotonic). A plain tuple, which the garbage collector leaves alone once it has seen it.
Entry = tuple[bytes, float]


class Shelf:
    """Not safe for threads by itself: who uses it has a lock."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        # The end is what was used last. A plain dictionary would be built anew every so often by what moves to its end.
        self.entries: OrderedDict[bytes, Entry] = OrderedDict()
        self.bytes = 0
        self.evicted = self.expired = 0

    def get(self, key: bytes, now: float) -> Entry | None:
        """None where there is nothing that counts any more."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry[1] <= now:
            self.drop(key)
            self.expired += 1
            return None
        self.entries.move_to_end(key)
        return entry

    def put(self, key: bytes, value: bytes, until: float) -> bool:
        """Makes room where it is needed; False for what is larger than the whole shelf."""
        size = cost(key, value)
        self.drop(key)
        if size > self.most_bytes:
            return False
        while self.bytes + size > self.most_bytes:
            self.drop(next(iter(self.entries)))
            self.evicted += 1
        self.entries[key] = value, until
        self.bytes += size
        return True

    def drop(self, key: bytes) -> None:
        """Whether it is there or not."""
        if key in self.entries:
            self.bytes -= cost(key, self.entries.pop(key)[0])

    def clear(self) -> None:
        self.entries.clear()
        self.bytes = 0


def cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
