"""Small ONNX graphs that break one promise of a classifier each: the number of rows, the number of columns, or the names."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

# Probabilities of these labels are found in every graph under the name "sound", before the graph breaks its promise.
LABELS = ("a", "b", "c")
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0.25]], np.float32)
FIRST = ("starts", [0], np.int64), ("axis", [0], np.int64)

# What each graph does with the rows of "sound", as nodes from "sound" to "given", and their constants.
GRAPHS = {
    # More rows than were asked for, and fewer, from 65 rows on.
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
    # Right for one row alone.
    "first row only": (
        [helper.make_node("Slice", ["sound", "starts", "one", "axis"], ["given"])],
        [*FIRST, ("one", [1], np.int64)],
    ),
    "one dimension for one row": ([helper.make_node("Squeeze", ["sound"], ["given"])], []),
    # Never right.
    "two columns": (
        [helper.make_node("Slice", ["sound", "starts", "two", "columns"], ["given"])],
        [FIRST[0], ("two", [2], np.int64), ("columns", [1], np.int64)],
    ),
    "nothing": ([helper.make_node("Identity", ["sound"], ["given"])], []),
}


def write_broken_model(
    folder: Path, kind: str = "nothing", labels: Sequence[str] = LABELS, zipmap: Sequence[str | int] = ()
) -> Path:
    """Writes the graph and label.json, without golden.json; with `zipmap` the output is a map of these classes for each row."""
    nodes, constants = GRAPHS[kind]
    scores = [
        helper.make_node("MatMul", ["row", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["sound"], axis=1),
    ]
    given = helper.make_tensor_value_info("given", TensorProto.FLOAT, [None, "classes"])
    if zipmap:
        names = {"classlabels_strings": zipmap} if isinstance(zipmap[0], str) else {"classlabels_int64s": zipmap}
        nodes = [*nodes, helper.make_node("ZipMap", ["given"], ["maps"], domain="ai.onnx.ml", **names)]
        key = TensorProto.STRING if isinstance(zipmap[0], str) else TensorProto.INT64
        value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        given = helper.make_value_info("maps", helper.make_sequence_type_proto(helper.make_map_type_proto(key, value)))
    held = [numpy_helper.from_array(WEIGHTS, "weights")]
    held += [numpy_helper.from_array(np.array(values, kind), name) for name, values, kind in constants]
    taken = helper.make_tensor_value_info("row", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph([*scores, *nodes], "broken", [taken], [given], held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    (folder / "label.json").write_text(json.dumps({str(i): name for i, name in enumerate(labels)}))
    return folder
