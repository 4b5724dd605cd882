"""How the processes of one server tell each other which items were written."""

from secrets import randbits
from zlib import crc32

from iris_wsgi.board import MARKS

HALF = MARKS // 2
Mark = tuple[int, int]


class Marks:
    """Two words for each item, which many share, in memory of all processes. Who reads an item notes them before.

    Another first word: an item was written. Another second one: perhaps, as the database did not say. Words are drawn and not
    counted, because two processes that count at once could bring back a number that was there before.
    """

    def __init__(self, words: "memoryview[int]") -> None:
        self.words = words

    def of(self, item_id: str) -> Mark:
        place = crc32(item_id.encode()) % HALF
        return self.words[place], self.words[HALF + place]

    def written(self, item_id: str) -> None:
        self.words[crc32(item_id.encode()) % HALF] = randbits(64)

    def perhaps(self, item_id: str) -> None:
        self.words[HALF + crc32(item_id.encode()) % HALF] = randbits(64)
