"""The rows that are given to pack, as typed columns, from a CSV, a DataFrame, an array, or lists."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import CLASSIFIER, REGRESSOR, SCORES, AmbiguousName, Array, Feature, FeatureNames, RowSchema
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_file
from iris_wsgi.model.session import listed

# Prefixes of the columns with expected probabilities, scores, and values.
PREFIXES = {CLASSIFIER: "probability_", SCORES: "score_", REGRESSOR: "value_"}
LABEL_COLUMN = "label"

# Cells of a CSV that are missing values.
MISSING_CELLS = {"", "na", "n/a", "nan", "null", "none", "<na>"}
BOOLEANS = {"true": True, "false": False}
# A code such as 00501 loses its zeros as a number.
is_code = re.compile(r"[+-]?0\d").match
# Whole numbers up to this size are exact as float32.
FLOAT32_EXACT = 2**24
# The part of the values of a column that may become equal as float32 without a change of the type.
CHANCE = 0.01


class RowSample(NamedTuple):
    """Rows as columns of float64, int64, bool, or objects (strings, and None for a missing string). A missing number is NaN.

    `named` says that the names are those of a CSV header or of a DataFrame. `source` is the DataFrame or the array of the caller.
    `cells` are the texts of the columns of a CSV.
    """

    names: tuple[str, ...]
    columns: tuple[Array, ...]
    named: bool
    source: Any = None
    cells: tuple[Sequence[str], ...] = ()

    @property
    def size(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def select(self, positions: Sequence[int]) -> "RowSample":
        """Returns the columns at these positions, in this order."""
        source = self.source
        if source is not None and list(positions) != list(range(len(self.names))):
            source = source.iloc[:, list(positions)] if hasattr(source, "iloc") else source[:, list(positions)]
        cells = tuple(self.cells[i] for i in positions) if self.cells else ()
        columns = tuple(self.columns[i] for i in positions)
        return RowSample(tuple(self.names[i] for i in positions), columns, self.named, source, cells)

    def with_texts(self, types: Sequence[str]) -> "RowSample":
        """Returns the sample with the texts of the CSV in the columns of type "string", as the batch command reads them.

        An empty cell is a missing value.
        """
        if not self.cells:
            return self
        columns = zip(self.columns, self.cells, types, strict=True)
        return self._replace(columns=tuple(texts(cells) if kind == "string" else column for column, cells, kind in columns))

    def label_column(self, j: int) -> Array:
        """Returns a column of labels. Words such as NA are names in it, and not missing values."""
        words = [cell.strip() for cell in self.cells[j]] if self.cells else []
        return texts(words) if any(word and word.lower() in MISSING_CELLS for word in words) else self.columns[j]

    def has_strings(self) -> bool:
        return any(column.dtype == object for column in self.columns)

    def collapsed(self) -> list[str]:
        """Returns the names of the columns with different values that are equal in float32."""
        return [name for name, column in zip(self.names, self.columns, strict=True) if needs_float64(column)]

    def range_of(self, j: int) -> tuple[float | None, float | None]:
        """Returns the minimum and the maximum of a column of numbers; None for strings and for a column without numbers."""
        column = self.columns[j]
        if column.dtype == object or column.dtype == bool:
            return None, None
        finite = column[np.isfinite(column)]
        return (float(finite.min()), float(finite.max())) if len(finite) else (None, None)

    def has_missing(self, j: int) -> bool:
        return missing_cells(self.columns[j]).any().item()

    def matrix(self, names: Sequence[str] | None) -> Any:
        """Returns the rows in the form that an estimator takes. With `names` it takes a DataFrame with these columns."""
        if self.source is not None and (names is None or hasattr(self.source, "iloc")):
            return self.source
        if names is not None:
            return data_frame(names, self.columns)
        if self.has_strings():
            rows = np.empty((self.size, len(self.columns)), object)
            for j, column in enumerate(self.columns):
                rows[:, j] = column.tolist()
            return rows
        return np.column_stack([column.astype(np.float64) for column in self.columns])

    def row_values(self, features: Sequence[Feature]) -> list[list[Any]]:
        """Returns the rows as JSON values of these features: numbers, strings, and None for a missing number.

        Raises BadModel for a value that the server would refuse.
        """
        schema = RowSchema(features)
        columns = [self.json_values(j, feature) for j, feature in enumerate(features)]
        rows = [list(row) for row in zip(*columns, strict=True)]
        if schema.from_values(rows) is not None:
            return rows
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                if why := schema.value_error(value, j):
                    raise BadModel(f"row {i + 1}: {features[j].name} {why}, and it is {value!r}{remedy(value, features[j])}")
        raise BadModel("the rows do not fit the inputs of the model")

    def json_values(self, j: int, feature: Feature) -> list[Any]:
        column = self.columns[j]
        if feature.type == "string":
            return [None if lost else as_text(value) for value, lost in zip(column.tolist(), missing_cells(column), strict=True)]
        if column.dtype == object:
            return list(column.tolist())
        if feature.type.startswith("float"):
            return [None if value != value else value for value in column.astype(np.float64).tolist()]
        return [None if value != value else int(value) if value == int(value) else value for value in column.tolist()]


def texts(cells: Sequence[str]) -> Array:
    """Returns a column of strings; an empty one is None."""
    found = np.empty(len(cells), object)
    found[:] = [cell or None for cell in cells]
    return found


def as_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def remedy(value: Any, feature: Feature) -> str:
    if value is not None:
        return ""
    if feature.type.startswith("float"):
        return ": the model must have been trained with missing values"
    kind = "text" if feature.type == "string" else f"type {feature.type}"
    return f": a missing value of {kind} cannot be served, so fill it before"


def missing_cells(column: Array) -> Array:
    """Returns which values are missing."""
    if column.dtype == object:
        return np.array([value is None for value in column.tolist()], bool)
    return np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(column), bool)


def needs_float64(column: Array) -> bool:
    """Returns whether float32 makes different values of a column equal, and not only a few by chance."""
    if column.dtype.kind not in "fi":
        return False
    values = np.unique(column[~missing_cells(column)].astype(np.float64))
    whole = bool(len(values)) and bool((values == np.floor(values)).all())
    if whole and np.abs(values).max() > FLOAT32_EXACT:
        return True
    with np.errstate(over="ignore"):
        return len(np.unique(values.astype(np.float32))) < len(values) * (1 - CHANCE)


def data_frame(names: Sequence[str], columns: Sequence[Array]) -> Any:
    """Returns a DataFrame. Raises BadModel without pandas."""
    try:
        import pandas
    except ImportError:
        raise BadModel(
            "the model was trained on a DataFrame, and the package pandas is not installed: run `pip install pandas`"
        ) from None
    return pandas.DataFrame(dict(zip(names, columns, strict=True)))


def read_sample(rows: Any) -> RowSample:
    """Returns the rows of a DataFrame, an array, lists, or the path of a CSV. Raises BadModel."""
    if isinstance(rows, (str, Path)):
        sample = read_csv(Path(rows))
    elif hasattr(rows, "iloc") and hasattr(rows, "columns"):
        names = tuple(map(str, rows.columns))
        sample = RowSample(names, tuple(frame_column(rows, i, name) for i, name in enumerate(names)), True, rows)
    else:
        sample = array_sample(rows)
    if sample.size == 0 or not sample.columns:
        raise BadModel("there are no rows to compare the model with; pass at least one row, and better some hundreds")
    if len(set(sample.names)) < len(sample.names):
        raise BadModel(f"two columns have one name: {', '.join(sample.names)}")
    return sample


def array_sample(rows: Any) -> RowSample:
    if hasattr(rows, "toarray"):
        rows = rows.toarray()
    if is_texts(rows):
        rows = [[text] for text in rows]
    is_array = isinstance(rows, np.ndarray)
    try:
        table = rows if is_array else np.array([list(row) for row in rows], object)
    except (TypeError, ValueError):
        table = np.empty(0)
    if table.ndim != 2:
        raise BadModel("rows must be a DataFrame, an array [rows, features], or a list of rows of one length")
    columns = tuple(typed_array(table[:, j]) for j in range(table.shape[1]))
    return RowSample(tuple(f"feature_{j}" for j in range(len(columns))), columns, False, rows if is_array else None)


def is_texts(rows: Any) -> bool:
    """Returns whether rows are a list of texts, as a vectorizer of texts takes them."""
    return isinstance(rows, (list, tuple, np.ndarray)) and len(rows) > 0 and all(isinstance(row, str) for row in rows)


def frame_column(frame: Any, position: int, name: str) -> Array:
    series = frame.iloc[:, position]
    if getattr(series.dtype, "kind", "") in "mM":
        raise BadModel(f"the column {name} has dates; an ONNX model takes numbers and strings, so convert them in the training")
    return typed_array(series.to_numpy()) if isinstance(series.dtype, np.dtype) else typed(series.tolist())


def typed_array(values: Array) -> Array:
    """Returns an array as a column of a RowSample."""
    kind = values.dtype.kind
    if kind == "f":
        return values.astype(np.float64)
    if kind == "b" or kind == "i" or (kind == "u" and values.dtype.itemsize < 8):
        return values.astype(bool if kind == "b" else np.int64)
    return typed(values.tolist())


def is_missing(value: Any) -> bool:
    """Returns whether a value is None, NaN, NaT, or pandas.NA, whose comparison with itself is not true."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)


