"""Writers of predictions: the columns of each kind of model, and arrays of another width."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from iris_wsgi.codec.model_schema import OutputSchema, classifier_outputs
from iris_wsgi.errors import InvalidOutput
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.parquet import ArrowWriter
from iris_wsgi.tabular.writers import CsvWriter, JsonWriter

REGRESSOR = OutputSchema("regressor", (), ("price", 'weight, "kg"'))
SCORES = OutputSchema("scores", ("no", "yes"), ("margin",), (0, 1), "graph")


def model_of(outputs: OutputSchema) -> SimpleNamespace:
    return SimpleNamespace(outputs=outputs, digest="sha256:1")


def writers(outputs: OutputSchema, keep: list[str], digest: bool) -> list:
    model = model_of(outputs)
    return [
        CsvWriter(model, keep, digest, ","),
        JsonWriter(model, keep, digest),
        ArrowWriter(model, keep, None, digest),
    ]


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (1, 3), (4,), (4, 2, 1)])
@pytest.mark.parametrize("outputs", [REGRESSOR, classifier_outputs(("a", "b"))], ids=["regressor", "classifier"])
def test_values_of_another_width_are_refused_and_no_memory_is_written(outputs, shape):
    for writer in writers(outputs, [], False):
        with pytest.raises(InvalidOutput, match="it must have 2 columns"):
            writer.text([], np.zeros(4 if outputs.labels else 0, np.intp), np.zeros(shape, np.float32))


@pytest.mark.parametrize("keep", [[], ["key"]])
@pytest.mark.parametrize("digest", [False, True])
def test_a_regressor_has_a_column_for_each_target_and_no_label(keep, digest):
    text, lines, _ = writers(REGRESSOR, keep, digest)
    values, kept = np.array([[-1.5, 1e30], [0, 2]], np.float32), [["k", "l"]] if keep else []
    names = [*keep, "price", '"weight, ""kg"""', *(["model_digest"] if digest else [])]
    assert text.start.decode() == ",".join(names) + "\n"
    start, end = ("k," if keep else ""), (",sha256:1" if digest else "")
    assert text.text(kept, [], values).decode().splitlines()[0] == f"{start}-1.5,1.00000002e+30{end}"
    first = {"price": -1.5, 'weight, "kg"': float(np.float32(1e30))}
    found = json.loads(lines.text(kept, [], values).splitlines()[0])
    assert {name: np.float32(found[name]) for name in first} == first
    assert [name for name in found if name not in first] == [*keep, *(["model_digest"] if digest else [])]


def test_scores_have_a_label_and_their_own_names():
    text, lines, parquet = writers(SCORES, [], False)
    assert (
        text.start + text.text([], np.array([1, 0]), np.array([[0.5], [-3]], np.float32))
        == b"label,score_margin\nyes,0.5\nno,-3\n"
    )
    assert json.loads(lines.text([], np.array([1]), np.array([[0.5]], np.float32))) == {"label": "yes", "score_margin": 0.5}
    assert parquet.schema.names == ["label", "score_margin"]


@pytest.mark.parametrize("columns", [("a", "model_digest"), ("a", "a")])
def test_two_output_columns_of_one_name_are_refused(columns):
    model = model_of(OutputSchema("regressor", (), columns))
    with pytest.raises(BadSetting, match="OUT would have two columns"):
        CsvWriter(model, [], True, ",")
