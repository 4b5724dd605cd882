"""Small ONNX graphs that violate one requirement of a classifier: the number of rows, the number of columns, or the names."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

# In every graph, the tensor "sound" holds correct probabilities of these labels.
LABELS = ("a", "b", "c")
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0.25]], np.float32)
FIRST = ("starts", [0], np.int64), ("axis", [0], np.int64)

# Nodes of each graph from "sound" to its output "given", and the constants of these nodes.
GRAPHS = {
    # The output has too many or too few rows if the input has more than 64.
    "rows repeated": (
        [
            helper.make_node("Slice", ["sound", "at_64", "end", "axis"], ["tail"]),
            helper.make_node("Concat", ["sound", "tail"], ["given"], axis=0),
        ],
        [("at_64", [64], np.int64), ("end", [1 << 40], np.int64), FIRST[1]],
    ),
    "rows dropped": (
        [helper.make_node("Slice", ["sound", "starts", "at_64", "axis"], ["given"])],
        [*FIRST, ("at_64", [64], np.int64)],
    ),
    # The output is correct for a single row only.
    "first row only": (
        [helper.make_node("Slice", ["sound", "starts", "one", "axis"], ["given"])],
        [*FIRST, ("one", [1], np.int64)],
    ),
    "one dimension for one row": ([helper.make_node("Squeeze", ["sound"], ["given"])], []),
    # The output is never correct.
    "two columns": (
        [helper.make_node("Slice", ["sound", "starts", "two", "columns"], ["given"])],
        [FIRST[0], ("two", [2], np.int64), ("columns", [1], np.int64)],
    ),
    "nothing": ([helper.make_node("Identity", ["sound"], ["given"])], []),
}


def write_broken_model(
    folder: Path, kind: str = "nothing", labels: Sequence[str] = LABELS, zipmap: Sequence[str | int] = ()
) -> Path:
    """Writes the graph and label.json, without golden.json. With `zipmap` the output is a map of these classes for each row."""
    nodes, constants = GRAPHS[kind]
    scores = [
        helper.make_node("MatMul", ["row", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["sound"], axis=1),
    ]
    output = helper.make_tensor_value_info("given", TensorProto.FLOAT, [None, "classes"])
    if zipmap:
        names = {"classlabels_strings": zipmap} if isinstance(zipmap[0], str) else {"classlabels_int64s": zipmap}
        nodes = [*nodes, helper.make_node("ZipMap", ["given"], ["maps"], domain="ai.onnx.ml", **names)]
        key = TensorProto.STRING if isinstance(zipmap[0], str) else TensorProto.INT64
        value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        output = helper.make_value_info("maps", helper.make_sequence_type_proto(helper.make_map_type_proto(key, value)))
    initializers = [numpy_helper.from_array(WEIGHTS, "weights")]
    initializers += [numpy_helper.from_array(np.array(values, kind), name) for name, values, kind in constants]
    rows = helper.make_tensor_value_info("row", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph([*scores, *nodes], "broken", [rows], [output], initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    (folder / "label.json").write_text(json.dumps({str(i): name for i, name in enumerate(labels)}))
    return folder
