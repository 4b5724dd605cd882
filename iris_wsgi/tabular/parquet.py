"""Parquet reader and writer with pyarrow, one record batch at a time."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# The system's allocator frees the memory of a chunk; pyarrow's own keeps several times this amount.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
import pyarrow as arrow
from pyarrow import ipc, parquet

from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import Stopped
from iris_wsgi.model.session import Model, reason
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import WHOLE, AppendFile, move_into_place
from iris_wsgi.tabular.record_splitter import EMPTY, NOT_FINITE, BadRow, Chunk, Position
from iris_wsgi.tabular.scorer import Rows, select
from iris_wsgi.tabular.writers import DIGEST, LABEL, PROBABILITY, csv_text, output_names

BATCH_ROWS = 8192
# Record batches per row group.
GROUP_BATCHES = 8


class ParquetSource:
    """Record batches of a file. A resumed run reads and skips the batches before its position."""

    unit = " rows"
    delimiter: str | None = None

    def __init__(self, path: str) -> None:
        """Raises BadSetting if the file is not Parquet."""
        try:
            # Without these arguments pyarrow reads ahead the whole file or a whole column of a row group.
            self.file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
        except (arrow.ArrowException, OSError) as error:
            raise BadSetting(f"{path} is not a Parquet file: {reason(error)}") from None
        # Columns with a dictionary, such as categories of pandas, become columns of their values.
        fields = [
            field.with_type(field.type.value_type) if arrow.types.is_dictionary(field.type) else field
            for field in self.file.schema_arrow
        ]
        self.schema = arrow.schema(fields)
        self.total: int | None = self.file.metadata.num_rows

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        schema, here = selected(self.schema, columns), Position()
        batches = self.file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)
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

    def next_batch(self, batches: Iterator[arrow.RecordBatch]) -> arrow.RecordBatch | None:
        try:
            return next(batches, None)
        except (arrow.ArrowException, OSError) as error:
            raise Stopped(f"IN cannot be read to its end: {reason(error)}") from None

    def done(self, position: Position) -> int:
        return position.offset


class ParquetReader:
    """Converts record batches to rows."""

    def __init__(self, schema: arrow.Schema, features: Sequence[str], keep: Sequence[str], texts: bool) -> None:
        """Checks the columns. With `texts`, kept columns become values of JSON; otherwise they stay Arrow arrays.

        Raises BadSetting if a column is missing or has an unusable type.
        """
        for name in (*features, *keep):
            if len(schema.get_all_field_indices(name)) != 1:
                raise BadSetting(f"IN has no column {name!r}, or several; it has {', '.join(schema.names[:12])}")
        for name in features:
            kind = schema.field(name).type
            if not (arrow.types.is_floating(kind) or arrow.types.is_integer(kind) or arrow.types.is_decimal(kind)):
                raise BadSetting(f"the column {name!r} of IN holds {kind}, which is not numeric")
        self.features, self.keep, self.texts = features, keep, texts
        self.kept_types = [schema.field(name).type for name in keep]
        for name, kind in zip(keep, self.kept_types, strict=True):
            if "dictionary<" in str(kind) or (texts and "binary" in str(kind)):
                raise BadSetting(f"the column {name!r} of IN holds {kind}, which OUT cannot hold")
        self.schema = selected(schema, (*features, *keep))

    def rows(self, data: bytes, line: int) -> Rows:
        """Parses a batch; `line` is the number of its first row, from 1."""
        batch = ipc.read_record_batch(arrow.py_buffer(data), self.schema)
        columns = [batch.column(name) for name in self.features]
        missing = np.stack([column.is_null().to_numpy(zero_copy_only=False) for column in columns], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            doubles = [column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False) for column in columns]
            values = np.stack(doubles, axis=1).astype(np.float32)
        wrong = ~np.isfinite(values) | missing
        kept = [self.kept(batch.column(name), kind) for name, kind in zip(self.keep, self.kept_types, strict=True)]
        bad = []
        for i in np.flatnonzero(wrong.any(axis=1)).tolist():
            j = int(wrong[i].argmax())
            bad.append(BadRow(line + i, self.features[j], EMPTY if missing[i, j] else NOT_FINITE))
        good = np.flatnonzero(~wrong.any(axis=1)).tolist()
        return Rows(values[good], [line + i for i in good], [select(column, good) for column in kept], bad)

    def kept(self, column: arrow.Array, kind: arrow.DataType) -> Sequence[Any]:
        if not self.texts:
            return column  # type: ignore[no-any-return]
        # Arrow formats dates, times, and decimals.
        as_text = arrow.types.is_temporal(kind) or arrow.types.is_decimal(kind)
        values: list[Any] = (column.cast(arrow.string()) if as_text else column).to_pylist()
        return values


def selected(schema: arrow.Schema, columns: Sequence[str]) -> arrow.Schema:
    """Returns the schema of these columns, each once."""
    return arrow.schema([schema.field(name) for name in dict.fromkeys(columns)])


class ArrowWriter:
    """Writes Arrow's stream format, which can be truncated after any record batch. `ParquetFile` converts it to Parquet."""

    def __init__(self, model: Model, keep: Sequence[str], kept_types: Sequence[arrow.DataType] | None, digest: bool) -> None:
        """Takes the types of the kept columns; without `kept_types` they become text."""
        output_names(model, keep, digest)
        self.labels = arrow.array(model.labels, arrow.string())
        self.kept_types = kept_types
        fields = [(name, kind) for name, kind in zip(keep, kept_types or [arrow.string()] * len(keep), strict=True)]
        fields += [(LABEL, arrow.string())]
        fields += [(PROBABILITY + label, arrow.float32()) for label in model.labels]
        fields += [(DIGEST, arrow.string())] if digest else []
        self.schema = arrow.schema(fields)
        self.digest = [model.digest] if digest else []
        self.start = self.schema.serialize().to_pybytes()

    def text(self, kept: Sequence[Sequence[Any]], classes: Sequence[int], probabilities: Array) -> bytes:
        if self.kept_types is None:
            kept = [[csv_text(value) for value in column] for column in kept]
        columns = [
            column if isinstance(column, arrow.Array) else arrow.array(column, field.type)
            for column, field in zip(kept, self.schema, strict=False)
        ]
        columns.append(self.labels.take(arrow.array(classes)))
        columns += [arrow.array(np.ascontiguousarray(column)) for column in probabilities.T]
        columns += [arrow.array([digest] * len(classes), arrow.string()) for digest in self.digest]
        data: bytes = arrow.RecordBatch.from_arrays(columns, schema=self.schema).serialize().to_pybytes()
        return data


class ParquetFile(AppendFile):
    """Output file that grows as an Arrow stream; finish() converts it to Parquet."""

    def finish(self) -> None:
        whole = self.path.with_name(self.path.name + WHOLE)
        whole.unlink(missing_ok=True)
        with ipc.open_stream(arrow.OSFile(str(self.partial))) as stream:
            # Floats rarely repeat: without a dictionary they are smaller and take half the time.
            words = [field.name for field in stream.schema if not arrow.types.is_floating(field.type)]
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
