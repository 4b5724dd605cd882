"""The comparison of a graph with the expected results, on every row, with the code that serves it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import ARGMAX, BOTH, CLASSIFIER, GRAPH, REGRESSOR, SCORES, Array, Feature
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model.artifact import ModelDescription
from iris_wsgi.model.session import Model, ModelFiles, reason
from iris_wsgi.packing.reference import Reference
from iris_wsgi.packing.sample import LABEL_COLUMN, RowSample

# The allowed difference, as a part of 1 for probabilities, and of the largest expected value of a column otherwise.
TOLERANCE = 1e-5
# Probabilities of a row may differ from the sum 1 by this much.
SUM_TOLERANCE = 1e-3
# Rows of one run of the graph.
CHUNK = 1000
SHOWN_ROWS = 5
# Rows that are also predicted alone.
ALONE_ROWS = 8
# Probabilities with a smaller difference are equal; float32 has about seven digits.
TIE = 1e-6


class Proven(NamedTuple):
    """A model whose results were compared: the description to serve it with, and its results for the rows.

    `labels` are the numbers of the served labels [n], None for a regressor. `worst` is the largest difference, None if no
    values were compared. `border` is the description of the rows on which the label of the graph is another one.
    """

    description: ModelDescription
    labels: Array | None
    values: Array
    worst: float | None


class Disagreement(BadModel):
    """Raised if a graph does not give the expected results; `count` is the number of wrong rows."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def prove(
    files: ModelFiles,
    description: ModelDescription,
    rows: Sequence[Sequence[Any]],
    reference: Reference,
    choice: str | None = None,
) -> Proven:
    """Runs the graph on the rows and compares its results. `choice` is the label that the caller wants, "argmax" or "graph".

    Raises Disagreement, and BadModel for a graph that cannot be run or served.
    """
    model = labeled_model(files, description)
    predictions = predict(model, rows)
    values = model.outputs.values(predictions).astype(np.float64)
    if not np.isfinite(values).all():
        i = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise BadModel(f"row {i + 1}: the {model.outputs.name} of the graph are not finite: {values[i].tolist()[:10]}")
    check_alone(model, rows, values)
    labels: Array | None = None
    if description.kind != REGRESSOR:
        own = model.outputs.best(predictions) if model.outputs.has_label_column else None
        description, labels = decide_label(description, values, own, reference, choice)
    worst = compare_values(description, values, reference)
    return Proven(description, labels, values, worst)


def labeled_model(files: ModelFiles, description: ModelDescription) -> Model:
    """Returns the model with the label of its graph, if the graph gives a label."""
    if description.kind != CLASSIFIER:
        return Model(files, description)
    model = Model(files, description._replace(label=ARGMAX))
    return model if model.graph_outputs.label is None else Model(files, description._replace(label=GRAPH))


def predict(model: Model, rows: Sequence[Sequence[Any]]) -> Array:
    """Returns the predictions for all rows. Raises BadModel."""
    table = model.schema.from_values(rows)
    if table is None:
        raise BadModel("the rows do not fit the inputs of the graph")
    try:
        return np.concatenate([model.predict(table[i : i + CHUNK]) for i in range(0, len(table), CHUNK)])
    except Problem as problem:
        raise BadModel(f"the graph cannot be served: {problem.detail}") from None
    except Exception as error:
        raise BadModel(f"the graph cannot be run on the rows: {reason(error)}") from None


def check_alone(model: Model, rows: Sequence[Sequence[Any]], values: Array) -> None:
    """Raises BadModel if the values of a row depend on the other rows of a run, or on chance."""
    scale = np.maximum(np.abs(values).max(axis=0), 1e-30)
    for i in np.unique(np.linspace(0, len(rows) - 1, ALONE_ROWS).astype(int)).tolist():
        alone = model.outputs.values(predict(model, [rows[i]]))[0]
        if not (np.abs(alone - values[i]) <= TOLERANCE * scale).all():
            raise BadModel(
                f"row {i + 1}: the graph gives other {model.outputs.name} for the row alone than in a batch of {len(rows)} rows."
                " Export without operators that mix rows, such as a softmax over axis 0 or a batch normalization in training"
                " mode, and without random numbers, such as a dropout in training mode"
            )


def tied_rows(reference: Reference) -> int:
    """Returns the number of rows whose two highest expected probabilities are equal."""
    if reference.kind != CLASSIFIER or reference.values is None or reference.values.shape[1] < 2:
        return 0
    top = np.partition(reference.values, -2, axis=1)[:, -2:]
    return int((top[:, 1] - top[:, 0] < TIE).sum())


def is_probability(values: Array) -> bool:
    """Returns whether all rows are from 0 to 1 and sum to 1."""
    margin = 1e-6
    in_range = (values >= -margin).all() and (values <= 1 + margin).all()
    return bool(in_range and (np.abs(values.sum(axis=1) - 1) <= SUM_TOLERANCE).all())


