"""The ONNX Runtime session of a model, and the metadata of its file."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from iris_wsgi.codec.model_schema import CLASSIFIER, GRAPH, REGRESSOR, SCORES, Array, Feature, OutputSchema, RowSchema
from iris_wsgi.errors import BadModel, InvalidOutput, UnknownCategory
from iris_wsgi.model.artifact import (
    LABELS_FILE,
    ArtifactManifest,
    ModelDescription,
    combined_digest,
    external_names,
    parse_feature,
    read_all,
    read_file,
    read_labels,
    read_object,
    sha256,
)
from iris_wsgi.model.graph_signature import (
    GraphInput,
    GraphOutputs,
    check_features,
    column_names,
    default_features,
    graph_inputs,
    graph_outputs,
    make_feeds,
    metadata_of,
)

# Since 1.29 the wheel of onnxruntime sends telemetry unless this is set before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
from onnxruntime import RunOptions as RunOptions

RUNTIME_VERSION: str = onnxruntime.__version__
# One object, so that a comparison by identity is enough, which takes a tenth of the time of `==`.
FLOAT32 = np.dtype(np.float32)
# They compute binary random forests wrong: half of the labels, with no error.
BROKEN_RUNTIMES = ("1.26.0", "1.27.0")
Kind = TypeVar("Kind")
# Operators with subgraphs, and operators whose output has a size that a value of the row may decide.
VARIABLE_TIME = ("If", "Loop", "Scan", "SequenceMap", "ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile")
# As nodes of the file have them: field 4 of NodeProto, its length, and the name. The last one is the ORT format, without nodes.
CONTROL_FLOW = (*(b"\x22" + bytes([len(name)]) + name.encode() for name in VARIABLE_TIME), b"\x00ORTM")
MAX_CHARACTERS = 300
# "[ONNXRuntimeError] : 1 : FAIL : ", "Load model from PATH failed:", and the place in the source with a C++ signature.
code = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ").sub
loading = re.compile(r"^(?:Load model from .*? failed:|Exception during initialization: )").sub
place = re.compile(r"^/\S+?:\d+ (?:.*?\)(?: const)?(?:::<lambda\(.*?\)>)? )(?=[A-Z])").sub
# Texts of messages, and what to change.
NO_WEIGHTS = "its weights are in another file, which is missing or is not named in golden.json; run pack on the model"
ADVICE = (
    ("IR version", "set `model.ir_version` to one that this onnxruntime supports before saving, or install a newer onnxruntime"),
    ("onnx opset", "export with a lower `target_opset=`, or install a newer onnxruntime"),
    ("Opset", "export with a lower `target_opset=`, or install a newer onnxruntime"),
    ("ZipMap", 'export with `options={"zipmap": False}`'),
    ("is not a registered function/op", "its operator belongs to another library; export with the operators of ONNX alone"),
    ("construct locale", 'this machine lacks the locale; export the text step with `options={Vectorizer: {"locale": "C"}}`'),
    ("add_external_initializers", "its weights are in other files, which onnxruntime loads from version 1.24 on"),
    ("External data", NO_WEIGHTS),
    ("cannot get file size", NO_WEIGHTS),
    ("protobuf", "the file is damaged, or it is no ONNX model"),
    ("tensor(double)", "export with float inputs: `initial_types=[('X', FloatTensorType([None, N]))]`"),
)

# Metadata that other servers check before they use the model: the pair that a half belongs to, and the species of a member.
IDENTITY = ("pair", "member")


# Part of the message of the operator OneHotEncoder, and its meaning for the client.
UNKNOWN_CATEGORY = "Unknown Category"
NOT_A_CATEGORY = (
    "A value of these rows is not one of the categories that the model learned. Send one of them, or train the encoder with"
    ' handle_unknown="ignore".'
)


class ModelFiles(NamedTuple):
    """The content of a graph, that of the files with its weights by name, and the path that error messages name."""

    content: bytes
    path: str
    external: Mapping[str, bytes] = MappingProxyType({})


class Graph:
    """An ONNX graph that takes rows, with the metadata of its file and the labels of its classes."""

    def __init__(self, files: ModelFiles, description: ModelDescription) -> None:
        """Creates the session. Raises BadModel."""
        self.description, self.labels = description, description.labels
        contents = [files.content, *(files.external[name] for name in sorted(files.external))]
        # The time of a run can depend on the values of the row.
        self.has_control_flow = any(operator in files.content for operator in CONTROL_FLOW)
        self.digest = f"sha256:{combined_digest(list(map(sha256, contents)))}"
        self.session = open_session(files)
        # The wrapped session: the wrapper's additions are for GPUs, and take a third of the time of a small model's run.
        self.run = getattr(self.session, "_sess", self.session).run
        self.inputs = graph_inputs(self.session, len(description.features), files.path)
        metadata = metadata_of(self.session)
        self.name = description.name or metadata.get("name", Path(files.path).stem)
        self.version = description.version or metadata.get("version", "unknown")
        self.features = description.features or parse_features(metadata.get("features"), self.inputs, files.path)
        check_features(self.features, self.inputs, files.path)
        self.schema = RowSchema(self.features)
        self.feeds = make_feeds(self.inputs, self.schema)
        self.width = self.schema.width
        self.libraries: dict[str, str] = read_object(metadata.get("libraries", "{}"), files.path)
        self.identity = {"digest": self.digest} | {name: metadata[name] for name in IDENTITY if name in metadata}


class Model(Graph):
    """A model with one output: probabilities, scores, or values. `outputs` describes the columns of its predictions."""

    def __init__(self, files: ModelFiles, description: ModelDescription) -> None:
        """Raises BadModel."""
        super().__init__(files, description)
        self.graph_outputs = graph_outputs(self.session, files.path, len(self.labels) or None)
        self.outputs = output_schema(self.graph_outputs, description, files.path)
        # A network of two classes may give the probability of the second alone. The first run decides where the graph may do so.
        may_give_second = self.outputs.kind == CLASSIFIER and self.graph_outputs.width in (None, 1) and len(self.labels) == 2
        self.gives_second: bool | None = None if may_give_second else False
        self.output, self.is_map = self.graph_outputs.values, self.graph_outputs.is_map
        self.class_numbers = {value: i for i, value in enumerate(self.outputs.classes)}
        names = [self.output]
        if self.outputs.has_label_column and self.graph_outputs.label:
            names.append(self.graph_outputs.label)
        self.output_names = tuple(names)

    def predict(self, rows: Array, options: RunOptions | None = None) -> Array:
        """Returns the predictions float32 [n, outputs.width] of rows [n, features] from one run, which `options` can terminate.

        Raises UnknownCategory for a category that the graph does not have. Raises InvalidOutput if an output has another shape,
        or if it is a label that is not one of the classes.
        """
        try:
            answers = self.run(self.output_names, self.feeds(rows), options)
        except Exception as error:
            if UNKNOWN_CATEGORY in str(error):
                raise UnknownCategory(NOT_A_CATEGORY) from None
            raise
        values = self.values_of(answers[0], len(rows))
        if len(answers) == 1:
            return values
        return np.column_stack([values, self.label_numbers(answers[1], len(rows))]).astype(np.float32)

    def values_of(self, answer: Any, rows: int) -> Array:
        """Returns the output float32 [rows, columns]. Raises InvalidOutput."""
        columns = len(self.outputs.columns)
        if self.is_map:
            return shaped(of_maps(answer, self.labels, self.outputs.classes), rows, columns)
        values: Array = answer if answer.dtype is FLOAT32 else to_float32(answer)
        if self.gives_second is not False:
            return self.both_probabilities(values, rows)
        return shaped(values.reshape(-1, 1) if values.ndim == 1 and columns == 1 else values, rows, columns)

    def both_probabilities(self, values: Array, rows: int) -> Array:
        """Returns the probabilities [rows, 2] of a classifier that may give those of the second class alone."""
        if values.ndim == 1:
            values = values.reshape(-1, 1)
        if self.gives_second is None:
            self.gives_second = values.shape[1:] == (1,)
        if not self.gives_second:
            return shaped(values, rows, 2)
        second = shaped(values, rows, 1)
        return np.concatenate([1 - second, second], axis=1)

    def label_numbers(self, answer: Any, rows: int) -> list[int]:
        """Returns the number of each label of the graph. Raises InvalidOutput for a label that is not one of the classes."""
        found = np.asarray(answer).ravel().tolist()
        numbers = self.class_numbers
        if len(found) != rows:
            raise InvalidOutput(f"The model's output has {len(found)} labels for {rows} rows.")
        if any(value not in numbers for value in found):
            raise InvalidOutput("The model's label is not one of its classes.")
        return [numbers[value] for value in found]

    def graph_labels(self, rows: Array) -> list[Any] | None:
        """Returns the graph's own label of each row, or None if the graph gives none."""
        if self.graph_outputs.label is None:
            return None
        (answer,) = self.run((self.graph_outputs.label,), self.feeds(rows), None)
        found: list[Any] = np.asarray(answer).ravel().tolist()
        return found


