"""The second level of the prediction cache: checked, behind a breaker, and without it all goes on."""

import secrets
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from iris_wsgi.breaker import Breaker
from iris_wsgi.stores.jobs import StoreDown

T = TypeVar("T")

SUM_BYTES = 4
# How long nobody asks it who would have to wait, once it is down.
PAUSE_SECONDS = 1.0


class Store(Protocol):
    """Bytes by key that several machines share; each call ends within `slowest` seconds, or raises StoreDown."""

    @property
    def slowest(self) -> float: ...
    def get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...
    def put(self, pairs: Sequence[tuple[bytes, bytes]], seconds: float) -> None: ...
    def put_new(self, key: bytes, value: bytes) -> bytes:
        """What is there afterwards: the value, or what was there before."""

    def replace(self, key: bytes, value: bytes) -> None: ...


class SecondLevel:
    """Values of `size` bytes in a store, for `seconds`, under `space`, which names what they depend on.

    Beside them the store holds the token of the space, which is part of each key: a new one clears it, for everybody. It is read
    with each look and, by `keep_up`, each second; `cleared` is called when another has set it, `failed` at each failure.
    """

    def __init__(
        self,
        store: Store,
        space: bytes,
        size: int,
        seconds: float,
        tell: Callable[[str, str], None],
        cleared: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.slowest = store.slowest
        self.store, self.space, self.size, self.seconds = store, space, size, seconds
        self.cleared, self.failed = cleared, failed
        words = "the second level of the prediction cache is left out", "the second level of the prediction cache is back"
        self.breaker = Breaker(tell, *words, PAUSE_SECONDS)
        self.place = space + b":token"
        self.token = b""
        self.missed = False

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """None for what is not there, or is there and wrong."""
        try:
            token, found, values = self.call(lambda: self.read(keys))
        except StoreDown:
            return [None] * len(keys)
        if found != token:
            self.adopt(found)
            return [None] * len(keys)
        return [self.checked(key, value) for key, value in zip(keys, values, strict=True)]

    def read(self, keys: Sequence[bytes]) -> tuple[bytes, bytes | None, list[bytes | None]]:
        """The token that these keys were looked up under, the one that is there, the values."""
        if not self.token:
            self.token = self.store.put_new(self.place, new_token())
            if self.missed:
                # There may have been a clear before.
                self.cleared()
        token = self.token
        found, *values = self.store.get([self.place, *(self.name(token, key) for key in keys)])
        return token, found, values

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Nothing where the last call failed: a request waits for one failure at most."""
        token = self.token
        if not pairs or not token or self.breaker.failures:
            return
        named = [(self.name(token, key), value + self.sum(key, value)) for key, value in pairs]
        try:
            self.call(lambda: self.store.put(named, self.seconds))
        except StoreDown:
            return

    def clear(self) -> None:
        """For all who share it. Raises StoreDown where it cannot be reached."""
        token = new_token()
        self.call(lambda: self.store.replace(self.place, token))
        self.token = token

    def keep_up(self) -> None:
        """Asks whether another has cleared it."""
        self.get([])

    def adopt(self, found: bytes | None) -> None:
        """Another has cleared it, or the store has lost its token, and with it may have lost the news of a clear."""
        if found is None:
            try:
                found = self.call(lambda: self.store.put_new(self.place, new_token()))
            except StoreDown:
                return
        self.token = found
        self.cleared()

    def call(self, ask: Callable[[], T]) -> T:
        """Raises StoreDown; what was asked in vain is counted."""

        def counted() -> T:
            try:
                return ask()
            except StoreDown:
                self.missed = True
                self.failed()
                raise

        return self.breaker.call(counted)

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
        self.failed()
        return None


def new_token() -> bytes:
    return secrets.token_hex(8).encode()
