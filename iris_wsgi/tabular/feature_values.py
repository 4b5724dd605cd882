"""Values of features in files and tables, with the rules that RowSchema has for JSON."""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.model_schema import EXACT_MAX, INTEGER_TYPES, NUMBERS, Array, RowSchema, is_text, normalized
from iris_wsgi.tabular.record_splitter import EMPTY, NOT_FINITE, NOT_NUMBER, NOT_UTF8

NOT_FINITE_64 = "is not finite as a 64-bit float"
NOT_BOOL, NOT_STRING = "is not true or false", "is not a string"
DECIMAL_COMMA = "is not a number: it has a decimal comma in place of a point"
# Blanks around a number in a field.
BLANKS = " \t"
WORDS = {"true": True, "false": False}
WHOLE_TYPES = (*INTEGER_TYPES, "bool")
BOOL_TYPES = {bool, *NUMBERS}
# Python limits the digits of an integer in text. Numbers with more digits are not finite in any type.
MAX_DIGITS = 400

is_number = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*").fullmatch
is_whole = re.compile(rf"[ \t]*[+-]?[0-9]{{1,{MAX_DIGITS}}}[ \t]*").fullmatch
has_decimal_comma = re.compile(r"[ \t]*[+-]?[0-9.]*,[0-9]+(?:[eE][+-]?[0-9]+)?[ \t]*").fullmatch
is_not_finite = re.compile(r"[ \t]*[+-]?(?:nan|inf|infinity)[ \t]*", re.IGNORECASE).fullmatch


class InvalidValue(ValueError):
    """A value that cannot be a feature. Its text is the reason, to be read after the name of the column."""


class FeatureValues:
    """Conversion of texts and values of a model's features, by the position of the feature, to rows."""

    def __init__(self, schema: RowSchema) -> None:
        self.schema = schema
        self.types = [feature.type for feature in schema.features]
        self.optional = schema.optional
        self.strings = [j for j, kind in enumerate(self.types) if kind == "string"]
        self.numeric = [j for j, kind in enumerate(self.types) if kind != "string"]
        # In rows of several types, integers are at most 2^53 and exact in float64.
        self.number_type = schema.dtype if schema.dtype.kind in "iu" else np.dtype(np.float64)
        limits = [(0, 1) if kind == "bool" else schema.limits[j] for j, kind in enumerate(self.types)]
        self.limits = limits
        self.lows, self.highs = np.array([limits[j] for j in self.numeric], np.float64).reshape(-1, 2).T
        self.is_whole = np.array([self.types[j] in WHOLE_TYPES for j in self.numeric], bool)

    def from_text(self, text: str, j: int) -> Any:
        """Returns the value of a field; None is a missing value. Raises InvalidValue."""
        if self.types[j] == "string":
            return text
        if not text.strip(BLANKS):
            if self.optional[j]:
                return None
            raise InvalidValue(EMPTY)
        if self.types[j] == "bool" and (word := WORDS.get(text.strip(BLANKS).lower())) is not None:
            return word
        if not is_number(text):
            raise InvalidValue(self.text_reason(text, j))
        value = int(text) if self.types[j] in INTEGER_TYPES and is_whole(text) else float(text)
        return self.checked(value, j)

    def text_reason(self, text: str, j: int) -> str:
        """Returns the reason for which a text that is not a number is invalid."""
        if self.types[j] == "bool":
            return NOT_BOOL
        if is_not_finite(text):
            return self.range_reason(j)
        return DECIMAL_COMMA if has_decimal_comma(text) else NOT_NUMBER

    def checked(self, value: Any, j: int) -> Any:
        """Returns a value of JSON or of a database. Raises InvalidValue."""
        if (reason := self.value_reason(value, j)) is not None:
            raise InvalidValue(reason)
        return value

    def value_reason(self, value: Any, j: int) -> str | None:
        """Returns the reason for which a value of JSON is invalid; None if it is valid."""
        if self.schema.value_error(value, j) is None:
            return None
        if self.types[j] == "string":
            return NOT_UTF8 if type(value) is str else NOT_STRING
        if self.types[j] == "bool":
            return NOT_BOOL
        return self.range_reason(j) if type(value) in NUMBERS else NOT_NUMBER

    def range_reason(self, j: int) -> str:
        if self.types[j] in INTEGER_TYPES:
            low, high = self.schema.limits[j]
            return f"is not a whole number from {low} to {high}"
        return NOT_FINITE if self.types[j] == "float32" else NOT_FINITE_64

    def table(self, columns: Sequence[Sequence[Any]], count: int) -> Array | None:
        """Converts the values of all features to rows [count, features]; None if a value is invalid."""
        if self.schema.is_float:
            return self.floats(columns)
        found = []
        for j, values in enumerate(columns):
            if (column := self.column(values, j)) is None:
                return None
            found.append(column)
        return self.rows(found, count)

    def floats(self, columns: Sequence[Sequence[Any]]) -> Array | None:
        """Converts the values of features of one float type to rows; None if a value is invalid."""
        types = set(map(type, chain.from_iterable(columns)))
        if not types <= {*NUMBERS, type(None)}:
            return None
        try:
            doubles = np.array(columns, np.float64).T
        except OverflowError:
            return None
        valid = (doubles <= self.schema.max) & (doubles >= -self.schema.max)
        missing = [
            sum(value is None for value in column) if optional and type(None) in types else 0
            for column, optional in zip(columns, self.optional, strict=True)
        ]
        is_good = ((~valid).sum(axis=0) == missing).all()
        return doubles.astype(self.schema.dtype, copy=False) if is_good else None

    def column(self, values: Sequence[Any], j: int) -> Array | Sequence[str] | None:
        """Converts the values of one feature, of JSON or of a database; None if a value is invalid. None is a missing value."""
        types = set(map(type, values))
        if self.types[j] == "string":
            return values if types <= {str} and is_text("".join(values)) else None
        missing = sum(value is None for value in values) if type(None) in types else 0
        if missing and not self.optional[j]:
            return None
        if not types - {type(None)} <= (BOOL_TYPES if self.types[j] == "bool" else NUMBERS):
            return None
        if self.types[j] in INTEGER_TYPES:
            return self.integers(values, j)
        try:
            column = np.array(values, np.float64)
        except OverflowError:
            return None
        return column if self.fits(column, j, missing) else None

    def integers(self, values: Sequence[Any], j: int) -> Array | None:
        """Converts numbers to the exact integers of a feature; None if a number is not whole or out of range."""
        if any([self.schema.value_error(value, j) is not None for value in set(values)]):
            return None
        return np.array(list(map(int, values)) if self.number_type.kind in "iu" else values, self.number_type)

    def fits(self, column: Array, j: int, missing: int = 0) -> bool:
        """Returns whether all numbers of a column are valid, apart from a number of missing values."""
        return int(self.within(column, j).sum()) == len(column) - missing

    def numbers_fit(self, values: Array) -> bool:
        """Returns whether small numbers [n, numeric features] are valid values of their features."""
        fits = (values >= self.lows) & (values <= self.highs)
        if self.is_whole.any():
            fits &= (values == np.floor(values)) | ~self.is_whole
        return bool(fits.all())

    def within(self, column: Array, j: int) -> NDArray[np.bool_]:
        """Returns which numbers of a column are in the range of the feature, and whole where they must be."""
        low, high = self.limits[j]
        if column.dtype.kind != "f" or self.types[j] not in WHOLE_TYPES:
            return np.asarray((column >= low) & (column <= high))
        # As a double, the highest 64-bit integer is the first number over it.
        below = column < high + 1 if high > EXACT_MAX else column <= high
        return np.asarray((column >= low) & below & (column == np.floor(column)))

    def rows(self, columns: Sequence[Array | Sequence[str]], count: int) -> Array:
        """Returns the rows [count, features] of the valid values of each feature."""
        if not self.schema.has_strings:
            return np.stack(columns, axis=1).astype(self.schema.dtype, copy=False)
        found = np.empty((count, len(columns)), object)
        for j, column in enumerate(columns):
            found[:, j] = column.tolist() if isinstance(column, np.ndarray) else column
        return found


