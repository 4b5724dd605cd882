"""Small hand-made models of every kind that the server takes, each with a golden.json as the command pack writes it.

The golden rows hold the predictions of onnxruntime, without any code of the server.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

ML = "ai.onnx.ml"
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
FLOAT, DOUBLE, INT64, INT32 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32
BOOL, STRING = TensorProto.BOOL, TensorProto.STRING
INTEGERS = {
    name: getattr(TensorProto, name.upper())
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
TYPES = {"float32": FLOAT, "float64": DOUBLE, "bool": BOOL, "string": STRING, **INTEGERS}
CITIES = ("Kyoto", "Osaka", "Tokyo")
WEIGHTS = np.array([[1, -1, 0.5], [0.25, 0.5, -1], [-0.5, 0.125, 0.75], [0.5, -0.25, 0.25]], np.float32)
# A row with a first value over this gets a wrong output from the kinds in BROKEN. The golden rows are below.
LIMIT = 100.0


class Input(NamedTuple):
    """An input of a graph: float32 [N, width] for example. Width 0 is [N]. The graph declares [N, ?] for a free width."""

    name: str
    type: str
    width: int
    is_free: bool = False

    @property
    def shape(self) -> list[int | None]:
        return [None, None if self.is_free else self.width] if self.width else [None]


class PackedModel(NamedTuple):
    """The parts of a model folder.

    `values` and `label` name the outputs of the graph. `members` are the members of golden.json that differ from the default.
    A feature is its name, its type, and whether it may be missing.
    """

    nodes: list[onnx.NodeProto]
    inputs: list[Input]
    outputs: list[onnx.ValueInfoProto]
    constants: dict[str, Any]
    features: list[tuple[str, str, bool]]
    rows: list[list[Any]]
    labels: tuple[str, ...] = ()
    members: dict[str, Any] = {}  # noqa: RUF012
    values: str = "probabilities"
    label: str = ""
    external: bool = False


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """Makes a node. `inputs` and `outputs` are names with blanks between them."""
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


def output(name: str, kind: int = FLOAT, shape: Sequence[Any] = (None,)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def numbered(width: int, kind: str = "float32", missing: Sequence[int] = ()) -> list[tuple[str, str, bool]]:
    return [(f"x{j}", kind, j in missing) for j in range(width)]


# Rows of four numbers, with every class of the linear model.
FLOAT_ROWS: list[list[Any]] = [[5.5, 3.25, 1.5, 0.25], [-2.0, 4.5, -1.0, 0.1], [0.5, -3.0, 2.5, -0.0], [0.0, 0.0, 0.0, 1.0]]
INT_ROWS: list[list[Any]] = [[5, 3, 1, 0], [-2, 4, -1, 7], [0, -3, 2, 2], [1, 2, 3, 4]]
BOOL_ROWS: list[list[Any]] = [[True, False, False, True], [False, True, True, False], [False, False, True, True]]
BOOL_ROWS.append([False, False, False, False])
# Values with more digits than float32 holds. The model subtracts 16777216 in float64 first.
DOUBLE_ROWS: list[list[Any]] = [
    [16777217.5, 16777216.0, 16777219.0, 16777216.25],
    [16777216.0, 16777218.0, 16777215.0, 16777216.0],
]
DOUBLE_ROWS.append([16777216.1, 16777213.0, 16777218.5, 16777216.0])
TRIPLE = ("a", "b", "c")


def linear_nodes(rows: str = "x") -> list[onnx.NodeProto]:
    """Returns the nodes from float32 `rows` [N, 4] to "probabilities" [N, 3]."""
    return [node("MatMul", f"{rows} weights", "sums"), node("Softmax", "sums", "probabilities", axis=1)]


def linear(
    nodes: list[onnx.NodeProto],
    inputs: list[Input],
    features: list[tuple[str, str, bool]],
    rows: list[list[Any]],
    constants: dict[str, Any] | None = None,
) -> PackedModel:
    """Returns a classifier of three classes with an output of the label, over nodes that make "x" [N, 4]."""
    nodes = [*nodes, *linear_nodes(), node("ArgMax", "probabilities", "label", axis=1, keepdims=0)]
    outputs = [output("label", INT64), output("probabilities", shape=[None, 3])]
    constants = {"weights": WEIGHTS, **(constants or {})}
    return PackedModel(nodes, inputs, outputs, constants, features, rows, TRIPLE, {"classes": [0, 1, 2]}, label="label")


def cast_of(kind: str, rows: list[list[Any]]) -> PackedModel:
    """Returns a linear classifier of one input of a type."""
    nodes = [node("Cast", "input", "x", to=FLOAT)]
    return linear(nodes, [Input("input", kind, 4)], numbered(4, kind), rows)


def double_input() -> PackedModel:
    nodes = [node("Sub", "input middle", "small"), node("Cast", "small", "x", to=FLOAT)]
    middle = {"middle": np.array(16777216.0)}
    return linear(nodes, [Input("input", "float64", 4)], numbered(4, "float64"), DOUBLE_ROWS, middle)


def float_columns(rank: int = 2) -> PackedModel:
    """Returns a classifier of one input per column, [N, 1] or [N]."""
    names = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
    inputs = [Input(f"column_{i}", "float32", 1 if rank == 2 else 0) for i in range(4)]
    parts = [one.name for one in inputs] if rank == 2 else [f"part_{i}" for i in range(4)]
    nodes = [node("Unsqueeze", f"column_{i} second", f"part_{i}") for i in range(4) if rank == 1]
    nodes.append(node("Concat", " ".join(parts), "x", axis=1))
    constants = {"second": np.array([1])} if rank == 1 else {}
    return linear(nodes, inputs, [(name, "float32", False) for name in names], FLOAT_ROWS, constants)


MIXED_FEATURES = [("age", "float32", False), ("city", "string", False), ("visits", "int64", False), ("member", "bool", False)]
MIXED_ROWS: list[list[Any]] = [
    [31.5, "Tokyo", 3, True],
    [64.25, "Osaka", 0, False],
    [18.0, "", 12, True],
    [-1.0, "京都 “Kyoto”", 2, False],
    [0.5, "Kyoto", 1, True],
]


def mixed_columns(missing: bool = False, strict: bool = False) -> PackedModel:
    """Returns a classifier of a float, a string, an int64, and a bool.

    With `missing`, the float may be missing. With `strict`, the encoder of the string fails on an unknown text.
    """
    inputs = [Input(name, kind, 1) for name, kind, _ in MIXED_FEATURES]
    nodes = [
        node("Imputer", "age", "known_age", ML, imputed_value_floats=[40.0], replaced_value_float=float("nan")),
        node("Mul", "known_age tenth", "small_age"),
        node("OneHotEncoder", "city", "cities", ML, cats_strings=CITIES, zeros=0 if strict else 1),
        node("Reshape", "cities two", "city_columns"),
        node("Cast", "visits", "visits_float", to=FLOAT),
        node("Cast", "member", "member_float", to=FLOAT),
        node("Concat", "small_age city_columns visits_float member_float", "six", axis=1),
        node("MatMul", "six narrow", "x"),
    ]
    narrow = np.array([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 2], [0.25, 0, 0, 0.5], [0, -1, 0, 0.5]], np.float32)
    constants = {"tenth": np.float32(0.1), "two": np.array([-1, 3]), "narrow": narrow}
    features = [(name, kind, missing and name == "age") for name, kind, _ in MIXED_FEATURES]
    rows = [*MIXED_ROWS, [None, "Osaka", 2, False], [None, "", 0, True]] if missing else MIXED_ROWS
    known = [row for row in rows if row[1] in CITIES]
    return linear(nodes, inputs, features, known if strict else rows, constants)


def string_matrix() -> PackedModel:
    """Returns a classifier of one input of two string columns."""
    nodes = [
        node("OneHotEncoder", "input", "cities", ML, cats_strings=CITIES, zeros=1),
        node("Reshape", "cities six", "city_columns"),
        node("MatMul", "city_columns narrow", "x"),
    ]
    narrow = np.arange(24, dtype=np.float32).reshape(6, 4) % 5 - 2
    features = [("from", "string", False), ("to", "string", False)]
    rows: list[list[Any]] = [["Tokyo", "Kyoto"], ["Kyoto", "Osaka"], ["Osaka", ""], ["", "Tokyo"], ["Kyoto", "Tokyo"]]
    constants = {"six": np.array([-1, 6]), "narrow": narrow}
    return linear(nodes, [Input("input", "string", 2)], features, rows, constants)


def float_matrix_and_string() -> PackedModel:
    """Returns a classifier of one input of two floats, of which only the first may be missing, and one input of strings."""
    nodes = [
        node("Imputer", "numbers", "known", ML, imputed_value_floats=[2.0, 0.0], replaced_value_float=float("nan")),
        node("OneHotEncoder", "city", "cities", ML, cats_strings=CITIES[:2], zeros=1),
        node("Reshape", "cities two", "city_columns"),
        node("Concat", "known city_columns", "x", axis=1),
    ]
    inputs = [Input("numbers", "float32", 2), Input("city", "string", 1)]
    features = [("age", "float32", True), ("height", "float32", False), ("city", "string", False)]
    rows: list[list[Any]] = [[1.5, 2.5, "Kyoto"], [None, 1.0, "Osaka"], [3.0, -4.0, "Tokyo"], [-2.0, 3.0, "Kyoto"]]
    return linear(nodes, inputs, features, rows, {"two": np.array([-1, 2])})


def ints_and_floats() -> PackedModel:
    """Returns a classifier of numbers of several types and no strings, whose rows are float64."""
    kinds = {"count": "int64", "small": "int32", "price": "float32", "exact": "float64"}
    nodes = [node("Cast", name, f"{name}_float", to=FLOAT) for name in kinds]
    nodes.append(node("Concat", " ".join(f"{name}_float" for name in kinds), "x", axis=1))
    rows: list[list[Any]] = [[5, 3, 1.5, 0.25], [-2, 4, -1.0, 0.1], [0, -3, 2.5, 1.7], [1, 1, 0.3, None]]
    features = [(name, kind, name == "exact") for name, kind in kinds.items()]
    nodes.insert(0, node("IsNaN", "exact", "is_missing"))
    nodes.insert(1, node("Where", "is_missing zero exact", "known"))
    nodes[5] = node("Cast", "known", "exact_float", to=FLOAT)
    return linear(nodes, [Input(name, kind, 1) for name, kind in kinds.items()], features, rows, {"zero": np.zeros(1)})


def integer_columns() -> PackedModel:
    """Returns a classifier of one column of every integer type."""
    nodes = [node("Cast", name, f"{name}_float", to=FLOAT) for name in INTEGERS]
    nodes.append(node("Concat", " ".join(f"{name}_float" for name in INTEGERS), "eight", axis=1))
    nodes.append(node("MatMul", "eight narrow", "x"))
    rows: list[list[Any]] = [[1, -2, 3, -4, 5, 6, 7, 8], [-128, -3, 0, 9, 255, 0, 2, 1], [2, 2, 2, -2, 0, 7, 1, 3]]
    narrow = (np.arange(32, dtype=np.float32).reshape(8, 4) % 7 - 3) / 64
    inputs = [Input(name, name, 1) for name in INTEGERS]
    return linear(nodes, inputs, [(name, name, False) for name in INTEGERS], rows, {"narrow": narrow})


def missing_values(kind: str = "float32") -> PackedModel:
    """Returns a classifier of floats, of which the first and the third may be missing."""
    nodes = [
        node("IsNaN", "input", "is_missing"),
        node("Where", "is_missing average input", "known"),
        node("Cast", "known", "x", to=FLOAT),
    ]
    rows: list[list[Any]] = [*FLOAT_ROWS, [None, 1.5, 0.5, 2.0], [1.0, -2.0, None, 0.5], [None, 0.0, None, 0.0]]
    average = {"average": np.array([[0.5, 0, -1.5, 0]], kind)}
    return linear(nodes, [Input("input", kind, 4)], numbered(4, kind, (0, 2)), rows, average)


def classes(values: Sequence[Any], labels: tuple[str, ...], label: str = "both", threshold: float = 0.5) -> PackedModel:
    """Returns a classifier of two classes, or three, whose graph gives these values as labels.

    With two classes the label is the second one if its probability is over the threshold.
    """
    width = len(values)
    if width == 2:
        pick = [
            node("Gather", "probabilities one", "second", axis=1),
            node("Greater", "second threshold", "is_over"),
            node("Cast", "is_over", "number", to=INT64),
        ]
    else:
        pick = [node("ArgMax", "probabilities", "number", axis=1, keepdims=0)]
    nodes = [*linear_nodes("input"), *pick, node("Gather", "values number", "label")]
    value_array = np.array(values, object if isinstance(values[0], str) else None)
    kind = STRING if isinstance(values[0], str) else BOOL if isinstance(values[0], bool) else INT64
    constants = {
        "weights": WEIGHTS[:, :width],
        "values": value_array,
        "one": np.array(1),
        "threshold": np.float32(threshold),
    }
    outputs = [output("label", kind), output("probabilities", shape=[None, width])]
    members = {"classes": list(values), "label": label}
    rows = [*FLOAT_ROWS, [-0.5, 0.0, 0.1, 0.0]]
    return PackedModel(
        nodes, [Input("input", "float32", 4)], outputs, constants, numbered(4), rows, labels, members, label="label"
    )


def column_of_labels() -> PackedModel:
    """Returns a classifier with int32 labels in the shape [N, 1]."""
    packed = classes((3, 7), ("three", "seven"))
    nodes = [*packed.nodes[:-1], node("Gather", "values number", "wide"), node("Cast", "wide", "flat", to=INT32)]
    nodes.append(node("Reshape", "flat column", "label"))
    outputs = [output("label", INT32, [None, 1]), packed.outputs[1]]
    return packed._replace(nodes=nodes, outputs=outputs, constants={**packed.constants, "column": np.array([-1, 1])})


def sigmoid(rank: int) -> PackedModel:
    """Returns a classifier that gives the probability of the second class only, as [N, 1] or [N]."""
    nodes = [node("MatMul", "input weights", "sums"), node("Sigmoid", "sums", "probabilities" if rank == 2 else "column")]
    if rank == 1:
        nodes.append(node("Squeeze", "column last", "probabilities"))
    outputs = [output("probabilities", shape=[None, 1] if rank == 2 else [None])]
    constants = {"weights": WEIGHTS[:, :1], "last": np.array([1])}
    members = {"classes": [0, 1]}
    return PackedModel(nodes, [Input("input", "float32", 4)], outputs, constants, numbered(4), FLOAT_ROWS, ("no", "yes"), members)


def sigmoid_with_label() -> PackedModel:
    """Returns a classifier that gives the probability of the second class only, and its own label over a threshold of 0.125."""
    packed = sigmoid(2)
    nodes = [
        *packed.nodes,
        node("Greater", "probabilities threshold", "is_over"),
        node("Squeeze", "is_over last", "flat"),
        node("Where", "flat yes no", "label"),
    ]
    constants = {
        **packed.constants,
        "threshold": np.float32(0.125),
        "yes": np.array(["on"], object),
        "no": np.array(["off"], object),
    }
    outputs = [output("label", STRING), *packed.outputs]
    members = {"classes": ["off", "on"], "label": "graph"}
    return packed._replace(
        nodes=nodes, outputs=outputs, constants=constants, members=members, labels=("off", "on"), label="label"
    )


def scores() -> PackedModel:
    """Returns a linear classifier of three classes with scores and its own label."""
    nodes = [
        node(
            "LinearClassifier",
            "input",
            "label scores",
            ML,
            classlabels_ints=[10, 20, 30],
            coefficients=WEIGHTS.T.ravel().tolist(),
            intercepts=[0.5, 0.0, -0.25],
            multi_class=0,
            post_transform="NONE",
        )
    ]
    outputs = [output("label", INT64), output("scores", shape=[None, 3])]
    members = {"kind": "scores", "label": "graph", "classes": [10, 20, 30], "columns": list(TRIPLE)}
    inputs = [Input("input", "float32", 4)]
    # Sums of these values are exact. LinearClassifier adds in another order for a single row.
    rows: list[list[Any]] = [[5.5, 3.25, 1.5, 0.25], [-2.0, 4.5, -1.0, 0.125], [0.5, -3.0, 2.5, -0.0], [0.0, 0.0, 0.0, 1.0]]
    return PackedModel(nodes, inputs, outputs, {}, numbered(4), rows, TRIPLE, members, "scores", "label")


def binary_score(rank: int) -> PackedModel:
    """Returns a classifier of one score, [N, 1] or [N], whose label is -1 or 1 by its sign."""
    nodes = [
        node("MatMul", "input weights", "column"),
        node("Squeeze", "column last", "flat"),
        node("Greater", "flat zero", "is_over"),
        node("Where", "is_over plus minus", "label"),
        node("Identity", "column" if rank == 2 else "flat", "scores"),
    ]
    outputs = [output("label", INT64), output("scores", shape=[None, 1] if rank == 2 else [None])]
    constants = {
        "weights": WEIGHTS[:, :1],
        "last": np.array([1]),
        "zero": np.float32(0),
        "plus": np.array([1]),
        "minus": np.array([-1]),
    }
    members = {"kind": "scores", "label": "graph", "classes": [-1, 1], "columns": ["score"]}
    inputs = [Input("input", "float32", 4)]
    labels = ("outlier", "inlier")
    return PackedModel(nodes, inputs, outputs, constants, numbered(4), FLOAT_ROWS, labels, members, "scores", "label")


def regressor(shape: Sequence[Any], columns: list[str], kind: int = FLOAT) -> PackedModel:
    """Returns a linear regressor with an output of this shape and type."""
    width = len(columns)
    nodes = [node("MatMul", "input weights", "raw"), node("Cast", "raw", "values_2d", to=kind)]
    last = node("Identity", "values_2d", "values") if len(shape) == 2 else node("Squeeze", "values_2d last", "values")
    constants = {"weights": 1000 * WEIGHTS[:, :width], "last": np.array([1])}
    members = {"kind": "regressor", "columns": columns}
    inputs, outputs = [Input("input", "float32", 4)], [output("values", kind, shape)]
    return PackedModel([*nodes, last], inputs, outputs, constants, numbered(4), FLOAT_ROWS, (), members, "values")


def tree_regressor() -> PackedModel:
    """Returns a regressor of one tree, over columns of floats and strings."""
    nodes = [
        node("OneHotEncoder", "city", "cities", ML, cats_strings=CITIES, zeros=1),
        node("Reshape", "cities two", "city_columns"),
        node("Concat", "age city_columns", "x", axis=1),
        node(
            "TreeEnsembleRegressor",
            "x",
            "values",
            ML,
            n_targets=1,
            nodes_treeids=[0] * 5,
            nodes_nodeids=[0, 1, 2, 3, 4],
            nodes_featureids=[0, 0, 3, 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_values=[30.0, 0.0, 0.5, 0.0, 0.0],
            nodes_truenodeids=[1, 0, 3, 0, 0],
            nodes_falsenodeids=[2, 0, 4, 0, 0],
            nodes_missing_value_tracks_true=[1, 0, 0, 0, 0],
            nodes_hitrates=[1.0] * 5,
            target_treeids=[0, 0, 0],
            target_nodeids=[1, 3, 4],
            target_ids=[0, 0, 0],
            target_weights=[10.5, 20.25, 30.125],
        ),
    ]
    rows: list[list[Any]] = [[18.0, "Tokyo"], [31.5, "Osaka"], [31.5, "Tokyo"], [None, "Tokyo"]]
    features = [("age", "float32", True), ("city", "string", False)]
    inputs = [Input("age", "float32", 1), Input("city", "string", 1)]
    members = {"kind": "regressor", "columns": ["price"]}
    outputs = [output("values", shape=[None, 1])]
    return PackedModel(nodes, inputs, outputs, {"two": np.array([-1, 3])}, features, rows, (), members, "values")


def tree_classifier() -> PackedModel:
    """Returns a classifier of one tree with string labels."""
    nodes = [
        node(
            "TreeEnsembleClassifier",
            "input",
            "label probabilities",
            ML,
            classlabels_strings=["low", "high", "middle"],
            nodes_treeids=[0] * 3,
            nodes_nodeids=[0, 1, 2],
            nodes_featureids=[0, 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_values=[0.25, 0.0, 0.0],
            nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0],
            nodes_hitrates=[1.0] * 3,
            class_treeids=[0] * 6,
            class_nodeids=[1, 1, 1, 2, 2, 2],
            class_ids=[0, 1, 2, 0, 1, 2],
            class_weights=[0.75, 0.125, 0.125, 0.125, 0.25, 0.625],
            post_transform="NONE",
        )
    ]
    labels = ("low", "high", "middle")
    outputs = [output("label", STRING), output("probabilities", shape=[None, 3])]
    members = {"classes": list(labels)}
    inputs = [Input("input", "float32", 4)]
    return PackedModel(nodes, inputs, outputs, {}, numbered(4), FLOAT_ROWS, labels, members, label="label")


def zipmap(values: Sequence[Any], labels: tuple[str, ...]) -> PackedModel:
    """Returns a classifier whose probabilities are a map of these classes for each row."""
    words = isinstance(values[0], str)
    attributes = {"classlabels_strings" if words else "classlabels_int64s": list(values)}
    nodes = [
        *linear_nodes("input"),
        node("ArgMax", "probabilities", "number", axis=1, keepdims=0),
        node("Gather", "values number", "label"),
        node("ZipMap", "probabilities", "maps", ML, **attributes),
    ]
    map_type = helper.make_map_type_proto(STRING if words else INT64, helper.make_tensor_type_proto(FLOAT, []))
    maps = helper.make_value_info("maps", helper.make_sequence_type_proto(map_type))
    constants = {"weights": WEIGHTS, "values": np.array(values, object if words else np.int64)}
    outputs = [output("label", STRING if words else INT64), maps]
    members = {"classes": list(values)}
    inputs = [Input("input", "float32", 4)]
    return PackedModel(nodes, inputs, outputs, constants, numbered(4), FLOAT_ROWS, labels, members, "maps", "label")


def free_widths(packed: PackedModel) -> PackedModel:
    """Returns a model of one input whose graph does not declare the widths of its input and of its values."""
    kinds = {one.name: one.type.tensor_type.elem_type for one in packed.outputs}
    outputs = [output(name, kind, [None, None] if name == packed.values else [None]) for name, kind in kinds.items()]
    return packed._replace(inputs=[packed.inputs[0]._replace(is_free=True)], outputs=outputs)


def external_data() -> PackedModel:
    """Returns a classifier whose weights are in a second file."""
    return linear([node("Identity", "input", "x")], [Input("input", "float32", 4)], numbered(4), FLOAT_ROWS)._replace(
        external=True
    )


def over_limit(parts: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], constants: dict[str, Any]) -> PackedModel:
    """Returns a classifier with other nodes behind "sound", the right probabilities, and "is_over" [N]."""
    nodes = [
        node("MatMul", "input weights", "sums"),
        node("Softmax", "sums", "sound", axis=1),
        node("Gather", "input zero", "first", axis=1),
        node("Greater", "first limit", "is_over"),
        *parts,
    ]
    constants = {"weights": WEIGHTS, "zero": np.array(0), "limit": np.float32(LIMIT), **constants}
    members = {"classes": [0, 1, 2]}
    return PackedModel(nodes, [Input("input", "float32", 4)], outputs, constants, numbered(4), FLOAT_ROWS, TRIPLE, members)


def fewer_rows() -> PackedModel:
    parts = [node("Not", "is_over", "is_under"), node("Compress", "sound is_under", "probabilities", axis=0)]
    return over_limit(parts, [output("probabilities", shape=["rows", 3])], {})


def another_width() -> PackedModel:
    parts = [
        node("Cast", "is_over", "over_numbers", to=INT64),
        node("ReduceMax", "over_numbers all", "any_over", keepdims=1),
        node("Sub", "three any_over", "end"),
        node("Slice", "sound start end axis", "probabilities"),
    ]
    constants = {"three": np.array([3]), "start": np.array([0]), "axis": np.array([1]), "all": np.array([0])}
    return over_limit(parts, [output("probabilities", shape=[None, "classes"])], constants)


def unknown_label() -> PackedModel:
    parts = [
        node("Identity", "sound", "probabilities"),
        node("ArgMax", "sound", "number", axis=1, keepdims=0),
        node("Where", "is_over seven number", "label"),
    ]
    outputs = [output("label", INT64), output("probabilities", shape=[None, 3])]
    found = over_limit(parts, outputs, {"seven": np.array([7])})
    return found._replace(label="label", members={"classes": [0, 1, 2], "label": "graph"})


def not_a_number() -> PackedModel:
    parts = [
        node("Unsqueeze", "is_over last", "over_column"),
        node("Where", "over_column nan sound", "probabilities"),
    ]
    return over_limit(parts, [output("probabilities", shape=[None, 3])], {"last": np.array([1]), "nan": np.float32(np.nan)})


KINDS: dict[str, PackedModel] = {
    "float64 input": double_input(),
    "int64 input": cast_of("int64", INT_ROWS),
    "int32 input": cast_of("int32", INT_ROWS),
    "bool input": cast_of("bool", BOOL_ROWS),
    "columns of floats": float_columns(),
    "columns of rank one": float_columns(rank=1),
    "columns of several types": mixed_columns(),
    "columns of several types with missing values": mixed_columns(missing=True),
    "columns of several numeric types": ints_and_floats(),
    "columns of every integer type": integer_columns(),
    "one input of strings": string_matrix(),
    "float columns with missing values, and strings": float_matrix_and_string(),
    "missing values": missing_values(),
    "missing values in float64": missing_values("float64"),
    "the label of the graph": classes((0, 1), ("no", "yes"), "graph", threshold=0.25),
    "the label of the highest probability": classes((0, 1), ("no", "yes"), "argmax", threshold=0.25),
    "classes 10, 20, 30": classes((10, 20, 30), ("ten", "twenty", "thirty")),
    "classes -1 and 1": classes((-1, 1), ("-1", "1")),
    "int32 classes in a column": column_of_labels(),
    "bool classes": classes((False, True), ("False", "True")),
    "string classes": classes(("zeta", "alpha", "mu"), ("zeta", "alpha", "mu")),
    "one probability in a column": sigmoid(2),
    "one probability": sigmoid(1),
    "one probability and the label of the graph": sigmoid_with_label(),
    "scores": scores(),
    "one score in a column": binary_score(2),
    "one score": binary_score(1),
    "regressor": regressor([None], ["price"]),
    "regressor of a column": regressor([None, 1], ["price"]),
    "regressor of three targets": regressor([None, 3], ["price", "weight", "height (m)"]),
    "regressor in float64": regressor([None, 2], ["price", "weight"], DOUBLE),
    "tree regressor of several types with missing values": tree_regressor(),
    "tree classifier": tree_classifier(),
    "map of numbers": zipmap((30, 10, 20), ("thirty", "ten", "twenty")),
    "map of strings": zipmap(("zeta", "alpha", "mu"), ("zeta", "alpha", "mu")),
    "weights in a second file": external_data(),
    "free widths": free_widths(classes((10, 20, 30), ("ten", "twenty", "thirty"))),
    "free widths of scores": free_widths(scores()),
    "free widths of a regressor": free_widths(regressor([None, 3], ["price", "weight", "height"])),
    "free widths and one probability": free_widths(sigmoid(2)),
    "free widths and two probabilities": free_widths(classes((-1, 1), ("no", "yes"))),
    "free width of missing values": free_widths(missing_values("float64")),
}
# Kinds with every kind of input and output.
SOME_KINDS = (
    "int64 input",
    "columns of several types with missing values",
    "one input of strings",
    "the label of the graph",
    "scores",
    "one score",
    "regressor",
    "tree regressor of several types with missing values",
    "map of strings",
)
# On a laptop, tests of each kind take only these, unless their file is named.
ALL_KINDS = [kind if kind in SOME_KINDS else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
# Their output is wrong for rows with a first value over LIMIT.
BROKEN: dict[str, PackedModel] = {
    "fewer rows": fewer_rows(),
    "another width": another_width(),
    "an unknown label": unknown_label(),
    "not a number": not_a_number(),
}


def graph_of(model: PackedModel) -> onnx.ModelProto:
    inputs = [output(one.name, TYPES[one.type], one.shape) for one in model.inputs]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in model.constants.items()]
    graph = helper.make_graph(model.nodes, "packed", inputs, model.outputs, constants)
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


def feeds_of(model: PackedModel, rows: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
    """Returns the inputs of the graph for rows of JSON values."""
    feeds, start = {}, 0
    for one in model.inputs:
        width = one.width or 1
        values = [[np.nan if value is None else value for value in row[start : start + width]] for row in rows]
        array = np.array(values, object if one.type == "string" else one.type)
        feeds[one.name] = array if one.width else array.ravel()
        start += width
    return feeds


class Answers(NamedTuple):
    """Predictions of onnxruntime: columns of each row, and the label in label.json that is served; "" for a regressor."""

    values: list[list[float]]
    labels: list[str]
    # The graph's own values of the served labels.
    classes: list[Any]


def answers_of(folder: Path, model: PackedModel, rows: Sequence[Sequence[Any]]) -> Answers:
    """Runs the graph of a folder without the code of the server."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [model.values, *([model.label] if model.label else [])]
    found, *label_output = session.run(names, feeds_of(model, rows))
    own = model.members.get("classes", [])
    if isinstance(found, list):
        found = np.array([[row[key] for key in own] for row in found])
    values = np.asarray(found, np.float32).reshape(len(rows), -1)
    if len(model.labels) == 2 and values.shape[1] == 1 and model.members.get("kind") is None:
        values = np.concatenate([1 - values, values], axis=1)
    if not model.labels:
        return Answers(values.tolist(), [""] * len(rows), [])
    if model.members.get("label") == "graph":
        numbers = [own.index(value) for value in label_output[0].ravel().tolist()]
    else:
        numbers = values.argmax(axis=1).tolist()
    return Answers(values.tolist(), [model.labels[i] for i in numbers], [own[i] for i in numbers])