def output_schema(found: GraphOutputs, description: ModelDescription, file: str) -> OutputSchema:
    """Returns the columns of the predictions. Raises BadModel if the graph does not give as many."""
    kind, labels = description.kind, description.labels
    if kind == CLASSIFIER:
        columns = labels
    else:
        columns = column_names(
            found, labels if kind == SCORES else (), description.columns, "score" if kind == SCORES else "value"
        )
    label = GRAPH if kind == SCORES else description.label
    if label == GRAPH and kind != REGRESSOR and not (found.label and description.classes):
        raise BadModel(f"{file} has no label of its own, or golden.json does not name its classes; run pack again")
    if description.classes and len(description.classes) != len(labels):
        raise BadModel(
            f"{file} has the classes {listed(description.classes)}, and label.json names {listed(labels)}: the numbers differ"
        )
    own_names = tuple(map(str, description.classes))
    if own_names != labels and set(own_names) == set(labels):
        raise BadModel(
            f"{file} has the classes {listed(own_names)}, and label.json names them as {listed(labels)}: another order"
        )
    # Some exporters declare another width than a run gives, which is checked at each run.
    width = None if kind == REGRESSOR and description.columns else found.width
    if width is not None and width != len(columns) and not (kind == CLASSIFIER and width == 1 and len(labels) == 2):
        raise BadModel(
            f"{file} must have one output of probabilities, tensor(float) [N, {len(columns)}] or a ZipMap, for the"
            f" {len(columns)} classes of label.json; its output {found.values} has {width} columns"
            if kind == CLASSIFIER
            else f"{file} gives {width} {kind} columns, and golden.json names {len(columns)}: {listed(columns)}"
        )
    return OutputSchema(kind, labels, columns, description.classes, label)


