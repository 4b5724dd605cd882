"""Main model in two halves for two services: the first scales rows, and the second predicts scaled rows."""

import hashlib

import numpy as np
import train_main
from onnx import ModelProto, helper
from onnx_file import (
    FEATURES,
    classifier_outputs,
    constants,
    feature_input,
    measured_features,
    metadata,
    scale,
    to_model,
    with_ranges,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

NAMES = {"prep": "iris_svc_prep", "pred": "iris_svc_pred"}
# Values between the services are finite. This value, like infinity, is so far from every support vector that the kernel is 0.
MAX_VALUE = np.finfo(np.float32).max


def halves(fitted: Pipeline, seen: np.ndarray) -> dict[str, bytes]:
    """Returns the bytes of both ONNX files. Each contains a digest of the pair, which identifies its other half."""
    models = {"prep": prep(fitted, seen), "pred": pred(fitted, seen)}
    digest = hashlib.sha256(b"".join(to_bytes(model) for model in models.values()))
    for model in models.values():
        model.metadata_props.add(key="pair", value=f"sha256:{digest.hexdigest()}")
    return {name: to_bytes(model) for name, model in models.items()}


def prep(fitted: Pipeline, seen: np.ndarray) -> ModelProto:
    """Returns the first half: measured float32 [N, 4] to scaled and finite float32 [N, 4]."""
    nodes = [scale(fitted["scaler"], "unbounded"), helper.make_node("Clip", ["unbounded", "least", "most"], ["scaled"])]
    properties = metadata(NAMES["prep"], train_main.VERSION, measured_features(seen))
    return to_model(nodes, constants(least=-MAX_VALUE, most=MAX_VALUE), [feature_input("scaled")], properties)


def pred(fitted: Pipeline, seen: np.ndarray) -> ModelProto:
    """Returns the second half, the main model after its first node: scaled float32 [N, 4] to int64 [N] and float32 [N, 3]."""
    (_, *nodes), weights = train_main.graph(fitted)
    features = with_ranges(scaled(fitted["scaler"], seen), tuple(f"scaled_{name}" for name in FEATURES))
    return to_model(nodes, weights, classifier_outputs(3), metadata(NAMES["pred"], train_main.VERSION, features))


def scaled(scaler: StandardScaler, rows: np.ndarray) -> np.ndarray:
    """Returns the output of prep for the rows, in its float32, to the bit."""
    offset, factor = scaler.mean_.astype(np.float32), (1 / scaler.scale_).astype(np.float32)
    with np.errstate(over="ignore"):
        return ((rows.astype(np.float32) - offset) * factor).clip(-MAX_VALUE, MAX_VALUE)


def scaled_cases(scaler: StandardScaler, cases: list[dict]) -> list[dict]:
    """Returns the golden rows of the main model in the form for pred, with the same results."""
    rows = scaled(scaler, np.array([case["row"] for case in cases])).tolist()
    return [{**case, "row": row} for case, row in zip(cases, rows, strict=True)]


def to_bytes(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
