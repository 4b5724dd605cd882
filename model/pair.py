"""The main model in two halves, one that scales rows and one that answers scaled rows, for services that share the work."""

import hashlib

import full
import numpy as np
from onnx import ModelProto, helper
from onnx_file import FEATURES, answers, constants, measured, metadata, ranges, rows_of_features, scale, to_model
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

NAMES = {"prep": "iris_svc_prep", "pred": "iris_svc_pred"}
# What goes over the wire is finite. Infinity and this are both so far from every support vector that the kernel is 0.
MOST = np.finfo(np.float32).max


def halves(fitted: Pipeline, seen: np.ndarray) -> dict[str, bytes]:
    """The bytes of both ONNX files; each holds the digest of the two without it, so that halves of two pairs can be told."""
    models = {"prep": prep(fitted, seen), "pred": pred(fitted, seen)}
    told = hashlib.sha256(b"".join(to_bytes(model) for model in models.values()))
    for model in models.values():
        model.metadata_props.add(key="pair", value=f"sha256:{told.hexdigest()}")
    return {name: to_bytes(model) for name, model in models.items()}


def prep(fitted: Pipeline, seen: np.ndarray) -> ModelProto:
    """Float32 [N, 4] as measured to float32 [N, 4] scaled and finite."""
    nodes = [scale(fitted["scaler"], "unbounded"), helper.make_node("Clip", ["unbounded", "least", "most"], ["scaled"])]
    told = metadata(NAMES["prep"], full.VERSION, measured(seen))
    return to_model(nodes, constants(least=-MOST, most=MOST), [rows_of_features("scaled")], told)


def pred(fitted: Pipeline, seen: np.ndarray) -> ModelProto:
    """Float32 [N, 4] scaled to int64 [N] and float32 [N, 3]: what the main model does after its first node."""
    (_, *nodes), weights = full.graph(fitted)
    features = ranges(scaled(fitted["scaler"], seen), tuple(f"scaled_{name}" for name in FEATURES))
    return to_model(nodes, weights, answers(3), metadata(NAMES["pred"], full.VERSION, features))


def scaled(scaler: StandardScaler, rows: np.ndarray) -> np.ndarray:
    """What prep makes of the rows, in its own float32, to the bit."""
    offset, factor = scaler.mean_.astype(np.float32), (1 / scaler.scale_).astype(np.float32)
    with np.errstate(over="ignore"):
        return ((rows.astype(np.float32) - offset) * factor).clip(-MOST, MOST)


def scaled_cases(scaler: StandardScaler, cases: list[dict]) -> list[dict]:
    """Golden rows of the main model as pred gets them, with the same answers."""
    rows = scaled(scaler, np.array([case["row"] for case in cases])).tolist()
    return [{**case, "row": row} for case, row in zip(cases, rows, strict=True)]


def to_bytes(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
