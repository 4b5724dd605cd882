"""The features and the outputs of a model: rows to arrays and bytes, and the columns of predictions."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The largest double that rounds to a finite float32. Values are compared with <= this one: < with the next double would round
# integers between the two.
FLOAT32_MAX = 3.4028235677973362e38
FLOAT64_MAX = 1.7976931348623157e308
# float64 holds all whole numbers up to this one.
EXACT_MAX = 2**53
NUMBERS = {int, float}
FLOAT_TYPES = {"float32": FLOAT32_MAX, "float64": FLOAT64_MAX}
INTEGER_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TYPES = (*FLOAT_TYPES, *INTEGER_TYPES, "bool", "string")
# Their types in Python; those of integers are int.
VALUE_TYPES: dict[str, Callable[[Any], Any]] = {"float32": float, "float64": float, "bool": bool, "string": str}
NOT_FINITE_32 = "must be finite as a 32-bit float: at most 3.4028235e38 in size"
NOT_FINITE_64 = "must be finite as a 64-bit float: at most 1.7976931348623157e308 in size"
# The last byte of -0.0 in float32 and float64. A key without it needs no search for negative zeros.
SIGN = b"\x80"
OTHER_SCHEMA = "the bytes are not rows of this model"
CLASSIFIER, SCORES, REGRESSOR = "classifier", "scores", "regressor"
KINDS = (CLASSIFIER, SCORES, REGRESSOR)
# Which label is served: that of the highest probability, that of the graph, or either, because they agree.
ARGMAX, GRAPH, BOTH = "argmax", "graph", "both"
LABELS = (ARGMAX, GRAPH, BOTH)
# The name of the columns in JSON.
COLUMN_NAMES = {CLASSIFIER: "probabilities", SCORES: "scores", REGRESSOR: "values"}
# A unit in brackets, and the characters that separate words.
in_brackets = re.compile(r"\([^()]*\)|\[[^\[\]]*\]").sub
separators = re.compile(r"[\s._]+").sub


class AmbiguousName(ValueError):
    """A name that fits several features."""


def normalized(name: str) -> str:
    """Returns a name without case, a unit in brackets, blanks, dots, and underscores."""
    return separators("", in_brackets("", name)).casefold() or name.casefold()


class FeatureNames:
    """Finds features by name: an exact name first, then the only feature whose normalized name is equal."""

    def __init__(self, names: Sequence[str]) -> None:
        self.exact = {name: i for i, name in enumerate(names)}
        counts = Counter(map(normalized, names))
        self.similar = {normalized(name): i for i, name in enumerate(names)}
        self.ambiguous = {name for name, count in counts.items() if count > 1}

    def find(self, name: str) -> int | None:
        """Returns the position of a feature, or None. Raises AmbiguousName for a name that fits several."""
        if (position := self.exact.get(name)) is not None:
            return position
        key = normalized(name)
        if key in self.ambiguous:
            raise AmbiguousName(name)
        return self.similar.get(key)


class Feature(NamedTuple):
    """A feature of the input: its name, its unit, and its range in training. None means that the file does not say.

    `type` is that of the graph's input. `missing` says that the model takes rows without a value of this feature.
    """

    name: str
    unit: str | None = None
    min: float | None = None
    max: float | None = None
    type: str = "float32"
    missing: bool = False


def is_float32(value: float) -> bool:
    """Returns whether a number is finite as float32; NaN is not."""
    return -FLOAT32_MAX <= value <= FLOAT32_MAX


class RowSchema:
    """The features of a row, and the type of the arrays of rows.

    Features of one type have arrays of this type. Features of several numeric types have float64, and features with strings
    have object arrays of Python values. A missing number is NaN.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.width = len(self.features)
        self.names = FeatureNames([feature.name for feature in self.features])
        types = {feature.type for feature in self.features}
        self.has_strings = "string" in types
        # Features of both float types are checked value by value: some numbers fit only one of them.
        self.is_float = len(types) == 1 and types <= set(FLOAT_TYPES)
        self.is_mixed = self.has_strings or len(types) > 1
        self.dtype: np.dtype[Any] = np.dtype(object if self.has_strings else np.float64 if self.is_mixed else types.pop())
        self.optional = [feature.missing for feature in self.features]
        self.required = {j for j, optional in enumerate(self.optional) if not optional}
        self.has_missing = any(self.optional)
        self.max = FLOAT32_MAX if self.dtype == np.float32 else FLOAT64_MAX
        self.limits = [self.limits_of(feature) for feature in self.features]

    def limits_of(self, feature: Feature) -> tuple[float, float]:
        """Returns the smallest and the largest number that a feature takes."""
        if feature.type in INTEGER_TYPES:
            limits = np.iinfo(feature.type)
            if self.dtype.kind in "iu":
                return int(limits.min), int(limits.max)
            return max(int(limits.min), -EXACT_MAX), min(int(limits.max), EXACT_MAX)
        largest = FLOAT_TYPES.get(feature.type, 1.0)
        return -largest, largest

    def value_error(self, value: Any, j: int) -> str | None:
        """Returns why a JSON value cannot be the feature `j`, as in "must be a number". None means that it can."""
        feature = self.features[j]
        if value is None and feature.missing:
            return None
        if feature.type == "string":
            return None if type(value) is str and is_text(value) else "must be a string"
        if feature.type == "bool":
            return None if type(value) is bool or (type(value) in NUMBERS and value in (0, 1)) else "must be true or false"
        if type(value) not in NUMBERS:
            return "must be a number or null" if feature.missing else "must be a number"
        low, high = self.limits[j]
        if feature.type in FLOAT_TYPES:
            return None if low <= value <= high else NOT_FINITE_32 if feature.type == "float32" else NOT_FINITE_64
        if low <= value <= high and value == int(value):
            return None
        return f"must be a whole number from {low} to {high}"

    def from_values(self, rows: Sequence[Sequence[Any]]) -> Array | None:
        """Converts rows of JSON values to an array [n, width]. Returns None if a value is not valid."""
        if self.is_float:
            flat = list(chain.from_iterable(rows))
            # JSON has no NaN, but other callers may.
            return None if any(value != value for value in flat) else self.floats(flat)
        for j in range(self.width):
            if any([self.value_error(row[j], j) is not None for row in rows]):
                return None
        return self.convert(rows)

    def floats(self, flat: list[Any]) -> Array | None:
        """Converts numbers, and null where a feature may be missing, to floats [n, width]."""
        types = set(map(type, flat))
        if types <= NUMBERS:
            valid = max(flat) <= self.max and min(flat) >= -self.max
            return np.array(flat, self.dtype).reshape(-1, self.width) if valid else None
        if not self.has_missing or not types <= {int, float, type(None)}:
            return None
        present = [value for value in flat if value is not None]
        if present and not (max(present) <= self.max and min(present) >= -self.max):
            return None
        values = np.array([np.nan if value is None else value for value in flat], self.dtype).reshape(-1, self.width)
        return None if np.isnan(values).any(axis=0)[[not optional for optional in self.optional]].any() else values

    def convert(self, rows: Sequence[Sequence[Any]]) -> Array:
        """Converts valid rows to an array [n, width]."""
        if not self.has_strings:
            if self.dtype.kind in "iu":
                rows = [list(map(int, row)) for row in rows]
            elif self.has_missing:
                rows = [[np.nan if value is None else value for value in row] for row in rows]
            return np.array(rows, self.dtype).reshape(-1, self.width)
        found = np.empty((len(rows), self.width), object)
        for j, feature in enumerate(self.features):
            column = [row[j] for row in rows]
            found[:, j] = column if feature.type == "string" else [np.nan if v is None else float(v) for v in column]
        return found

    def missing_error(self, rows: Array) -> tuple[int, int] | None:
        """Returns row and column of the first NaN of a feature that may not be missing. None means that there is none."""
        if self.dtype.kind not in "fO":
            return None
        # Only NaN differs from itself, also in an array of objects.
        wrong = (rows != rows) & ~np.array(self.optional)
        return (int(np.argwhere(wrong)[0][0]), int(np.argwhere(wrong)[0][1])) if wrong.any() else None

    def to_values(self, rows: Array) -> list[list[Any]]:
        """Returns the shortest JSON values that are these rows, in the types of the features; a missing number is null."""
        if self.dtype == np.float32:
            return [[None if value != value else float(str(value)) for value in row] for row in rows]
        if self.is_mixed:
            types = [VALUE_TYPES.get(feature.type, int) for feature in self.features]
            return [[None if v != v else kind(v) for v, kind in zip(row, types, strict=True)] for row in rows.tolist()]
        return [[None if value != value else value for value in row] for row in rows.tolist()]

    def canonical(self, rows: Array) -> tuple[Array, list[bytes]]:
        """Returns the rows without negative zeros and with one NaN only, and the bytes of each row, equal for equal rows."""
        if self.has_strings:
            rows = np.array([[v + 0.0 if type(v) is float else v for v in row] for row in rows], object)
            return rows, [json.dumps(row, separators=(",", ":")).encode() for row in rows.tolist()]
        if self.has_missing:
            rows = np.where(np.isnan(rows), self.dtype.type(np.nan), rows)
        raw = rows.tobytes()
        if self.dtype.kind == "f" and SIGN in raw:
            rows = rows + self.dtype.type(0.0)
            raw = rows.tobytes()
        if len(rows) == 1:
            return rows, [raw]
        size = self.dtype.itemsize * self.width
        return rows, [raw[i : i + size] for i in range(0, len(raw), size)]

    def from_keys(self, keys: Sequence[bytes]) -> Array:
        """Returns the rows [n, width] of these bytes. Raises ValueError for bytes of another schema."""
        if self.has_strings:
            rows = [json.loads(key) for key in keys]
            if any(type(row) is not list or len(row) != self.width for row in rows):
                raise ValueError(OTHER_SCHEMA)
            found = np.empty((len(rows), self.width), object)
            found[:] = rows
            return found
        raw = keys[0] if len(keys) == 1 else b"".join(keys)
        if len(raw) != len(keys) * self.width * self.dtype.itemsize:
            raise ValueError(OTHER_SCHEMA)
        return np.frombuffer(raw, self.dtype).reshape(len(keys), self.width)

    def pack(self, rows: Array) -> bytes:
        """Encodes rows for a store: little-endian float32 for a schema of float32, and padded JSON for any other.

        JSON is padded to a length that is not a multiple of four, so neither can be taken for the other.
        """
        if self.dtype == np.float32:
            return rows.astype("<f4", copy=False).tobytes()
        text = json.dumps(self.to_values(rows)).encode()
        return text + b" " * ((1 - len(text)) % 4)

    def unpack(self, content: bytes) -> Array:
        """Decodes rows of pack(). Raises ValueError for rows of another schema."""
        if self.dtype == np.float32:
            if not content or len(content) % (4 * self.width):
                raise ValueError(OTHER_SCHEMA)
            found = np.frombuffer(content, "<f4").astype(np.float32, copy=False).reshape(-1, self.width)
            if self.missing_error(found) is not None:
                raise ValueError(OTHER_SCHEMA)
            return found
        rows = json.loads(content) if len(content) % 4 else []
        if not rows or type(rows) is not list or any(type(row) is not list or len(row) != self.width for row in rows):
            raise ValueError(OTHER_SCHEMA)
        if (decoded := self.from_values(rows)) is None:
            raise ValueError(OTHER_SCHEMA)
        return decoded


