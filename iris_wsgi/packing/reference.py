"""The results that a graph is compared with: those of the estimator, or those that the caller expects."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import CLASSIFIER, COLUMN_NAMES, REGRESSOR, SCORES, Array
from iris_wsgi.errors import BadModel
from iris_wsgi.model.session import listed
from iris_wsgi.packing.sample import PREFIXES, as_text

# Objectives of boosters that give one probability per row, or one per class.
BINARY_OBJECTIVES = ("binary", "binary:logistic")
CLASS_OBJECTIVES = ("multiclass", "multiclassova", "multi:softprob")
# Objectives without probabilities, with the one to train with.
REFUSED_OBJECTIVES = {"binary:logitraw": "binary:logistic", "binary:hinge": "binary:logistic", "multi:softmax": "multi:softprob"}

# Classifiers whose predict counts votes, and not the probabilities of predict_proba.
VOTERS = ("SVC", "NuSVC")


class Reference(NamedTuple):
    """Reference for the rows. `classes` are the label values in the order of the columns of `values` float64 [n, columns].

    `labels` are numbers of classes. None means that there is nothing to compare. `has_votes` means that predict does not take the
    class of the highest probability, also where both are the same on all rows.
    """

    kind: str
    classes: tuple[Any, ...] = ()
    labels: Array | None = None
    values: Array | None = None
    columns: tuple[str, ...] = ()
    has_votes: bool = False

    @property
    def compares(self) -> bool:
        return self.labels is not None or self.values is not None


def library_of(estimator: Any) -> str:
    """Returns the library of an estimator: "sklearn", "lightgbm", "xgboost", "catboost", or another package."""
    return type(estimator).__module__.partition(".")[0]


def is_booster(estimator: Any) -> bool:
    return library_of(estimator) in ("lightgbm", "xgboost") and type(estimator).__name__ == "Booster"


def estimator_reference(estimator: Any, rows: Any, count: int) -> Reference:
    """Returns the results of an estimator's own predict, predict_proba, and decision_function. Raises BadModel."""
    name = type(estimator).__name__
    if not hasattr(estimator, "predict"):
        raise BadModel(f"{name} has no method predict; pack takes a fitted classifier or regressor")
    if is_booster(estimator):
        return booster_reference(estimator, rows)
    kind = getattr(estimator, "_estimator_type", None) or sklearn_type(estimator)
    if kind in ("clusterer", "density_estimator"):
        raise BadModel(f"{name} is a {kind.replace('_', ' ')}; classifiers and regressors can be served")
    classes = getattr(estimator, "classes_", None)
    rows, predicted = predicted_rows(estimator, rows)
    if kind == "outlier_detector":
        return outlier_reference(estimator, rows, predicted)
    if classes is None or kind == "regressor" or (library_of(estimator) == "catboost" and not len(classes)):
        return regressor_reference(name, predicted, count)
    return classifier_reference(estimator, rows, predicted, count)


def last_step(estimator: Any) -> Any:
    """Returns the classifier of a pipeline or of a search, or the estimator itself."""
    while True:
        steps = getattr(estimator, "steps", None)
        inner = steps[-1][1] if isinstance(steps, list) and steps else getattr(estimator, "best_estimator_", None)
        if inner is None:
            return estimator
        estimator = inner


def predicted_rows(estimator: Any, rows: Any) -> tuple[Any, Array]:
    """Returns the rows in the form that predict takes, and its results. A vectorizer of texts takes a list and no table."""
    try:
        return rows, np.asarray(estimator.predict(rows))
    except Exception as error:
        texts = np.asarray(rows, object)
        if texts.shape[1:] == (1,) and all(isinstance(text, str) for text in texts.ravel().tolist()):
            try:
                return texts.ravel(), np.asarray(estimator.predict(texts.ravel()))
            except Exception:
                # The message for the table is the one that the caller knows.
                pass
        raise BadModel(f"{type(estimator).__name__}.predict fails for the rows: {first_sentence(error)}") from None


def sklearn_type(estimator: Any) -> str | None:
    """Returns the type in the tags of scikit-learn 1.6 and later, such as "classifier"."""
    try:
        found: str | None = estimator.__sklearn_tags__().estimator_type
    except Exception:
        return None
    return found


def first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(". ")


def regressor_reference(name: str, predicted: Array, count: int) -> Reference:
    if predicted.dtype.kind not in "fiub":
        raise BadModel(f"{name}.predict returns values of type {predicted.dtype}; a regressor returns numbers")
    values = predicted.astype(np.float64)
    if values.ndim > 2 or len(values) != count:
        raise BadModel(f"{name}.predict returns the shape {list(values.shape)}; it must be [N] or [N, targets]")
    return Reference(REGRESSOR, values=values.reshape(count, -1))


