"""Both halves of a model: the first one converts raw rows, and the second one predicts converted rows."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import CLASSIFIER, GRAPH, Array, OutputSchema, RowSchema
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model.artifact import GOLDEN, ArtifactManifest, ModelDescription
from iris_wsgi.model.companions import feature_difference, foreign
from iris_wsgi.model.golden import check_shapes, golden_array, load_verified_model, self_test
from iris_wsgi.model.session import Graph, Model, ModelFiles, listed, load, shaped

PREP, PRED = "prep", "pred"


class FirstHalf(Graph):
    """Converts raw rows to the input rows of the second half. `digest` is that of the pair of both halves."""

    def __init__(self, files: ModelFiles, description: ModelDescription) -> None:
        """Raises BadModel."""
        super().__init__(files, description)
        file, outputs = files.path, self.session.get_outputs()
        if description.kind != CLASSIFIER or description.label == GRAPH:
            raise BadModel(f"{file} is not the half of a classifier with probabilities; the pattern prep-pred serves only those")
        if len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
            raise BadModel(f"{file} must have one output, tensor(float) [N, features], for the second half of the model")
        if "pair" not in self.identity:
            raise BadModel(f"{file} has no metadata `pair`, which names the pair that this half belongs to")
        self.output, self.columns = outputs[0].name, outputs[0].shape[1]
        # Each half has a digest. Responses have that of the pair, because one half alone predicts nothing.
        self.identity["prep"], self.digest = self.digest, self.identity["pair"]

    def prepare(self, rows: Array) -> Array:
        """Converts rows [n, features] to rows [n, columns] of the second half. Raises InvalidOutput for another shape."""
        (output,) = self.run((self.output,), self.feeds(rows), None)
        prepared = np.asarray(output, np.float32)
        # If the file does not set the width, the second half validates the width of its input.
        return shaped(prepared, len(rows), self.columns if isinstance(self.columns, int) else prepared.shape[-1])


class JoinedModel(NamedTuple):
    """Both halves as one model, for the self-test with golden rows."""

    outputs: OutputSchema
    schema: RowSchema
    predict: Callable[[Array], Array]


class Pair(NamedTuple):
    """Both halves, and golden.json of the first one, whose rows are raw."""

    prep: FirstHalf
    pred: Model
    pinned: ArtifactManifest
    joined: JoinedModel


def join(first: Path, second: Path, pred: Model) -> Pair:
    """Loads the first half of the second half `pred` in the folder `second`, and tests them as one model. Raises BadModel."""
    prep, pinned = load(FirstHalf, first, "")
    if pred.identity.get("pair") != prep.digest:
        raise BadModel(f"{first} and {second} are not the halves of one model: their files name different pairs")
    joined = JoinedModel(pred.outputs, prep.schema, lambda rows: pred.predict(prep.prepare(rows)))
    check_shapes(joined, golden_array(prep, pinned.cases[:1]))
    self_test(joined, pinned.cases, pinned.tolerance)
    return Pair(prep, pred, pinned, joined)


def load_pair(whole: Path, full: Graph, golden: ArtifactManifest) -> Pair:
    """Loads the halves of the full model, whose golden.json is `golden`.

    Raises BadModel if both halves together do not give the predictions of the golden rows of the full model.
    """
    first, second = whole / PREP, whole / PRED
    if not second.exists():
        hint = "docs/own-models.md describes how to make both halves of a model"
        raise BadModel(f"{second / GOLDEN} cannot be read: there is no second half; {hint}")
    pred, _, _ = load_verified_model(second)
    if pred.name == full.name:
        raise BadModel(f"{second} has a model of the name {full.name}, which is also the name of the full model")
    if pred.labels != full.labels:
        difference = f"it has the classes {listed(pred.labels)}; the full model has the classes {listed(full.labels)}"
        raise foreign(second, pred, full, difference)
    pair = join(first, second, pred)
    if difference := feature_difference(pair.prep, full):
        raise foreign(first, pair.prep, full, difference)
    try:
        self_test(pair.joined, golden.cases, golden.tolerance)
    except BadModel as error:
        raise foreign(second, pred, full, f"the halves together fail its golden rows: {error}") from None
    return pair


def check_prepared(prep: FirstHalf, rows: Array) -> None:
    """Runs the first half on one row, on two rows, and on all rows. Raises BadModel if an output has another shape."""
    for batch in (rows[:1], rows[[0, -1]], rows):
        try:
            prep.prepare(batch)
        except Problem as problem:
            raise BadModel(f"the first half of the model cannot be used: {problem.detail}") from None
