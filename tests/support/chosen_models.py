"""Folders of small models whose labels, features, and golden rows a test chooses, answered by the code of the server."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from iris_wsgi.codec.model_schema import BOTH, CLASSIFIER, COLUMN_NAMES, GRAPH, REGRESSOR, Feature
from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.artifact import GOLDEN, LABELS_FILE, TRAINING_FILE, ModelDescription, parse_feature, sha256
from iris_wsgi.model.session import RUNTIME_VERSION, Model, ModelFiles

FILE = "model.onnx"
CITIES = ("Kyoto", "Lima", "Tokyo")
ELEMENTS = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64}
ELEMENTS |= {"int32": TensorProto.INT32, "bool": TensorProto.BOOL, "string": TensorProto.STRING}
# Features of each type, with missing values.
MIXED = (
    Feature("age, in years", "a", 18.0, 90.0, "float32", missing=True),
    Feature("rooms", None, 1.0, 9.0, "int64"),
    Feature("city", type="string"),
    Feature("owner", type="bool"),
)
MIXED_ROWS = [
    [31.5, 2, "Tokyo", True],
    [None, 1, "Lima", False],
    [64.25, 7, 'a "quoted", <b>place</b>', True],
    [18.0, 3, "Kyoto", False],
]
NUMBERS = tuple(Feature(name, "cm", -2.0, 2.0) for name in ("a", "b", "c"))
NUMBER_ROWS = [[1.5, -0.25, 0.5], [-1.0, 1.0, 0.25], [0.0, 0.5, -1.5], [2.0, 2.0, 2.0], [-2.0, -1.0, 0.125]]


def one_input_graph(features: int = 3, outputs: int = 3, **options: Any) -> onnx.ModelProto:
    """Returns a graph with one float input [N, features]; the options are those of finished()."""
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, features])
    return finished([], [rows], "rows", features, outputs, **options)


def columns_graph(features: Sequence[Feature], outputs: int = 3, **options: Any) -> onnx.ModelProto:
    """Returns a graph with an input [N, 1] per feature: strings are known cities, and missing numbers count as 0.5."""
    inputs, nodes, names = [], [], []
    for j, feature in enumerate(features):
        inputs.append(helper.make_tensor_value_info(feature.name, ELEMENTS[feature.type], [None, 1]))
        name = f"number_{j}"
        if feature.type == "string":
            numbers = {"keys_strings": CITIES, "values_floats": [1.0, 2.0, 3.0], "default_float": 0.0}
            nodes.append(helper.make_node("LabelEncoder", [feature.name], [name], domain="ai.onnx.ml", **numbers))
        else:
            nodes.append(helper.make_node("Cast", [feature.name], [f"raw_{j}"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("IsNaN", [f"raw_{j}"], [f"absent_{j}"]))
            nodes.append(helper.make_node("Where", [f"absent_{j}", "half", f"raw_{j}"], [name]))
        names.append(name)
    nodes.append(helper.make_node("Concat", names, ["columns"], axis=1))
    return finished(nodes, inputs, "columns", len(features), outputs, **options)


def finished(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    rows: str,
    width: int,
    outputs: int,
    classes: Sequence[Any] = (),
    softmax: bool = False,
    zipmap: bool = False,
    shift: float = 0.0,
    **metadata: str,
) -> onnx.ModelProto:
    """Returns a linear model after the nodes.

    With `classes` it has an own label, that of the largest output, after `shift` is added to all outputs but the last.
    """
    drawn = np.random.default_rng(width * 100 + outputs)
    constants = {
        "half": np.float32(0.5),
        "weights": (drawn.normal(0, 1, (width, outputs)) / np.arange(1, width + 1)[:, None]).astype(np.float32),
        "bias": drawn.normal(0, 0.5, outputs).astype(np.float32),
    }
    found = [*nodes, helper.make_node("Gemm", [rows, "weights", "bias"], ["linear"])]
    found.append(helper.make_node("Softmax" if softmax else "Identity", ["linear"], ["values"], axis=1) if softmax
                 else helper.make_node("Identity", ["linear"], ["values"]))  # fmt: skip
    given = [helper.make_tensor_value_info("values", TensorProto.FLOAT, [None, outputs])]
    if classes:
        constants |= {"classes": np.array(classes, object if type(classes[0]) is str else None)}
        constants |= {"shift": np.array([shift] * (outputs - 1) + [0.0], np.float32)}
        found += [
            helper.make_node("Add", ["values", "shift"], ["shifted"]),
            helper.make_node("ArgMax", ["shifted"], ["position"], axis=1, keepdims=0),
            helper.make_node("Gather", ["classes", "position"], ["label"]),
        ]
        kind = helper.np_dtype_to_tensor_dtype(constants["classes"].dtype)
        given.insert(0, helper.make_tensor_value_info("label", kind, [None]))
    if zipmap:
        keys = "classlabels_strings" if type(classes[0]) is str else "classlabels_int64s"
        found.append(helper.make_node("ZipMap", ["values"], ["maps"], domain="ai.onnx.ml", **{keys: classes}))
        key, value = TensorProto.STRING if keys.endswith("strings") else TensorProto.INT64, TensorProto.FLOAT
        maps = helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, []))
        given[-1] = helper.make_value_info("maps", helper.make_sequence_type_proto(maps))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(found, "small", inputs, given, initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, metadata)
    return model


def pack_graph(
    folder: Path,
    graph: onnx.ModelProto,
    rows: Sequence[Sequence[Any]],
    labels: Sequence[str] = (),
    training: bytes = b"",
    **members: Any,
) -> Path:
    """Writes the graph, label.json, and a golden.json with the graph's own predictions of the rows and with these members."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {FILE: graph.SerializeToString()}
    if labels:
        files[LABELS_FILE] = json.dumps({str(i): label for i, label in enumerate(labels)}).encode()
    if training:
        files[TRAINING_FILE] = training
    members = {"proof": "self", "runtime": f"onnxruntime {RUNTIME_VERSION}", "kind": CLASSIFIER, "label": BOTH} | members
    features = [feature._asdict() for feature in members.pop("features", ())]
    members |= {"features": features} if features else {}
    described = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in members.items()}
    described |= {"features": tuple(map(parse_feature, features)), "labels": tuple(labels)}
    model = Model(ModelFiles(files[FILE], str(folder / FILE)), ModelDescription(**described))
    document = {"model": FILE, "files": {name: sha256(content) for name, content in files.items()}, "tolerance": 1e-5}
    document |= members | {"rows": golden_rows(model, rows)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / GOLDEN).write_text(json.dumps(document, indent=1))
    return folder


