"""Loads a model of every kind, and compares its predictions with those of its graph."""

import numpy as np
import pytest
from packed_models import KINDS, answers_of, write_model

from iris_wsgi.model.golden import load_verified_model


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_is_loaded_and_predicts_as_its_graph_does(tmp_path, kind):
    packed = KINDS[kind]
    model, golden, line = load_verified_model(write_model(tmp_path, kind))
    assert line.startswith(f"{len(packed.rows)} golden rows answered")
    rows = model.schema.from_values(packed.rows)
    predictions = model.predict(rows)
    expected = answers_of(tmp_path, packed, packed.rows)
    assert model.outputs.values(predictions).tolist() == expected.values
    assert (predictions.dtype, predictions.shape) == (np.float32, (len(rows), model.outputs.width))
    if packed.labels:
        assert [model.labels[i] for i in model.outputs.best(predictions)] == expected.labels
    assert [case.outputs for case in golden.cases] == expected.values