def decide_label(
    description: ModelDescription, values: Array, own: Array | None, reference: Reference, choice: str | None
) -> tuple[ModelDescription, Array]:
    """Returns the description with the label to serve, and the labels of the rows. Raises Disagreement and BadModel."""
    if description.kind == SCORES:
        assert own is not None
        if reference.labels is not None and (own != reference.labels).any():
            raise label_difference(description, own, reference.labels)
        return description._replace(label=GRAPH), own
    best = values.argmax(axis=1)
    found = {ARGMAX: best} if own is None else {ARGMAX: best, GRAPH: own}
    if choice is not None and choice not in found:
        raise BadModel("the graph has no label output; use --label argmax")
    if reference.labels is not None:
        right = [name for name, labels in found.items() if (labels == reference.labels).all()]
        if not right or (choice is not None and choice not in right):
            nearest = choice or min(found, key=lambda name: int((found[name] != reference.labels).sum()))
            raise label_difference(description, found[nearest], reference.labels)
        both = GRAPH if reference.has_votes else BOTH
        name = choice or (both if len(right) == 2 else right[0])
        return description._replace(label=name), reference.labels
    if own is None or (own == best).all():
        return description._replace(label=ARGMAX if own is None else BOTH), best
    if choice is None:
        raise undecided_label(description, best, own)
    return description._replace(label=choice), found[choice]


def undecided_label(description: ModelDescription, best: Array, own: Array) -> BadModel:
    wrong = np.flatnonzero(best != own)
    names, i = description.labels, int(wrong[0])
    return BadModel(
        f"on {len(wrong)} of {len(best)} rows the label of the graph is not the class of the highest probability: for row {i + 1}"
        f" the graph gives {names[own[i]]}, and the highest probability is that of {names[best[i]]}. Give --label graph if the"
        " model has a threshold or votes, --label argmax if the highest probability decides, or a column with the expected labels"
    )


def label_difference(description: ModelDescription, found: Array, expected: Array) -> Disagreement:
    wrong = np.flatnonzero(found != expected)
    names = description.labels
    shown = "; ".join(
        f"row {i + 1}: expected {names[expected[i]]}, the graph gives {names[found[i]]}" for i in wrong[:SHOWN_ROWS]
    )
    return Disagreement(f"the label is another one on {len(wrong)} of {len(found)} rows: {shown}", len(wrong))


def compare_values(description: ModelDescription, values: Array, reference: Reference) -> float | None:
    """Returns the largest difference of the values, None if none are expected. Raises Disagreement."""
    expected = reference.values
    if expected is None:
        return None
    if expected.shape != values.shape:
        raise Disagreement(f"the graph gives {values.shape[1]} columns, and {expected.shape[1]} are expected", len(values))
    scale = np.ones(values.shape[1]) if description.kind == CLASSIFIER else np.maximum(np.abs(expected).max(axis=0), 1e-30)
    off = np.abs(values - expected) / scale
    worst = float(off.max())
    if worst <= TOLERANCE:
        return worst
    names = description.labels if description.kind == CLASSIFIER else description.columns
    by_row = off.max(axis=1)
    wrong = np.argsort(-by_row, kind="stable")[: min(SHOWN_ROWS, int((by_row > TOLERANCE).sum()))].tolist()
    shown = "; ".join(one_difference(i, int(off[i].argmax()), names, expected, values) for i in wrong)
    count = int((by_row > TOLERANCE).sum())
    raise Disagreement(f"values are off by more than {TOLERANCE:g} on {count} of {len(values)} rows: {shown}", count)


def one_difference(i: int, j: int, names: Sequence[str], expected: Array, values: Array) -> str:
    name = f"{names[j]} " if j < len(names) else ""
    return (
        f"row {i + 1}: {name}expected {expected[i, j]:.7g}, the graph gives {values[i, j]:.7g},"
        f" off by {abs(expected[i, j] - values[i, j]):.1e}"
    )


class PackOptions(NamedTuple):
    """PackOptions of pack. See `iris_wsgi.pack`."""

    expected: Any = None
    label: str | None = None
    labels: Any = None
    targets: Sequence[str] = ()
    name: str = ""
    version: str = ""
    label_column: str = LABEL_COLUMN
    compare_columns: bool = True


class Prepared(NamedTuple):
    """A graph whose results were compared on every row of the sample. `source` names the origin of the expected results.

    `training` is the content of an existing training.csv, and `truth` the labels of the rows according to their label column.
    """

    files: ModelFiles
    sample: RowSample
    rows: Sequence[Sequence[Any]]
    reference: Reference
    proven: Proven
    source: str
    training: bytes | None = None
    truth: Sequence[str] | None = None
    is_drawn: bool = False

    @property
    def values(self) -> Array:
        """Returns the values to pin: those of the estimator, the expected ones, or those of the graph."""
        return self.proven.values if self.reference.values is None else self.reference.values


def described_features(sample: RowSample, types: Sequence[str], known: Sequence[Feature] = ()) -> tuple[Feature, ...]:
    """Returns the features with the ranges of the sample, unless the metadata of the graph has them."""
    found = []
    for j, (name, kind) in enumerate(zip(sample.names, types, strict=True)):
        old = known[j] if known else Feature(name)
        low, high = sample.range_of(j) if old.min is None or old.max is None else (old.min, old.max)
        missing = sample.has_missing(j) and kind.startswith("float")
        numbers = (None, None) if kind == "string" else (low, high)
        found.append(Feature(name, old.unit, *numbers, kind, missing))
    return tuple(found)
