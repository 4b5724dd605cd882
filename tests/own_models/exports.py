"""Exports as users write them: skl2onnx, onnxmltools, CatBoost's own exporter, and graphs of networks."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, ML_OPSET, IR_VERSION = 18, 3, 9


def sklearn_graph(estimator: Any, inputs: Any, zipmap: Any = None, initial_types: Any = None, **options: Any) -> bytes:
    """Converts with skl2onnx. `zipmap` is the option of that name; None is the default of skl2onnx."""
    from skl2onnx import to_onnx

    from iris_wsgi.packing.conversion import whole_attributes

    if zipmap is not None:
        options["zipmap"] = zipmap
    chosen = {"options": {id(estimator): options}} if options else {}
    types = {"X": inputs[:1]} if initial_types is None else {"initial_types": initial_types}
    # Without this, users of protobuf 7 cannot export HistGradientBoosting at all.
    with whole_attributes():
        return to_onnx(estimator, **types, **chosen).SerializeToString()


def float_input(features: int | None, rows: int | None = None) -> Any:
    """Initial types of skl2onnx for one float input [rows, features]."""
    from skl2onnx.common.data_types import FloatTensorType

    return [("input", FloatTensorType([rows, features]))]


def lightgbm_graph(estimator: Any, features: int, zipmap: bool = True) -> bytes:
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("input", FloatTensorType([None, features]))]
    return quietly(lambda: convert_lightgbm(estimator, initial_types=types, zipmap=zipmap, target_opset=15))


def xgboost_graph(estimator: Any, features: int) -> bytes:
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("input", FloatTensorType([None, features]))]
    return quietly(lambda: convert_xgboost(estimator, initial_types=types, target_opset=15))


def quietly(convert: Callable[[], onnx.ModelProto]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert().SerializeToString()


def catboost_graph(estimator: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        estimator.save_model(str(path), format="onnx")
        return path.read_bytes()


class Network:
    """Small network with random weights: a hidden layer and an output layer, as PyTorch and Keras export them.

    `logits` computes the same network with numpy in float64.
    """

    def __init__(self, features: int = 5, width: int = 3, hidden: int = 8, seed: int = 0) -> None:
        chance = np.random.default_rng(seed)
        self.features, self.width = features, width
        self.first = chance.normal(0, 1, (features, hidden)).astype(np.float32)
        self.second = chance.normal(0, 1, (hidden, width)).astype(np.float32)
        self.rows = chance.normal(0, 1, (200, features)).astype(np.float32)

    def logits(self) -> np.ndarray:
        """Returns the logits [200, width]."""
        return np.maximum(self.rows.astype(float) @ self.first, 0) @ self.second

    def nodes(self, first_input: str = "input") -> list[onnx.NodeProto]:
        return [
            helper.make_node("MatMul", [first_input, "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "second"], ["logits"]),
        ]

    def initializers(self) -> list[TensorProto]:
        return [numpy_helper.from_array(self.first, "first"), numpy_helper.from_array(self.second, "second")]

    def graph(self, *nodes: onnx.NodeProto, **options: Any) -> bytes:
        """Returns the graph of the network, followed by other nodes. See `make_graph` for the options."""
        return make_graph([*self.nodes(), *nodes], self.features, initializers=self.initializers(), **options)


def make_graph(
    nodes: Sequence[onnx.NodeProto],
    features: Any,
    outputs: Sequence[Any] = (("probabilities", TensorProto.FLOAT, ["batch", 3]),),
    inputs: Sequence[Any] | None = None,
    initializers: Sequence[TensorProto] = (),
    ir_version: int = IR_VERSION,
    opset: int = OPSET,
    domains: Sequence[tuple[str, int]] = (),
) -> bytes:
    """Returns the bytes of a graph. Inputs and outputs are (name, type, shape)."""
    chosen = [("input", TensorProto.FLOAT, ["batch", features])] if inputs is None else inputs
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info(*one) for one in chosen],
        [helper.make_tensor_value_info(*one) for one in outputs],
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*domain) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version).SerializeToString()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def with_external_data(graph: bytes, file: str = "model.onnx.data") -> tuple[bytes, bytes]:
    """Moves the weights to a file, as newer exporters do by default. Returns the graph and the content of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model = onnx.load_model_from_string(graph)
        onnx.save(model, str(path), save_as_external_data=True, location=file, size_threshold=0)
        return path.read_bytes(), (path.parent / file).read_bytes()


def changed(graph: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    """Returns the graph after a change of the model."""
    model = onnx.load_model_from_string(graph)
    change(model)
    return model.SerializeToString()