def typed(values: list[Any]) -> Array:
    """Returns a column of Python values as bool, int64, float64, or object, the first type that has them all."""
    present = [value for value in values if not is_missing(value)]
    complete = len(present) == len(values)
    if complete and present and all(isinstance(value, (bool, np.bool_)) for value in present):
        return np.array(values, bool)
    if all(isinstance(value, (int, float, np.number, bool)) for value in present):
        whole = complete and all(isinstance(value, (int, np.integer)) for value in present)
        if whole and all(-(2**63) <= value < 2**63 for value in present):
            return np.array(values, np.int64)
        return np.array([math.nan if is_missing(value) else float(value) for value in values], np.float64)
    found = np.empty(len(values), object)
    found[:] = [None if is_missing(value) else value if isinstance(value, str) else str(value) for value in values]
    return found


def read_csv(path: Path) -> RowSample:
    """Reads a CSV with a header. Raises BadModel."""
    text = io.StringIO(read_file(path).decode("utf-8-sig", "replace"), newline="")
    try:
        lines = [line for line in csv.reader(text) if any(map(str.strip, line))]
    except csv.Error as error:
        raise BadModel(f"{path} is not a CSV: {error}") from None
    header, *lines = lines or [[]]
    names = tuple(name.strip() for name in header)
    if not names or not lines:
        raise BadModel(f"{path} has no header with rows below it")
    for number, line in enumerate(lines, 1):
        if len(line) != len(names):
            raise BadModel(f"{path}: row {number} has {len(line)} cells, and the header names {len(names)} columns")
    cells = tuple([line[j] for line in lines] for j in range(len(names)))
    columns = tuple(map(typed_cells, cells))
    return RowSample(names, columns, True, cells=cells)


