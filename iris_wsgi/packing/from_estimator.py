"""Converts an estimator with each kind of inputs until the graph gives the estimator's own results."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iris_wsgi.codec.model_schema import REGRESSOR, SCORES, Array, Feature
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import ESTIMATOR, ModelDescription
from iris_wsgi.model.graph_signature import graph_outputs
from iris_wsgi.model.session import Graph, ModelFiles, listed
from iris_wsgi.packing.conversion import Layout, convert, feature_count, feature_names, layouts, text_columns
from iris_wsgi.packing.folder import class_names
from iris_wsgi.packing.graphs import (
    input_names,
    label_facts,
    read_graph,
    with_column,
    with_exact_votes,
    with_metadata,
    with_width,
)
from iris_wsgi.packing.proof import (
    CHUNK,
    TOLERANCE,
    Disagreement,
    PackOptions,
    Prepared,
    Proven,
    described_features,
    prove,
    tied_rows,
)
from iris_wsgi.packing.reference import Reference, estimator_reference, library_of, numbers_of, score_names
from iris_wsgi.packing.sample import RowSample, split_columns

# Names of the packages of libraries whose import has another name.
PACKAGES = {"sklearn": "scikit-learn"}


def prepare_estimator(estimator: Any, given: RowSample, options: PackOptions, where: str) -> Prepared:
    """Returns the first export that agrees with the estimator on all rows. Raises BadModel if none does.

    `where` names the source of `options.labels` in messages.
    """
    names = feature_names(estimator)
    reserved = (options.label_column, *options.targets)
    split = split_columns(given, names, feature_count(estimator), reserved)
    sample = split.features if split.features.named or not names else split.features._replace(names=names, named=True)
    text = text_columns(estimator, sample.names)
    sample = sample.with_texts(["string" if j in text else "" for j in range(len(sample.names))])
    reference = estimator_reference(estimator, sample.matrix(names), sample.size)
    reference = reference._replace(columns=target_columns(reference, options)) if reference.kind == REGRESSOR else reference
    labels = class_names(reference.classes, options.labels, where) if reference.classes else ()
    files, rows, reference, proven = first_agreeing(estimator, sample, reference, labels, options)
    truth = true_labels(split.others.get(options.label_column), reference.classes, labels)
    return Prepared(files, sample, rows, reference, proven, f"predict of {type(estimator).__name__}", truth=truth)


def true_labels(column: Array | None, classes: Sequence[Any], labels: Sequence[str]) -> list[str] | None:
    """Returns the names of the labels in the label column, which are the truth and not predictions. None if there are none."""
    if column is None or not classes:
        return None
    try:
        return [labels[i] for i in numbers_of(list(column.tolist()), classes, labels, "")]
    except BadModel:
        return None


def target_columns(reference: Reference, options: PackOptions) -> tuple[str, ...]:
    """Returns the names of the targets. Raises BadModel for another number of names."""
    assert reference.values is not None
    width = reference.values.shape[1]
    if options.targets and len(options.targets) != width:
        raise BadModel(f"the estimator predicts {width} targets, and {len(options.targets)} are named: {listed(options.targets)}")
    return tuple(options.targets) or (("value",) if width == 1 else tuple(f"value_{i}" for i in range(width)))


def first_agreeing(
    estimator: Any, sample: RowSample, reference: Reference, labels: Sequence[str], options: PackOptions
) -> tuple[ModelFiles, list[list[Any]], Reference, Proven]:
    tried: list[tuple[Layout, BadModel]] = []
    for layout in layouts(estimator, sample):
        try:
            return attempt(estimator, layout, sample, reference, labels, options)
        except BadModel as error:
            tried.append((layout, error))
    differences = [error for _, error in tried if isinstance(error, Disagreement)]
    if not differences:
        raise tried[0][1]
    inputs = ", ".join(str(layout) for layout, error in tried if isinstance(error, Disagreement))
    best = min(differences, key=lambda error: error.count)
    text = f"the export of {type(estimator).__name__} disagrees with its own predict ({inputs}): {best}"
    raise Disagreement(f"{text}. {advice(sample, reference)}", best.count) from None


def advice(sample: RowSample, reference: Reference) -> str:
    """Returns the change of the training that a disagreement needs."""
    if collapsed := sample.collapsed():
        return (
            f"float32 makes different values of {listed(collapsed)} equal, and the converter knows no float64: train on smaller"
            " numbers, such as seconds since the start of a year"
        )
    if ties := tied_rows(reference):
        return (
            f"The two highest probabilities are equal in some rows ({ties}), and rounding decides: train an odd number of voters"
        )
    return "Its converter does not export this model faithfully: train another estimator, without a tuned threshold"


def attempt(
    estimator: Any, layout: Layout, sample: RowSample, reference: Reference, labels: Sequence[str], options: PackOptions
) -> tuple[ModelFiles, list[list[Any]], Reference, Proven]:
    """Converts with these inputs and compares all rows. Raises BadModel."""
    content = convert(estimator, layout, sample, reference.kind != REGRESSOR)
    content = with_metadata(with_exact_votes(content), {"libraries": json.dumps(libraries(estimator))})
    files = ModelFiles(content, "model.onnx")
    types = [layout.type_of(column, sample.has_missing(j)) for j, column in enumerate(sample.columns)]
    if layout.per_column and len(input_names(content)) != len(sample.names):
        raise BadModel(f"the export has the inputs {listed(input_names(content))}, and the columns are {listed(sample.names)}")
    features = described_features(sample, types)
    rows = sample.row_values(features)
    if reference.kind == SCORES:
        files, reference = with_scores(files, features, rows, reference)
    elif reference.kind == REGRESSOR and (found := raw_values(files, features, rows)) is not None:
        # The converter of forests declares one target also for several.
        files = files._replace(content=with_width(files.content, found[0], found[1].shape[1]))
    classes = graph_classes(files, reference)
    description = ModelDescription(
        kind=reference.kind,
        labels=tuple(labels),
        classes=classes,
        columns=reference.columns or (tuple(labels) if reference.kind == SCORES else ()),
        features=features,
        name=options.name,
        version=options.version or "1",
        proof=ESTIMATOR,
    )
    return files, rows, reference, prove(files, description, rows, reference, options.label)


def graph_classes(files: ModelFiles, reference: Reference) -> tuple[Any, ...]:
    """Returns the graph's own values of the estimator's classes. Raises BadModel if they are others."""
    if not reference.classes:
        return ()
    session = Graph(files, ModelDescription()).session
    outputs = graph_outputs(session, files.path, None)
    found = label_facts(read_graph(files.content, files.path), outputs.label, outputs.values)
    own = found.classes or found.keys
    if not own:
        return tuple(map(int, reference.classes)) if outputs.label_type == "tensor(int64)" else reference.classes
    if own != reference.classes and tuple(map(str, own)) != tuple(map(str, reference.classes)):
        raise BadModel(f"the export has the classes {listed(own)}, and the estimator has {listed(reference.classes)}")
    return own


def with_scores(
    files: ModelFiles, features: Sequence[Feature], rows: Sequence[Sequence[Any]], reference: Reference
) -> tuple[ModelFiles, Reference]:
    """Returns the graph with the column that is the estimator's decision_function, if the graph gives it twice.

    Converters write the scores of two classes as two columns, s and -s, in either order.
    """
    found = raw_values(files, features, rows)
    if found is None:
        return files, reference
    output, values = found
    if reference.values is None:
        return files, reference._replace(columns=hard_names(values, reference))
    expected = reference.values[: len(values)]
    if expected.shape[1] > 1:
        return files, reference
    scale = max(float(np.abs(expected).max()), 1e-30)
    for j in range(values.shape[1]):
        if np.abs(values[:, j] - expected[:, 0]).max() <= TOLERANCE * scale:
            return files._replace(content=with_column(files.content, output, j)), reference
    return files, reference


def hard_names(values: Array, reference: Reference) -> tuple[str, ...]:
    """Returns the names of scores that the estimator does not have, such as the votes of classifiers."""
    labels = None if reference.labels is None else reference.labels[: len(values)]
    return score_names(values, labels, reference.classes)


def raw_values(files: ModelFiles, features: Sequence[Feature], rows: Sequence[Sequence[Any]]) -> tuple[str, Array] | None:
    """Returns the name and the values of the output of scores or values, for at most 1,000 rows. None means a ZipMap."""
    graph = Graph(files, ModelDescription(features=tuple(features)))
    outputs = graph_outputs(graph.session, files.path, None)
    table = graph.schema.from_values(rows[:CHUNK])
    if outputs.is_map or table is None:
        return None
    (found,) = graph.run((outputs.values,), graph.feeds(table), None)
    return outputs.values, np.asarray(found, np.float64).reshape(len(table), -1)


def libraries(estimator: Any) -> dict[str, str]:
    """Returns the versions of the library of the estimator and of the converter, which are imported already."""
    names = (library_of(estimator), "skl2onnx", "onnx")
    versions = {PACKAGES.get(name, name): getattr(sys.modules.get(name), "__version__", "") for name in names}
    return {name: version for name, version in versions.items() if version}


def load_estimator(path: Path) -> Any:
    """Loads a .joblib or .pkl file, which runs the code in it. Raises BadModel."""
    try:
        import joblib
    except ImportError:
        raise BadModel("a .joblib or .pkl file needs the package joblib: run `pip install scikit-learn`") from None
    try:
        return joblib.load(path)
    except ImportError as error:
        name = (error.name or str(error)).partition(".")[0]
        raise BadModel(f"{path} needs the package {PACKAGES.get(name, name)}, which is not installed: `pip install` it") from None
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise BadModel(
            f"{path} cannot be loaded: {type(error).__name__}: {error}. Use the version of the library that saved it"
        ) from None
