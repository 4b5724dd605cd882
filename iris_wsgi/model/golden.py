"""The self-test with golden rows that a model must pass before it is served, and the command that creates golden.json."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from iris_wsgi.codec import rows as payload
from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model.artifact import GOLDEN, ArtifactManifest, GoldenRow, read_file, read_labels, sha256
from iris_wsgi.model.session import Model, first_line, load_model


class TestableModel(Protocol):
    """A model that can be tested: a whole one, or the two halves of one."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def width(self) -> int: ...
    def predict(self, rows: Array, /) -> Array: ...


def self_test(model: TestableModel, cases: Sequence[GoldenRow], tolerance: float) -> str:
    """Decodes, predicts, and encodes golden rows as a request does. Returns one line of report. Raises BadModel on a mismatch."""
    encoder = payload.Encoder(model.labels)
    rows = [case.row for case in cases]
    try:
        body = json.dumps({"data": rows}).encode()
        answer = json.loads(encoder.batch(model.predict(payload.decode_rows(body, model.width, len(rows), ""))))
    except Problem as problem:
        faults = "; ".join(f"{fault.pointer} {fault.detail}" for fault in problem.faults)
        raise BadModel(f"the golden rows cannot be predicted: {problem.detail} {faults}".strip()) from None
    except Exception as error:
        raise BadModel(f"the golden rows cannot be predicted: {first_line(error)}") from error
    worst = 0.0
    for i, (case, label, probabilities) in enumerate(zip(cases, answer["labels"], answer["probabilities"], strict=True)):
        if len(case.probabilities) != len(probabilities):
            raise BadModel(f"golden row {i} has {len(case.probabilities)} probabilities, the model returns {len(probabilities)}")
        off = max(abs(a - b) for a, b in zip(case.probabilities, probabilities, strict=True))
        # "not <=" instead of ">": a NaN in golden.json must not pass.
        if label != case.label or not off <= tolerance:
            raise BadModel(
                f"golden row {i} has the label {label}, off by {off:.1e}; expected is {case.label} within {tolerance:g}"
            )
        worst = max(worst, off)
    return f"{len(rows)} golden rows answered, probabilities within {worst:.1e} (allowed {tolerance:g})"


def load_verified_model(folder: Path, seal: str = "") -> tuple[Model, ArtifactManifest, str]:
    """Loads a model and compares its files and its predictions with golden.json. Returns both and one line of report.

    Raises BadModel.
    """
    model, golden = load_model(folder, seal)
    result = self_test(model, golden.cases, golden.tolerance)
    check_shapes(model, [golden.cases[0].row])
    return model, golden, result


def check_shapes(model: TestableModel, rows: Sequence[Sequence[float]]) -> None:
    """Runs the model on one row, on two rows, and on all rows. Raises BadModel if an output has another shape."""
    for batch in (rows[:1], [rows[0], rows[-1]], rows):
        try:
            model.predict(np.array(batch, np.float32))
        except Problem as problem:
            raise BadModel(f"the model cannot be used: {problem.detail}") from None
        except Exception as error:
            raise BadModel(f"the model cannot be run on {len(batch)} rows: {first_line(error)}") from None


def passes(model: TestableModel, case: GoldenRow, tolerance: float) -> bool:
    """Returns whether the model still predicts one golden row correctly."""
    try:
        self_test(model, [case], tolerance)
    except BadModel:
        return False
    return True


def batch_difference(model: TestableModel, cases: Sequence[GoldenRow]) -> float:
    """Returns the largest difference between the probabilities of golden rows alone and in a batch; 0 means identical bits."""
    rows = np.array([case.row for case in cases], np.float32)
    alone = np.concatenate([model.predict(row[np.newaxis]) for row in rows])
    return float(np.abs(alone - model.predict(rows)).max())


def batch_consistency(model: TestableModel, cases: Sequence[GoldenRow]) -> str:
    """Reports in one line whether a row has the same bits alone and in a batch. Caching by content and batching require it."""
    off = batch_difference(model, cases)
    return "alone and in a batch a row " + (f"differs by up to {off:.1e}" if off else "gets the same bits")


def seal(folder: Path, rows_file: Path | None, tolerance: float = 1e-5) -> str:
    """Writes golden.json for the only .onnx file and the label.json in `folder`, from the model's own predictions.

    `rows_file` is a CSV of golden rows, with the features as column names, or as the first columns. Without it rows are drawn
    from the training ranges. Sealing records what the model predicts today; it cannot know whether that is right.
    """
    # Imported only to seal.
    from iris_wsgi.storage.files import replace_file

    found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        raise BadModel(f"{folder} must hold exactly one .onnx file to be sealed; it holds {len(found)}")
    contents = {path.name: read_file(path) for path in (found[0], folder / "label.json")}
    model = Model(contents[found[0].name], read_labels(contents["label.json"], str(folder / "label.json")), str(found[0]))
    rows = drawn_rows(model) if rows_file is None else csv_rows(rows_file, model)
    check_shapes(model, rows)
    answers = model.predict(np.array(rows, np.float32)).tolist()
    cases = [
        {"row": row, "label": model.labels[payload.best(answer)], "probabilities": answer}
        for row, answer in zip(rows, answers, strict=True)
    ]
    if (folder / "training.csv").exists():
        contents["training.csv"] = read_file(folder / "training.csv")
    digests = {name: sha256(content) for name, content in contents.items()}
    document = {"model": found[0].name, "files": digests, "tolerance": tolerance, "rows": cases}
    try:
        content = (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
        replace_file(folder / GOLDEN, content)
    except ValueError:
        raise BadModel(f"{found[0]} predicts values that are not finite for these rows") from None
    except OSError as error:
        raise BadModel(f"{folder / GOLDEN} cannot be written: {error.strerror}") from None
    return f"sealed {found[0].name} ({model.digest}) with {len(rows)} rows in {folder / GOLDEN}: seal sha256:{sha256(content)}"


def drawn_rows(model: Model, count: int = 32) -> list[list[float]]:
    """Returns seeded random rows within the training ranges, or from -3 to 3 for a feature without a range."""
    low = [-3.0 if f.min is None else f.min for f in model.features]
    high = [3.0 if f.max is None else f.max for f in model.features]
    drawn = random.Random(0)
    return [[round(drawn.uniform(*bounds), 3) for bounds in zip(low, high, strict=True)] for _ in range(count)]


def csv_rows(path: Path, model: Model, max_rows: int = 100) -> list[list[float]]:
    """Returns the first `max_rows` rows of a CSV with a header, as finite numbers. Raises BadModel."""
    # Imported only to seal.
    import csv
    import io

    text = io.StringIO(read_file(path).decode("utf-8-sig", "replace"), newline="")
    lines = [line for line in csv.reader(text) if any(map(str.strip, line))]
    names = [feature.name for feature in model.features]
    if not lines or len(lines[0]) < model.width:
        raise BadModel(f"{path} has no header of at least {model.width} columns")
    columns = [lines[0].index(n) for n in names] if set(names) <= set(lines[0]) else list(range(model.width))
    try:
        rows = [[float(line[c]) for c in columns] for line in lines[1 : max_rows + 1]]
    except (ValueError, IndexError):
        rows = []
    if not rows or not all(math.isfinite(value) for row in rows for value in row):
        raise BadModel(f"{path} must hold rows of {model.width} finite numbers below its header")
    return rows
