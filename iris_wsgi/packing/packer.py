"""Packs a model: from an estimator or an .onnx file and rows to a folder whose results were compared."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.codec.model_schema import ARGMAX, BOTH, CLASSIFIER, GRAPH, REGRESSOR, SCORES, Array, Feature
from iris_wsgi.console import script
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import LABELS_FILE, PROOF_TEXTS, SELF, ArtifactManifest
from iris_wsgi.model.session import Model, ModelFiles, listed
from iris_wsgi.packing.folder import GoldenRows, choose_rows, read_names, training_csv, write_folder
from iris_wsgi.packing.from_estimator import load_estimator, prepare_estimator
from iris_wsgi.packing.from_graph import prepare_graph
from iris_wsgi.packing.graphs import read_graph, read_model_files
from iris_wsgi.packing.proof import TOLERANCE, PackOptions, Prepared
from iris_wsgi.packing.sample import read_sample

SHOWN_FEATURES = 20
KINDS = {CLASSIFIER: "classifier with probabilities", SCORES: "classifier with scores", REGRESSOR: "regressor"}
LABELS = {
    BOTH: "the class of the highest probability, which is the label of the graph on all rows",
    ARGMAX: "the class of the highest probability",
    GRAPH: "the label of the graph",
}


PICKLES = (".joblib", ".pkl", ".pickle")
# The name is part of URLs and of a file name.
is_name = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*").fullmatch
replace_other_characters = re.compile(r"[^A-Za-z0-9_.-]+").sub


class PackReport(NamedTuple):
    """The result of pack. `str()` gives the lines of the report."""

    folder: Path
    digest: str
    seal: str
    proof: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def pack_model(model: Any, rows: Any, folder: str | Path, options: PackOptions) -> PackReport:
    """Writes the folder of a model after comparing its results. Returns the report. Raises BadModel.

    `model` is a fitted estimator, the path of an .onnx, .joblib, or .pkl file, or an ONNX model in memory.
    """
    if options.name and not is_name(options.name):
        raise BadModel(f"the name {options.name!r} must have letters, digits, dots, dashes, and underscores only")
    if options.label not in (None, "argmax", "graph"):
        raise BadModel(f'label must be "argmax" or "graph", and it is {options.label!r}')
    path = Path(model) if isinstance(model, (str, Path)) else None
    where = "labels"
    if path is not None:
        options, where = with_path(path, options)
    sample = None if rows is None else read_sample(rows)
    if (graph := graph_of(model, path)) is not None:
        prepared = prepare_graph(*graph, sample, options, where)
    elif sample is None:
        raise BadModel("an estimator needs rows to compare its export with: give --rows with some hundred rows of its training")
    else:
        if not options.name:
            options = options._replace(name=replace_other_characters("_", Path(folder).resolve().name) or "model")
        prepared = prepare_estimator(load_estimator(path) if path else model, sample, options, where)
    return write(prepared, Path(folder))


def with_path(path: Path, options: PackOptions) -> tuple[PackOptions, str]:
    """Returns the options with the name of the file and with its label.json, and the source of the labels for messages.

    Raises BadModel for a file of another kind.
    """
    if path.suffix not in (".onnx", *PICKLES):
        raise BadModel(f"{path} must be an .onnx, .joblib, or .pkl file")
    where = "--labels"
    if isinstance(options.labels, Path):
        where, options = str(options.labels), options._replace(labels=read_names(options.labels))
    elif options.labels is None and (file := path.parent / LABELS_FILE).exists():
        where, options = str(file), options._replace(labels=read_names(file))
    if not options.name and path.suffix != ".onnx":
        options = options._replace(name=replace_other_characters("_", path.stem))
    return options, where


def graph_of(model: Any, path: Path | None) -> tuple[ModelFiles, Any] | None:
    """Returns the files and the parsed form of an ONNX model, None for an estimator. Raises BadModel."""
    if path is not None:
        return read_model_files(path) if path.suffix == ".onnx" else None
    content = model.SerializeToString() if hasattr(model, "SerializeToString") else model
    if not isinstance(content, bytes):
        return None
    return ModelFiles(content, "model.onnx"), read_graph(content, "the model")


def write(prepared: Prepared, folder: Path) -> PackReport:
    description, labels = prepared.proven.description, prepared.proven.labels
    chosen = choose_rows(prepared.sample, labels, prepared.values)
    pinned: Array | None = None if labels is None else labels[chosen]
    golden = GoldenRows([prepared.rows[i] for i in chosen], pinned, prepared.values[chosen])
    training = prepared.training
    if training is None and not prepared.is_drawn:
        names = None if description.kind == REGRESSOR or labels is None else [description.labels[i] for i in labels.tolist()]
        training = training_csv(description.features, prepared.rows, prepared.truth or names)
    model, manifest, self_test = write_folder(folder, prepared.files, description, golden, training)
    return make_report(folder, prepared, model, manifest, self_test)


def make_report(folder: Path, prepared: Prepared, model: Model, golden: ArtifactManifest, self_test: str) -> PackReport:
    lines = tuple(report_lines(folder, prepared, model, golden, self_test))
    return PackReport(folder, model.digest, golden.seal, golden.description.proof, lines)


def report_lines(folder: Path, prepared: Prepared, model: Model, golden: ArtifactManifest, self_test: str) -> Iterator[str]:
    description = golden.description
    yield f"packed {model.name} {model.version} in {folder}: {KINDS[description.kind]}, {model.width} features"
    if description.kind != REGRESSOR:
        yield f"labels: {listed(model.labels)}; the served label is {LABELS[description.label]}"
    if description.kind != CLASSIFIER:
        yield f"{model.outputs.name}: {listed(model.outputs.columns)}"
    for feature in description.features[:SHOWN_FEATURES]:
        yield f"feature {feature_text(feature)}"
    if len(description.features) > SHOWN_FEATURES:
        yield f"… and {len(description.features) - SHOWN_FEATURES} more features"
    yield compared_text(prepared, model)
    yield f"self-test: {self_test}"
    yield f"proof: {description.proof}: {PROOF_TEXTS[description.proof]}"
    yield f"model {model.digest}"
    yield f"seal {golden.seal}"
    yield f"serve the model: {script('serve')} --model-dir {folder}"
    if description.proof == SELF:
        yield (
            "no outside result was compared: this folder pins the results of the graph, right or wrong. To compare, give --rows"
            " with a column `label`, `probability_LABEL`, `score_NAME`, or the targets, or pack the estimator itself"
        )


def feature_text(feature: Feature) -> str:
    known = "" if feature.min is None else f", {feature.min:g} to {feature.max:g} {feature.unit or ''}".rstrip()
    return f"{feature.name}: {feature.type}{known}{', may be missing' if feature.missing else ''}"


def compared_text(prepared: Prepared, model: Model) -> str:
    count = len(prepared.rows)
    if not prepared.reference.compares:
        drawn = " drawn from the training ranges" if prepared.is_drawn else ""
        return f"{count} rows{drawn} were predicted, and none was compared"
    labels = "labels equal" if prepared.reference.labels is not None else ""
    worst = prepared.proven.worst
    values = "" if worst is None else f"{model.outputs.name} within {worst:.1e} (allowed {TOLERANCE:g})"
    return f"{count} rows compared with {prepared.source}: {', '.join(filter(None, (labels, values)))}"
