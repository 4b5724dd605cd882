"""Parquet, by pyarrow: rows out of a file batch by batch, and answers into one."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# The system's allocator gives back what a chunk took; pyarrow's own keeps several times as much.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
import pyarrow as arrow
from pyarrow import ipc, parquet

from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import Stopped
from iris_wsgi.model.session import Model, first_line
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import AppendFile, move_into_place
from iris_wsgi.tabular.paths import WHOLE
from iris_wsgi.tabular.record_splitter import EMPTY, NOT_FINITE, Chunk, Fault, Position
from iris_wsgi.tabular.scorer import Rows, picked
from iris_wsgi.tabular.writers import DIGEST, LABEL, PROBABILITY, output_names, text_of

# Rows of a batch, and batches of a group.
BATCH_ROWS, GROUP_BATCHES = 8192, 8


class ParquetSource:
    """Batches of a file, as pyarrow makes them; those before the first one wanted are read and left."""

    unit, first, exchanged = " rows", b"", False
    delimiter: str | None = None

    def __init__(self, path: str) -> None:
        """Raises BadSetting for a file that is none."""
        try:
            # Otherwise pyarrow reads the whole file ahead, or at least all that a group has of a column.
            self.file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
        except (arrow.ArrowException, OSError) as error:
            raise BadSetting(f"{path} is no Parquet file: {first_line(error)}") from None
        # Of a column with a dictionary, as pandas writes its categories, the words themselves.
        fields = [
            field.with_type(field.type.value_type) if arrow.types.is_dictionary(field.type) else field
            for field in self.file.schema_arrow
        ]
        self.schema = arrow.schema(fields)
        self.total: int | None = self.file.metadata.num_rows

    def chunks(self, start: Position, columns: Sequence[str]) -> Iterator[Chunk]:
        schema, here = selected(self.schema, columns), Position()
        batches = self.file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)
        while (batch := self.next_of(batches)) is not None:
            following = here.offset + batch.num_rows
            after = Position(here.chunk + 1, following, following + 1)
            if here.chunk >= start.chunk:
                batch = batch.select(columns)
                # Arrow's cast costs memory, also where there is nothing for it to do.
                batch = batch if batch.schema.equals(schema) else batch.cast(schema)
                yield Chunk(here, batch.serialize().to_pybytes(), [], after, batch.num_rows)
            here = after
        if here.offset != self.total:
            raise Stopped(f"IN has {here.offset} rows; its footer promises {self.total}")

    def next_of(self, batches: Iterator[arrow.RecordBatch]) -> arrow.RecordBatch | None:
        try:
            return next(batches, None)
        except (arrow.ArrowException, OSError) as error:
            raise Stopped(f"IN cannot be read to its end: {first_line(error)}") from None

    def done(self, position: Position) -> int:
        return position.offset


class ParquetReader:
    """Batches of these columns to rows."""

    def __init__(self, schema: arrow.Schema, features: Sequence[str], keep: Sequence[str], texts: bool) -> None:
        """With `texts` what is kept becomes values of JSON, else it stays Arrow's.

        Raises BadSetting for columns that are not there or hold what cannot be used.
        """
        for name in (*features, *keep):
            if len(schema.get_all_field_indices(name)) != 1:
                raise BadSetting(f"IN has no column {name!r}, or several; it has {', '.join(schema.names[:12])}")
        for name in features:
            kind = schema.field(name).type
            if not (arrow.types.is_floating(kind) or arrow.types.is_integer(kind) or arrow.types.is_decimal(kind)):
                raise BadSetting(f"the column {name!r} of IN holds {kind}, and no numbers")
        self.features, self.keep, self.texts = features, keep, texts
        self.kept_types = [schema.field(name).type for name in keep]
        for name, kind in zip(keep, self.kept_types, strict=True):
            if "dictionary<" in str(kind) or (texts and "binary" in str(kind)):
                raise BadSetting(f"the column {name!r} of IN holds {kind}, which OUT cannot hold")
        self.schema = selected(schema, (*features, *keep))

    def rows(self, data: bytes, line: int) -> Rows:
        """`line` is the number of the first row, counted from 1."""
        batch = ipc.read_record_batch(arrow.py_buffer(data), self.schema)
        columns = [batch.column(name) for name in self.features]
        missing = np.stack([column.is_null().to_numpy(zero_copy_only=False) for column in columns], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            doubles = [column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False) for column in columns]
            values = np.stack(doubles, axis=1).astype(np.float32)
        wrong = ~np.isfinite(values) | missing
        kept = [self.kept(batch.column(name), kind) for name, kind in zip(self.keep, self.kept_types, strict=True)]
        faults = []
        for i in np.flatnonzero(wrong.any(axis=1)).tolist():
            j = int(wrong[i].argmax())
            faults.append(Fault(line + i, self.features[j], EMPTY if missing[i, j] else NOT_FINITE))
        good = np.flatnonzero(~wrong.any(axis=1)).tolist()
        return Rows(values[good], [line + i for i in good], [picked(column, good) for column in kept], faults)

    def kept(self, column: arrow.Array, kind: arrow.DataType) -> Sequence[Any]:
        if not self.texts:
            return column  # type: ignore[no-any-return]
        # Dates, times and decimals as Arrow spells them.
        told = arrow.types.is_temporal(kind) or arrow.types.is_decimal(kind)
        values: list[Any] = (column.cast(arrow.string()) if told else column).to_pylist()
        return values


def selected(schema: arrow.Schema, columns: Sequence[str]) -> arrow.Schema:
    """These, each once."""
    return arrow.schema([schema.field(name) for name in dict.fromkeys(columns)])


class ArrowWriter:
    """Record batches in Arrow's stream format, which can be cut off behind any of them; `ParquetFile` makes Parquet of them."""

    def __init__(self, model: Model, keep: Sequence[str], kept_types: Sequence[arrow.DataType] | None, digest: bool) -> None:
        """Without `kept_types` what is kept becomes text."""
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
            kept = [[text_of(value) for value in column] for column in kept]
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
    """Grows as a stream of record batches, and becomes Parquet at its end."""

    def finish(self) -> None:
        whole = self.path.with_name(self.path.name + WHOLE)
        whole.unlink(missing_ok=True)
        with ipc.open_stream(arrow.OSFile(str(self.partial))) as stream:
            # Numbers that hardly ever come again are smaller without a dictionary, and written in half the time.
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
