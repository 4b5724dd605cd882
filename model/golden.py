"""File of the self-test: rows with the results of scikit-learn, and the digests of the files of the model."""

import hashlib
import json

import numpy as np
from onnx_file import FEATURES
from sklearn.datasets import load_iris
from sklearn.pipeline import Pipeline

TOLERANCE = 1e-5


def golden_rows(fitted: Pipeline, measured: np.ndarray) -> list[tuple[str, list[float]]]:
    """Returns the rows of the self-test, each with its reason."""
    low, high, middle = measured.min(axis=0), measured.max(axis=0), np.median(measured, axis=0)
    rows = [
        ("fixed point: setosa", [5.1, 3.5, 1.4, 0.2]),
        ("fixed point: versicolor", [6.7, 3.1, 4.7, 1.5]),
        ("fixed point: virginica", [7.2, 3.6, 6.1, 2.5]),
        ("zeros", [0.0] * 4),
        ("negative zeros", [-0.0] * 4),
        ("negative", [-5.1, -3.5, -1.4, -0.2]),
        ("whole numbers", [6.0, 3.0, 5.0, 2.0]),
        ("smallest subnormal of float32", [1e-45] * 4),
        ("largest of float32", [3.4028234663852886e38] * 4),
        ("lowest of float32", [-3.4028234663852886e38] * 4),
        ("rounded by float32", [5.123456789, 3.123456789, 4.123456789, 1.123456789]),
        ("lowest of every feature", low.tolist()),
        ("highest of every feature", high.tolist()),
        ("median of every feature", middle.tolist()),
    ]
    for column, name in enumerate(FEATURES):
        for word, end in (("below", low[column] - 1), ("above", high[column] + 1)):
            row = middle.tolist()
            row[column] = float(end)
            rows.append((f"{name} {word} the measured range", row))
    rows += [(f"measured row {i}", measured[i].tolist()) for i in range(0, 150, 15)]
    return rows + [(f"near the border {a} | {b}", row) for a, b, row in border_rows(fitted, measured)]


def border_rows(fitted: Pipeline, measured: np.ndarray) -> list[tuple[int, int, list[float]]]:
    """Returns a border row for each two species: the point between their means where the top two probabilities are closest.

    A member for which both species are the same class has no border there.
    """
    target = load_iris().target
    found = []
    for a, b in ((0, 1), (1, 2)):
        ends = measured[target == a].mean(axis=0), measured[target == b].mean(axis=0)
        if np.unique(fitted.predict(ends)).size == 1:
            continue
        line = np.linspace(*ends, 501).round(2)
        top = np.sort(fitted.predict_proba(line), axis=1)
        found.append((a, b, line[(top[:, -1] - top[:, -2]).argmin()].tolist()))
    return found


def with_results(fitted: Pipeline, cases: list[tuple[str, list[float]]], names: list[str]) -> list[dict]:
    """Returns the rows with scikit-learn's results in float64."""
    # The server rounds each number to float32 first, so the reference uses the rounded rows.
    seen = np.array([row for _, row in cases], np.float32).astype(np.float64)
    labels = [names[i] for i in fitted.predict(seen)]
    return [
        {"why": why, "row": row, "label": label, "probabilities": [round(p, 9) for p in answer]}
        for (why, row), label, answer in zip(cases, labels, fitted.predict_proba(seen).tolist(), strict=True)
    ]


def golden_json(cases: list[dict], files: dict[str, bytes]) -> bytes:
    """Returns golden.json for these files; the first is the model.

    It names no runtime: the results are those of scikit-learn, and the bytes must not depend on the machine.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    # The class numbers of the label output of the graphs.
    classes = list(range(len(cases[0]["probabilities"])))
    head = {"model": next(iter(files)), "files": digests, "tolerance": TOLERANCE, "proof": "estimator", "kind": "classifier"}
    head |= {"label": "both", "classes": classes}
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    return (json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n').encode()
