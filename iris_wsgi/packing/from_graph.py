"""Compares an .onnx file with the expected results of columns, or with nothing if none are given."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import CLASSIFIER, INTEGER_TYPES, REGRESSOR, SCORES, Array, Feature
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import EXPECTED, SELF, TRAINING_FILE, ModelDescription
from iris_wsgi.model.graph_signature import GraphOutputs, graph_inputs, graph_outputs, metadata_of
from iris_wsgi.model.session import Graph, ModelFiles, explain, listed, open_session, parse_features
from iris_wsgi.packing.folder import Names, class_names
from iris_wsgi.packing.graphs import label_facts
from iris_wsgi.packing.proof import Disagreement, PackOptions, Prepared, described_features, is_probability, prove, tied_rows
from iris_wsgi.packing.reference import KindOf, Reference, checked_reference, column_reference, given_reference, score_names
from iris_wsgi.packing.sample import RowSample, is_reserved, read_sample, split_columns

DRAWN_ROWS = 32
NOT_PROBABILITIES = (
    "the values of the graph are not probabilities: they are not from 0 to 1, or a row does not sum to 1."
    " Export the model with its softmax as the last operator, or with its label, so that the values are served as scores"
)


class Outputs(NamedTuple):
    """The outputs of the graph for all rows: labels are its own values [n], or None; values are float64 [n, columns]."""

    names: GraphOutputs
    labels: list[Any] | None
    values: Array
    classes: tuple[Any, ...]


def prepare_graph(files: ModelFiles, parsed: Any, given: RowSample | None, options: PackOptions, where: str) -> Prepared:
    """Compares a graph with the expected results, if there are any. Raises BadModel.

    `where` names the source of `options.labels` in messages.
    """
    session = open_session(files)
    reserved = (options.label_column, *options.targets)
    inputs = graph_inputs(session, 0 if given is None else feature_columns(given, reserved), files.path)
    metadata = metadata_of(session)
    known = parse_features(metadata.get("features"), inputs, files.path)
    names = [feature.name for feature in known] if "features" in metadata or len(inputs) > 1 else None
    split = split_columns(drawn_sample(known) if given is None else given, names, len(known), reserved)
    types = [feature.type for feature in known]
    # The names of the graph, because clients of its other servers know them; without them those of the header.
    chosen = split.features.names if names is None and split.features.named else [feature.name for feature in known]
    sample = split.features._replace(names=tuple(chosen)).with_texts(types)
    features = described_features(sample, types, known)
    rows = sample.row_values(features)
    found = run_outputs(files, parsed, features, rows)
    kind = kind_of(found, options, where)
    others = split.others if options.compare_columns else {}
    columns = column_reference(others, kind.classes, kind.labels, options.targets, options.label_column)
    reference = checked_reference(kind, given_reference(options.expected, kind, len(rows)) or columns)
    description = ModelDescription(
        kind=kind.kind,
        labels=kind.labels,
        classes=kind.classes,
        columns=column_names(kind, found, reference, options),
        features=features,
        name=options.name or metadata.get("name") or Path(files.path).stem,
        version=options.version or metadata.get("version") or "1",
        proof=EXPECTED if reference.compares else SELF,
    )
    training = existing_training(Path(files.path).parent / TRAINING_FILE, features)
    try:
        proven = prove(files, description, rows, reference, options.label)
    except Disagreement as error:
        raise Disagreement(f"{error}. {advice(sample, types, reference)}", error.count) from None
    source = "the expected results" if reference.compares else ""
    return Prepared(files, sample, rows, reference, proven, source, training, is_drawn=given is None)


def feature_columns(sample: RowSample, reserved: Sequence[str]) -> int:
    """Returns the number of columns that cannot be expected results."""
    return sum(not (sample.named and is_reserved(name, reserved)) for name in sample.names)


def advice(sample: RowSample, types: Sequence[str], reference: Reference) -> str:
    """Returns the change that a disagreement needs."""
    narrow = "float32" in types and sample.collapsed()
    if narrow:
        return (
            f"float32 makes different values of {listed(narrow)} equal: export with a float64 input, such as"
            " `DoubleTensorType([None, N])`, or train on smaller numbers"
        )
    if ties := tied_rows(reference):
        return (
            f"The two highest expected probabilities are equal in some rows ({ties}), and rounding decides in the graph:"
            " pack the estimator itself, for which pack decides as its predict does"
        )
    return (
        "The graph is not the model of these results, or its converter does not export this model faithfully. Export it again,"
        " or train another kind, without a tuned threshold. Expected labels must be predictions; if they are the truth, give"
        " --ignore-expected"
    )


def drawn_sample(features: Sequence[Feature]) -> RowSample:
    """Returns seeded random rows within the training ranges, or from -3 to 3 for a feature without a range."""
    if text := [feature.name for feature in features if feature.type == "string"]:
        raise BadModel(f"the feature {text[0]} takes text, of which no rows can be drawn; give rows of the model with --rows")
    drawn = random.Random(0)
    rows = [[drawn_value(drawn, feature) for feature in features] for _ in range(DRAWN_ROWS)]
    return read_sample(rows)


def drawn_value(drawn: random.Random, feature: Feature) -> Any:
    if feature.type == "bool":
        return drawn.random() < 0.5
    low, high = -3.0 if feature.min is None else feature.min, 3.0 if feature.max is None else feature.max
    if feature.type in INTEGER_TYPES:
        low = max(low, 0.0) if feature.type.startswith("u") else low
        return drawn.randint(int(low), max(int(high), int(low)))
    return round(drawn.uniform(low, high), 3)


def run_outputs(files: ModelFiles, parsed: Any, features: Sequence[Feature], rows: Sequence[Sequence[Any]]) -> Outputs:
    """Runs the graph on the rows. Raises BadModel for a graph that cannot be run."""
    graph = Graph(files, ModelDescription(features=tuple(features)))
    names = graph_outputs(graph.session, files.path, None)
    table = graph.schema.from_values(rows)
    assert table is not None
    wanted = [names.values, *([names.label] if names.label else [])]
    try:
        results = graph.run(wanted, graph.feeds(table), None)
    except Exception as error:
        raise BadModel(f"{files.path} cannot be run on the rows: {explain(error)}") from None
    facts = label_facts(parsed, names.label, names.values)
    labels = list(np.asarray(results[1]).ravel().tolist()) if names.label else None
    classes = facts.keys or facts.classes
    if facts.keys and facts.classes and set(facts.keys) != set(facts.classes):
        raise BadModel(f"the label of the graph has the classes {listed(facts.classes)}, and its ZipMap has {listed(facts.keys)}")
    if names.is_map:
        classes = classes or tuple(results[0][0])
        try:
            values = np.array([[row[value] for value in classes] for row in results[0]], np.float64)
        except KeyError:
            raise BadModel(f"the ZipMap of the graph has other keys than the classes {listed(classes)}") from None
    else:
        values = np.asarray(results[0], np.float64)
    if len(values) != len(rows) or values.ndim > 2 or (labels is not None and len(labels) != len(rows)):
        raise BadModel(f"the graph gives {len(values)} rows of outputs for {len(rows)} rows; it must give one for each")
    return Outputs(names, labels, values.reshape(len(rows), -1), classes)


def kind_of(found: Outputs, options: PackOptions, where: str) -> KindOf:
    """Returns whether the values are probabilities, scores, or values of a regressor. Raises BadModel."""
    width = found.values.shape[1]
    if found.labels is not None or found.names.is_map:
        classes = found.classes or observed_classes(found, options.labels)
        if len(classes) < 2:
            raise BadModel(f"the graph has one class only, {listed(classes)}; a classifier needs two or more")
        second = width == 1 and len(classes) == 2 and found.names.width == 1
        probable = is_probability(both_columns(found.values)) if second else is_probability(found.values)
        if second and found.labels is not None:
            probable = probable and found.labels == [classes[int(value > 0.5)] for value in found.values[:, 0]]
        if probable and width != len(classes) and not second:
            raise BadModel(f"the graph gives {width} probabilities for the {len(classes)} classes {listed(classes)}")
        if not probable and found.labels is None:
            raise BadModel(NOT_PROBABILITIES)
        return KindOf(CLASSIFIER if probable else SCORES, classes, class_names(classes, options.labels, where))
    if options.targets or (options.labels is None and (width == 1 or not is_probability(found.values))):
        return KindOf(REGRESSOR)
    values = both_columns(found.values) if width == 1 else found.values
    classes = tuple(range(values.shape[1]))
    labels = class_names(classes, options.labels, where)
    if not is_probability(values):
        raise BadModel(NOT_PROBABILITIES)
    return KindOf(CLASSIFIER, classes, labels)


def both_columns(values: Array) -> Array:
    """Returns the probabilities of both classes from those of the second."""
    return np.hstack([1 - values, values])


def observed_classes(found: Outputs, names: Names | None) -> tuple[Any, ...]:
    """Returns the classes of a graph whose nodes do not name them. Raises BadModel if the labels do not show them."""
    assert found.labels is not None
    seen, count = set(found.labels), max(found.values.shape[1], 2)
    if count == 2 and all(isinstance(value, bool) for value in seen):
        return (False, True)
    if count == 2 and seen <= {-1, 1} and -1 in seen:
        # The labels of an outlier detector.
        return (-1, 1)
    if all(isinstance(value, int) and 0 <= value < count for value in seen):
        return tuple(range(count))
    listed_names = list(names.values()) if isinstance(names, Mapping) else list(names or ())
    if seen <= set(listed_names) and len(listed_names) == count:
        return tuple(listed_names)
    raise BadModel(
        f"the nodes of the graph do not name its classes, and its labels are {listed(sorted(seen, key=str))}; name all"
        f" {count} in the order of the columns in label.json"
    )


def column_names(kind: KindOf, found: Outputs, reference: Reference, options: PackOptions) -> tuple[str, ...]:
    """Returns the names of the scores or of the targets. Raises BadModel for another number of targets."""
    width = found.values.shape[1]
    if kind.kind == REGRESSOR:
        if len(names := tuple(options.targets) or reference.columns) not in (0, width):
            raise BadModel(f"the graph gives {width} values per row, and {len(names)} targets are named: {listed(names)}")
        return names or (("value",) if width == 1 else tuple(f"value_{i}" for i in range(width)))
    if kind.kind == CLASSIFIER:
        return ()
    numbers = {value: i for i, value in enumerate(kind.classes)}
    labels = np.array([numbers.get(value, -1) for value in found.labels or ()])
    return reference.columns or score_names(found.values, labels, kind.classes) or kind.labels


def existing_training(path: Path, features: Sequence[Feature]) -> bytes | None:
    """Returns the training.csv next to the graph, if its first columns are the features."""
    import csv

    try:
        content = path.read_bytes()
        header = next(csv.reader([content.decode("utf-8-sig").splitlines()[0]]))
    except (OSError, ValueError, IndexError, csv.Error):
        return None
    return content if header[: len(features)] == [feature.name for feature in features] else None
