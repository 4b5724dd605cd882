"""Parquet reader and writer with pyarrow, one record batch at a time, and the columns of the tables in memory."""

import os
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# The system's allocator frees the memory of a chunk; pyarrow's own keeps several times this amount.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
import pyarrow as arrow
from pyarrow import ipc, parquet

from iris_wsgi.codec.model_schema import INTEGER_TYPES, REGRESSOR, Array, OutputSchema, RowSchema
from iris_wsgi.errors import Stopped
from iris_wsgi.model.session import Model, reason
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import WHOLE, AppendFile, move_into_place
from iris_wsgi.tabular.chunk_scorer import Rows, select
from iris_wsgi.tabular.feature_values import FeatureValues
from iris_wsgi.tabular.record_splitter import EMPTY, BadRow, Chunk, Position
from iris_wsgi.tabular.writers import DIGEST, ERROR, LABEL, check_width, csv_text, output_names, value_names

# Larger batches take more memory in each process, and smaller ones more time.
BATCH_ROWS = 4096
# Record batches per row group.
GROUP_BATCHES = 16
# Below, buffers are read and written without array() and to_numpy(). These import pandas if it is installed, and take 30 MB.

# Type of a column of few different texts.
WORDS = arrow.dictionary(arrow.int32(), arrow.string())


class ParquetSource:
    """Record batches of a file. A resumed run reads and skips the batches before its position."""

    unit = " rows"
    delimiter: str | None = None
    batch_rows = BATCH_ROWS

    def __init__(self, path: str, remote: BinaryIO | None = None) -> None:
        """Opens the file `path`, or reads the file `remote` of this name. Raises BadSetting if it is not Parquet."""
        self.is_remote = remote is not None
        try:
            if remote is not None:
                # Each column of a row group is one request.
                self.file = parquet.ParquetFile(remote, pre_buffer=True)
            else:
                # Without these arguments pyarrow reads ahead the whole file or a whole column of a row group.
                self.file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
        except (arrow.ArrowException, OSError) as error:
            raise BadSetting(f"{path} is not a Parquet file: {reason(error)}") from None
        # Columns with a dictionary, such as categories of pandas, become columns of their values.
        fields = [
            field.with_type(field.type.value_type) if arrow.types.is_dictionary(field.type) else field
            for field in self.file.schema_arrow
        ]
        self.schema = self.layout = arrow.schema(fields)
        self.total: int | None = self.file.metadata.num_rows
        self.groups: Sequence[int] | None = None

    @property
    def group_rows(self) -> list[int]:
        """The number of rows of each row group."""
        return [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]

    def select(self, start: int, end: int) -> int:
        """Makes these row groups the only ones that are read. Returns the number of rows before them."""
        self.groups = range(start, end)
        self.total = sum(self.group_rows[start:end])
        return sum(self.group_rows[:start])

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        schema, here = selected(self.schema, columns), Position()
        batches = self.batches(list(columns))
        while (batch := self.next_batch(batches)) is not None:
            following = here.offset + batch.num_rows
            after = Position(here.chunk + 1, following, following + 1)
            if here.chunk >= start.chunk:
                batch = batch.select(columns)
                # A cast needs memory even if it changes nothing.
                batch = batch if batch.schema.equals(schema) else batch.cast(schema)
                yield Chunk(here, batch.serialize().to_pybytes(), [], after, batch.num_rows)
            here = after
        if here.offset != self.total:
            raise Stopped(f"IN has {here.offset} rows; its footer says {self.total}")

    def batches(self, columns: list[str]) -> Iterator[arrow.RecordBatch]:
        """Yields the batches. Of a remote file, one row group at a time is in memory."""
        wanted = range(self.file.num_row_groups) if self.groups is None else self.groups
        for group in [[i] for i in wanted] if self.is_remote else [list(wanted)]:
            yield from self.file.iter_batches(BATCH_ROWS, row_groups=group, columns=columns, use_threads=False)

    def next_batch(self, batches: Iterator[arrow.RecordBatch]) -> arrow.RecordBatch | None:
        try:
            return next(batches, None)
        except (arrow.ArrowException, OSError) as error:
            raise Stopped(f"IN cannot be read to its end: {reason(error)}") from None

    def done(self, position: Position) -> int:
        return position.offset

    def close(self) -> None:
        self.file.close(force=True)