def typed_cells(cells: list[str]) -> Array:
    """Returns the cells of a column of a CSV as the first of bool, int64, float64, and strings that has them all."""
    stripped = [cell.strip() for cell in cells]
    values: list[Any] = [None if cell.lower() in MISSING_CELLS else cell for cell in stripped]
    present = [value for value in values if value is not None]
    if present and all(value.lower() in BOOLEANS for value in present):
        # A column of truth values with other cells is text, in which a word such as NA is text too.
        return typed([BOOLEANS[value.lower()] for value in present]) if len(present) == len(values) else texts(cells)
    if any(is_code(value) for value in present):
        return texts(cells)
    for convert in (int, float):
        try:
            return typed([value if value is None else convert(value) for value in values])
        except ValueError:
            continue
    return texts(cells)


class Split(NamedTuple):
    """The rows in the order of the features, and the other columns with expected results by name."""

    features: RowSample
    others: Mapping[str, Array]


def split_columns(sample: RowSample, names: Sequence[str] | None, width: int | None, reserved: Sequence[str]) -> Split:
    """Separates the features from the other columns.

    `names` are the features of the model, None if it has no names; `width` is their number, None if unknown. `reserved` are the
    name of the label column and the names of the targets. Raises BadModel if the columns are not those of the model.
    """
    found = by_name(sample, names) if names is not None and sample.named else None
    if found is None:
        other = [i for i, name in enumerate(sample.names) if sample.named and is_reserved(name, reserved)]
        rest = [i for i in range(len(sample.names)) if i not in other]
        found = rest if width in (None, len(rest)) or len(sample.names) != width else list(range(width))
        if width is not None and len(found) != width:
            raise BadModel(
                f"the rows have {len(found)} columns for the features ({listed([sample.names[i] for i in found])}), and the model"
                f" takes {width} features{f' ({listed(names)})' if names else ''}"
            )
    rest = sorted(set(range(len(sample.names))) - set(found)) if sample.named else []
    labels = reserved[:1]
    others = {name: sample.label_column(i) if name in labels else sample.columns[i] for i in rest for name in [sample.names[i]]}
    return Split(sample.select(found), others)


def is_reserved(name: str, reserved: Sequence[str]) -> bool:
    return name in reserved or name.startswith(tuple(PREFIXES.values()))


def by_name(sample: RowSample, names: Sequence[str]) -> list[int]:
    """Returns the positions of the features by name. Raises BadModel for a feature without a column."""
    columns = FeatureNames(sample.names)
    try:
        found = [columns.find(name) for name in names]
    except AmbiguousName as error:
        raise BadModel(f"several columns of the rows can be the feature {error}: {listed(sample.names)}") from None
    if missing := [name for name, position in zip(names, found, strict=True) if position is None]:
        raise BadModel(f"the rows have no column {listed(missing)}; their columns are {listed(sample.names)}")
    return [position for position in found if position is not None]