def golden_rows(model: Model, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    values = model.schema.from_values(rows)
    assert values is not None, "the rows do not fit the features"
    answer = json.loads(Encoder(model.outputs).batch(model.predict(values)))
    name = COLUMN_NAMES[model.outputs.kind]
    labels = [{}] * len(rows) if model.outputs.kind == REGRESSOR else [{"label": label} for label in answer["labels"]]
    return [{"row": row} | label | {name: found} for row, label, found in zip(rows, labels, answer[name], strict=True)]


def pack_classifier(folder: Path, labels: Sequence[str] = ("x", "y", "z"), **options: Any) -> Path:
    """Packs a classifier of three numbers. `shift`, `zipmap`, and `classes` are options of its graph."""
    classes = options.pop("classes", list(range(len(labels))))
    graph_options = {name: options.pop(name) for name in ("shift", "zipmap") if name in options}
    name = options.pop("name", "small")
    graph = one_input_graph(3, len(labels), classes=classes, softmax=True, name=name, **graph_options)
    label = GRAPH if graph_options.get("shift") else BOTH
    return pack_graph(folder, graph, NUMBER_ROWS, labels, **{"features": NUMBERS, "classes": classes, "label": label} | options)


def pack_mixed(folder: Path, **options: Any) -> Path:
    """Packs a classifier with an input per column, of four types, where the age may be missing."""
    classes = ["no", "yes, <i>maybe</i>"]
    graph = columns_graph(MIXED, 2, classes=classes, softmax=True)
    return pack_graph(folder, graph, MIXED_ROWS, classes, **{"features": MIXED, "classes": classes} | options)


def pack_scores(folder: Path, labels: Sequence[str] = ("x", "y", "z"), **options: Any) -> Path:
    """Packs a classifier that gives scores, not probabilities."""
    classes = list(range(10, 10 * len(labels) + 1, 10))
    members = {"kind": "scores", "label": GRAPH, "classes": classes, "columns": list(labels), "features": NUMBERS}
    return pack_graph(folder, one_input_graph(3, len(labels), classes=classes), NUMBER_ROWS, labels, **members | options)


def pack_regressor(folder: Path, columns: Sequence[str] = ("price",), **options: Any) -> Path:
    """Packs a regressor of three numbers with these targets."""
    members = {"kind": REGRESSOR, "columns": list(columns), "features": NUMBERS}
    return pack_graph(folder, one_input_graph(3, len(columns)), NUMBER_ROWS, **members | options)
