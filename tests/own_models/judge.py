"""Judge of a packed model: every label and every value against the predictions of the library that trained the model."""

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
from own_model import ROWS, Kind, OwnModel
from predictions import (
    Predictions,
    Send,
    WrongResponse,
    application,
    ask,
    by_batch,
    by_http,
    by_v2_binary,
    by_v2_json,
    json_rows,
    v2_model,
    write_csv,
)

import iris_wsgi
from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel

TOLERANCE = 1e-5
ESTIMATOR, PICKLE, GRAPH = "estimator", "pickle", "graph"
MAX_FAULTS = 5
Serve = Callable[[Path, Path], AbstractContextManager[Send]]


class Verdict(NamedTuple):
    """Outcome of one kind that was packed in one way. `refusal` is the message of pack, or empty."""

    kind: str
    packed_as: str
    refusal: str
    worst: float
    seconds: float
    faults: Sequence[str]


def judge(kind: Kind, scratch: Path, serve: Serve = application, pack_rows: int = ROWS) -> Iterator[Verdict]:
    """Makes the model, packs it in each way that it allows, and compares the predictions or the refusal with the requirement.

    `pack_rows` is the number of rows that pack sees. All rows are compared.
    """
    own = kind.make()
    for packed_as in packings(kind, own):
        began = time.monotonic()
        folder = scratch / f"{kind.name}_{packed_as}"
        folder.mkdir(parents=True)
        refusal, worst, faults = outcome(kind, own, packed_as, folder, serve, pack_rows)
        yield Verdict(kind.name, packed_as, refusal, worst, time.monotonic() - began, faults[:MAX_FAULTS])


def packings(kind: Kind, own: OwnModel) -> Iterator[str]:
    """Yields the ways to pack the model: the estimator in process, its pickle by the command, and the graph by the command."""
    if own.estimator is not None:
        yield ESTIMATOR
    if kind.pickled:
        yield PICKLE
    if own.graph is not None:
        yield GRAPH


def outcome(
    kind: Kind, own: OwnModel, packed_as: str, folder: Path, serve: Serve, pack_rows: int = ROWS
) -> tuple[str, float, list[str]]:
    """Returns the message of a refusal, the worst difference, and the faults."""
    try:
        refusal = pack(own.first(pack_rows), packed_as, folder)
    except Exception as error:
        return "", 0.0, [f"pack raises {type(error).__name__}: {error}"]
    if refusal:
        return refusal, 0.0, kind.faults_of_refusal(refusal)
    if kind.refused and own.labels is None and own.values is None:
        return "", 0.0, ["it is served, and the library predicts several labels per row"]
    try:
        worst, faults = compare_all(own, folder / "packed", folder, serve)
    except (WrongResponse, BadModel, AssertionError, KeyError) as error:
        worst, faults = 0.0, [f"{type(error).__name__}: {error}"]
    if kind.refused and not kind.may_serve:
        faults.insert(0, "it is served, and it should be refused")
    return "", worst, faults


def pack(own: OwnModel, packed_as: str, folder: Path) -> str:
    """Packs the model into the folder `packed`. Returns the message of a refusal, or an empty string."""
    if packed_as == ESTIMATOR:
        try:
            iris_wsgi.pack(own.estimator, own.rows, folder / "packed", **pack_options(own))
        except BadModel as error:
            return str(error)
        return ""
    source = folder / "exported"
    source.mkdir()
    if own.label_json is not None:
        (source / "label.json").write_text(json.dumps(own.label_json))
    if packed_as == PICKLE:
        joblib.dump(own.estimator, source / "model.joblib")
        write_rows(own._replace(has_expected=False), source / "rows.csv")
        return run_pack(source / "model.joblib", folder)
    assert own.graph is not None
    (source / "model.onnx").write_bytes(own.graph)
    for name, content in own.files.items():
        (source / name).write_bytes(content)
    write_rows(own, source / "rows.csv")
    options = ["--label", own.label] if own.label else []
    if own.kind == "regressor" and own.values is not None:
        options += ["--targets", ",".join(target_names(own))]
    return run_pack(source / "model.onnx", folder, options)


def run_pack(model: Path, folder: Path, options: Sequence[str] = ()) -> str:
    """Runs the command pack on a file with rows.csv next to it. Returns its standard error if it fails, or an empty string."""
    words = ["pack", str(model), "--rows", str(model.parent / "rows.csv"), "--out", str(folder / "packed"), *options]
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        status = main(words)
    return errors.getvalue() if status else ""


