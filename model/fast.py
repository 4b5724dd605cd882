"""The fast model: a logistic regression on the same rows, a few hundred bytes of weights, for whatever wants a second model."""

import numpy as np
from onnx import helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

NAME, VERSION = "iris_lr", "1.0.0"
# So many standard deviations away the answer is long certain; without a bound float32 would come to infinity minus infinity.
MOST = 1e6


def pipeline() -> Pipeline:
    return Pipeline([("scaler", StandardScaler()), ("classifier", LogisticRegression(solver="newton-cholesky", tol=1e-12))])


def graph(fitted: Pipeline) -> tuple[list, list]:
    """Nodes and weights: float32 [N, features] to int64 [N] and float32 [N, classes]."""
    scaler, regression = fitted["scaler"], fitted["classifier"]
    nodes = [
        helper.make_node(
            "Scaler",
            ["features"],
            ["scaled"],
            domain="ai.onnx.ml",
            offset=scaler.mean_.tolist(),
            scale=(1 / scaler.scale_).tolist(),
        ),
        helper.make_node("Clip", ["scaled", "least", "most"], ["bounded"]),
        helper.make_node("Gemm", ["bounded", "weights", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    weights = {"weights": regression.coef_, "bias": regression.intercept_, "least": -MOST, "most": MOST}
    return nodes, [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
