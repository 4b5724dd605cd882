"""How the processes of one server tell each other which items were written."""

from secrets import randbits
from zlib import crc32

from iris_wsgi.observability.shared_memory import MARKS

PART = MARKS // 3
Mark = tuple[int, int]


class Marks:
    """Words for each item, which many share, in memory of all processes. Who reads an item notes them before.

    Another first word: an item was written. Another second one: perhaps, as the database did not say. Words are drawn and not
    counted, because two processes that count at once could bring back a number that was there before.
    """

    def __init__(self, words: "memoryview[int]") -> None:
        self.words = words

    def of(self, item_id: str) -> Mark:
        place = slot(item_id)
        return self.words[place], self.words[PART + place]

    def written(self, item_id: str) -> None:
        self.words[slot(item_id)] = randbits(64)

    def perhaps(self, item_id: str) -> None:
        self.words[PART + slot(item_id)] = randbits(64)

    def untold(self, item_id: str, until: float) -> None:
        """The second level may have what was before, until this monotonic time, which is the same in all processes."""
        self.words[2 * PART + slot(item_id)] = int(until * 1e9)

    def untold_until(self, item_id: str) -> float:
        return self.words[2 * PART + slot(item_id)] / 1e9


def slot(item_id: str) -> int:
    return crc32(item_id.encode()) % PART