class ParquetReader:
    """Converts record batches to rows."""

    def __init__(
        self,
        schema: arrow.Schema,
        rows: RowSchema,
        features: Sequence[str],
        keep: Sequence[str],
        texts: bool,
        where: str = "IN",
    ) -> None:
        """Checks the columns of the features and the kept ones; `where` is the name of the input in messages.

        With `texts`, kept columns become values of JSON; otherwise they stay Arrow arrays. Raises BadSetting if a column is
        missing or has an unusable type.
        """
        for name in (*features, *keep):
            if len(schema.get_all_field_indices(name)) != 1:
                raise BadSetting(f"{where} has no column {name!r}, or several; it has {', '.join(schema.names[:12])}")
        for name, feature in zip(features, rows.features, strict=True):
            kind = schema.field(name).type
            if not fits_type(kind, feature.type):
                needed = {"string": "text", "bool": "true or false"}.get(feature.type, "numeric")
                raise BadSetting(f"the column {name!r} of {where} holds {kind}, which is not {needed}")
        self.features, self.keep, self.texts = features, keep, texts
        self.values = FeatureValues(rows)
        self.kept_types = [schema.field(name).type for name in keep]
        for name, kind in zip(keep, self.kept_types, strict=True):
            if "dictionary<" in str(kind) or (texts and "binary" in str(kind)):
                raise BadSetting(f"the column {name!r} of IN holds {kind}, which OUT cannot hold")
        self.schema = selected(schema, (*features, *keep))

    def rows(self, data: bytes, line: int) -> Rows:
        """Parses a batch; `line` is the number of its first row, from 1."""
        return self.rows_of(ipc.read_record_batch(arrow.py_buffer(data), self.schema), line)

    def rows_of(self, batch: arrow.RecordBatch, line: int) -> Rows:
        """Converts a record batch with the columns of the features and the kept ones."""
        columns = [batch.column(name) for name in self.features]
        if (whole := self.floats(columns, batch.num_rows)) is not None:
            kept = [self.kept(batch.column(name), kind) for name, kind in zip(self.keep, self.kept_types, strict=True)]
            return Rows(whole, range(line, line + batch.num_rows), kept, [])
        found, wrong = zip(*(self.column(column, j) for j, column in enumerate(columns)), strict=True)
        is_wrong = np.stack(wrong, axis=1)
        kept = [self.kept(batch.column(name), kind) for name, kind in zip(self.keep, self.kept_types, strict=True)]
        bad = []
        for i in np.flatnonzero(is_wrong.any(axis=1)).tolist():
            j = int(is_wrong[i].argmax())
            bad.append(BadRow(line + i, self.features[j], self.reason(columns[j][i].as_py(), j)))
        good = np.flatnonzero(~is_wrong.any(axis=1))
        values, at = self.values.rows(found, batch.num_rows), good.tolist()
        if bad:
            values, kept = values[good], [select(column, at) for column in kept]
        return Rows(values, [line + i for i in at], kept, bad)

    def floats(self, columns: Sequence[arrow.Array], count: int) -> Array | None:
        """Returns the rows [count, features] if all features are floats of one type and all their values are surely valid."""
        schema = self.values.schema
        if not schema.is_float or any(column.null_count or not arrow.types.is_floating(column.type) for column in columns):
            return None
        rows = np.empty((count, len(columns)), schema.dtype)
        with np.errstate(over="ignore"):
            for j, column in enumerate(columns):
                dtype = np.dtype(column.type.to_pandas_dtype())
                rows[:, j] = np.frombuffer(column.buffers()[1], dtype, count, column.offset * dtype.itemsize)
        # A value close to the maximum may be rounded to it from above.
        return rows if bool((np.abs(rows) < schema.max).all()) else None

    def column(self, column: arrow.Array, j: int) -> tuple[Array | Sequence[str], NDArray[np.bool_]]:
        """Returns the values of a feature, with 0 or "" in place of invalid ones, and which of them are invalid."""
        missing = column.is_null().to_numpy(zero_copy_only=False)
        if self.values.types[j] == "string":
            texts = column.to_pylist()
            wrong = np.array([text is None for text in texts], bool)
            return [text or "" for text in texts], wrong
        is_integer = self.values.types[j] in INTEGER_TYPES
        if is_integer and arrow.types.is_decimal(column.type):
            return self.whole_numbers(column.to_pylist(), j)
        numbers = as_numbers(column, is_integer)
        if self.values.optional[j]:
            wrong = ~(self.values.within(numbers, j) | np.isnan(numbers))
        else:
            wrong = missing | ~self.values.within(numbers, j)
        numbers[wrong] = 0
        return numbers.astype(self.values.number_type, copy=False), wrong

    def whole_numbers(self, decimals: list[Decimal | None], j: int) -> tuple[Array, NDArray[np.bool_]]:
        """Returns exact integers, with 0 in place of invalid ones, and which of them are invalid."""
        values = [None if value is None else int(value) if value == int(value) else float(value) for value in decimals]
        wrong = [self.values.value_reason(value, j) is not None for value in values]
        numbers = [0 if bad or value is None else int(value) for value, bad in zip(values, wrong, strict=True)]
        return np.array(numbers, self.values.number_type), np.array(wrong, bool)

    def reason(self, value: Any, j: int) -> str:
        """Returns the reason for which a value is invalid."""
        if value is None:
            return EMPTY
        value = float(value) if isinstance(value, Decimal) else value
        return self.values.value_reason(value, j) or self.values.range_reason(j)

    def kept(self, column: arrow.Array, kind: arrow.DataType) -> Sequence[Any]:
        if not self.texts:
            return column  # type: ignore[no-any-return]
        # Arrow formats dates, times, and decimals.
        as_text = arrow.types.is_temporal(kind) or arrow.types.is_decimal(kind)
        values: list[Any] = (column.cast(arrow.string()) if as_text else column).to_pylist()
        return values