def listed(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:20]))
    return f"{shown}, … ({len(values)} in all)" if len(values) > 20 else shown


def shaped(output: Array, rows: int, columns: int) -> Array:
    """Returns the output of a graph. Raises InvalidOutput if its shape is not [rows, columns]."""
    if output.shape != (rows, columns):
        count = f"{rows} row{'' if rows == 1 else 's'}"
        raise InvalidOutput(f"The model's output for {count} has the shape {list(output.shape)}; it must be [{rows}, {columns}].")
    return output


def to_float32(output: Array) -> Array:
    """Rounds an output. A value that float32 cannot hold becomes infinite, which the encoders refuse."""
    with np.errstate(over="ignore"):
        return output.astype(np.float32)


def of_maps(maps: Sequence[Mapping[Any, float]], labels: tuple[str, ...], classes: tuple[Any, ...] = ()) -> Array:
    """Converts the rows of a ZipMap to an array with its columns in the order of the labels. Raises InvalidOutput."""
    keys = classes or (class_order(tuple(maps[0]), labels) if maps else ())
    if any(len(row) != len(keys) for row in maps):
        raise InvalidOutput("The model's output is a ZipMap whose rows have different classes.")
    try:
        return np.array([[row[key] for key in keys] for row in maps], np.float32).reshape(len(maps), len(keys))
    except KeyError:
        raise InvalidOutput("The model's output is a ZipMap whose rows have different classes.") from None


