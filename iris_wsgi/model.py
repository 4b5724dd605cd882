"""The ONNX session: a classifier read from its folder, whose files are checked before they are used."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.errors import BadModel
from iris_wsgi.payload import Array

# From 1.29 on, onnxruntime's wheel reports to its maker unless this is set before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime


class Feature(NamedTuple):
    """One input: its name, its unit, and the range it had in training (None where the file does not tell)."""

    name: str
    unit: str | None = None
    min: float | None = None
    max: float | None = None


class Case(NamedTuple):
    """One golden row with the label and the probabilities that the model must give for it."""

    row: list[float]
    label: str
    probabilities: list[float]


class Golden(NamedTuple):
    """golden.json: which file is the model, the SHA-256 of each file, the rows to try and how far an answer may be off."""

    model: str
    files: dict[str, str]
    tolerance: float
    cases: list[Case]


class Model:
    """A classifier: float32 [rows, features] in, float32 probabilities [rows, classes] out."""

    def __init__(self, content: bytes, labels: tuple[str, ...], file: str) -> None:
        """Builds the session from the bytes themselves; `file` is the name for error messages. Raises BadModel."""
        self.labels = labels
        self.digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.session = open_session(content, file)
        # The wrapped session: what the wrapper adds to each run is for graphics cards, and a third of a small model's time.
        self.run = getattr(self.session, "_sess", self.session).run
        self.input, self.width = only_input(self.session, file)
        self.output, self.is_map = probability_output(self.session, len(labels), file)
        told = self.session.get_modelmeta().custom_metadata_map
        self.name, self.version = told.get("name", Path(file).stem), told.get("version", "unknown")
        self.features = features_told(told.get("features"), self.width, file)
        self.libraries: dict[str, str] = read_object(told.get("libraries", "{}"), file)

    def predict(self, rows: Array) -> Array:
        """Probabilities [n, classes] of rows [n, features], from one run; row by row the same bits in any batch."""
        (answer,) = self.run((self.output,), {self.input: rows}, None)
        if self.is_map:
            keys = sorted(answer[0])
            return np.array([[one[key] for key in keys] for one in answer], np.float32)
        return np.asarray(answer, np.float32)


def load_model(folder: Path) -> tuple[Model, Golden]:
    """Reads a model folder; each file's SHA-256 is compared before its bytes are used. Raises BadModel."""
    golden = read_golden(folder / "golden.json")
    checked = {name: read_checked(folder / name, digest) for name, digest in golden.files.items()}
    for name in (golden.model, "label.json"):
        if name not in checked:
            raise BadModel(f"{folder / 'golden.json'} gives no SHA-256 for {name}")
    labels = read_labels(checked["label.json"], str(folder / "label.json"))
    return Model(checked[golden.model], labels, str(folder / golden.model)), golden


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error.strerror}") from None


def read_checked(path: Path, digest: str) -> bytes:
    content = read_file(path)
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise BadModel(f"{path} has the SHA-256 {found[:12]}…, golden.json says {digest[:12]}…: the file was changed or damaged")
    return content


def read_object(text: str | bytes, file: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadModel(f"{file} does not hold a JSON object where one is needed")
    return document


def read_golden(path: Path) -> Golden:
    document = read_object(read_file(path), str(path))
    try:
        files = {str(name): str(digest) for name, digest in document["files"].items()}
        rows = [
            Case([float(v) for v in case["row"]], str(case["label"]), [float(p) for p in case["probabilities"]])
            for case in document["rows"]
        ]
        golden = Golden(str(document["model"]), files, float(document["tolerance"]), rows)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadModel(f"{path} does not have the members model, files, tolerance and rows in their right form") from None
    if not golden.cases:
        raise BadModel(f"{path} holds no rows to test the model with")
    if any(Path(name).name != name for name in golden.files):
        raise BadModel(f"{path} names a file outside its own folder")
    return golden


def read_labels(content: bytes, file: str) -> tuple[str, ...]:
    document = read_object(content, file)
    names = tuple(document.get(str(i)) for i in range(len(document)))
    if len(names) < 2 or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
        raise BadModel(f'{file} must map "0", "1", … without a gap to class names that differ')
    return names  # type: ignore[return-value]


def open_session(content: bytes, file: str) -> onnxruntime.InferenceSession:
    """One thread, in sequence, no spinning: onnxruntime would size its pool by the host's cores, blind to the cgroup's quota."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        # Without enable_fallback=0 a failure prints a banner to standard output.
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise BadModel(f"{file} is no model that onnxruntime can load: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def only_input(session: onnxruntime.InferenceSession, file: str) -> tuple[str, int]:
    """Name and width of the one float input [N, features]."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        found = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
        raise BadModel(f"{file} must have one input, tensor(float) [N, features]; it has {found}")
    rows, width = inputs[0].shape
    if isinstance(rows, int) or not isinstance(width, int):
        raise BadModel(f"{file} must take any number of rows of a fixed width; its input has the shape {inputs[0].shape}")
    return inputs[0].name, width


def probability_output(session: onnxruntime.InferenceSession, classes: int, file: str) -> tuple[str, bool]:
    """Name of the output that holds probabilities, and whether it is a ZipMap (a map of class to probability per row).

    It is found by its type, because exporters name it as they like: a float tensor [N, classes] or a sequence of maps.
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


def features_told(text: str | None, width: int, file: str) -> tuple[Feature, ...]:
    """The features as the file's metadata tells them, or numbered ones without a range."""
    if text is None:
        return tuple(Feature(f"feature_{i}") for i in range(width))
    try:
        found = tuple(feature(one) for one in json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadModel(f"{file} has metadata in which 'features' is no list of objects with name, unit, min and max") from None
    if len(found) != width or len({one.name for one in found}) != width:
        raise BadModel(f"{file} takes {width} features, and its metadata names {len(found)} that should differ")
    return found


def feature(told: Mapping[str, Any]) -> Feature:
    low, high = (None if told.get(key) is None else float(told[key]) for key in ("min", "max"))
    return Feature(str(told["name"]), told.get("unit"), low, high)
