"""A model as its user has it, with the predictions of the library that trained the model."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

ROWS = 200


class OwnModel(NamedTuple):
    """Model, 200 rows, and the expected predictions. The rows are an array or a DataFrame.

    `labels` are the label values of the graph for each row, and `classes` are these values in the order of the columns.
    `values` [200, columns] are probabilities, scores, or values of a regressor. The library may have none.
    `estimator` is what `pack` converts, and `graph` is what the user exported; a model with both is packed twice. `files` are
    more files next to the graph. `label_json` is the label.json of the user. `label` is the value of the option --label.
    Without `has_expected`, the rows of `pack` have no expected labels or values.
    """

    rows: Any
    labels: Any = None
    values: Any = None
    classes: Sequence[Any] = ()
    estimator: Any = None
    graph: bytes | None = None
    files: Mapping[str, bytes] = {}
    label_json: Mapping[str, str] | None = None
    label: str | None = None
    has_expected: bool = True

    def first(self, count: int) -> "OwnModel":
        """Returns the model with the first rows only."""
        rows = self.rows.iloc[:count] if hasattr(self.rows, "iloc") else self.rows[:count]
        labels = None if self.labels is None else self.labels[:count]
        return self._replace(rows=rows, labels=labels, values=None if self.values is None else self.values[:count])

    @property
    def kind(self) -> str:
        """Kind in golden.json: `classifier` for probabilities, `scores`, or `regressor`; empty if the library does not decide."""
        if not self.classes:
            return "regressor"
        if self.values is None:
            return ""
        is_share = self.values.min() >= 0 and self.values.max() <= 1 + 1e-6
        return "classifier" if is_share and np.allclose(self.values.sum(axis=1), 1, atol=1e-4) else "scores"

    @property
    def label_names(self) -> list[str]:
        """Labels of the rows as clients see them."""
        names = list(self.label_json.values()) if self.label_json else [str(value) for value in self.classes]
        by_value = dict(zip(self.classes, names, strict=False))
        return [by_value.get(value, str(value)) for value in self.labels or ()]


class Kind(NamedTuple):
    """Kind of model, with the required outcome: served if `refused` is empty, else refused with a message that matches it.

    A kind that `may_serve` is either refused or served with correct predictions, because versions of the converters differ.
    Kinds that are `slow` are outside the half that CI runs. The estimator of a kind that is `pickled` is also packed from a file.
    """

    make: Callable[[], OwnModel]
    refused: str = ""
    may_serve: bool = False
    slow: bool = False
    pickled: bool = False

    def faults_of_refusal(self, message: str) -> list[str]:
        """Returns why a refusal is a fault: the kind should be served, or the message lacks the fault or the change."""
        if not self.refused:
            return [f"it should be served, and it is refused: {message.strip()[:600]}"]
        if re.search(self.refused, message, re.IGNORECASE | re.DOTALL):
            return []
        return [f"the refusal does not match /{self.refused}/: {message.strip()[:600]}"]

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def summary(self) -> str:
        return (self.make.__doc__ or "").strip().partition("\n")[0]


def classifier(trained: Any, rows: Any, graph: bytes | None = None, **members: Any) -> OwnModel:
    """Returns the model with the labels and probabilities of the trained estimator."""
    return OwnModel(
        rows,
        np.ravel(trained.predict(rows)).tolist(),
        np.asarray(trained.predict_proba(rows), float) if hasattr(trained, "predict_proba") else None,
        np.asarray(trained.classes_).tolist(),
        **{"estimator": trained, "graph": graph, **members},
    )


def regressor(trained: Any, rows: Any, graph: bytes | None = None, **members: Any) -> OwnModel:
    """Returns the model with the values of the trained estimator."""
    values = np.asarray(trained.predict(rows), float).reshape(len(rows), -1)
    return OwnModel(rows, values=values, **{"estimator": trained, "graph": graph, **members})