def write_model(folder: Path, kind: str, **changes: Any) -> Path:
    """Writes the folder of a kind, a key of KINDS or BROKEN. `changes` replace members of golden.json. Returns the folder."""
    return write(folder, (KINDS | BROKEN)[kind], **changes)


def write(folder: Path, model: PackedModel, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder)
    answers = answers_of(folder, model, model.rows)
    kind = model.members.get("kind", "classifier")
    column_name = {"classifier": "probabilities", "scores": "scores", "regressor": "values"}[kind]
    cases = [
        {"row": row, **({"label": label} if label else {}), column_name: values}
        for row, label, values in zip(model.rows, answers.labels, answers.values, strict=True)
    ]
    if model.labels:
        (folder / "label.json").write_text(json.dumps({str(i): name for i, name in enumerate(model.labels)}))
    document = {
        "model": "model.onnx",
        "tolerance": 1e-5,
        "proof": "expected",
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "kind": kind,
        "label": "both",
        "features": [feature_of(model, j) for j in range(len(model.features))],
        "name": "packed",
        "version": "1",
        "rows": cases,
        **model.members,
    }
    seal(folder, document | changes)
    return folder


def save(model: PackedModel, folder: Path) -> None:
    path = str(folder / "model.onnx")
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0} if model.external else {}
    onnx.save_model(graph_of(model), path, **options)


def feature_of(model: PackedModel, j: int) -> dict[str, Any]:
    """Returns a feature with the range of its values in the golden rows."""
    name, kind, missing = model.features[j]
    found = [row[j] for row in model.rows if row[j] is not None]
    has_range = kind not in ("string", "bool")
    low, high = (float(min(found)), float(max(found))) if has_range else (None, None)
    return {"name": name, "unit": None, "min": low, "max": high, "type": kind, "missing": missing}


def seal(folder: Path, document: dict[str, Any]) -> None:
    """Writes golden.json with the digests of the other files, unless the document names digests."""
    files = sorted(path for path in folder.iterdir() if path.name != "golden.json" and path.is_file())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "golden.json").write_text(json.dumps({"files": digests, **document}))
