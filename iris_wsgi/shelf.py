"""Bytes by key in memory: bounded in bytes, each for its time, the least recently used goes first."""

from typing import NamedTuple

# What a key and a value cost beyond their own bytes: two objects, a tuple, a time, a place in a dictionary (measured by a test).
ENTRY_BYTES = 260


class Entry(NamedTuple):
    """A value, and until when it counts (monotonic)."""

    value: bytes
    until: float


class Shelf:
    """Not safe for threads by itself: who uses it has a lock."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.entries: dict[bytes, Entry] = {}
        self.bytes = 0
        self.evicted = self.expired = 0

    def get(self, key: bytes, now: float) -> Entry | None:
        """None where there is nothing that counts any more."""
        entry = self.entries.pop(key, None)
        if entry is None:
            return None
        if entry.until <= now:
            self.bytes -= cost(key, entry.value)
            self.expired += 1
            return None
        # The end of the dictionary is what was used last.
        self.entries[key] = entry
        return entry

    def put(self, key: bytes, value: bytes, until: float) -> bool:
        """Makes room where it is needed; False for what is larger than the whole shelf."""
        size = cost(key, value)
        if size > self.most_bytes:
            return False
        old = self.entries.pop(key, None)
        if old is not None:
            self.bytes -= cost(key, old.value)
        while self.bytes + size > self.most_bytes:
            least = next(iter(self.entries))
            self.bytes -= cost(least, self.entries.pop(least).value)
            self.evicted += 1
        self.entries[key] = Entry(value, until)
        self.bytes += size
        return True

    def drop(self, key: bytes) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.bytes -= cost(key, entry.value)

    def clear(self) -> None:
        self.entries.clear()
        self.bytes = 0


def cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
