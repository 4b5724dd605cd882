"""Rows of JSON lines: an object for each, or a list."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

import numpy as np

from iris_wsgi.codec.rows import FLOAT32_MAX, NUMBERS
from iris_wsgi.tabular.record_splitter import NO_NUMBER, NOT_FINITE, NOT_UTF8, Fault
from iris_wsgi.tabular.scorer import Rows

# What json.loads calls for each text, without what it looks for around it, which takes longer than a row.
scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
NO_JSON, NO_RECORD = "is not JSON", "is neither an object nor a list"
NO_TEXT, MISSING = "cannot be written as text", "is missing"


class JsonReader:
    """Text of JSON lines to rows. Features and what is kept are members of objects; of a list they are places, from 1."""

    def __init__(self, features: Sequence[str], keep: Sequence[str]) -> None:
        self.features, self.keep = features, keep
        self.wanted = [*features, *keep]

    def rows(self, data: bytes, line: int) -> Rows:
        return self.quickly(data, line) or self.carefully(data, line)

    def quickly(self, data: bytes, line: int) -> Rows | None:
        """None if anything is unusual."""
        if self.keep and (b"\\ud" in data or b"\\uD" in data):
            return None
        try:
            lines = data.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
            found = list(map(scan, lines, repeat(0)))
            # Where each value goes as far as its line, there is one in each; and where there is none, it stops short.
            if [end for _, end in found] != list(map(len, lines)):
                return None
            records = [value for value, _ in found]
            if set(map(type, records)) != {dict}:
                return None
            columns = [list(map(itemgetter(name), records)) for name in self.wanted]
            features, kept = columns[: len(self.features)], columns[len(self.features) :]
            if not set(map(type, chain.from_iterable(features))) <= NUMBERS:
                return None
            with np.errstate(over="ignore"):
                values = np.array(features, np.float64).T.astype(np.float32)
        except (ValueError, KeyError, RecursionError, OverflowError):
            return None
        return Rows(values, range(line, line + len(lines)), kept, []) if np.isfinite(values).all() else None

    def carefully(self, data: bytes, line: int) -> Rows:
        """Line by line."""
        good: list[dict[str, Any]] = []
        lines: list[int] = []
        faults: list[Fault] = []
        for at, text in enumerate(data.removesuffix(b"\n").split(b"\n"), line):
            if not text.strip():
                continue
            found = self.record(text)
            why = next(self.faults(found), None) if isinstance(found, dict) else ("", found)
            if why is None:
                good.append(found)
                lines.append(at)
            else:
                faults.append(Fault(at, *why))
        values = np.array([[record[name] for name in self.features] for record in good], np.float64)
        kept = [[record[name] for record in good] for name in self.keep]
        return Rows(values.reshape(-1, len(self.features)).astype(np.float32), lines, kept, faults)

    def record(self, text: bytes) -> Any:
        """What a line holds by name, or what is wrong with it."""
        try:
            found = json.loads(text)
        except UnicodeDecodeError:
            return NOT_UTF8
        except (ValueError, RecursionError):
            return NO_JSON
        if isinstance(found, list):
            return {str(i): value for i, value in enumerate(found, 1)}
        return found if isinstance(found, dict) else NO_RECORD

    def faults(self, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """What is wrong with a record, by name; only the first of it counts."""
        yield from ((name, MISSING) for name in self.wanted if name not in record)
        yield from ((name, NO_TEXT) for name in self.keep if not is_text(record[name]))
        for name in self.features:
            if type(value := record[name]) not in NUMBERS:
                yield name, NO_NUMBER
            elif not -FLOAT32_MAX <= value <= FLOAT32_MAX:
                yield name, NOT_FINITE


def is_text(value: Any) -> bool:
    """Whether a value can be written; half a surrogate pair, which JSON can spell, is no text, and depth has its limits."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True
