"""An ONNX file: the nodes that several models have in common, what the file says of itself, and its bytes."""

import json
from importlib.metadata import version

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from sklearn.preprocessing import StandardScaler

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
UNIT = "cm"
LIBRARIES = ("numpy", "onnx", "scikit-learn")


def scale(scaler: StandardScaler, output: str = "scaled") -> NodeProto:
    return helper.make_node(
        "Scaler",
        ["features"],
        [output],
        domain="ai.onnx.ml",
        offset=floats(scaler.mean_),
        scale=floats(1 / scaler.scale_),
    )


def classify(decisions: str) -> list[NodeProto]:
    """Returns nodes from decisions to logits to probabilities to the label.

    The label is the ArgMax of the returned probabilities, so the two always agree.
    """
    return [
        helper.make_node("Gemm", [decisions, "weights", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]


def constants(**values: object) -> list[TensorProto]:
    return [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]


def floats(array: np.ndarray) -> list[float]:
    return np.asarray(array, np.float64).ravel().tolist()


def classifier_outputs(classes: int) -> list[ValueInfoProto]:
    """Returns the outputs of a classifier."""
    return [
        helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, classes]),
    ]


def feature_input(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, len(FEATURES)])


def to_model(nodes: list, weights: list, outputs: list[ValueInfoProto], metadata_props: dict[str, str]) -> ModelProto:
    """Returns a checked ONNX model of these nodes, from the input of the first node to the outputs."""
    graph = helper.make_graph(nodes, metadata_props["name"], [feature_input(nodes[0].input[0])], outputs, weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=8, producer_name="iris_wsgi", producer_version=metadata_props["version"]
    )
    helper.set_model_props(model, metadata_props)
    onnx.checker.check_model(model, full_check=True)
    return model


def to_onnx(*parts: object) -> bytes:
    """Returns the bytes of the ONNX file. The arguments are those of `to_model`."""
    return to_model(*parts).SerializeToString(deterministic=True)


def measured_features(rows: np.ndarray) -> list[dict]:
    """Returns the four measured features, with unit and training range."""
    return with_ranges(rows, FEATURES, unit=UNIT)


def with_ranges(rows: np.ndarray, names: tuple[str, ...], **others: str) -> list[dict]:
    low, high = rows.min(axis=0).tolist(), rows.max(axis=0).tolist()
    return [{"name": n, **others, "min": a, "max": b} for n, a, b in zip(names, low, high, strict=True)]


def metadata(name: str, released: str, features: list[dict], **others: str) -> dict[str, str]:
    """Returns the metadata of the file: name, version, features, library versions, and `others`."""
    return {
        "name": name,
        "version": released,
        "features": json.dumps(features),
        "libraries": json.dumps({library: version(library) for library in LIBRARIES}),
        **others,
    }
