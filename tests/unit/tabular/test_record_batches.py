"""Parquet reader and writer: columns of valid floats take a short way, with the same rows as the general one."""

import numpy as np
import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from pyarrow import ipc

from iris_wsgi.codec.model_schema import REGRESSOR, Feature, OutputSchema, RowSchema, classifier_outputs
from iris_wsgi.tabular.parquet import ArrowWriter, ParquetReader

MAX = float(np.finfo(np.float32).max)
# Halfway between the maximum and the next power of two: a cast rounds smaller numbers to the maximum.
ABOVE_MAX = MAX + 2.0**102
VALUES = st.sampled_from([0.0, -0.0, 5.1, MAX, -MAX, ABOVE_MAX, -ABOVE_MAX, 1e39, float("inf"), float("nan"), None]) | st.floats()
TYPES = [arrow.float64(), arrow.float32(), arrow.float16(), arrow.int64()]


def schema_of(kind: str, missing: bool) -> RowSchema:
    return RowSchema([Feature(name, "", None, None, type=kind, missing=missing) for name in ("a", "b")])


@st.composite
def batches(draw) -> arrow.RecordBatch:
    count = draw(st.integers(1, 5))
    columns = []
    for kind in draw(st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES))):
        whole = st.integers(-(2**62), 2**62) | st.none()
        values = draw(st.lists(whole if kind == arrow.int64() else VALUES, min_size=count, max_size=count))
        if kind in (arrow.float16(), arrow.float32()):
            with np.errstate(over="ignore"):
                narrow = np.float16 if kind == arrow.float16() else np.float32
                values = [None if value is None else narrow(value) for value in values]
        columns.append(arrow.array(values, kind))
    return arrow.RecordBatch.from_arrays(columns, ["a", "b"])


@settings(deadline=None, max_examples=examples(600))
@given(batches(), st.sampled_from(["float32", "float64"]), st.booleans())
def test_the_short_way_of_valid_floats_gives_the_rows_of_the_general_one(batch, kind, missing):
    reader = ParquetReader(batch.schema, schema_of(kind, missing), ["a", "b"], [], False)
    data = batch.serialize().to_pybytes()
    short = reader.rows(data, 7)
    reader.floats = lambda columns, count: None
    general = reader.rows(data, 7)
    assert short.values.tobytes() == general.values.tobytes() and short.values.dtype == general.values.dtype
    assert [*short.lines] == [*general.lines] and short.bad_rows == general.bad_rows


class OutputModel:
    digest = "sha256:1"

    def __init__(self, outputs: OutputSchema) -> None:
        self.outputs = outputs


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize(
    "outputs", [classifier_outputs(("no", "yes")), OutputSchema(REGRESSOR, (), ("x", "y"))], ids=["labels", "values"]
)
def test_a_stream_of_record_batches_can_be_read_up_to_any_of_them(outputs, digest):
    writer = ArrowWriter(OutputModel(outputs), ["id"], [arrow.int64()], digest)
    values = np.array([[0.25, 0.75], [1, 0]], np.float32)
    data = writer.start
    for count in range(3):
        table = ipc.open_stream(data).read_all()
        expected = {"id": [1, 2]} | ({"label": ["yes", "no"]} if outputs.labels else {})
        expected |= dict(zip(table.schema.names[-2 - digest :], values.T.tolist(), strict=False))
        expected |= {"model_digest": ["sha256:1"] * 2} if digest else {}
        assert table.to_pydict() == {name: column * count for name, column in expected.items()}
        labels = np.array([1, 0], np.intp) if outputs.labels else np.empty(0, np.intp)
        data += writer.text([arrow.array([1, 2])], labels, values)
