"""Writes the model card: the purpose of the model, its accuracy, and two pictures."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from train_members import combined

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FILES = ("README.md", "decision_regions.png", "reliability.png")
COLORS = ("#3b6fb6", "#d98032", "#4f9a5b")
FOLDS = RepeatedStratifiedKFold(n_splits=5, n_repeats=10, random_state=0)


def write(
    out: Path,
    fitted: Pipeline,
    fresh: Pipeline,
    members: dict[str, Pipeline],
    held_out: tuple[np.ndarray, np.ndarray],
    iris: Bunch,
    title: str,
) -> None:
    """Writes README.md and its two pictures to `out`. `fresh` is the unfitted pipeline, for cross-validation."""
    rows, target = held_out
    probabilities, truth = out_of_fold(fresh, iris)
    decision_regions(out / "decision_regions.png", fitted, iris)
    reliability(out / "reliability.png", probabilities, truth, iris.target_names)
    matrix = confusion_matrix(target, fitted.predict(rows))
    text = TEMPLATE.format(
        title=title,
        held_out=len(rows),
        accuracy=f"{accuracy_score(target, fitted.predict(rows)):.3f}",
        table=confusion_table(matrix, iris.target_names),
        cv_accuracy=f"{(probabilities.argmax(axis=1) == truth).mean():.3f}",
        cv_loss=f"{log_loss(truth, probabilities):.3f}",
        members=members_table(members, rows, target),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def members_table(members: dict[str, Pipeline], rows: np.ndarray, target: np.ndarray) -> str:
    """Returns the accuracy of each member for its own species, and of the three together for all species."""
    found = {f"`{name}`": member.predict(rows) == (target == k) for k, (name, member) in enumerate(members.items())}
    found["together"] = combined(members, rows).argmax(axis=1) == target
    lines = [f"| {name} | {right.mean():.3f} |" for name, right in found.items()]
    return "\n".join([f"| member | accuracy on the {len(rows)} held-out rows |", "|---|---|", *lines])


def out_of_fold(fresh: Pipeline, iris: Bunch) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities [1500, 3] of models that had not seen the row, with the true classes [1500]."""
    found = [
        (fresh.fit(iris.data[a], iris.target[a]).predict_proba(iris.data[b]), iris.target[b])
        for a, b in FOLDS.split(iris.data, iris.target)
    ]
    return np.concatenate([p for p, _ in found]), np.concatenate([t for _, t in found])


def confusion_table(matrix: np.ndarray, names: np.ndarray) -> str:
    head = ["| true \\ predicted | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    return "\n".join(
        head + [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in zip(names, matrix.tolist(), strict=True)]
    )


def decision_regions(path: Path, fitted: Pipeline, iris: Bunch) -> None:
    """Draws petal length × width with the sepal at its median: the predicted class in color, fainter for lower probabilities."""
    x, y = np.meshgrid(np.linspace(0.5, 7.3, 400), np.linspace(-0.1, 2.8, 300))
    sepal = np.median(iris.data[:, :2], axis=0)
    grid = np.column_stack([np.full(x.size, sepal[0]), np.full(x.size, sepal[1]), x.ravel(), y.ravel()])
    probabilities = fitted.predict_proba(grid)
    figure, axes = plt.subplots(figsize=(7, 4.6), dpi=110, layout="constrained")
    strength = np.ceil(((probabilities.max(axis=1) - 1 / 3) * 1.5).reshape(x.shape) * 8) / 8
    picture = np.zeros((*x.shape, 4))
    picture[..., :3] = np.array([matplotlib.colors.to_rgb(c) for c in COLORS])[probabilities.argmax(axis=1)].reshape(*x.shape, 3)
    picture[..., 3] = strength * 0.45
    axes.imshow(picture, origin="lower", extent=(0.5, 7.3, -0.1, 2.8), aspect="auto", interpolation="nearest")
    axes.contour(x, y, probabilities.argmax(axis=1).reshape(x.shape), levels=[0.5, 1.5], colors="#333333", linewidths=1)
    for k, (name, mark) in enumerate(zip(iris.target_names, "os^", strict=True)):
        points = iris.data[iris.target == k]
        axes.scatter(
            points[:, 2],
            points[:, 3],
            s=22,
            marker=mark,
            color=COLORS[k],
            edgecolor="white",
            linewidth=0.5,
            label=name,
        )
    axes.set(
        xlabel="petal length (cm)",
        ylabel="petal width (cm)",
        title=f"Decision regions (sepal {sepal[0]:g} × {sepal[1]:g} cm)",
    )
    axes.legend(loc="upper left", frameon=True)
    save(figure, path)


