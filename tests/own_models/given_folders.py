"""Judge of folders with model.onnx, rows.csv, and the predictions of the library in expected.json."""

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from judge import GRAPH, MAX_FAULTS, Serve, Verdict, outcome
from own_model import Kind, OwnModel


def judge_folder(folder: Path, scratch: Path, serve: Serve) -> Verdict:
    """Packs the model of a folder with the expected labels. A refusal is never a fault, because the folder names no outcome."""
    began = time.monotonic()
    own = given_model(folder)
    refusal, worst, faults = judge_model(own, scratch / folder.name, serve)
    golden_file = scratch / folder.name / "packed/golden.json"
    if faults and golden_file.exists():
        own = adapted(own, json.loads(golden_file.read_text()))
        refusal, worst, faults = judge_model(own, scratch / f"{folder.name}_adapted", serve)
    return Verdict(folder.name, GRAPH, refusal, worst, time.monotonic() - began, () if refusal else faults[:MAX_FAULTS])


def judge_model(own: OwnModel, place: Path, serve: Serve) -> tuple[str, float, list[str]]:
    place.mkdir()
    kind = Kind(lambda: own, "" if own.labels or own.values is not None else ".")
    return outcome(kind, own, GRAPH, place, serve)


def adapted(own: OwnModel, golden: Mapping[str, Any]) -> OwnModel:
    """Completes a model with facts that its folder lacks: the label values of names, and that the graph gives scores."""
    if own.kind == "classifier" and golden["kind"] == "scores":
        own = own._replace(values=None)
    if own.label_json and list(own.classes) == list(own.label_json.values()):
        by_name = dict(zip(own.classes, golden["classes"], strict=False))
        own = own._replace(classes=golden["classes"], labels=[by_name[label] for label in own.labels])
    return own


def given_model(folder: Path) -> OwnModel:
    """Reads a folder. Labels in expected.json are texts of the library's labels."""
    expected = json.loads((folder / "expected.json").read_text())
    with (folder / "rows.csv").open(newline="") as file:
        names = next(csv.reader(file))
    is_table = all(isinstance(row, list) and len(row) == len(names) for row in expected["rows"])
    label_file = folder / "label.json"
    graph = (folder / "model.onnx").read_bytes()
    labels = expected["labels"] if expected["labels"] and expected["labels"][0] is not None else None
    names_of = json.loads(label_file.read_text()) if label_file.exists() else None
    typed = None if labels is None else typed_labels(labels, has_string_labels(graph))
    are_names = bool(typed) and names_of is not None and set(typed) <= set(names_of.values())
    return OwnModel(
        pd.DataFrame(expected["rows"], columns=names) if is_table else np.array(expected["rows"], object),
        typed,
        None if expected["proba"] is None else np.array(expected["proba"], float),
        list(names_of.values()) if are_names else sorted(set(typed or ())),
        graph=graph,
        files={path.name: path.read_bytes() for path in folder.glob("model.onnx.*")},
        label_json=names_of,
    )


def has_string_labels(graph: bytes) -> bool:
    """Returns whether the graph gives labels as strings."""
    outputs = onnx.load_model_from_string(graph).graph.output
    return any(output.type.tensor_type.elem_type == onnx.TensorProto.STRING for output in outputs)


def typed_labels(labels: Sequence[str], are_strings: bool) -> list[Any]:
    """Converts texts to the values of the graph: strings, integers, or truth values."""
    if not are_strings and set(labels) <= {"False", "True"}:
        return [label == "True" for label in labels]
    if not are_strings and all(label.lstrip("-").isdigit() for label in labels):
        return [int(label) for label in labels]
    return list(labels)
