"""The self-test with golden rows that a model must pass before it is served."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from iris_wsgi.codec.model_schema import BOTH, CLASSIFIER, REGRESSOR, Array, OutputSchema, RowSchema
from iris_wsgi.codec.rows import Encoder, decode_rows
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model.artifact import PROOF_TEXTS, ArtifactManifest, GoldenRow, ModelDescription
from iris_wsgi.model.session import RUNTIME_VERSION, Model, listed, load_model, reason


class TakesRows(Protocol):
    """A graph that takes rows."""

    @property
    def schema(self) -> RowSchema: ...


class TestableModel(TakesRows, Protocol):
    """A model that can be tested: a whole one, or the two halves of one."""

    @property
    def outputs(self) -> OutputSchema: ...
    def predict(self, rows: Array, /) -> Array: ...


def self_test(model: TestableModel, cases: Sequence[GoldenRow], tolerance: float, scales: Sequence[float] = ()) -> str:
    """Decodes, predicts, and encodes golden rows as a request does. Returns one line of report. Raises BadModel on a mismatch.

    The tolerance is a part of `scales`, by default those of these rows.
    """
    outputs = model.outputs
    rows = [case.row for case in cases]
    try:
        body = json.dumps({"data": rows}).encode()
        answer = json.loads(Encoder(outputs).batch(model.predict(decode_rows(body, model.schema, len(rows), ""))))
    except Problem as problem:
        faults = "; ".join(f"{fault.pointer} {fault.detail}" for fault in problem.faults)
        raise BadModel(f"the golden rows cannot be predicted: {problem.detail} {faults}".strip()) from None
    except Exception as error:
        raise BadModel(f"the golden rows cannot be predicted: {reason(error)}") from error
    columns = len(outputs.columns)
    for i, case in enumerate(cases):
        if len(case.outputs) != columns:
            raise BadModel(f"golden row {i} has {len(case.outputs)} {outputs.name}, the model returns {columns}")
    scales = scales or value_scales(outputs, cases)
    worst = 0.0
    labels = answer.get("labels", [""] * len(cases))
    for i, (case, label, values) in enumerate(zip(cases, labels, answer[outputs.name], strict=True)):
        # numpy's maximum with a NaN is NaN. "not <=" instead of ">": a NaN in golden.json must not pass.
        off = float(np.max(np.abs(np.subtract(case.outputs, values)) / scales))
        if label != case.label or not off <= tolerance:
            found, expected = (f"has the label {label}, ", f"{case.label} ") if case.label else ("is ", "")
            raise BadModel(f"golden row {i} {found}off by {off:.1e}; expected is {expected}within {tolerance:g}")
        worst = max(worst, off)
    return f"{len(rows)} golden rows answered, {outputs.name} within {worst:.1e} (allowed {tolerance:g})"


def value_scales(outputs: OutputSchema, cases: Sequence[GoldenRow]) -> list[float]:
    """Returns the size of each column, of which the tolerance is a part: 1 for probabilities, else the largest golden value."""
    if outputs.kind == CLASSIFIER:
        return [1.0] * len(outputs.columns)
    return [max(1e-30, *map(abs, column)) for column in zip(*(case.outputs for case in cases), strict=True)]


def load_verified_model(folder: Path, seal: str = "") -> tuple[Model, ArtifactManifest, str]:
    """Loads a model and compares its files, its labels, and its predictions with golden.json. Returns both and a line of report.

    Raises BadModel.
    """
    model, golden = load_model(folder, seal)
    result = self_test(model, golden.cases, golden.tolerance)
    rows = golden_array(model, golden.cases)
    check_labels(model, rows, str(folder))
    check_shapes(model, rows[:1])
    return model, golden, result


def proof_of(description: ModelDescription) -> str:
    """Returns the origin of the golden rows, and the runtimes that packed and that answer them, in one line."""
    packed = f"packed with {description.runtime}, " if description.runtime else ""
    return f"{PROOF_TEXTS[description.proof]}; {packed}answered by onnxruntime {RUNTIME_VERSION}"


def golden_array(model: TakesRows, cases: Sequence[GoldenRow]) -> Array:
    """Returns the golden rows as an array [n, features]. Raises BadModel if they do not fit the features."""
    rows = model.schema.from_values([case.row for case in cases])
    if rows is None:
        raise BadModel("the golden rows do not fit the features of the model")
    return rows


def check_labels(model: Model, rows: Array, where: str) -> None:
    """Compares the label output of the graph with label.json and with the classes of golden.json. Raises BadModel."""
    found = None if model.outputs.kind == REGRESSOR else model.graph_labels(rows)
    if found is None:
        return
    labels, classes = model.labels, model.outputs.classes
    if not classes:
        # A golden.json of an older version. The numbers of the classes, or their names, must be those of label.json.
        classes = labels if any(type(value) is str for value in found) else tuple(range(len(labels)))
    given = list(dict.fromkeys(found))
    if unknown := [value for value in given if value not in classes]:
        raise BadModel(
            f"{where}: the graph gives the label {unknown[0]}, which is not a class of this folder. The labels of the graph are"
            f" {listed(given)}; the classes of this folder are {listed(classes)}, and label.json names {listed(labels)}."
            " Run pack on the model, so that label.json and the graph agree"
        )
    if model.outputs.label != BOTH:
        return
    for i, (value, number) in enumerate(zip(found, model.outputs.best(model.predict(rows)).tolist(), strict=True)):
        if value != classes[number]:
            raise BadModel(
                f"{where}: for golden row {i} the graph gives the label {value}, and its highest probability has the label"
                f" {labels[number]}: label.json has another order than the graph, or the graph has its own threshold."
                f" The classes of the graph are {listed(classes)}; label.json names {listed(labels)}. Run pack on the model"
            )


def check_shapes(model: TestableModel, rows: Array) -> None:
    """Runs the model on one row, on two rows, and on all rows. Raises BadModel if an output has another shape."""
    for batch in (rows[:1], rows[[0, -1]], rows):
        try:
            model.predict(batch)
        except Problem as problem:
            raise BadModel(f"the model cannot be used: {problem.detail}") from None
        except Exception as error:
            raise BadModel(f"the model cannot be run on {len(batch)} rows: {reason(error)}") from None


def passes(model: TestableModel, cases: Sequence[GoldenRow], tolerance: float) -> bool:
    """Returns whether the model still predicts the first golden row correctly."""
    try:
        # A value near zero alone would be compared by its own size.
        self_test(model, cases[:1], tolerance, value_scales(model.outputs, cases))
    except BadModel:
        return False
    return True


def batch_difference(model: TestableModel, cases: Sequence[GoldenRow]) -> float:
    """Returns the largest difference between the predictions of golden rows alone and in a batch; 0 means identical bits."""
    rows = golden_array(model, cases)
    alone = np.concatenate([model.predict(row[np.newaxis]) for row in rows])
    return float(np.abs(alone - model.predict(rows)).max())


def batch_consistency(model: TestableModel, cases: Sequence[GoldenRow]) -> str:
    """Reports in one line whether a row has the same bits alone and in a batch. Caching by content and batching require it."""
    off = batch_difference(model, cases)
    return "alone and in a batch a row " + (f"differs by up to {off:.1e}" if off else "gets the same bits")
