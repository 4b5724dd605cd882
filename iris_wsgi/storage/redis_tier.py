"""Second cache level in Redis, shared by servers: values with checksums, behind a timeout and a circuit breaker."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.storage.redis import RedisClient

T = TypeVar("T")
# Timeout of a connection and of a response. A request that meets a failure waits once or twice.
TIMEOUT_SECONDS = 0.05
# Pause between two calls while Redis is down.
RETRY_SECONDS = 1.0
# A value is the content, and this number of bytes of the SHA-256 of its key and its content.
CHECKSUM_BYTES = 8
VERSION_DIGITS = 20
MAX_KEYS_PER_CALL = 500
# Keeps the newer version in either order of two writes, and of equal versions the one with content. Versions are zero-padded
# decimals, because Lua has no 64-bit integers.
SET_IF_NEWER = """
for i, key in ipairs(KEYS) do
    local new, old = ARGV[i + 1], redis.call('GET', key) or ''
    local before, now = string.sub(old, 1, 20), string.sub(new, 1, 20)
    if before < now or (before == now and #new > 28) then redis.call('SET', key, new, 'PX', ARGV[1]) end
end
return 1"""


class TierOptions(NamedTuple):
    """`name` is that of the cache, for the log."""

    url: str
    ttl: float
    name: str
    log_event: Callable[[str, str], None]
    count_failure: Callable[[], object]


class RedisTier:
    """Base class. Reads and writes do not raise: a failed read is a miss."""

    def __init__(self, options: TierOptions) -> None:
        """Raises BadSetting."""
        self.client = RedisClient(options.url, TIMEOUT_SECONDS, "IRIS_CACHE_REDIS_URL")
        self.redis = self.client.redis
        self.max_seconds, self.ttl_ms = 2 * TIMEOUT_SECONDS, max(1, int(options.ttl * 1000))
        self.count_failure, self.failed_before = options.count_failure, False
        down, up = f"the {options.name} skips its second level", f"the {options.name} uses its second level again"
        self.breaker = CircuitBreaker(options.log_event, down, up, RETRY_SECONDS, self.on_failure)

    def on_failure(self) -> None:
        self.failed_before = True
        self.count_failure()

    def call(self, command: Callable[[], T]) -> T:
        """Raises BackendUnavailable."""
        return self.breaker.call(self.client.call, command)

    def unpack(self, key: bytes, value: object) -> bytes | None:
        """Returns the content, or None for a value that pack() did not make for this key."""
        if value is None:
            return None
        if isinstance(value, bytes):
            content = value[:-CHECKSUM_BYTES]
            if value == pack(key, content):
                return content
        self.count_failure()
        return None

    def close(self) -> None:
        self.redis.close()


class ClearableTier(RedisTier):
    """Tier that any server clears for all. A token is part of each key; a clear replaces the token.

    Each read and each sync() compares the token, and calls `on_clear` if another server replaced it.
    """

    def __init__(self, options: TierOptions, namespace: bytes, on_clear: Callable[[], None]) -> None:
        super().__init__(options)
        self.namespace, self.on_clear = namespace, on_clear
        self.token_key = namespace + b":token"
        self.token = b""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        token, found = self.token, None
        try:
            if not token:
                self.replace_token(self.call(self.shared_token))
                token = self.token
            names = [self.name(token, key) for key in keys]
            found, *values = self.call(partial(self.read, [self.token_key, *names]))
            if found == token:
                return [self.unpack(name, value) for name, value in zip(names, values, strict=True)]
            # Without a token, Redis may also have lost a clear.
            self.replace_token(found or self.call(self.shared_token))
        except BackendUnavailable:
            pass
        return [None] * len(keys)

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Does nothing after a failed call, so that a request waits for one failure at most."""
        token = self.token
        if not values or not token or self.breaker.failures:
            return
        with self.redis.pipeline(transaction=False) as pipeline, suppress(BackendUnavailable):
            for key, content in values.items():
                name = self.name(token, key)
                pipeline.set(name, pack(name, content), px=self.ttl_ms)
            self.call(pipeline.execute)

    def clear(self) -> None:
        """Raises BackendUnavailable."""
        token = new_token()
        self.call(lambda: self.redis.set(self.token_key, token))
        self.token = token

    def sync(self) -> None:
        self.get([])

    def replace_token(self, token: bytes) -> None:
        """Empties the memory of this server too, except at its start; if Redis was down since, it may have missed a clear."""
        missed_clear = self.token or self.failed_before
        self.token = token
        if missed_clear:
            self.on_clear()

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        values: list[Any] = list(self.redis.mget(keys))
        if len(values) != len(keys) or not all(value is None or type(value) is bytes for value in values):
            raise ValueError
        return values

    def shared_token(self) -> bytes:
        """Returns the token in Redis, or stores a new one."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.set(self.token_key, new_token(), nx=True)
            pipeline.get(self.token_key)
            token: object = pipeline.execute()[1]
        if type(token) is not bytes or not token:
            raise ValueError
        return token

    def name(self, token: bytes, key: bytes) -> bytes:
        return b"%b:%b:%b" % (self.namespace, token, key)


class VersionedTier(RedisTier):
    """Tier of versioned values. A version without content invalidates older versions."""

    def __init__(self, options: TierOptions, namespace: str) -> None:
        super().__init__(options)
        self.namespace = namespace
        self.set_if_newer = self.redis.register_script(SET_IF_NEWER)

    def get(self, database: str, key: str) -> tuple[int, bytes] | None:
        """Deletes an invalid value. `database` is the identity of the database that has the versions."""
        name = self.name(database, key)
        with suppress(BackendUnavailable):
            value: object = self.call(lambda: self.redis.get(name))
            content = self.unpack(name, value)
            if content is not None:
                version, data = content[:VERSION_DIGITS], content[VERSION_DIGITS:]
                return (int(version), data) if data else None
            if value is not None:
                self.call(lambda: self.redis.delete(name))
        return None

    def put(self, database: str, items: Mapping[str, tuple[int, bytes]]) -> bool:
        """Returns whether Redis accepted all items."""
        packed = {}
        for key, (version, data) in items.items():
            name = self.name(database, key)
            packed[name] = pack(name, b"%0*d" % (VERSION_DIGITS, version) + data)
        names = list(packed)
        with suppress(BackendUnavailable):
            for i in range(0, len(names), MAX_KEYS_PER_CALL):
                some = names[i : i + MAX_KEYS_PER_CALL]
                self.call(partial(self.set_if_newer, some, [self.ttl_ms, *(packed[name] for name in some)]))
            return True
        return False

    def name(self, database: str, key: str) -> bytes:
        return f"{self.namespace}:{database}:{key}".encode()


def pack(key: bytes, content: bytes) -> bytes:
    return content + sha256(key + content).digest()[:CHECKSUM_BYTES]


def new_token() -> bytes:
    return secrets.token_hex(8).encode()
