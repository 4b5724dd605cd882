"""Items, and the interface of their databases."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

ID_PATTERN = "[A-Za-z0-9_-]{1,64}"
# If a check finds more changes, the cache is emptied, which costs less.
MAX_CHANGES = 10_000


class Item(NamedTuple):
    """Number of writes, and the row as little-endian float32."""

    version: int
    row: bytes


class ItemChanges(NamedTuple):
    """Opaque cursor, and the versions of items written since the previous one (None if there are too many)."""

    cursor: str
    versions: dict[str, int] | None


class ItemStore(Protocol):
    """Database of items. Every method may raise BackendUnavailable within the timeout of the store, and is thread-safe."""

    def identity(self) -> str:
        """Returns a text that no other database has."""

    def get(self, item_id: str) -> Item | None: ...

    def put(self, item_id: str, row: bytes) -> int:
        """Returns the version of the durable write, 1 for a new item. After BackendUnavailable the outcome is unknown."""

    def changes(self, cursor: str | None, seconds: float = 0.0) -> ItemChanges:
        """Returns the changes since `cursor`, or without a cursor those of the last `seconds`.

        Each acknowledged write is in the next result, and may also be in later ones.
        """

    def ids(self, after: str, limit: int) -> Sequence[str]:
        """Returns the next ids in their order."""

    def close(self) -> None: ...
