"""Parquet, by pyarrow: rows out of a file batch by batch, and answers into one."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# The system's allocator gives back what a chunk took; pyarrow's own keeps several times as much.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
import pyarrow as arrow
from pyarrow import ipc
from pyarrow.parquet import ParquetFile
from pyarrow.parquet import ParquetWriter as FileWriter

from iris_wsgi.batch.cutter import EMPTY, NOT_FINITE, READ_BYTES, Fault
from iris_wsgi.batch.output import Growing, put_in_place
from iris_wsgi.batch.scorer import Rows, picked
from iris_wsgi.batch.sources import BATCH_ROWS, Broken
from iris_wsgi.batch.writers import DIGEST, LABEL, PROBABILITY, text_of
from iris_wsgi.model import Model, first_line
from iris_wsgi.payload import Array
from iris_wsgi.settings import BadSetting

GROUP_BATCHES = 8


class ParquetReader:
    """Batches of a file, each found by its number; from one to a later one of the same group what is between is read and left."""

    def __init__(self, path: str, features: Sequence[str], keep: Sequence[str], texts: bool) -> None:
        """With `texts` what is kept becomes values of JSON, else it stays Arrow's.

        Raises BadSetting for a file that is none, and for columns that are not there or hold what cannot be used.
        """
        try:
            # Otherwise pyarrow reads the whole file ahead, or at least all that a group has of a column.
            self.file = ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES)
        except (arrow.ArrowException, OSError) as error:
            raise BadSetting(f"{path} is no Parquet file: {first_line(error)}") from None
        schema = self.file.schema_arrow
        for name in (*features, *keep):
            if len(schema.get_all_field_indices(name)) != 1:
                raise BadSetting(f"IN has no column {name!r}, or several; it has {', '.join(schema.names[:12])}")
        for name in features:
            kind = schema.field(name).type
            if not (arrow.types.is_floating(kind) or arrow.types.is_integer(kind) or arrow.types.is_decimal(kind)):
                raise BadSetting(f"the column {name!r} of IN holds {kind}, and no numbers")
        self.features, self.keep, self.texts = features, keep, texts
        self.kept_types = [values_type(schema.field(name).type) for name in keep]
        for name, kind in zip(keep, self.kept_types, strict=True):
            if "dictionary<" in str(kind) or (texts and "binary" in str(kind)):
                raise BadSetting(f"the column {name!r} of IN holds {kind}, which OUT cannot hold")
        self.total = self.file.metadata.num_rows
        self.begin(0)

    def begin(self, row: int) -> None:
        """Goes to the start of the group in which a row is."""
        sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        group = int(np.searchsorted(starts[1:-1], row, "right"))
        columns = list(dict.fromkeys((*self.features, *self.keep)))
        groups = list(range(group, len(sizes)))
        self.pieces = self.file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False)
        self.rest: arrow.RecordBatch | None = None
        # The next row, and the first one of the group behind.
        self.row, self.group_end = int(starts[group]), int(starts[min(group + 1, len(sizes))])

    def rows(self, data: bytes, line: int) -> Rows:
        """The batch of the number that `data` is; `line` is that of its first row, counted from 1."""
        first = int(data) * BATCH_ROWS
        if first < self.row or first >= self.group_end:
            self.begin(first)
        try:
            for _ in self.following(first - self.row):
                pass
            batches = list(self.following(min(BATCH_ROWS, self.total - first)))
        except (arrow.ArrowException, OSError) as error:
            raise Broken(f"IN cannot be read to its end: {first_line(error)}") from None
        return self.taken(whole(batches), line)

    def following(self, count: int) -> Iterator[arrow.RecordBatch]:
        """So many rows from here on. pyarrow ends a batch where it likes: with a group, or with the words of a column."""
        while count:
            piece = self.rest or next(self.pieces, None)
            if piece is None:
                raise Broken("IN cannot be read to its end: it has less rows than it says")
            self.rest = piece.slice(count) if piece.num_rows > count else None
            piece = piece.slice(0, count)
            self.row += piece.num_rows
            count -= piece.num_rows
            yield piece

    def taken(self, batch: arrow.RecordBatch, line: int) -> Rows:
        columns = [doubles(batch.column(name)) for name in self.features]
        missing = np.stack([batch.column(name).is_null().to_numpy(zero_copy_only=False) for name in self.features], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.stack(columns, axis=1).astype(np.float32)
        wrong = ~np.isfinite(values) | missing
        kept = [self.kept(batch.column(name), kind) for name, kind in zip(self.keep, self.kept_types, strict=True)]
        bad = np.flatnonzero(wrong.any(axis=1)).tolist()
        if not bad:
            return Rows(values, range(line, line + len(values)), kept, [])
        faults = []
        for i in bad:
            j = int(wrong[i].argmax())
            faults.append(Fault(line + i, self.features[j], EMPTY if missing[i, j] else NOT_FINITE))
        good = np.flatnonzero(~wrong.any(axis=1)).tolist()
        return Rows(values[good], [line + i for i in good], [picked(column, good) for column in kept], faults)

    def kept(self, column: arrow.Array, kind: arrow.DataType) -> Sequence[Any]:
        column = column.cast(kind)
        if not self.texts:
            return column  # type: ignore[no-any-return]
        # Dates, times and decimals as Arrow spells them.
        told = arrow.types.is_temporal(kind) or arrow.types.is_decimal(kind)
        values: list[Any] = (column.cast(arrow.string()) if told else column).to_pylist()
        return values


def values_type(kind: arrow.DataType) -> arrow.DataType:
    """What a column holds: of one with a dictionary, as pandas writes its categories, the words themselves."""
    return kind.value_type if arrow.types.is_dictionary(kind) else kind


def whole(batches: Sequence[arrow.RecordBatch]) -> arrow.RecordBatch:
    return batches[0] if len(batches) == 1 else arrow.Table.from_batches(batches).combine_chunks().to_batches()[0]


def doubles(column: arrow.Array) -> np.ndarray:
    """As float64; what is missing is NaN."""
    found: np.ndarray = column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


class ArrowWriter:
    """Record batches in Arrow's stream format, which can be cut off behind any of them; `Columnar` makes Parquet of them."""

    def __init__(self, model: Model, keep: Sequence[str], kept_types: Sequence[arrow.DataType] | None, digest: bool) -> None:
        """Without `kept_types` what is kept becomes text."""
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


class Columnar(Growing):
    """Grows as a stream of record batches, and becomes Parquet at its end."""

    def finish(self) -> None:
        whole = self.path.with_name(self.path.name + ".whole")
        with ipc.open_stream(arrow.OSFile(str(self.partial))) as stream:
            # Numbers that hardly ever come again are smaller without a dictionary, and written in half the time.
            words = [field.name for field in stream.schema if not arrow.types.is_floating(field.type)]
            with FileWriter(whole, stream.schema, use_dictionary=words) as writer:
                group: list[arrow.RecordBatch] = []
                for batch in stream:
                    group.append(batch)
                    if len(group) == GROUP_BATCHES:
                        writer.write_table(arrow.Table.from_batches(group, stream.schema))
                        group = []
                writer.write_table(arrow.Table.from_batches(group, stream.schema))
        put_in_place(whole, self.path)
        self.discard()
