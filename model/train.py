"""Trains the Iris classifier and its companions, and writes every file of this folder, the same bytes each time."""

import argparse
import hashlib
import json
import os
from pathlib import Path

# One BLAS thread: the order of additions, and with it the last bits, must not depend on the cores of the machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import card
import fast
import numpy as np
import train_halves
import train_main
import train_members
from golden import golden_json, golden_rows, with_results
from onnx_file import FEATURES, classifier_outputs, measured_features, metadata, to_onnx
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch


def training_csv(rows: np.ndarray, labels: list[str]) -> bytes:
    lines = [",".join((*FEATURES, "label"))]
    lines += [",".join((*map(str, row), label)) for row, label in zip(rows.tolist(), labels, strict=True)]
    return ("\n".join(lines) + "\n").encode()


def labels(names: list[str]) -> bytes:
    return (json.dumps({str(i): n for i, n in enumerate(names)}, separators=(",", ":")) + "\n").encode()


def folder(cases: list[dict], name: str, content: bytes, names: list[str], **more: bytes) -> dict[str, bytes]:
    """Returns the files of the folder of a model: the model, the labels, more files, and golden.json over them all."""
    files = {f"{name}.onnx": content, "label.json": labels(names)} | more
    return files | {"golden.json": golden_json(cases, files)}


def main_folders(fitted: Pipeline, seen: np.ndarray, iris: Bunch, names: list[str]) -> dict[str, dict[str, bytes]]:
    """Returns the folders of the full model and of its two halves, with the same golden rows."""
    cases = with_results(fitted, golden_rows(fitted, iris.data), names)
    content = to_onnx(
        *train_main.graph(fitted), classifier_outputs(3), metadata(train_main.NAME, train_main.VERSION, measured_features(seen))
    )
    rows = {"training.csv": training_csv(iris.data, [names[i] for i in iris.target])}
    halves = train_halves.halves(fitted, seen)
    return {
        ".": folder(cases, train_main.NAME, content, names, **rows),
        "prep": folder(cases, "iris_prep", halves["prep"], names),
        "pred": folder(train_halves.scaled_cases(fitted["scaler"], cases), "iris_pred", halves["pred"], names),
    }


def fast_folder(fitted: Pipeline, seen: np.ndarray, iris: Bunch, names: list[str]) -> dict[str, bytes]:
    content = to_onnx(*fast.graph(fitted), classifier_outputs(3), metadata(fast.NAME, fast.VERSION, measured_features(seen)))
    # The bound of the model changes its results at the limits of float32.
    cases = [case for case in golden_rows(fitted, iris.data) if "of float32" not in case[0]]
    return folder(with_results(fitted, cases, names), fast.NAME, content, names)


def member_folder(name: str, fitted: Pipeline, seen: np.ndarray, iris: Bunch) -> dict[str, bytes]:
    names = ["other", name]
    cases = with_results(fitted, golden_rows(fitted, iris.data), names)
    return folder(cases, f"iris_{name}", train_members.to_file(name, fitted, seen), names)


def train(out: Path) -> None:
    """Fits on 120 of the 150 rows, tests on the 30 held-out rows, and writes the files of the models and their card to `out`."""
    iris = load_iris()
    names = iris.target_names.tolist()
    split = train_test_split(iris.data, iris.target, test_size=30, stratify=iris.target, random_state=train_main.SEED)
    seen, held_out, seen_target, held_out_target = split
    fitted = train_main.pipeline().fit(seen, seen_target)
    members = train_members.fit(seen, seen_target, names)
    folders = main_folders(fitted, seen, iris, names)
    folders["fast"] = fast_folder(fast.pipeline().fit(seen, seen_target), seen, iris, names)
    folders |= {f"members/{name}": member_folder(name, member, seen, iris) for name, member in members.items()}
    files = {out / place / name: content for place, inside in folders.items() for name, content in inside.items()}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    card.write(
        out, fitted, train_main.pipeline(), members, (held_out, held_out_target), iris, f"{train_main.NAME} {train_main.VERSION}"
    )
    for path in sorted([*files, *(out / name for name in card.FILES)]):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: %(default)s)")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
