"""Writes heavier models, each into a separate folder: a random forest of 300 trees, a wide network, and a deep one."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

TREES, COPIES, NOISE = 300, 40, 0.8
# The cost of a run of one row is reading 16 MiB of weights in the wide network, and calling 400 nodes in the deep one.
WIDE, DEEP = (4, 2048, 2048, 3), (4, *[32] * 200, 3)


def main(folder: Path) -> None:
    data = load_iris()
    middle = data.data.mean(axis=0)
    models = {"forest": forest(data.data, data.target), "wide": network(WIDE, middle), "deep": network(DEEP, middle)}
    for name, model in models.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{name}.onnx").write_bytes(model.SerializeToString())
        (folder / name / "label.json").write_text(json.dumps(dict(enumerate(data.target_names.tolist()))))


def forest(rows: np.ndarray, classes: np.ndarray) -> onnx.ModelProto:
    """Returns a forest of fully grown trees, over Iris rows copied with noise so that the trees get deep."""
    noise = np.random.default_rng(0).normal(0, NOISE, (COPIES * len(rows), rows.shape[1]))
    fitted = RandomForestClassifier(TREES, random_state=0)
    fitted.fit(np.tile(rows, (COPIES, 1)) + noise, np.tile(classes, COPIES))
    return to_onnx(fitted, initial_types=[("features", FloatTensorType([None, 4]))], options={"zipmap": False})


def network(sizes: tuple[int, ...], middle: np.ndarray) -> onnx.ModelProto:
    """Returns an untrained network of dense layers with these sizes; the classes meet at the row `middle`."""
    chance = np.random.default_rng(1)
    nodes, weights, values = [], [], "features"
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight = chance.normal(0, np.sqrt(2 / inputs), (inputs, outputs))
        weights += [tensor(weight, f"w{i}"), tensor(np.zeros(outputs) if i else -middle @ weight, f"b{i}")]
        nodes += [helper.make_node("Gemm", [values, f"w{i}", f"b{i}"], [f"y{i}"])]
        nodes += [helper.make_node("Relu", [f"y{i}"], [values := f"x{i}"])]
    nodes[-1] = helper.make_node("Softmax", [f"y{i}"], ["probabilities"], axis=1)
    features, probabilities = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("features", sizes[0]), ("probabilities", sizes[-1]))
    )
    graph = helper.make_graph(nodes, "network", [features], [probabilities], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def tensor(values: np.ndarray, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
