"""What devices at the edge report: how often they predicted which label on which day, checked by hand, and each report once."""

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
# What is more on one day is a mistake.
MOST_COUNT = 1_000_000_000
MOST_COUNTS = 1000
MEMBERS = {"day", "label", "count"}

is_key = re.compile(KEY).fullmatch
is_day = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch


class Count(NamedTuple):
    day: str
    label: str
    times: int


class Report(NamedTuple):
    """Counts under a key that no other report has: who hears no answer sends the same again."""

    key: str
    counts: list[Count]


class Seen:
    """The keys of the last reports, in memory that all processes of a server share.

    Each key has one place, where it counts until another takes it: bounded, and with thousands of places seldom too early.
    """

    def __init__(self, words: "memoryview[int]") -> None:
        self.words, self.lock = words, threading.Lock()

    def first(self, key: str) -> bool:
        """Whether this key is new here; from now on it is not."""
        digest = sha256(key.encode()).digest()
        # Never 0, which is an empty place.
        word, place = int.from_bytes(digest[:8], "big") | 1, int.from_bytes(digest[8:12], "big") % len(self.words)
        with self.lock:
            known, self.words[place] = self.words[place], word
        return known != word


def decode_report(body: bytes, labels: Sequence[str]) -> Report:
    """`{"key": "…", "counts": [{"day": "2026-01-31", "label": "setosa", "count": 3}, …]}`, for the model's labels only.

    Raises BadRequest (400) or UnprocessableContent (422).
    """
    document = decode_json(body)
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    found = list(islice(faults(document, labels), MAX_FIELD_ERRORS))
    if found:
        raise UnprocessableContent("The body does not fit the schema of this route.", found)
    return Report(document["key"], [Count(one["day"], one["label"], one["count"]) for one in document["counts"]])


def faults(document: Any, labels: Sequence[str]) -> Iterator[FieldError]:
    """Everything that is wrong with a report, in its order."""
    if not isinstance(document, dict) or set(document) != {"key", "counts"}:
        yield FieldError("#", 'must be an object with the members "key" and "counts", and no other')
        return
    if not isinstance(document["key"], str) or not is_key(document["key"]):
        yield FieldError("#/key", "must be 16 to 64 letters, digits, - and _")
    counts = document["counts"]
    if not isinstance(counts, list) or not 0 < len(counts) <= MOST_COUNTS:
        yield FieldError("#/counts", f"must be a list of 1 to {MOST_COUNTS} counts")
        return
    for i, one in enumerate(counts):
        yield from count_faults(f"#/counts/{i}", one, labels)


def count_faults(pointer: str, one: Any, labels: Sequence[str]) -> Iterator[FieldError]:
    if not isinstance(one, dict) or set(one) != MEMBERS:
        yield FieldError(pointer, 'must be an object with the members "day", "label" and "count", and no other')
        return
    if not isinstance(one["day"], str) or not is_calendar_day(one["day"]):
        yield FieldError(f"{pointer}/day", "must be a day: YYYY-MM-DD")
    if one["label"] not in labels:
        yield FieldError(f"{pointer}/label", f"must be one of {', '.join(labels)}")
    if type(one["count"]) is not int or not 0 < one["count"] <= MOST_COUNT:
        yield FieldError(f"{pointer}/count", f"must be a whole number from 1 to {MOST_COUNT}")


def is_calendar_day(text: str) -> bool:
    try:
        return is_day(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False
