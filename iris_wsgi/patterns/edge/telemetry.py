"""Reports of devices: validation of their counts of predictions by day and label, and deduplication."""

import re
import threading
from collections.abc import Iterator, Sequence
from datetime import date
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

from iris_wsgi.codec.json_documents import MAX_LEVELS, decode_json, levels, too_deep
from iris_wsgi.errors import MAX_FIELD_ERRORS, FieldError, UnprocessableContent

KEY = "[A-Za-z0-9_-]{16,64}"
# A higher count for one day is an error of the device.
MAX_COUNT = 1_000_000_000
MAX_COUNTS = 1000
MEMBERS = {"day", "label", "count"}

is_key = re.compile(KEY).fullmatch
is_day = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch


class LabelCount(NamedTuple):
    day: str
    label: str
    number: int


class Report(NamedTuple):
    """Counts with a unique key. A device that receives no response sends the same report again."""

    key: str
    counts: list[LabelCount]


class ReportDeduplicator:
    """Keys of the latest reports, in memory that all processes of a server share.

    Each key has one slot, which it keeps until another key needs it. Thousands of slots make early eviction rare.
    """

    def __init__(self, words: "memoryview[int]") -> None:
        self.words, self.lock = words, threading.Lock()

    def add(self, key: str) -> bool:
        """Returns whether this key is new."""
        digest = sha256(key.encode()).digest()
        # Odd, because 0 is an empty slot.
        word, slot = int.from_bytes(digest[:8], "big") | 1, int.from_bytes(digest[8:12], "big") % len(self.words)
        with self.lock:
            known, self.words[slot] = self.words[slot], word
        return known != word


def decode_report(body: bytes, labels: Sequence[str]) -> Report:
    """Decodes `{"key": "…", "counts": [{"day": "2026-01-31", "label": "setosa", "count": 3}, …]}`.

    Raises BadRequest (400) or UnprocessableContent (422), also for labels that are not the model's.
    """
    document = decode_json(body)
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    found = list(islice(faults(document, labels), MAX_FIELD_ERRORS))
    if found:
        raise UnprocessableContent("The body does not fit the schema of this route.", found)
    return Report(document["key"], [LabelCount(one["day"], one["label"], one["count"]) for one in document["counts"]])


def faults(document: Any, labels: Sequence[str]) -> Iterator[FieldError]:
    if not isinstance(document, dict) or set(document) != {"key", "counts"}:
        yield FieldError("#", 'must be an object with the members "key" and "counts", and no other')
        return
    if not isinstance(document["key"], str) or not is_key(document["key"]):
        yield FieldError("#/key", "must be 16 to 64 letters, digits, - and _")
    counts = document["counts"]
    if not isinstance(counts, list) or not 0 < len(counts) <= MAX_COUNTS:
        yield FieldError("#/counts", f"must be a list of 1 to {MAX_COUNTS} counts")
        return
    for i, count in enumerate(counts):
        yield from count_faults(f"#/counts/{i}", count, labels)


def count_faults(pointer: str, count: Any, labels: Sequence[str]) -> Iterator[FieldError]:
    if not isinstance(count, dict) or set(count) != MEMBERS:
        yield FieldError(pointer, 'must be an object with the members "day", "label" and "count", and no other')
        return
    if not isinstance(count["day"], str) or not is_calendar_day(count["day"]):
        yield FieldError(f"{pointer}/day", "must be a day: YYYY-MM-DD")
    if count["label"] not in labels:
        yield FieldError(f"{pointer}/label", f"must be one of {', '.join(labels)}")
    if type(count["count"]) is not int or not 0 < count["count"] <= MAX_COUNT:
        yield FieldError(f"{pointer}/count", f"must be a whole number from 1 to {MAX_COUNT}")


def is_calendar_day(text: str) -> bool:
    try:
        return is_day(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False
