"""JSON Lines reader: each line is an object or a list."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

import numpy as np

from iris_wsgi.codec.rows import NUMBERS, is_float32
from iris_wsgi.tabular.record_splitter import NOT_FINITE, NOT_NUMBER, NOT_UTF8, BadRow
from iris_wsgi.tabular.scorer import Rows

# json.loads without its search for white space around the document, which takes longer than a row.
scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
NOT_JSON, NOT_RECORD = "is not JSON", "is neither an object nor a list"
NOT_TEXT, MISSING = "cannot be written as text", "is missing"


class JsonReader:
    """Converts JSON Lines to rows. Columns are members of objects, or positions in lists, from 1."""

    def __init__(self, features: Sequence[str], keep: Sequence[str]) -> None:
        self.features, self.keep = features, keep
        self.columns = [*features, *keep]

    def rows(self, data: bytes, line: int) -> Rows:
        return self.parse_fast(data, line) or self.parse_strict(data, line)

    def parse_fast(self, data: bytes, line: int) -> Rows | None:
        """Parses a chunk of regular rows; returns None for anything unusual."""
        if self.keep and (b"\\ud" in data or b"\\uD" in data):
            return None
        try:
            lines = data.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
            found = list(map(scan, lines, repeat(0)))
            # Each value must end where its line ends.
            if [end for _, end in found] != list(map(len, lines)):
                return None
            records = [value for value, _ in found]
            if set(map(type, records)) != {dict}:
                return None
            columns = [list(map(itemgetter(name), records)) for name in self.columns]
            features, kept = columns[: len(self.features)], columns[len(self.features) :]
            if not set(map(type, chain.from_iterable(features))) <= NUMBERS:
                return None
            with np.errstate(over="ignore"):
                values = np.array(features, np.float64).T.astype(np.float32)
        except (ValueError, KeyError, RecursionError, OverflowError):
            return None
        return Rows(values, range(line, line + len(lines)), kept, []) if np.isfinite(values).all() else None

    def parse_strict(self, data: bytes, line: int) -> Rows:
        """Parses line by line."""
        good: list[dict[str, Any]] = []
        lines: list[int] = []
        bad: list[BadRow] = []
        for at, text in enumerate(data.removesuffix(b"\n").split(b"\n"), line):
            if not text.strip():
                continue
            found = self.record(text)
            error = next(self.errors(found), None) if isinstance(found, dict) else ("", found)
            if error is None:
                good.append(found)
                lines.append(at)
            else:
                bad.append(BadRow(at, *error))
        values = np.array([[record[name] for name in self.features] for record in good], np.float64)
        kept = [[record[name] for record in good] for name in self.keep]
        return Rows(values.reshape(-1, len(self.features)).astype(np.float32), lines, kept, bad)

    def record(self, text: bytes) -> Any:
        """Returns the values of a line by column, or the reason for which it is invalid."""
        try:
            found = json.loads(text)
        except UnicodeDecodeError:
            return NOT_UTF8
        except (ValueError, RecursionError):
            return NOT_JSON
        if isinstance(found, list):
            return {str(i): value for i, value in enumerate(found, 1)}
        return found if isinstance(found, dict) else NOT_RECORD

    def errors(self, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Yields the errors of a record with their columns; later ones assume that earlier ones are absent."""
        yield from ((name, MISSING) for name in self.columns if name not in record)
        yield from ((name, NOT_TEXT) for name in self.keep if not is_text(record[name]))
        for name in self.features:
            if type(value := record[name]) not in NUMBERS:
                yield name, NOT_NUMBER
            elif not is_float32(value):
                yield name, NOT_FINITE


def is_text(value: Any) -> bool:
    """Returns whether a value can be written. Half a surrogate pair and too deep a nesting cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True
