"""Items, and what a database of them must do."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

ID_PATTERN = "[A-Za-z0-9_-]{1,64}"
# More changes than these since the last look are told as None: it is cheaper to read all anew.
MOST_CHANGES = 10_000


class Item(NamedTuple):
    """A row as little-endian float32, and how often it was written."""

    version: int
    row: bytes


class Change(NamedTuple):
    """Since when looks see no earlier writes (opaque), and the versions of the items written since; None: too many."""

    cursor: str
    versions: dict[str, int] | None


class ItemStore(Protocol):
    """Every method may raise BackendUnavailable within the store's own bound, and works again once the database does.

    All may be called from any thread and any process at once.
    """

    def identity(self) -> str:
        """Another one for each database that was ever made."""

    def get(self, item_id: str) -> Item | None: ...

    def put(self, item_id: str, row: bytes) -> int:
        """The version, which is 1 for a new one; durable when it returns. After BackendUnavailable it may be written or not."""

    def changes(self, cursor: str | None, seconds: float = 0.0) -> Change:
        """What was written since the look that gave `cursor`: every write is told by a look that begins after it was
        acknowledged, perhaps more than once. Without a cursor what was written in the last `seconds`."""

    def ids(self, after: str, most: int) -> Sequence[str]:
        """Up to `most` ids in their order, beyond `after`."""

    def close(self) -> None: ...
