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
import full
import numpy as np
import pair
import species
from golden import answered, golden, golden_rows
from onnx_file import FEATURES, answers, measured, metadata, to_onnx
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
    return files | {"golden.json": golden(cases, files)}


def full_folders(fitted: Pipeline, seen: np.ndarray, iris: Bunch, names: list[str]) -> dict[str, dict[str, bytes]]:
    """Returns the folders of the full model and of its two halves, with the same golden rows."""
    cases = answered(fitted, golden_rows(fitted, iris.data), names)
    content = to_onnx(*full.graph(fitted), answers(3), metadata(full.NAME, full.VERSION, measured(seen)))
    rows = {"training.csv": training_csv(iris.data, [names[i] for i in iris.target])}
    halves = pair.halves(fitted, seen)
    return {
        ".": folder(cases, full.NAME, content, names, **rows),
        "prep": folder(cases, "iris_prep", halves["prep"], names),
        "pred": folder(pair.scaled_cases(fitted["scaler"], cases), "iris_pred", halves["pred"], names),
    }


def fast_folder(fitted: Pipeline, seen: np.ndarray, iris: Bunch, names: list[str]) -> dict[str, bytes]:
    content = to_onnx(*fast.graph(fitted), answers(3), metadata(fast.NAME, fast.VERSION, measured(seen)))
    # The bound of the model changes its results at the limits of float32.
    cases = [case for case in golden_rows(fitted, iris.data) if "of float32" not in case[0]]
    return folder(answered(fitted, cases, names), fast.NAME, content, names)


def member_folder(name: str, fitted: Pipeline, seen: np.ndarray, iris: Bunch) -> dict[str, bytes]:
    names = ["other", name]
    cases = answered(fitted, golden_rows(fitted, iris.data), names)
    return folder(cases, f"iris_{name}", species.to_file(name, fitted, seen), names)


def train(out: Path) -> None:
    """Fits on 120 of the 150 rows, tests on the 30 held-out rows, and writes the files of the models and their card to `out`."""
    iris = load_iris()
    names = iris.target_names.tolist()
    split = train_test_split(iris.data, iris.target, test_size=30, stratify=iris.target, random_state=full.SEED)
    seen, held_out, seen_target, held_out_target = split
    fitted = full.pipeline().fit(seen, seen_target)
    members = species.fit(seen, seen_target, names)
    folders = full_folders(fitted, seen, iris, names)
    folders["fast"] = fast_folder(fast.pipeline().fit(seen, seen_target), seen, iris, names)
    folders |= {f"members/{name}": member_folder(name, member, seen, iris) for name, member in members.items()}
    files = {out / place / name: content for place, inside in folders.items() for name, content in inside.items()}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    card.write(out, fitted, full.pipeline(), members, (held_out, held_out_target), iris, f"{full.NAME} {full.VERSION}")
    for path in sorted([*files, *(out / name for name in card.FILES)]):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: %(default)s)")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