@lru_cache(maxsize=64)
def class_order(keys: tuple[Any, ...], labels: tuple[str, ...]) -> tuple[Any, ...]:
    """Returns the keys of a ZipMap in the order of the labels. Raises InvalidOutput if they cannot be assigned to each other.

    onnxruntime sorts the keys, so their order has no meaning. Numbers that label.json does not use are assigned in rising order.
    """
    by_name = {str(key): key for key in keys}
    indexes = [str(i) for i in range(len(keys))]
    if set(by_name) == set(labels) != set(indexes):
        return tuple(by_name[label] for label in labels)
    try:
        return tuple(sorted(keys, key=int))
    except ValueError:
        raise InvalidOutput(
            "The model's output is a ZipMap whose classes are neither numbers nor the names in label.json."
        ) from None


def load_model(folder: Path, seal: str = "") -> tuple[Model, ArtifactManifest]:
    """Reads a model folder, and compares the SHA-256 of each file before it is used. Raises BadModel."""
    return load(Model, folder, seal)


def load(kind: Callable[[ModelFiles, ModelDescription], Kind], folder: Path, seal: str) -> tuple[Kind, ArtifactManifest]:
    """Like load_model(), for any kind of graph."""
    golden, files = read_all(lambda name: read_file(folder / name), str(folder), seal)
    description = golden.description
    # A regressor has no labels, even if its folder has this file.
    if LABELS_FILE in files and description.kind != REGRESSOR:
        description = description._replace(labels=read_labels(files[LABELS_FILE], str(folder / LABELS_FILE)))
    external = {name: files[name] for name in external_names(golden)}
    return kind(ModelFiles(files[golden.model], str(folder / golden.model), external), description), golden


def open_session(files: ModelFiles) -> onnxruntime.InferenceSession:
    """Opens a session with one thread and without spinning.

    By default onnxruntime has one thread per core of the host, whatever the quota of the cgroup. Raises BadModel.
    """
    if RUNTIME_VERSION in BROKEN_RUNTIMES:
        raise BadModel(f"onnxruntime {RUNTIME_VERSION} computes binary random forests wrong; install another version")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        if files.external:
            names, contents = list(files.external), list(files.external.values())
            options.add_external_initializers_from_files_in_memory(names, contents, list(map(len, contents)))
        # Without enable_fallback=0 a failure prints a banner to standard output.
        return onnxruntime.InferenceSession(files.content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise BadModel(f"{files.path} is not a model that onnxruntime can load: {explain(error)}") from None


def parse_features(text: str | None, inputs: Sequence[GraphInput], file: str) -> tuple[Feature, ...]:
    """Returns the features of the file's metadata, or those of the inputs without a range. Raises BadModel."""
    default = default_features(inputs)
    if text is None:
        return default
    try:
        found = tuple(parse_feature(entry) for entry in json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadModel(f"{file} has metadata in which 'features' is not a list of objects with name, unit, min and max") from None
    if len(found) != len(default) or len({feature.name for feature in found}) != len(default):
        raise BadModel(f"{file} takes {len(default)} features, and its metadata names {len(found)} that should differ")
    return tuple(feature._replace(type=one.type) for feature, one in zip(found, default, strict=True))


def reason(error: Exception) -> str:
    """Returns the first sentences of a message without codes and C++ signatures, in at most 300 characters."""
    text = loading("", code("", str(error).strip()))
    text = place("", loading("", text)) or type(error).__name__
    return text.splitlines()[0][:MAX_CHARACTERS].rstrip(". ")


def explain(error: Exception) -> str:
    """Returns the reason for which a model cannot be loaded, and the change that mends it, if it is known."""
    text = reason(error)
    advice = next((advice for words, advice in ADVICE if words in str(error)), "")
    return f"{text}; {advice}" if advice else text