def outlier_reference(estimator: Any, rows: Any, predicted: Array) -> Reference:
    """Returns the labels -1 and 1 of an outlier detector, with its decision_function as the score."""
    scores = np.asarray(estimator.decision_function(rows), np.float64).reshape(len(predicted), -1)
    return Reference(SCORES, (-1, 1), (predicted.ravel() == 1).astype(np.intp), scores, ("score",))


def classifier_reference(estimator: Any, rows: Any, predicted: Array, count: int) -> Reference:
    name = type(estimator).__name__
    if isinstance(estimator.classes_, list) or predicted.size != count or getattr(estimator, "multilabel_", False):
        raise BadModel(f"{name} gives several labels per row, which is not supported; pack one classifier per label")
    classes = class_values(estimator.classes_)
    labels = label_numbers(predicted.ravel(), classes, name)
    if hasattr(estimator, "predict_proba"):
        values = np.asarray(estimator.predict_proba(rows), np.float64)
        if values.shape != (count, len(classes)):
            raise BadModel(f"{name}.predict_proba returns the shape {list(values.shape)} for {len(classes)} classes")
        return Reference(CLASSIFIER, classes, labels, values, has_votes=type(last_step(estimator)).__name__ in VOTERS)
    if not hasattr(estimator, "decision_function"):
        return Reference(SCORES, classes, labels)
    scores = np.asarray(estimator.decision_function(rows), np.float64).reshape(count, -1)
    return Reference(SCORES, classes, labels, scores, score_names(scores, labels, classes))


def score_names(scores: Array, labels: Array | None, classes: Sequence[Any]) -> tuple[str, ...]:
    """Returns the names of columns of scores: those of the classes only if the highest score is the label in every row."""
    width = scores.shape[1]
    if width == 1:
        return ("score",)
    if width == len(classes) and labels is not None and (scores.argmax(axis=1) == labels).all():
        return ()
    return tuple(f"score_{i}" for i in range(width))


def class_values(classes: Any) -> tuple[Any, ...]:
    """Returns the classes as bool, int, or str. Whole floats become integers, as exporters convert them. Raises BadModel."""
    found = [int(value) if isinstance(value, float) and value.is_integer() else value for value in np.asarray(classes).tolist()]
    wrong = [value for value in found if not isinstance(value, (bool, int, str))]
    if wrong:
        raise BadModel(f"the classes must be whole numbers, strings, or booleans; one is {wrong[0]!r}")
    if len(found) < 2:
        raise BadModel(f"the model has one class only, {found[0] if found else 'none'}; a classifier needs two or more")
    return tuple(found)


def label_numbers(labels: Array, classes: Sequence[Any], name: str) -> Array:
    numbers = {value: i for i, value in enumerate(classes)}
    try:
        return np.array([numbers[value] for value in labels.tolist()], np.intp)
    except (KeyError, TypeError):
        raise BadModel(f"{name}.predict returns labels that are not in classes_: {', '.join(map(str, classes))}") from None


def booster_objective(booster: Any) -> str:
    """Returns the objective of a booster of LightGBM or XGBoost, such as "binary"."""
    if library_of(booster) == "lightgbm":
        return str(booster.dump_model(num_iteration=1).get("objective", "regression")).partition(" ")[0]
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def booster_reference(booster: Any, rows: Any) -> Reference:
    """Returns the results of a booster, whose predict gives probabilities. The label is the class of the highest one."""
    objective = booster_objective(booster)
    if objective in REFUSED_OBJECTIVES:
        raise BadModel(f"the objective {objective} gives no probabilities; train with {REFUSED_OBJECTIVES[objective]}")
    if library_of(booster) == "lightgbm":
        values = np.asarray(booster.predict(rows), np.float64)
    else:
        values = booster.inplace_predict(np.asarray(rows, np.float32), validate_features=False)
        values = np.asarray(values, np.float64)
    values = values.reshape(len(values), -1)
    if objective in BINARY_OBJECTIVES and values.shape[1] == 1:
        values = np.hstack([1 - values, values])
    elif objective not in CLASS_OBJECTIVES:
        return Reference(REGRESSOR, values=values)
    return Reference(CLASSIFIER, tuple(range(values.shape[1])), values.argmax(axis=1), values)


