"""What is kept of an item in memory: bytes, with what tells whether they still count."""

from struct import Struct
from typing import NamedTuple

from iris_wsgi.patterns.data_cache.invalidation import Mark

# The marks that were there before it was read, the version (0: there is no such item), the monotonic times at which it was read
# and until which it counts, the bytes of the row.
head = Struct("<QQQddI")


class Entry(NamedTuple):
    """A row and what is told of it; both empty where there is no such item."""

    mark: Mark
    version: int
    read_at: float
    until: float
    row: bytes
    body: bytes

    def pack(self) -> bytes:
        return head.pack(*self.mark, self.version, self.read_at, self.until, len(self.row)) + self.row + self.body


def unpack(value: bytes) -> Entry:
    written, perhaps, version, read_at, until, size = head.unpack_from(value)
    end = head.size + size
    return Entry((written, perhaps), version, read_at, until, value[head.size : end], value[end:])