class AmbiguousColumns(ValueError):
    """Several columns that fit one feature, or a column that fits several features."""

    def __init__(self, feature: str, columns: Sequence[str], features: Sequence[str] = ()) -> None:
        self.feature = feature
        found = " and ".join(map(repr, columns[:2]))
        fits = f"fits the features {' and '.join(map(repr, features[:2]))}" if features else f"fit the feature {feature!r}"
        super().__init__(f"{found} {fits}")


class FeatureColumns:
    """Finds the column of each feature. Names are equal without case, a unit in brackets, blanks, dots, and underscores."""

    def __init__(self, features: Sequence[str]) -> None:
        self.features = features
        self.names = set(features)
        self.keys = list(map(normalized, features))
        self.features_of: dict[str, list[str]] = {}
        for name, key in zip(features, self.keys, strict=True):
            self.features_of.setdefault(key, []).append(name)

    def find(self, columns: Sequence[str]) -> list[str | None]:
        """Returns the name of each feature's column, or None for a feature without a column. Raises AmbiguousColumns."""
        others: dict[str, list[str]] = {}
        for name in columns:
            if name not in self.names:
                others.setdefault(normalized(name), []).append(name)
        present = self.names.intersection(columns)
        pairs = zip(self.features, self.keys, strict=True)
        return [name if name in present else self.similar(name, key, others.get(key, [])) for name, key in pairs]

    def similar(self, feature: str, key: str, columns: Sequence[str]) -> str | None:
        """Returns the only column with the normalized name `key` of a feature, or None."""
        if not columns:
            return None
        features = self.features_of[key]
        if len(columns) > 1 or len(features) > 1:
            raise AmbiguousColumns(feature, columns, features if len(features) > 1 else ())
        return columns[0]
