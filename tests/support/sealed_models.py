"""Writes golden.json for a model folder from the graph's own answers, as a test needs it after a change of its files."""

import json
import random
import sys
from pathlib import Path

from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.artifact import GOLDEN, LABELS_FILE, ModelDescription, read_file, read_labels, sha256
from iris_wsgi.model.golden import check_shapes
from iris_wsgi.model.session import Model, ModelFiles

ROWS = 32


def seal(folder: Path, rows: list[list[float]] | None = None) -> None:
    """Seals the only .onnx file with label.json and training.csv. Without `rows` they are drawn from the training ranges."""
    (path,) = sorted(folder.glob("*.onnx"))
    names = [path.name, *(name for name in (LABELS_FILE, "training.csv") if (folder / name).exists())]
    contents = {name: read_file(folder / name) for name in names}
    model = Model(
        ModelFiles(contents[path.name], str(path)),
        ModelDescription(labels=read_labels(contents[LABELS_FILE], str(folder / LABELS_FILE))),
    )
    rows = rows or drawn_rows(model)
    values = model.schema.from_values(rows)
    check_shapes(model, values)
    answer = json.loads(Encoder(model.outputs).batch(model.predict(values)))
    cases = [
        {"row": row, "label": label, "probabilities": probabilities}
        for row, label, probabilities in zip(rows, answer["labels"], answer["probabilities"], strict=True)
    ]
    digests = {name: sha256(content) for name, content in contents.items()}
    document = {"model": path.name, "files": digests, "tolerance": 1e-5, "rows": cases}
    (folder / GOLDEN).write_text(json.dumps(document, indent=1) + "\n")


def drawn_rows(model: Model) -> list[list[float]]:
    low = [-3.0 if feature.min is None else feature.min for feature in model.features]
    high = [3.0 if feature.max is None else feature.max for feature in model.features]
    drawn = random.Random(0)
    return [[round(drawn.uniform(*bounds), 3) for bounds in zip(low, high, strict=True)] for _ in range(ROWS)]


if __name__ == "__main__":
    seal(Path(sys.argv[1]))