def reliability(path: Path, probabilities: np.ndarray, truth: np.ndarray, names: np.ndarray) -> None:
    """Draws predicted probability against observed frequency, per class, with a histogram of the probabilities below."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6, 6), dpi=110, height_ratios=(3, 1), sharex=True, layout="constrained")
    top.plot([0, 1], [0, 1], color="#888888", linestyle=":", label="perfect")
    for k, (name, mark) in enumerate(zip(names, "os^", strict=True)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            observed, predicted = calibration_curve(truth == k, probabilities[:, k], n_bins=8)
        top.plot(predicted, observed, marker=mark, color=COLORS[k], label=name)
    bottom.hist([probabilities[:, k] for k in range(len(names))], bins=20, range=(0, 1), color=COLORS[: len(names)], log=True)
    top.set(ylabel="observed frequency", title="Reliability (rows the model had not seen, 10 × 5 folds)")
    bottom.set(xlabel="predicted probability", ylabel="rows")
    top.legend(loc="upper left")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


TEMPLATE = """# Model card: {title}

`bin/train` writes this file, like every file of this folder except the Python files. It writes the same bytes each time.

**Purpose.** The model predicts the species of an iris (setosa, versicolor, virginica) from four lengths in cm: sepal length,
sepal width, petal length, petal width. It is here to show how to serve a model. It knows only three species, and a row unlike
any of them gets one of these species too (`model_input_out_of_range_total` counts such values).

**Training.** The data are Fisher's 150 rows as scikit-learn ships them: 120 to train and {held_out} held out, stratified, with a fixed
seed. The pipeline is a standard scaler, an RBF support vector machine, and a multinomial logistic regression. The regression
turns the machine's pairwise decisions into probabilities (Platt's scaling, fitted on out-of-fold decisions). The label is always
the class of the highest probability.

**Source.** The rows are the Iris data set: Fisher, R. A. (1936), *Iris*, UCI Machine Learning Repository,
[doi.org/10.24432/C56C76](https://doi.org/10.24432/C56C76), under the license
[Creative Commons Attribution 4.0](https://creativecommons.org/licenses/by/4.0/). scikit-learn's copy corrects two rows of the
repository with the values of Fisher's paper (*The use of multiple measurements in taxonomic problems*, Annals of Eugenics 7,
1936). The golden rows include changed rows. The model is under the license of the project ([NOTICE](../NOTICE)).

**Accuracy.**

| measure | value |
|---|---|
| accuracy on the {held_out} held-out rows | {accuracy} |
| accuracy, 10 × 5-fold cross-validation on all 150 | {cv_accuracy} |
| log loss, the same folds | {cv_loss} |

The {held_out} held-out rows:

{table}

**The members.** For each species there is a model with the same training on the same rows, which knows only this species and
"other". Together they predict the species whose member has the highest probability, divided by the sum of all three.

{members}

![Decision regions on petal length and width](decision_regions.png)

![Reliability of the probabilities](reliability.png)

**Files.**

| file | content |
|---|---|
| `iris_svc.onnx` | float32 `[N, 4]` in, int64 label `[N]` and float32 probabilities `[N, 3]` out; its metadata has name, version, features with unit and training range, library versions |
| `label.json` | class number to name |
| `golden.json` | SHA-256 of the other files, and rows with scikit-learn's results, which the model must return before the server is ready |
| `training.csv` | the 150 rows, for the plot of the page and for the items of the data cache; optional for another model |
| `fast/` | a logistic regression on the same rows, for a fast result |
| `prep/`, `pred/` | the main model in two halves: float32 `[N, 4]` to scaled and finite float32 `[N, 4]`, and from there to the output. `pair` in the metadata of both is one digest of the two. Their results are those of `iris_svc.onnx` to the bit |
| `members/` | the three members: float32 `[N, 4]` in, int64 label `[N]` and float32 probabilities `[N, 2]` out; `member` in the metadata is the species |
"""  # noqa: E501
