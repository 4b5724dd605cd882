"""Scorer of tables in memory for engines such as Ray and Spark: it adds the predictions of a model to the columns."""

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.model_schema import REGRESSOR, Array, OutputSchema
from iris_wsgi.console import remedy_for_extra
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_all, read_file
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import Model
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.chunk_scorer import predict_rows
from iris_wsgi.tabular.feature_values import AmbiguousColumns, FeatureColumns
from iris_wsgi.tabular.writers import ERROR, LABEL, value_names

# Rows of one run of the model, which bound its memory.
RUN_ROWS = 8192
# Models that a process keeps. The sessions of more models would only take memory.
MAX_MODELS = 8
SHOWN_NAMES = 12


class Predictions(NamedTuple):
    """Predictions of all rows of a batch, in their order.

    `numbers` are those of the labels, and `values` are float32 [n, columns]. `errors` has the reason of each bad row by its
    index; its values are NaN, and its number has no meaning.
    """

    outputs: OutputSchema
    numbers: NDArray[np.intp]
    values: Array
    errors: dict[int, str]

    def named(self) -> dict[str, Array]:
        """Returns the columns to add as arrays of numpy. Text is None where a row has none."""
        texts = {}
        if self.outputs.kind != REGRESSOR:
            texts[LABEL] = np.array(self.outputs.labels, object)[self.numbers]
            texts[LABEL][list(self.errors)] = None
        errors = np.full(len(self.values), None, object)
        errors[list(self.errors)] = list(self.errors.values())
        return texts | dict(zip(value_names(self.outputs), self.values.T, strict=True)) | {ERROR: errors}