def pack_options(own: OwnModel) -> dict[str, Any]:
    return {"labels": list(own.label_json.values())} if own.label_json else {}


def feature_names(rows: Any) -> list[str]:
    if isinstance(rows, pd.DataFrame):
        return [str(name) for name in rows.columns]
    return [f"f{place}" for place in range(np.asarray(rows).reshape(len(rows), -1).shape[1])]


def write_rows(own: OwnModel, path: Path) -> None:
    """Writes the CSV of pack: the features, and the expected labels with probabilities, or the expected values of a regressor."""
    names = feature_names(own.rows)
    rows = json_rows(own.rows, [{"name": name} for name in names]).values
    for name, column in expected_columns(own) if own.has_expected else ():
        names = [*names, name]
        rows = [[*row, value] for row, value in zip(rows, column, strict=True)]
    write_csv(path, names, rows)


def expected_columns(own: OwnModel) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yields the names and the values of the columns with expected predictions."""
    if own.labels is not None:
        # A library's predict() gives label values. A network gives none, so its user writes names.
        yield "label", own.label_names if own.estimator is None and own.label_json else own.labels
    if own.values is None or own.kind == "scores":
        return
    names = target_names(own) if own.kind == "regressor" else [f"probability_{value}" for value in own.classes]
    yield from zip(names, own.values.T.tolist(), strict=False)


def target_names(own: OwnModel) -> list[str]:
    return [f"target_{place}" for place in range(own.values.shape[1])]


def compare_all(own: OwnModel, packed: Path, scratch: Path, serve: Serve) -> tuple[float, list[str]]:
    """Asks for every row by every way. Returns the worst difference and the faults."""
    golden = json.loads((packed / "golden.json").read_text())
    rows = json_rows(own.rows, golden["features"])
    faults, worst = list(faults_of_golden(own, golden)), 0.0
    with serve(packed, scratch / "state") as send:
        model = v2_model(send, ask(send, "GET", "/metadata")["model"]["name"])
        for predict in (
            lambda: by_http(send, rows, golden["kind"]),
            lambda: by_v2_json(send, rows, model),
            lambda: by_v2_binary(send, rows, model),
            lambda: by_batch(packed, rows, scratch),
        ):
            try:
                off, more = compare(own, predict())
            except WrongResponse as error:
                off, more = 0.0, [str(error)]
            worst, faults = max(worst, off), faults + more
    return worst, faults


def faults_of_golden(own: OwnModel, golden: dict[str, Any]) -> Iterator[str]:
    """Yields a line if golden.json calls the model another kind than the library does."""
    if own.kind and golden["kind"] != own.kind:
        yield f"golden.json has the kind {golden['kind']}, and the library gives {own.kind}"
    if golden["kind"] != "regressor" and own.classes and golden["classes"] != list(own.classes):
        yield f"golden.json has the classes {golden['classes'][:5]}, and the library has {list(own.classes)[:5]}"


def compare(own: OwnModel, predictions: Predictions) -> tuple[float, list[str]]:
    """Returns the largest difference of a value, in units of its scale, and the faults of one way."""
    way, values = predictions.way, predictions.values
    faults = [f"{way}: {fault}" for fault in faults_of_labels(own, predictions)]
    if own.values is None:
        return 0.0, faults
    if values.shape != own.values.shape:
        return 0.0, [*faults, f"{way}: the values have the shape {values.shape}, not {own.values.shape}"]
    scale = np.ones(values.shape[1]) if own.kind == "classifier" else np.abs(own.values).max(axis=0)
    off = float((np.abs(values - own.values) / np.maximum(scale, 1e-30)).max())
    # "not <=" instead of ">": a NaN must not pass.
    return off, faults if off <= TOLERANCE else [*faults, f"{way}: a value is off by {off:.1e}"]


def faults_of_labels(own: OwnModel, predictions: Predictions) -> Iterator[str]:
    """Yields a line if labels are absent or wrong. A graph without a label output has no labels in the protocol v2."""
    expected, found = own.labels if predictions.raw else own.label_names, predictions.labels
    if not expected or (found is None and predictions.raw):
        return
    if found is None or len(found) != len(expected):
        yield f"there are {len(found or ())} labels for {len(expected)} rows"
        return
    if wrong := [place for place, label in enumerate(expected) if found[place] != label]:
        place = wrong[0]
        yield f"wrong labels: {len(wrong)}; row {place} has {found[place]!r}, expected is {expected[place]!r}"
