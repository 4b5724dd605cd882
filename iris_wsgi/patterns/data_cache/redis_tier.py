"""Items in Redis, between a process's memory and the database: raw bytes that every process may read."""

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import TypeVar

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.data_cache.item_store import Item
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker, LogEvent
from iris_wsgi.storage.redis import RedisClient

T = TypeVar("T")
# The version of what is below: layout of the value, and what was done to the row before it was packed.
LAYOUT = "1f4"
DIGITS, SUM = 20, 8
AT_ONCE = 500
# Of two writes the newer version stays, whoever comes first, and of equal ones that with a row. Versions are digits, which
# compare alike under any collation.
NEWER = """
for i, key in ipairs(KEYS) do
    local new, old = ARGV[i + 1], redis.call('GET', key) or ''
    local before, now = string.sub(old, 1, 20), string.sub(new, 1, 20)
    if before < now or (before == now and #new > 28) then redis.call('SET', key, new, 'PX', ARGV[1]) end
end
return 1"""


class RedisItems:
    """A second level that all servers read. It never fails: what it cannot do it leaves, and counts; calls end in `seconds`."""

    def __init__(self, url: str, ttl_seconds: float, seconds: float, tell: LogEvent, failed: Callable[[], object]) -> None:
        self.link = RedisClient(url, seconds, "IRIS_CACHE_REDIS_URL")
        self.redis = self.link.redis
        self.milliseconds, self.failed = int(ttl_seconds * 1000), failed
        self.breaker = CircuitBreaker(
            tell, "items are read from the database alone", "items are read from Redis again", count_failure=failed
        )
        self.script = self.redis.register_script(NEWER)

    def get(self, place: str, item_id: str) -> Item | None:
        """`place` is the identity of the database. What is not exactly what was packed for this id is removed."""
        key = key_of(place, item_id)
        found = self.call(lambda: self.redis.get(key))
        if found is None:
            return None
        item = unpack(key, found)
        if item is None:
            self.failed()
            self.call(lambda: self.redis.delete(key))
        return item if item is not None and item.row else None

    def put(self, place: str, items: Mapping[str, Item]) -> bool:
        """Keeps each unless a newer one is there; an item without a row says only that older ones do not count."""
        keys = {key_of(place, item_id): item for item_id, item in items.items()}
        names = list(keys)
        for i in range(0, len(names), AT_ONCE):
            some = names[i : i + AT_ONCE]
            values: list[int | bytes] = [self.milliseconds, *(pack(key, keys[key]) for key in some)]
            if self.call(partial(self.script, some, values)) is None:
                return False
        return True

    def call(self, ask: Callable[[], T]) -> T | None:
        try:
            return self.breaker.call(self.link.call, ask)
        except BackendUnavailable:
            return None

    def close(self) -> None:
        self.redis.close()


def key_of(place: str, item_id: str) -> str:
    return f"iris:item:{LAYOUT}:{place}:{item_id}"


def checksum(key: str, content: bytes) -> bytes:
    return sha256(key.encode() + content).digest()[:SUM]


def pack(key: str, item: Item) -> bytes:
    """The version as digits, a checksum over the key and all, the row."""
    version = f"{item.version:0{DIGITS}d}".encode()
    return version + checksum(key, version + item.row) + item.row


def unpack(key: str, found: object) -> Item | None:
    """None for what `pack` did not make for this key."""
    if not isinstance(found, bytes) or len(found) < DIGITS + SUM:
        return None
    version, told, row = found[:DIGITS], found[DIGITS : DIGITS + SUM], found[DIGITS + SUM :]
    if told != checksum(key, version + row) or not version.isdigit() or len(row) % 4:
        return None
    return Item(int(version), row)
