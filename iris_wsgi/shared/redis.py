"""Redis as the place where caches of several machines meet."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis

from iris_wsgi.redis import Link

T = TypeVar("T")


class RedisStore:
    """A Store. A call waits `seconds` for a connection and as long for each answer on it, and tries nothing twice."""

    def __init__(self, url: str, seconds: float) -> None:
        self.slowest = 2 * seconds
        self.link = Link(url, seconds)
        self.redis = self.link.client

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        def parse(told: Any) -> list[bytes | None]:
            if len(told) != len(keys) or not all(one is None or type(one) is bytes for one in told):
                raise ValueError
            return list(told)

        return self.call(lambda: self.redis.mget(keys), parse)

    def put(self, pairs: Sequence[tuple[bytes, bytes]], seconds: float) -> None:
        lasts = max(1, int(seconds * 1000))
        with self.redis.pipeline(transaction=False) as steps:
            for key, value in pairs:
                steps.set(key, value, px=lasts)
            self.call(steps.execute, lambda _: None)

    def put_new(self, key: bytes, value: bytes) -> bytes:
        def parse(told: Any) -> bytes:
            if type(told[1]) is not bytes or not told[1]:
                raise ValueError
            return told[1]

        with self.redis.pipeline(transaction=False) as steps:
            steps.set(key, value, nx=True)
            steps.get(key)
            return self.call(steps.execute, parse)

    def replace(self, key: bytes, value: bytes) -> None:
        self.call(lambda: self.redis.set(key, value), lambda _: None)

    def call(self, ask: Callable[[], Any], parse: Callable[[Any], T]) -> T:
        """Raises StoreDown, also for an answer of the wrong form, in which the library itself may stumble over anything."""
        try:
            return parse(ask())
        except (redis.RedisError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            # What is still to come on such a connection would be taken for the answer to something else.
            self.redis.connection_pool.disconnect(inuse_connections=False)
            raise self.link.down(error) from None

    def close(self) -> None:
        self.redis.close()