def column_reference(
    others: Mapping[str, Array], classes: Sequence[Any], labels: Sequence[str], targets: Sequence[str], label_column: str
) -> Reference | None:
    """Returns the expected results of columns: a label, and probabilities, scores, or values. None if there are none.

    Raises BadModel for a label that is not a class, and for a class without a column.
    """
    if targets:
        if missing := [name for name in targets if name not in others]:
            if len(missing) < len(targets):
                raise BadModel(f"the rows have no column {listed(missing)} of the targets {listed(targets)}")
            return None
        return Reference(REGRESSOR, values=number_columns(others, targets), columns=tuple(targets))
    numbers = label_column_numbers(others, classes, labels, label_column) if label_column in others and classes else None
    for kind, prefix in PREFIXES.items():
        given = [name for name in others if name.startswith(prefix)]
        if not given:
            continue
        wanted = given if kind == REGRESSOR or not classes else class_columns(given, prefix, classes, labels)
        return Reference(
            kind, tuple(classes), numbers, number_columns(others, wanted), tuple(name.removeprefix(prefix) for name in wanted)
        )
    return None if numbers is None else Reference(CLASSIFIER, tuple(classes), numbers)


def class_columns(given: Sequence[str], prefix: str, classes: Sequence[Any], labels: Sequence[str]) -> list[str]:
    """Returns the columns of the classes in their order. A column has the name of a label or of a class."""
    if prefix == PREFIXES[SCORES] and len(given) != len(classes):
        return list(given)
    for names in (labels, list(map(str, classes))):
        if {f"{prefix}{name}" for name in names} == set(given):
            return [f"{prefix}{name}" for name in names]
    raise BadModel(f"the columns {listed(given)} are not one for each of the labels {listed(labels)}")


def number_columns(others: Mapping[str, Array], names: Sequence[str]) -> Array:
    for name in names:
        if others[name].dtype == object or not np.isfinite(others[name].astype(np.float64)).all():
            raise BadModel(f"the column {name} must have a number in every row")
    return np.column_stack([others[name].astype(np.float64) for name in names])


def label_column_numbers(others: Mapping[str, Array], classes: Sequence[Any], labels: Sequence[str], name: str) -> Array:
    return numbers_of(list(others[name].tolist()), classes, labels, f"the column {name}")


def numbers_of(found: Sequence[Any], classes: Sequence[Any], labels: Sequence[str], where: str) -> Array:
    """Returns the numbers of labels, which are names of classes or values of the graph. Raises BadModel for another label."""
    # Converters make 0 and 1 of False and True.
    truth = {"False": 0, "True": 1} if tuple(classes) == (0, 1) else {}
    by_text = truth | {str(value): i for i, value in enumerate(classes)} | {name: i for i, name in enumerate(labels)}
    texts = [as_text(value) for value in found]
    if unknown := sorted({text for text in texts if text not in by_text}):
        raise BadModel(f"{where} has the label {unknown[0]}, and the labels of the model are {listed(labels)}")
    return np.array([by_text[text] for text in texts], np.intp)


class KindOf(NamedTuple):
    """The kind of a model, its classes in the order of the columns, and their names."""

    kind: str
    classes: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()


def given_reference(expected: Any, kind: KindOf, count: int) -> Reference | None:
    """Returns the results of the argument `expected`: labels [n], values [n, columns], or a mapping with both."""
    if expected is None:
        return None
    labels, values, kind_given = None, None, kind.kind
    table: Array | None
    if isinstance(expected, Mapping):
        labels = expected.get("labels")
        kind_given, values = next(
            ((one, expected[name]) for one, name in COLUMN_NAMES.items() if expected.get(name) is not None), (kind_given, None)
        )
    else:
        given = np.asarray(expected)
        labels, values = (given, None) if given.ndim == 1 and kind.kind != REGRESSOR else (None, given)
    if labels is None and values is None:
        raise BadModel('expected must be labels, values, or a mapping with "labels" and "probabilities", "scores", or "values"')
    numbers = None if labels is None else numbers_of(np.asarray(labels).tolist(), kind.classes, kind.labels, "expected")
    table = None if values is None else np.asarray(values, np.float64).reshape(len(values), -1)
    for found in (numbers, table):
        if found is not None and len(found) != count:
            raise BadModel(f"expected has {len(found)} rows, and there are {count} rows of features")
    return Reference(kind_given, kind.classes, numbers, table)


def checked_reference(kind: KindOf, reference: Reference | None) -> Reference:
    """Returns the results for this kind of model. Raises BadModel for expected values of another kind."""
    if reference is None:
        return Reference(kind.kind, kind.classes)
    if reference.values is not None and reference.kind != kind.kind:
        raise BadModel(f"the expected results are {COLUMN_NAMES[reference.kind]}, and the graph gives {COLUMN_NAMES[kind.kind]}")
    if kind.kind == REGRESSOR and reference.labels is not None:
        raise BadModel("the rows have a column of expected labels, and the graph gives values without a label")
    return reference._replace(kind=kind.kind, classes=kind.classes)
