"""Trains the Iris classifier and writes every file of this folder, the same bytes each time."""

import argparse
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

# One BLAS thread: the order of additions, and so the last bits, must not depend on the machine's cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import card
import fast
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

NAME, VERSION, SEED = "iris_svc", "1.0.0", 1
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
UNIT = "cm"
GAMMA = 0.25  # one over the number of features, each of variance 1 once scaled
TOLERANCE = 1e-5
LIBRARIES = ("numpy", "onnx", "scikit-learn")


def pipeline() -> Pipeline:
    """A scaler and an RBF SVM whose pairwise decisions a multinomial logistic regression turns into probabilities.

    This is Platt's scaling for three classes at once, fitted on out-of-fold decisions. The class that it predicts is
    the class of the highest probability, which SVC(probability=True) does not promise.
    """
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    svm = SVC(C=1.0, kernel="rbf", gamma=GAMMA, tol=1e-8, decision_function_shape="ovo")
    calibration = LogisticRegression(C=10.0, solver="newton-cholesky", tol=1e-12)
    stack = StackingClassifier([("svm", svm)], calibration, stack_method="decision_function", cv=folds)
    return Pipeline([("scaler", StandardScaler()), ("classifier", stack)])


def graph(fitted: Pipeline) -> tuple[list, list]:
    """Nodes and weights of the fitted pipeline: float32 [N, 4] to int64 [N] and float32 [N, 3].

    Written out by hand because a converter makes 67 nodes of it and needs an attribute that scikit-learn deprecates.
    The label is the ArgMax of the very probabilities that go out, so the two can never disagree.
    """
    scaler, stack = fitted["scaler"], fitted["classifier"]
    svm, calibration = stack.estimators_[0], stack.final_estimator_
    scale = helper.make_node(
        "Scaler",
        ["features"],
        ["scaled"],
        domain="ai.onnx.ml",
        offset=floats(scaler.mean_),
        scale=floats(1 / scaler.scale_),
    )
    decide = helper.make_node(
        "SVMClassifier",
        ["scaled"],
        ["vote", "decisions"],
        domain="ai.onnx.ml",
        classlabels_ints=svm.classes_.tolist(),
        coefficients=floats(svm.dual_coef_),
        support_vectors=floats(svm.support_vectors_),
        vectors_per_class=svm.n_support_.tolist(),
        rho=floats(svm.intercept_),
        kernel_type="RBF",
        kernel_params=[GAMMA, 0.0, 0.0],
    )
    calibrate = [
        helper.make_node("Gemm", ["decisions", "weights", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    return [scale, decide, *calibrate], [
        numpy_helper.from_array(calibration.coef_.astype(np.float32), "weights"),
        numpy_helper.from_array(calibration.intercept_.astype(np.float32), "bias"),
    ]


def to_onnx(nodes: list, weights: list, name: str, version: str, rows: np.ndarray) -> bytes:
    """The bytes of an ONNX file with these nodes, from `features` to `label` and `probabilities`."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(FEATURES)])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3]),
        ],
        weights,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="iris_wsgi", producer_version=version)
    helper.set_model_props(model, metadata(rows, name, version))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def floats(array: np.ndarray) -> list[float]:
    return np.asarray(array, np.float64).ravel().tolist()


def metadata(rows: np.ndarray, name: str, released: str) -> dict[str, str]:
    """What the file says of itself: name, version, features with unit and training range, and library versions."""
    low, high = rows.min(axis=0).tolist(), rows.max(axis=0).tolist()
    features = [{"name": n, "unit": UNIT, "min": a, "max": b} for n, a, b in zip(FEATURES, low, high, strict=True)]
    return {
        "name": name,
        "version": released,
        "features": json.dumps(features),
        "libraries": json.dumps({library: version(library) for library in LIBRARIES}),
    }


def golden_rows(fitted: Pipeline, measured: np.ndarray) -> list[tuple[str, list[float]]]:
    """Rows that a served model must answer as scikit-learn does, each with the reason why it is there."""
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
    """For each two classes that meet between their means, the row of a fine line between them where the top two are closest."""
    target = load_iris().target
    found = []
    for a, b in ((0, 1), (1, 2)):
        ends = measured[target == a].mean(axis=0), measured[target == b].mean(axis=0)
        line = np.linspace(*ends, 501).round(2)
        top = np.sort(fitted.predict_proba(line), axis=1)
        found.append((a, b, line[(top[:, -1] - top[:, -2]).argmin()].tolist()))
    return found


def golden(fitted: Pipeline, cases: list[tuple[str, list[float]]], names: list[str], files: dict[str, bytes]) -> bytes:
    """The self-test's file: digests of the model's files, and rows with scikit-learn's own answers in float64."""
    reasons, rows = zip(*cases, strict=True)
    # The server rounds each number to float32 first, so the reference sees the same rows.
    probabilities = fitted.predict_proba(np.array(rows, np.float32).astype(np.float64))
    labels = [names[i] for i in fitted.predict(np.array(rows, np.float32).astype(np.float64))]
    answered = [
        {"why": why, "row": row, "label": label, "probabilities": [round(p, 9) for p in answer]}
        for why, row, label, answer in zip(reasons, rows, labels, probabilities.tolist(), strict=True)
    ]
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    head = {"model": next(iter(files)), "files": digests, "tolerance": TOLERANCE}
    lines = ",\n".join("  " + json.dumps(case) for case in answered)
    return (json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n').encode()


def training_csv(rows: np.ndarray, labels: list[str]) -> bytes:
    lines = [",".join((*FEATURES, "label"))]
    lines += [",".join((*map(str, row), label)) for row, label in zip(rows.tolist(), labels, strict=True)]
    return ("\n".join(lines) + "\n").encode()


def train(out: Path) -> None:
    """Fits on 120 of the 150 rows, tests on the 30 held out, and writes the model's files and its card to `out`."""
    iris = load_iris()
    names = iris.target_names.tolist()
    split = train_test_split(iris.data, iris.target, test_size=30, stratify=iris.target, random_state=SEED)
    seen, held_out, seen_target, held_out_target = split
    fitted = pipeline().fit(seen, seen_target)
    files = {
        f"{NAME}.onnx": to_onnx(*graph(fitted), NAME, VERSION, seen),
        "label.json": (json.dumps({str(i): n for i, n in enumerate(names)}, separators=(",", ":")) + "\n").encode(),
        "training.csv": training_csv(iris.data, [names[i] for i in iris.target]),
    }
    files["golden.json"] = golden(fitted, golden_rows(fitted, iris.data), names, files)
    second = fast.pipeline().fit(seen, seen_target)
    beside = {
        f"{fast.NAME}.onnx": to_onnx(*fast.graph(second), fast.NAME, fast.VERSION, seen),
        "label.json": files["label.json"],
    }
    beside["golden.json"] = golden(
        second, [case for case in golden_rows(second, iris.data) if "of float32" not in case[0]], names, beside
    )
    files |= {f"fast/{name}": content for name, content in beside.items()}
    (out / "fast").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    card.write(out, fitted, pipeline(), (held_out, held_out_target), iris, f"{NAME} {VERSION}")
    for name in sorted([*files, *card.FILES]):
        print(f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {out / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: %(default)s)")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