def fits_type(kind: arrow.DataType, feature: str) -> bool:
    """Returns whether a column of an Arrow type can hold a feature."""
    if feature == "string":
        return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or str(kind) == "string_view")
    is_number = arrow.types.is_floating(kind) or arrow.types.is_integer(kind) or arrow.types.is_decimal(kind)
    return bool(is_number or (feature == "bool" and arrow.types.is_boolean(kind)))


def is_plain_number(kind: arrow.DataType) -> bool:
    return bool(arrow.types.is_floating(kind) or arrow.types.is_integer(kind))


def as_numbers(column: arrow.Array, is_integer: bool) -> Array:
    """Returns a copy of a column of numbers or booleans as float64, in which null is NaN.

    Integers for a feature of an integer type stay integers, in which null is 0.
    """
    if is_integer and arrow.types.is_integer(column.type):
        return np.array(column.fill_null(0).to_numpy(zero_copy_only=False))
    if arrow.types.is_boolean(column.type):
        column = column.cast(arrow.uint8())
    return np.array(column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False))


def selected(schema: arrow.Schema, columns: Sequence[str]) -> arrow.Schema:
    """Returns the schema of these columns, each once."""
    return arrow.schema([schema.field(name) for name in dict.fromkeys(columns)])


class ArrowWriter:
    """Writes Arrow's stream format, which can be truncated after any record batch. `ParquetFile` converts it to Parquet.

    Columns of labels and of the digest have dictionaries.
    """

    def __init__(self, model: Model, keep: Sequence[str], kept_types: Sequence[arrow.DataType] | None, digest: bool) -> None:
        """Takes the types of the kept columns; without `kept_types` they become text."""
        outputs = model.outputs
        output_names(model, keep, digest)
        self.labels = None if outputs.kind == REGRESSOR else text_array(outputs.labels)
        self.digests = text_array([model.digest]) if digest else None
        self.kept_types, self.kept_count, self.width = kept_types, len(keep), len(outputs.columns)
        fields = [(name, kind) for name, kind in zip(keep, kept_types or [arrow.string()] * len(keep), strict=True)]
        fields += [] if self.labels is None else [(LABEL, WORDS)]
        fields += [(name, arrow.float32()) for name in value_names(outputs)]
        fields += [(DIGEST, WORDS)] if digest else []
        self.schema = arrow.schema(fields)
        self.start = self.head()

    def head(self) -> bytes:
        """Returns the schema, and the dictionaries for all record batches."""
        stream = arrow.BufferOutputStream()
        with ipc.new_stream(stream, self.schema) as writer:
            kept = [arrow.nulls(0, field.type) for field in self.schema][: self.kept_count]
            writer.write_batch(self.batch(kept, np.empty(0, np.intp), np.empty((0, self.width), np.float32)))
            end = stream.tell()
        data: bytes = stream.getvalue().to_pybytes()
        return data[:end]

    def text(self, kept: Sequence[Sequence[Any]], labels: NDArray[np.intp], values: Array) -> bytes:
        check_width(values, self.width)
        if self.kept_types is None:
            kept = [text_array([csv_text(value) for value in column]) for column in kept]
        data: bytes = self.batch(kept, labels, values).serialize().to_pybytes()
        return data

    def batch(self, kept: Sequence[arrow.Array], labels: NDArray[np.intp], values: Array) -> arrow.RecordBatch:
        columns = [*kept]
        if self.labels is not None:
            columns.append(arrow.DictionaryArray.from_arrays(number_array(labels, arrow.int32()), self.labels))
        columns += [number_array(column, arrow.float32()) for column in values.T]
        if self.digests is not None:
            numbers = number_array(np.zeros(len(values), np.int32), arrow.int32())
            columns.append(arrow.DictionaryArray.from_arrays(numbers, self.digests))
        return arrow.RecordBatch.from_arrays(columns, schema=self.schema)


