"""Small estimators, their graphs, and folders of models, for the tests of pack."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = np.array(["high", "low", "mid"])


def inputs(rows: int = 120, features: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, features))


def targets(rows: np.ndarray, classes: int = 3) -> np.ndarray:
    """Returns numbers of classes that depend on the first two features."""
    return np.digitize(rows[:, 0] + rows[:, 1], [0.0] if classes == 2 else [-0.5, 0.5])


def logistic(labels: Any = None, classes: int = 3) -> Any:
    """Returns a fitted logistic regression. `labels` are the labels of the classes."""
    from sklearn.linear_model import LogisticRegression

    rows = inputs()
    numbers = targets(rows, classes)
    return LogisticRegression().fit(rows, numbers if labels is None else np.asarray(labels)[numbers])


def graph_of(estimator: Any, zipmap: bool = False, features: int = 4, **options: Any) -> bytes:
    """Returns the graph of skl2onnx with one float input."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    chosen = {id(estimator): {"zipmap": zipmap, **options}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = convert_sklearn(
            estimator,
            initial_types=[("X", FloatTensorType([None, features]))],
            target_opset={"": 18, "ai.onnx.ml": 3},
            options=chosen,
        )
    return graph.SerializeToString()


def write_graph(folder: Path, content: bytes, names: dict[str, str] | None = None) -> Path:
    """Writes model.onnx, and label.json if there are names. Returns the path of the graph."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    if names is not None:
        (folder / "label.json").write_text(json.dumps(names))
    return folder / "model.onnx"


def write_csv(path: Path, rows: np.ndarray, **columns: Sequence[Any]) -> Path:
    """Writes rows with the features a, b, c, … and more columns."""
    names = [chr(ord("a") + i) for i in range(rows.shape[1])]
    lines = [",".join([*names, *columns])]
    for i, row in enumerate(rows.tolist()):
        lines.append(",".join(map(str, [*row, *(values[i] for values in columns.values())])))
    path.write_text("\n".join(lines) + "\n")
    return path


def golden_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "golden.json").read_text())
