"""Members: one model for each species, which separates this species from the others."""

import numpy as np
import train_main
from onnx_file import classifier_outputs, constants, measured_features, metadata, to_onnx
from sklearn.pipeline import Pipeline

VERSION = "1.0.0"


def fit(seen: np.ndarray, target: np.ndarray, names: list[str]) -> dict[str, Pipeline]:
    """Fits a pipeline like that of the main model for each species, on two classes: 0 any other species, 1 this one."""
    return {name: train_main.pipeline().fit(seen, (target == k).astype(int)) for k, name in enumerate(names)}


def combined(members: dict[str, Pipeline], rows: np.ndarray) -> np.ndarray:
    """Returns probabilities [N, species] of the members together: the probability of each member, divided by the sum of all."""
    own = np.column_stack([member.predict_proba(rows)[:, 1] for member in members.values()])
    return own / own.sum(axis=1, keepdims=True)


def graph(fitted: Pipeline) -> tuple[list, list]:
    """Returns nodes and weights: float32 [N, 4] to int64 [N] and float32 [N, 2].

    The node of the machine returns a decision for each class. SVMRegressor would return only the needed one, but not the same
    bits alone and in a batch.
    """
    nodes, _ = train_main.graph(fitted)
    calibration = fitted["classifier"].final_estimator_
    weights = [[0, 0], [0, calibration.coef_[0, 0]]]
    return nodes, constants(weights=weights, bias=[0, calibration.intercept_[0]])


def to_file(name: str, fitted: Pipeline, seen: np.ndarray) -> bytes:
    """Returns the bytes of the ONNX file of a member."""
    properties = metadata(f"iris_{name}", VERSION, measured_features(seen), member=name)
    return to_onnx(*graph(fitted), classifier_outputs(2), properties)