def packed_values(content: bytes) -> list[Any]:
    """Returns the values of one row of RowSchema.pack(), of any schema."""
    if len(content) % 4:
        row: list[Any] = json.loads(content)[0]
        return row
    return [None if value != value else float(str(value)) for value in np.frombuffer(content, "<f4").astype(np.float32)]


def is_text(value: str) -> bool:
    """Returns whether a string can be sent as UTF-8. Half of a surrogate pair cannot."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


class OutputSchema(NamedTuple):
    """The columns of a prediction, which is an array float32 [n, width].

    Its first columns are the probabilities of a classifier, the scores of a classifier without probabilities, or the values of
    a regressor. If the graph's own label is served, the last column is the number of this label. `labels` are the names of the
    classes, and `classes` the graph's own values of them, both in the order of the probabilities.
    """

    kind: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    classes: tuple[Any, ...] = ()
    label: str = BOTH

    @property
    def has_label_column(self) -> bool:
        return self.label == GRAPH and self.kind != REGRESSOR

    @property
    def width(self) -> int:
        return len(self.columns) + self.has_label_column

    @property
    def name(self) -> str:
        """Returns what the columns are: "probabilities", "scores", or "values"."""
        return COLUMN_NAMES[self.kind]

    def values(self, predictions: Array) -> Array:
        """Returns the probabilities, scores, or values [n, columns]."""
        return predictions[:, : len(self.columns)] if self.has_label_column else predictions

    def best(self, predictions: Array) -> NDArray[np.intp]:
        """Returns the number of the label of each row."""
        if self.has_label_column:
            return predictions[:, -1].astype(np.intp)
        numbers: NDArray[np.intp] = predictions.argmax(axis=1)
        return numbers

    def best_of(self, row: Sequence[float]) -> int:
        """Returns the number of the label of one row; of equal probabilities the first, like numpy's argmax."""
        return int(row[-1]) if self.has_label_column else row.index(max(row))


def classifier_outputs(labels: Sequence[str]) -> OutputSchema:
    """Returns the outputs of a classifier whose label is that of the highest probability."""
    return OutputSchema(CLASSIFIER, tuple(labels), tuple(labels))
