"""Fast model: a logistic regression on the same rows, with a few hundred bytes of weights."""

from onnx import helper
from onnx_file import classify, constants, scale
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

NAME, VERSION = "iris_lr", "1.0.0"
# The result is certain long before this many standard deviations. Without a bound, float32 computes infinity minus infinity.
MAX_VALUE = 1e6


def pipeline() -> Pipeline:
    return Pipeline([("scaler", StandardScaler()), ("classifier", LogisticRegression(solver="newton-cholesky", tol=1e-12))])


def graph(fitted: Pipeline) -> tuple[list, list]:
    """Returns nodes and weights: float32 [N, features] to int64 [N] and float32 [N, classes]."""
    regression = fitted["classifier"]
    bound = helper.make_node("Clip", ["scaled", "least", "most"], ["bounded"])
    nodes = [scale(fitted["scaler"]), bound, *classify("bounded")]
    return nodes, constants(weights=regression.coef_, bias=regression.intercept_, least=-MAX_VALUE, most=MAX_VALUE)
