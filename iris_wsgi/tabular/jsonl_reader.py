"""JSON Lines reader: each line is an object or a list."""

import json
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any

from iris_wsgi.codec.model_schema import RowSchema
from iris_wsgi.tabular.chunk_scorer import Rows
from iris_wsgi.tabular.feature_values import AmbiguousColumns, FeatureColumns, FeatureValues
from iris_wsgi.tabular.record_splitter import NOT_UTF8, BadRow

# json.loads without its search for white space around the document, which takes longer than a row.
scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
NOT_JSON, NOT_RECORD = "is not JSON", "is neither an object nor a list"
NOT_TEXT, MISSING = "cannot be written as text", "is missing"
MAX_SPELLINGS = 1000


class InvalidRecord(ValueError):
    """A line that cannot be a row: the reason, and the column, which is empty for the whole line."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


class JsonReader:
    """Converts JSON Lines to rows. Columns are members of objects, or positions in lists, from 1."""

    def __init__(self, schema: RowSchema, features: Sequence[str], keep: Sequence[str], similar: bool) -> None:
        """Takes the names of the columns. With `similar`, objects may have the names of features in any spelling."""
        self.schema, self.features, self.keep = schema, features, keep
        self.values, self.finder = FeatureValues(schema), FeatureColumns(features) if similar else None
        # The spelling of the features by the names of an object's members.
        self.spellings: dict[tuple[str, ...], list[str | None]] = {}

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
            kept = [list(map(itemgetter(name), records)) for name in self.keep]
            columns = [
                [record.get(name) for record in records] if optional else list(map(itemgetter(name), records))
                for name, optional in zip(self.common_names(records), self.schema.optional, strict=True)
            ]
        except (ValueError, KeyError, RecursionError):
            return None
        values = self.values.table(columns, len(lines))
        return None if values is None else Rows(values, range(line, line + len(lines)), kept, [])

    def common_names(self, records: list[dict[str, Any]]) -> Sequence[str]:
        """Returns the names of the features in these objects. Raises KeyError if the objects differ, and AmbiguousColumns."""
        exact = not self.schema.has_missing and all(name in records[0] for name in self.features)
        if self.finder is None or exact:
            return self.features
        names = []
        for feature, found in zip(self.features, zip(*map(self.spelled, set(map(tuple, records))), strict=True), strict=True):
            spellings = {name for name in found if name is not None}
            if len(spellings) > 1:
                raise KeyError(feature)
            names.append(spellings.pop() if spellings else feature)
        return names

    def spelled(self, members: tuple[str, ...]) -> list[str | None]:
        """Returns the names of the features in an object, None for an absent one. Raises AmbiguousColumns."""
        if (found := self.spellings.get(members)) is None:
            present = set(members)
            absent: list[str | None] = [name if name in present else None for name in self.features]
            found = absent if self.finder is None else self.finder.find(members)
            if len(self.spellings) >= MAX_SPELLINGS:
                self.spellings.clear()
            self.spellings[members] = found
        return found

    def parse_strict(self, data: bytes, line: int) -> Rows:
        """Parses line by line."""
        good: list[list[Any]] = []
        kept: list[list[Any]] = []
        lines: list[int] = []
        bad: list[BadRow] = []
        for at, text in enumerate(data.removesuffix(b"\n").split(b"\n"), line):
            if not text.strip():
                continue
            try:
                record = read_record(text)
                good.append(self.parse_record(record))
                kept.append([record[name] for name in self.keep])
                lines.append(at)
            except InvalidRecord as error:
                bad.append(BadRow(at, error.column, str(error)))
        columns = [list(column) for column in zip(*kept, strict=True)] if good else [[] for _ in self.keep]
        return Rows(self.schema.convert(good), lines, columns, bad)

    def parse_record(self, record: dict[str, Any]) -> list[Any]:
        """Returns the values of the features. Raises InvalidRecord."""
        try:
            names = self.spelled(tuple(record))
        except AmbiguousColumns as error:
            raise InvalidRecord("", f"is ambiguous: {error}") from None
        absent = [feature for j, feature in enumerate(self.features) if names[j] is None and not self.schema.optional[j]]
        for column in (*absent, *(name for name in self.keep if name not in record)):
            raise InvalidRecord(column, MISSING)
        for column in self.keep:
            if not is_text(record[column]):
                raise InvalidRecord(column, NOT_TEXT)
        values = [None if name is None else record[name] for name in names]
        for j, value in enumerate(values):
            if (reason := self.values.value_reason(value, j)) is not None:
                raise InvalidRecord(names[j] or self.features[j], reason)
        return values


def read_record(text: bytes) -> dict[str, Any]:
    """Returns the values of a line by column. Raises InvalidRecord."""
    try:
        found = json.loads(text)
    except UnicodeDecodeError:
        raise InvalidRecord("", NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise InvalidRecord("", NOT_JSON) from None
    if isinstance(found, list):
        return {str(i): value for i, value in enumerate(found, 1)}
    if not isinstance(found, dict):
        raise InvalidRecord("", NOT_RECORD)
    return found


def is_text(value: Any) -> bool:
    """Returns whether a value can be written. Half a surrogate pair and too deep a nesting cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True