class Batch(Protocol):
    """Rows of one type of Python object, with named columns."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def rows(self) -> int: ...

    def column(self, position: int) -> Any:
        """Returns the column of a feature as an array of Arrow, of numpy, or of pandas. Raises ValueError."""
        ...

    def result(self, kept: Sequence[int], predictions: Predictions) -> Any:
        """Returns an object of the same type: the columns at the kept positions, and those of the predictions."""
        ...


class ArrowBatch:
    """Record batch or table of Arrow."""

    def __init__(self, batch: Any) -> None:
        self.batch, self.names, self.rows = batch, batch.schema.names, batch.num_rows

    def column(self, position: int) -> Any:
        return self.batch.column(position)

    def result(self, kept: Sequence[int], predictions: Predictions) -> Any:
        from iris_wsgi.tabular.parquet import result_columns, with_results

        return with_results(self.batch, kept, predictions.outputs, result_columns(*predictions))


class FrameBatch:
    """DataFrame of pandas."""

    def __init__(self, frame: Any) -> None:
        self.frame, self.names, self.rows = frame, list(map(str, frame.columns)), len(frame)

    def column(self, position: int) -> Any:
        return self.frame.iloc[:, position]

    def result(self, kept: Sequence[int], predictions: Predictions) -> Any:
        from iris_wsgi.tabular.parquet import result_columns

        # The columns of Arrow have the same types for every batch, even if all of their values are missing.
        columns = [column.to_pandas().array for column in result_columns(*predictions)]
        added = dict(zip(added_names(predictions.outputs), columns, strict=True))
        return self.frame.iloc[:, list(kept)].assign(**added)


class MappingBatch:
    """Dictionary with an array of numpy for each column."""

    def __init__(self, columns: Mapping[str, Array]) -> None:
        """Raises TypeError for a column that is not an array, and ValueError for columns of different lengths."""
        for name, column in columns.items():
            if type(name) is not str or not isinstance(column, np.ndarray) or not column.ndim:
                raise TypeError(
                    f"the column {name!r} of the dictionary is of the type {type(column).__name__}; a dictionary must have names"
                    " of columns and arrays of numpy with one element for each row"
                )
        self.columns, self.names = columns, list(columns)
        lengths = {len(column): name for name, column in columns.items()}
        if len(lengths) > 1:
            found = ", ".join(f"{name!r} has {length} rows" for length, name in list(lengths.items())[:3])
            raise ValueError(f"the columns of the dictionary have different lengths: {found}")
        self.rows = next(iter(lengths), 0)

    def column(self, position: int) -> Array:
        column = without_mask(self.columns[name := self.names[position]])
        if column.ndim != 1:
            raise ValueError(f"the column {name!r} of the dictionary has the shape {list(column.shape)}; a feature needs [n]")
        return column

    def result(self, kept: Sequence[int], predictions: Predictions) -> dict[str, Array]:
        return {self.names[i]: self.columns[self.names[i]] for i in kept} | predictions.named()


class ArrayBatch:
    """Array of numpy [n, features], in the order of the model."""

    def __init__(self, array: Array, features: Sequence[str]) -> None:
        """Raises ValueError for another shape."""
        if array.ndim != 2 or array.shape[1] != len(features):
            raise ValueError(
                f"the array has the shape {list(array.shape)}; it must be [n, {len(features)}], with a column for each feature of"
                f" the model: {shown(features)}"
            )
        self.array, self.names, self.rows = array, features, len(array)

    def column(self, position: int) -> Array:
        return self.array[:, position]

    def result(self, kept: Sequence[int], predictions: Predictions) -> Array:
        columns = {self.names[i]: self.array[:, i] for i in kept} | predictions.named()
        found = np.empty(self.rows, [(name, column.dtype) for name, column in columns.items()])
        for name, column in columns.items():
            found[name] = column
        return found


class VerifiedModels:
    """Models of this process. Each is loaded and verified once, also for several scorers and threads."""

    def __init__(self) -> None:
        self.models: OrderedDict[Any, Model] = OrderedDict()
        self.unlock()
        # Another thread may hold the lock while this process forks.
        os.register_at_fork(after_in_child=self.unlock)

    def unlock(self) -> None:
        self.lock = Lock()

    def find(self, key: Any, load: Callable[[], Model]) -> Model:
        """Returns the model of a key. Other threads wait while it is loaded."""
        with self.lock:
            if key not in self.models:
                self.models[key] = load()
                if len(self.models) > MAX_MODELS:
                    self.models.popitem(last=False)
            self.models.move_to_end(key)
            return self.models[key]


VERIFIED_MODELS = VerifiedModels()


class Scorer:
    """Adds the predictions of a model to the rows of a table.

    A call takes a record batch or a table of pyarrow, a DataFrame of pandas, an array of numpy [n, features], or a dictionary
    of arrays. It returns the same type with all rows in their order; an array of numpy becomes a structured array. The columns
    are those of the input, or those in `keep`. After them come `label`, which a regressor does not have, the values with the
    names that the command batch writes, and `error`. A row that cannot be predicted has an error, and no label and no values.

    `features` are the columns of the features in the model's order, by default those with the names of the model's features.
    `seal` is the digest that golden.json must have. With `ship`, a pickled scorer contains the files of the model; otherwise
    it contains the path of the folder, which each machine must have. The first call loads the model and compares its
    predictions with the golden rows, once per process. A scorer keeps the model of its first call.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        features: Sequence[str] = (),
        keep: Sequence[str] | None = None,
        seal: str = "",
        ship: bool = False,
    ) -> None:
        """Raises TypeError and ValueError for invalid names. With `ship`, raises BadModel for a folder that is not sound."""
        self.model_dir, self.seal = os.path.abspath(model_dir), seal
        self.features = check_names("features", features)
        self.keep = None if keep is None else check_names("keep", keep)
        self.files: dict[str, bytes] = {}
        self.digest = ""
        if ship:
            folder = Path(self.model_dir)
            golden, self.files = read_all(lambda name: read_file(folder / name), self.model_dir, seal)
            self.digest = golden.seal
        self.loaded: Model | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"loaded": None}

    @property
    def model(self) -> Model:
        """Returns the verified model. Raises BadModel."""
        if self.loaded is None:
            state = self.digest or folder_state(self.model_dir)
            key = ("" if self.files else self.model_dir, state, self.seal)
            self.loaded = VERIFIED_MODELS.find(key, self.load)
        return self.loaded

    def load(self) -> Model:
        """Loads the model. Raises BadModel."""
        if self.files:
            with TemporaryDirectory(prefix="iris_wsgi-") as folder:
                for name, content in self.files.items():
                    (Path(folder) / name).write_bytes(content)
                return load_verified_model(Path(folder), self.seal)[0]
        if not os.path.isdir(self.model_dir):
            raise BadModel(
                f"{self.model_dir} is not a folder on this machine; copy the folder of the model to this path on each machine,"
                " or send the model with the scorer: Scorer(…, ship=True)"
            )
        return load_verified_model(Path(self.model_dir), self.seal)[0]

    def __call__(self, batch: Any) -> Any:
        """Returns the rows with their predictions.

        Raises TypeError for another type of argument, ValueError for a missing, doubled, or unusable column, and BadModel for a
        model that cannot be used.
        """
        require_arrow()
        given = self.batch_of(batch)
        kept, features = self.positions(given.names)
        return given.result(kept, self.predict(given, features))

    def arrow(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields each record batch with its predictions, as DataFrame.mapInArrow() of Spark needs it."""
        for batch in batches:
            yield self(batch)

    def schema(self, schema: Any) -> Any:
        """Returns the schema of the result for the schema of an input: a schema of pyarrow, or a StructType of Spark.

        Raises ValueError for a missing, doubled, or unusable column, and BadModel.
        """
        require_arrow()
        from iris_wsgi.tabular.parquet import feature_fields, result_schema

        outputs = self.model.outputs
        kept, features = self.positions(schema.names)
        if not hasattr(schema, "fields"):
            self.reader(feature_fields(schema, features, self.model.schema))
            return result_schema(schema, kept, outputs)
        found = type(schema)([schema.fields[i] for i in kept])
        for name in added_names(outputs):
            found = found.add(name, "string" if name in (LABEL, ERROR) else "float")
        return found

    def batch_of(self, batch: Any) -> Batch:
        """Raises TypeError and ValueError for an argument that is not a batch."""
        from iris_wsgi.tabular.parquet import is_arrow

        if is_arrow(batch):
            return ArrowBatch(batch)
        if isinstance(batch, Mapping):
            return MappingBatch(batch)
        if isinstance(batch, np.ndarray):
            return ArrayBatch(without_mask(batch), self.feature_names())
        # A caller that has a DataFrame has imported pandas.
        if "pandas" in sys.modules and isinstance(batch, sys.modules["pandas"].DataFrame):
            return FrameBatch(batch)
        raise TypeError(
            f"a scorer takes a RecordBatch or a Table of pyarrow, a DataFrame of pandas, an array of numpy, or a dictionary of"
            f" arrays, and not {type(batch).__module__}.{type(batch).__qualname__}"
        )

    def feature_names(self) -> Sequence[str]:
        """Returns the names of the features, by default those of the model. Raises ValueError for another number of names."""
        names = self.features or [feature.name for feature in self.model.features]
        if len(names) != self.model.width:
            raise ValueError(
                f"features= names {len(names)} columns, and the model takes {self.model.width}:"
                f" {shown([feature.name for feature in self.model.features])}"
            )
        return names

    def positions(self, names: Sequence[str]) -> tuple[Sequence[int], list[int]]:
        """Returns the positions of the kept columns and of the features. Raises ValueError."""
        features = self.feature_names()
        try:
            found = self.features or FeatureColumns(features).find(names)
        except AmbiguousColumns as error:
            raise ValueError(
                f"the columns of the batch are ambiguous: {error}; name those of all features by features="
            ) from None
        at = [position(column or name, names, "features") for column, name in zip(found, features, strict=True)]
        kept = range(len(names)) if self.keep is None else [position(name, names, "keep") for name in self.keep]
        added = added_names(self.model.outputs)
        if repeated := [name for i, name in enumerate(added) if name in added[:i]]:
            raise ValueError(f"the result would have two columns {repeated[0]!r}; run pack on the model with other names")
        if twice := [names[i] for i in kept if names[i] in added]:
            raise ValueError(
                f"the batch has a column {twice[0]!r}, and the result has one of this name; rename the column, or list the"
                " columns to copy by keep="
            )
        return kept, at

    def reader(self, table: Any) -> Any:
        """Returns the reader of a table of the features. Raises ValueError for an unusable column."""
        from iris_wsgi.tabular.parquet import ParquetReader

        try:
            return ParquetReader(table.schema, self.model.schema, table.schema.names, (), False, "the batch")
        except BadSetting as error:
            raise ValueError(f"{error}; convert it, or name other columns by features=") from None

    def predict(self, batch: Batch, features: Sequence[int]) -> Predictions:
        """Raises ValueError for an unusable column, and BadModel if the model's output has another shape."""
        from iris_wsgi.tabular.parquet import feature_table

        model, outputs = self.model, self.model.outputs
        columns, names = [batch.column(i) for i in features], [batch.names[i] for i in features]
        table = feature_table(columns, names, model.schema)
        reader = self.reader(table)
        numbers, values = np.zeros(batch.rows, np.intp), np.full((batch.rows, len(outputs.columns)), np.nan, np.float32)
        errors: dict[int, str] = {}
        start = 0
        for part in table.to_batches(max_chunksize=RUN_ROWS):
            if not part.num_rows:
                continue
            rows, found = predict_rows(model, reader.rows_of(part, start))
            at = np.asarray(rows.lines, np.intp)
            values[at] = outputs.values(found)
            if outputs.kind != REGRESSOR:
                numbers[at] = outputs.best(found)
            errors.update({line: f"{column} {why}".lstrip() for line, column, why in rows.bad_rows})
            start += part.num_rows
        return Predictions(outputs, numbers, values, errors)


def require_arrow() -> None:
    """Raises ImportError if pyarrow is not installed."""
    try:
        import iris_wsgi.tabular.parquet  # noqa: F401
    except ImportError:
        raise ImportError(f"a scorer needs the package pyarrow: {remedy_for_extra('parquet')}") from None


def without_mask(array: Array) -> Array:
    """Returns an array that is not of a subclass. Raises TypeError for a masked array."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array has values behind its mask; call with array.filled(numpy.nan)")
    return np.asarray(array)


def check_names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of columns. Raises TypeError for other values, and ValueError for a repeated name."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}= must be a list of names of columns, such as {argument}=['id']")
    if len(set(names)) != len(names):
        raise ValueError(f"{argument}= must be different names")
    return tuple(names)


def position(name: str, names: Sequence[str], argument: str) -> int:
    """Returns the position of a column. Raises ValueError if there is none, or if there are several."""
    if (count := names.count(name)) == 1:
        return names.index(name)
    has = f"{count} columns" if count else "no column"
    raise ValueError(f"the batch has {has} {name!r}; it has {shown(names)}. Name the columns by {argument}=")


def added_names(outputs: OutputSchema) -> list[str]:
    """Returns the names of the columns that a scorer adds."""
    return [*([] if outputs.kind == REGRESSOR else [LABEL]), *value_names(outputs), ERROR]


def shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")


def folder_state(folder: str) -> Any:
    """Returns the names, sizes, and times of the files in a folder, which differ after a change."""
    try:
        found = [(entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found))