def number_array(values: Array, kind: arrow.DataType, missing: NDArray[np.bool_] | None = None) -> arrow.Array:
    """Returns numbers as an array of Arrow, in which the missing ones are null."""
    validity = None
    if missing is not None and missing.any():
        validity = arrow.py_buffer(np.packbits(~missing, bitorder="little"))
    numbers = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return arrow.Array.from_buffers(kind, len(values), [validity, arrow.py_buffer(numbers)])


def text_array(words: Sequence[str]) -> arrow.Array:
    """Returns texts as an array of Arrow."""
    data = [word.encode() for word in words]
    offsets = np.cumsum([0, *map(len, data)], dtype=np.int32)
    return arrow.StringArray.from_buffers(len(words), arrow.py_buffer(offsets), arrow.py_buffer(b"".join(data)))


class ParquetFile(AppendFile):
    """Output file that grows as an Arrow stream; finish() converts it to Parquet."""

    def finish(self) -> None:
        whole = self.path.with_name(self.path.name + WHOLE)
        whole.unlink(missing_ok=True)
        with ipc.open_stream(arrow.OSFile(str(self.partial))) as stream:
            # Numbers rarely repeat: without a dictionary they are smaller and take half the time.
            words = [field.name for field in stream.schema if not is_plain_number(field.type)]
            with parquet.ParquetWriter(whole, stream.schema, use_dictionary=words) as writer:
                group: list[arrow.RecordBatch] = []
                for batch in stream:
                    group.append(batch)
                    if len(group) == GROUP_BATCHES:
                        writer.write_table(arrow.Table.from_batches(group, stream.schema))
                        group = []
                writer.write_table(arrow.Table.from_batches(group, stream.schema))
        move_into_place(whole, self.path)
        self.discard()


