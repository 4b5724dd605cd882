"""The ONNX Runtime session of a classifier, and the metadata of its file."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import BadModel, InvalidOutput
from iris_wsgi.model.artifact import ArtifactManifest, read_all, read_file, read_labels, read_object

# Since 1.29 the wheel of onnxruntime sends telemetry unless this is set before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
from onnxruntime import RunOptions as RunOptions

RUNTIME_VERSION: str = onnxruntime.__version__
Kind = TypeVar("Kind")


class Feature(NamedTuple):
    """A feature of the input: its name, its unit, and its range in training. None means that the file does not say."""

    name: str
    unit: str | None = None
    min: float | None = None
    max: float | None = None


# Metadata that other servers check before they use the model: the pair that a half belongs to, and the species of a member.
IDENTITY = ("pair", "member")


class Graph:
    """An ONNX graph with float32 [rows, features] as input, the metadata of its file, and the labels of its classes."""

    def __init__(self, content: bytes, labels: tuple[str, ...], file: str) -> None:
        """Creates the session from the content of `file`, which is named in error messages. Raises BadModel."""
        self.labels = labels
        self.digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.session = open_session(content, file)
        # The wrapped session: the wrapper's additions are for GPUs, and take a third of the time of a small model's run.
        self.run = getattr(self.session, "_sess", self.session).run
        self.input, self.width = only_input(self.session, file)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.name, self.version = metadata.get("name", Path(file).stem), metadata.get("version", "unknown")
        self.features = parse_features(metadata.get("features"), self.width, file)
        self.libraries: dict[str, str] = read_object(metadata.get("libraries", "{}"), file)
        self.identity = {"digest": self.digest} | {name: metadata[name] for name in IDENTITY if name in metadata}


class Model(Graph):
    """A classifier: float32 [rows, features] in, float32 probabilities [rows, classes] out."""

    def __init__(self, content: bytes, labels: tuple[str, ...], file: str) -> None:
        """Raises BadModel."""
        super().__init__(content, labels, file)
        self.output, self.is_map = probability_output(self.session, len(labels), file)

    def predict(self, rows: Array, options: RunOptions | None = None) -> Array:
        """Returns the probabilities [n, classes] of rows [n, features] from one run, which `options` can terminate.

        Raises InvalidOutput if the output has another shape.
        """
        (answer,) = self.run((self.output,), {self.input: rows}, options)
        probabilities = of_maps(answer, self.labels) if self.is_map else np.asarray(answer, np.float32)
        return shaped(probabilities, len(rows), len(self.labels))


def shaped(output: Array, rows: int, columns: int) -> Array:
    """Returns the output of a graph. Raises InvalidOutput if its shape is not [rows, columns]."""
    if output.shape != (rows, columns):
        count = f"{rows} row{'' if rows == 1 else 's'}"
        raise InvalidOutput(f"The model's output for {count} has the shape {list(output.shape)}; it must be [{rows}, {columns}].")
    return output


def of_maps(maps: Sequence[Mapping[Any, float]], labels: tuple[str, ...]) -> Array:
    """Converts the rows of a ZipMap to an array with its columns in the order of the labels. Raises InvalidOutput."""
    keys = class_order(tuple(maps[0]), labels) if maps else ()
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


def load(kind: Callable[[bytes, tuple[str, ...], str], Kind], folder: Path, seal: str) -> tuple[Kind, ArtifactManifest]:
    """Like load_model(), for any kind of graph."""
    golden, files = read_all(lambda name: read_file(folder / name), str(folder), seal)
    labels = read_labels(files["label.json"], str(folder / "label.json"))
    return kind(files[golden.model], labels, str(folder / golden.model)), golden


def open_session(content: bytes, file: str) -> onnxruntime.InferenceSession:
    """Opens a session with one thread and without spinning.

    By default onnxruntime has one thread per core of the host, whatever the quota of the cgroup. Raises BadModel.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        # Without enable_fallback=0 a failure prints a banner to standard output.
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise BadModel(f"{file} is not a model that onnxruntime can load: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def only_input(session: onnxruntime.InferenceSession, file: str) -> tuple[str, int]:
    """Returns the name and the width of the only input, float [N, features]. Raises BadModel."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        found = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
        raise BadModel(f"{file} must have one input, tensor(float) [N, features]; it has {found}")
    rows, width = inputs[0].shape
    if isinstance(rows, int) or not isinstance(width, int):
        raise BadModel(f"{file} must take any number of rows of a fixed width; its input has the shape {inputs[0].shape}")
    return inputs[0].name, width


def probability_output(session: onnxruntime.InferenceSession, classes: int, file: str) -> tuple[str, bool]:
    """Returns the name of the output with the probabilities, and whether it is a ZipMap (a map per row).

    Exporters use different names, so the output is recognized by its type: a float tensor [N, classes] or a sequence of maps.
    Raises BadModel.
    """
    outputs = session.get_outputs()
    maps = [o.name for o in outputs if o.type.startswith("seq(map(") and o.type.endswith(",tensor(float)))")]
    tensors = [o.name for o in outputs if o.type == "tensor(float)" and o.shape[1:] in ([classes], [None])]
    tensors += [o.name for o in outputs if o.type == "tensor(float)" and len(o.shape) == 2 and isinstance(o.shape[1], str)]
    if len(maps) + len(tensors) != 1:
        found = ", ".join(f"{o.name}: {o.type} {o.shape}" for o in outputs)
        raise BadModel(
            f"{file} must have one output of probabilities, tensor(float) [N, {classes}] or a ZipMap,"
            f" for the {classes} classes of label.json; it has {found}"
        )
    return (*maps, *tensors)[0], bool(maps)


def parse_features(text: str | None, width: int, file: str) -> tuple[Feature, ...]:
    """Returns the features of the file's metadata, or numbered ones without a range. Raises BadModel."""
    if text is None:
        return tuple(Feature(f"feature_{i}") for i in range(width))
    try:
        found = tuple(parse_feature(entry) for entry in json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadModel(f"{file} has metadata in which 'features' is not a list of objects with name, unit, min and max") from None
    if len(found) != width or len({feature.name for feature in found}) != width:
        raise BadModel(f"{file} takes {width} features, and its metadata names {len(found)} that should differ")
    return found


def parse_feature(entry: Mapping[str, Any]) -> Feature:
    low, high = (None if entry.get(key) is None else float(entry[key]) for key in ("min", "max"))
    return Feature(str(entry["name"]), entry.get("unit"), low, high)
