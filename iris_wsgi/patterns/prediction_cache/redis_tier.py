"""The second level of the prediction cache: a Redis that servers share, checked, behind a breaker; without it all goes on."""

import secrets
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker, LogEvent

if TYPE_CHECKING:
    from iris_wsgi.storage.redis import RedisClient

SUM_BYTES = 4
# How long nobody asks it who would have to wait, once it is down.
PAUSE_SECONDS = 1.0


class SecondLevel:
    """Values of `size` bytes, for `seconds`, under `space`, which names what they depend on.

    Beside them is the token of the space, which is part of each key: a new one clears it, for everybody. It is read with each
    look and, by `keep_up`, each second; `cleared` is called when another has set it, `count` at each failure. What get() and
    put() cannot do they leave. Neither takes longer than `slowest` seconds, so who has no more time than that goes without it.
    """

    def __init__(
        self,
        link: "RedisClient",
        wait_seconds: float,
        space: bytes,
        size: int,
        seconds: float,
        tell: LogEvent,
        cleared: Callable[[], None],
        count: Callable[[], object],
    ) -> None:
        """`link` waits `wait_seconds` for each step."""
        self.link, self.redis, self.slowest = link, link.redis, 2 * wait_seconds
        self.space, self.size, self.seconds = space, size, seconds
        self.cleared, self.count = cleared, count
        words = "the second level of the prediction cache is left out", "the second level of the prediction cache is back"
        self.breaker = CircuitBreaker(tell, *words, PAUSE_SECONDS, self.failed)
        self.place = space + b":token"
        self.token = b""
        self.missed = False

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """None for what is not there, or is there and wrong."""
        try:
            token, found, values = self.breaker.call(self.read, keys)
        except BackendUnavailable:
            return [None] * len(keys)
        if found != token:
            self.adopt(found)
            return [None] * len(keys)
        return [self.checked(key, value) for key, value in zip(keys, values, strict=True)]

    def read(self, keys: Sequence[bytes]) -> tuple[bytes, bytes | None, list[bytes | None]]:
        """The token that these keys were looked up under, the one that is there, the values."""
        if not self.token:
            self.token = self.agreed()
            if self.missed:
                # There may have been a clear before.
                self.cleared()
        token = self.token
        names = [self.place, *(self.name(token, key) for key in keys)]

        def ask() -> list[bytes | None]:
            told: list[Any] = list(self.redis.mget(names))
            if len(told) != len(names) or not all(one is None or type(one) is bytes for one in told):
                raise ValueError
            return told

        found, *values = self.link.call(ask)
        return token, found, values

    def agreed(self) -> bytes:
        """The token that is there, which is a new one where there was none."""

        def ask() -> bytes:
            with self.redis.pipeline(transaction=False) as steps:
                steps.set(self.place, new_token(), nx=True)
                steps.get(self.place)
                token: object = steps.execute()[1]
            if type(token) is not bytes or not token:
                raise ValueError
            return token

        return self.link.call(ask)

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Nothing where the last call failed: a request waits for one failure at most."""
        token, lasts = self.token, max(1, int(self.seconds * 1000))
        if not pairs or not token or self.breaker.failures:
            return
        with self.redis.pipeline(transaction=False) as steps, suppress(BackendUnavailable):
            for key, value in pairs:
                steps.set(self.name(token, key), value + self.sum(key, value), px=lasts)
            self.breaker.call(self.link.call, steps.execute)

    def clear(self) -> None:
        """For all who share it. Raises BackendUnavailable where it cannot be reached."""
        token = new_token()
        self.breaker.call(self.link.call, lambda: self.redis.set(self.place, token))
        self.token = token

    def keep_up(self) -> None:
        """Asks whether another has cleared it."""
        self.get([])

    def adopt(self, found: bytes | None) -> None:
        """Another has cleared it, or the store has lost its token, and with it may have lost the news of a clear."""
        if found is None:
            try:
                found = self.breaker.call(self.agreed)
            except BackendUnavailable:
                return
        self.token = found
        self.cleared()

    def failed(self) -> None:
        self.missed = True
        self.count()

    def name(self, token: bytes, key: bytes) -> bytes:
        return b"%b:%b:%b" % (self.space, token, key)

    def sum(self, key: bytes, value: bytes) -> bytes:
        """Over the key as well, so that no value counts under another's."""
        return zlib.crc32(value, zlib.crc32(key, zlib.crc32(self.space))).to_bytes(SUM_BYTES, "big")

    def checked(self, key: bytes, value: bytes | None) -> bytes | None:
        if value is None:
            return None
        content = value[: self.size]
        if len(value) == self.size + SUM_BYTES and value[self.size :] == self.sum(key, content):
            return content
        self.count()
        return None


def new_token() -> bytes:
    return secrets.token_hex(8).encode()