def is_arrow(batch: Any) -> bool:
    """Returns whether an object is a record batch or a table."""
    return isinstance(batch, (arrow.RecordBatch, arrow.Table))


def feature_table(columns: Sequence[Any], names: Sequence[str], rows: RowSchema) -> arrow.Table:
    """Returns the columns of the features: arrays of Arrow, of numpy, or of pandas, in which NaN is a missing value.

    Raises ValueError for a column that Arrow cannot hold.
    """
    arrays = []
    for values, name, feature in zip(columns, names, rows.features, strict=True):
        try:
            arrays.append(plain_column(as_arrow(values), feature.type))
        except (arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the column {name!r} of the batch cannot be read as one type: {reason(error)}") from None
    return arrow.Table.from_arrays(arrays, list(names))


def as_arrow(values: Any) -> Any:
    """Returns a column as an array of Arrow or as several chunks. Raises the exceptions of pyarrow."""
    if isinstance(values, (arrow.Array, arrow.ChunkedArray)):
        return values
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        return arrow.array(values, from_pandas=True)
    # Arrow casts few types of 16-bit floats.
    numbers = values.astype(np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="), copy=False)
    missing = np.isnan(numbers) if numbers.dtype.kind == "f" else None
    if missing is not None and missing.all():
        return arrow.nulls(len(numbers))
    return number_array(numbers, arrow.from_numpy_dtype(numbers.dtype), missing)


def plain_column(column: Any, feature: str) -> Any:
    """Returns a column without a dictionary. A column without any value gets the type of its feature."""
    if arrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if arrow.types.is_null(column.type):
        return column.cast({"string": arrow.string(), "bool": arrow.bool_()}.get(feature, arrow.float64()))
    return column


def feature_fields(schema: arrow.Schema, at: Sequence[int], rows: RowSchema) -> arrow.Table:
    """Returns a table without rows, with the columns of the features at these positions of a schema."""
    columns = [arrow.nulls(0, schema.field(i).type) for i in at]
    return feature_table(columns, [schema.field(i).name for i in at], rows)


def result_schema(schema: arrow.Schema, kept: Sequence[int], outputs: OutputSchema) -> arrow.Schema:
    """Returns the columns at the kept positions, and those of result_columns()."""
    fields = [schema.field(i) for i in kept]
    fields += [] if outputs.kind == REGRESSOR else [arrow.field(LABEL, arrow.string())]
    fields += [arrow.field(name, arrow.float32()) for name in value_names(outputs)]
    return arrow.schema([*fields, arrow.field(ERROR, arrow.string())], schema.metadata)


def result_columns(outputs: OutputSchema, numbers: NDArray[np.intp], values: Array, errors: Mapping[int, str]) -> list[Any]:
    """Returns the labels, the values [n, columns], and the errors by row, as arrays of Arrow. Bad rows have null values.

    `numbers` are those of the labels.
    """
    is_bad = np.zeros(len(values), bool)
    is_bad[list(errors)] = True
    columns = []
    if outputs.kind != REGRESSOR:
        columns.append(text_array(outputs.labels).take(number_array(numbers, arrow.int32(), is_bad)))
    columns += [number_array(column, arrow.float32(), is_bad) for column in values.T]
    places = np.zeros(len(values), np.int32)
    places[list(errors)] = np.arange(len(errors))
    texts = text_array(list(errors.values()) or [""])
    return [*columns, texts.take(number_array(places, arrow.int32(), ~is_bad))]


def with_results(batch: Any, kept: Sequence[int], outputs: OutputSchema, added: Sequence[Any]) -> Any:
    """Returns a record batch or a table of its columns at the kept positions and of these added ones."""
    columns = [batch.column(i) for i in kept]
    return type(batch).from_arrays([*columns, *added], schema=result_schema(batch.schema, kept, outputs))
