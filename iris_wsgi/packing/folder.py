"""The files of a model folder: the names in label.json, and the graph, training.csv, and golden.json, which are written last."""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import COLUMN_NAMES, REGRESSOR, Array, Feature
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import (
    GOLDEN,
    LABELS_FILE,
    TRAINING_FILE,
    ArtifactManifest,
    ModelDescription,
    parse_golden,
    read_file,
    read_object,
    sha256,
)
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import RUNTIME_VERSION, Model, ModelFiles, listed
from iris_wsgi.packing.proof import TOLERANCE
from iris_wsgi.packing.sample import RowSample, missing_cells
from iris_wsgi.storage.files import replace_file

Names = Mapping[str, str] | Sequence[str]
# golden.json stays below 2 MB with this number of values of about 20 bytes.
MAX_VALUES = 60_000
MIN_ROWS, USUAL_ROWS, MAX_ROWS = 8, 64, 256
FILL_ROWS = 32
CLOSE_ROWS, MISSING_ROWS = 8, 8


TRAINING_ROWS = 1000


class GoldenRows(NamedTuple):
    """Rows of JSON values with the results that golden.json pins: numbers of labels, and values [n, columns]."""

    rows: Sequence[Sequence[Any]]
    labels: Array | None
    values: Array


def write_folder(
    folder: Path, files: ModelFiles, description: ModelDescription, golden: GoldenRows, training: bytes | None
) -> tuple[Model, ArtifactManifest, str]:
    """Writes the files, after the server's own load of a copy. Returns the loaded model and one line of its self-test.

    golden.json is written last, so a reader finds the old model, the new model, or a checksum that differs. Raises BadModel.
    """
    contents = {Path(files.path).name: files.content, **files.external}
    if description.kind != REGRESSOR:
        names = {str(i): name for i, name in enumerate(description.labels)}
        contents[LABELS_FILE] = (json.dumps(names, ensure_ascii=False) + "\n").encode()
    if training is not None:
        contents[TRAINING_FILE] = training
    contents[GOLDEN] = golden_json(Path(files.path).name, contents, description, golden)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        loaded = verified(folder, contents)
        old = old_files(folder)
        for name, content in contents.items():
            replace_file(folder / name, content)
        for name in (old & {LABELS_FILE, TRAINING_FILE}) - contents.keys():
            # A file of the model that was here before.
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise BadModel(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    return loaded


def verified(folder: Path, contents: Mapping[str, bytes]) -> tuple[Model, ArtifactManifest, str]:
    """Loads the files as the server loads them, from a temporary folder. Raises BadModel."""
    temporary = Path(tempfile.mkdtemp(prefix=".pack-", dir=folder))
    try:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        return load_verified_model(temporary)
    except BadModel as error:
        raise BadModel(f"the server would refuse the folder: {str(error).replace(str(temporary), str(folder))}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def old_files(folder: Path) -> set[str]:
    """Returns the names of the files of the model that the folder has, according to its golden.json."""
    path = folder / GOLDEN
    # A FIFO would block.
    if not path.is_file():
        return set()
    try:
        return set(parse_golden(path.read_bytes(), str(path)).files)
    except BadModel:
        return set()


def golden_json(model: str, contents: Mapping[str, bytes], description: ModelDescription, golden: GoldenRows) -> bytes:
    """Returns golden.json with one line per row."""
    head = {
        "model": model,
        "files": {name: sha256(content) for name, content in contents.items()},
        "tolerance": TOLERANCE,
        "proof": description.proof,
        "runtime": f"onnxruntime {RUNTIME_VERSION}",
        "kind": description.kind,
    }
    if description.kind != REGRESSOR:
        head |= {"label": description.label, "classes": list(description.classes)}
    if description.columns:
        head["columns"] = list(description.columns)
    head |= {"name": description.name, "version": description.version}
    features = ",\n".join("  " + dumps(feature_json(feature)) for feature in description.features)
    rows = ",\n".join("  " + dumps(row) for row in golden_entries(description, golden))
    return f'{dumps(head, 1)[:-2]},\n "features": [\n{features}\n ],\n "rows": [\n{rows}\n ]\n}}\n'.encode()


def dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def feature_json(feature: Feature) -> dict[str, Any]:
    return {
        "name": feature.name,
        "unit": feature.unit,
        "min": feature.min,
        "max": feature.max,
        "type": feature.type,
        "missing": feature.missing,
    }


def golden_entries(description: ModelDescription, golden: GoldenRows) -> list[dict[str, Any]]:
    member = COLUMN_NAMES[description.kind]
    entries = []
    for i, row in enumerate(golden.rows):
        label = {} if golden.labels is None else {"label": description.labels[golden.labels[i]]}
        entries.append({"row": list(row), **label, member: [float(f"{value:.10g}") for value in golden.values[i].tolist()]})
    return entries


def training_csv(features: Sequence[Feature], rows: Sequence[Sequence[Any]], labels: Sequence[str] | None) -> bytes:
    """Returns at most 1,000 rows at even distances, with the label in the last column."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), TRAINING_ROWS)).astype(int)).tolist()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(feature.name for feature in features), *(["label"] if labels is not None else [])])
    for i in chosen:
        cells = ["" if value is None else value for value in rows[i]]
        writer.writerow([*cells, *([labels[i]] if labels is not None else [])])
    return text.getvalue().encode()


def choose_rows(sample: RowSample, labels: Array | None, values: Array) -> list[int]:
    """Returns the numbers of the golden rows in rising order.

    `labels` are the numbers of the classes [n], and `values` the probabilities, scores, or values [n, columns].
    """
    limit = max(MIN_ROWS, min(MAX_ROWS, MAX_VALUES // (len(sample.columns) + values.shape[1])))
    chosen: dict[int, None] = {}
    if labels is not None:
        # Three quarters, so that the other reasons have rows too.
        add(chosen, np.unique(labels, return_index=True)[1].tolist(), max(limit * 3 // 4, 1))
    usual = max(min(limit, USUAL_ROWS), len(chosen))
    add(chosen, largest_values(values), usual)
    add(chosen, missing_rows(sample), usual)
    if labels is not None and values.shape[1] > 1:
        add(chosen, close_rows(values), usual)
    add(chosen, extreme_rows(sample), usual)
    add(chosen, spread(sample.size), max(min(usual, FILL_ROWS), len(chosen)))
    return sorted(chosen)


def add(chosen: dict[int, None], rows: Iterable[int], limit: int) -> None:
    for row in rows:
        if len(chosen) >= limit:
            return
        chosen[row] = None


def largest_values(values: Array) -> list[int]:
    """Returns the rows with the largest value of each column, on which the allowed difference depends."""
    return list(np.abs(values).argmax(axis=0).tolist())


def missing_rows(sample: RowSample) -> Iterator[int]:
    """Yields the rows with a missing value of each feature, and the row with the largest number of them."""
    lost = np.column_stack([missing_cells(column) for column in sample.columns])
    if not lost.any():
        return
    yield int(lost.sum(axis=1).argmax())
    for j in np.flatnonzero(lost.any(axis=0))[:MISSING_ROWS].tolist():
        yield int(lost[:, j].argmax())


def close_rows(values: Array) -> list[int]:
    """Returns the rows whose two highest values are closest."""
    top = np.partition(values, -2, axis=1)[:, -2:]
    return list(np.argsort(top[:, 1] - top[:, 0], kind="stable")[:CLOSE_ROWS].tolist())


def extreme_rows(sample: RowSample) -> Iterator[int]:
    """Yields the rows with the minimum and the maximum of each number, and those with each text of a few."""
    for j, column in enumerate(sample.columns):
        if column.dtype == object:
            texts: Sequence[str] = [str(value) for value in column.tolist()]
            yield from np.unique(texts, return_index=True)[1].tolist()
        elif sample.range_of(j)[0] is not None or column.dtype == bool:
            numbers = column.astype(np.float64)
            yield int(np.nanargmin(numbers))
            yield int(np.nanargmax(numbers))


def spread(count: int) -> list[int]:
    """Returns rows at even distances."""
    return [i * count // FILL_ROWS for i in range(FILL_ROWS)] if count > FILL_ROWS else list(range(count))


def read_names(path: Path) -> dict[str, str]:
    """Returns the object of a label.json. Raises BadModel, also for a key that occurs twice."""
    content = read_file(path)
    names = read_object(content, str(path))
    pairs = json.loads(content, object_pairs_hook=lambda found: found)
    if len(pairs) > len(names):
        raise BadModel(f"{path} has a key twice: {listed([key for key, _ in pairs])}")
    if wrong := [key for key, name in names.items() if not isinstance(name, str) or not name]:
        raise BadModel(f"{path} must map each class to a name; the name of {wrong[0]} is {names[wrong[0]]!r}")
    return names


def class_names(classes: Sequence[Any], given: Names | None, where: str) -> tuple[str, ...]:
    """Returns the names of the classes in their order. Raises BadModel if the given names do not fit the classes.

    `given` is a sequence in the order of the classes, or a mapping from their positions or from their values.
    """
    own = tuple(map(str, classes))
    if given is None:
        return own
    names = by_mapping(own, given, where) if isinstance(given, Mapping) else tuple(map(str, given))
    if len(names) != len(own):
        many = "too many" if len(names) > len(own) else "too few"
        raise BadModel(f"{where} has {many} names: {both(own, names)}")
    if len(set(names)) < len(names):
        raise BadModel(f"{where} gives two classes one name: {both(own, names)}")
    explicit = isinstance(given, Mapping) and set(given) == set(own) and set(own) != positions(len(own))
    if set(names) == set(own) and names != own:
        raise BadModel(f"{where} has the labels in another order than the graph: {both(own, names)}")
    if explicit:
        if wrong := [name for name, label in zip(names, own, strict=True) if name != label and name in own]:
            raise BadModel(f"{where} gives a class the name {wrong[0]}, which is the label of another class: {both(own, names)}")
    elif names != own:
        check_own_names(classes, own, names, where)
    return names


def check_own_names(classes: Sequence[Any], own: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuses names by position that are nearly the labels of the graph, and other names for strings. Raises BadModel."""
    has_strings = any(isinstance(value, str) for value in classes)
    if has_strings or set(names) & set(own):
        wrong = next(name for name in names if name not in own)
        hint = f'; to rename labels, write {{"{own[0]}": "…", …}} with every label of the graph as a key' if has_strings else ""
        raise BadModel(f"{where} has the name {wrong}, which is not a label of the graph: {both(own, names)}{hint}")


def by_mapping(own: Sequence[str], given: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Returns the names of a mapping whose keys are all positions, or all labels of the graph. Raises BadModel."""
    keys = list(map(str, given))
    names = {str(key): str(name) for key, name in given.items()}
    as_positions, as_labels = set(keys) == positions(len(keys)), set(keys) == set(own)
    if as_positions and as_labels and list(own) != [str(i) for i in range(len(own))]:
        raise BadModel(
            f"{where} is ambiguous: its keys can be positions, and they can be the labels of the graph, {listed(own)}."
            " Name the classes in the training instead"
        )
    if as_labels:
        return tuple(names[label] for label in own)
    if as_positions:
        return tuple(names[str(i)] for i in range(len(keys)))
    many = "too many" if len(keys) > len(own) else "too few" if len(keys) < len(own) else "other"
    raise BadModel(f"{where} has {many} keys: the labels of the graph are {listed(own)}, and the keys are {listed(keys)}")


def positions(count: int) -> set[str]:
    return {str(i) for i in range(count)}


def both(own: Sequence[str], names: Sequence[str]) -> str:
    return f"the labels of the graph are {listed(own)}, and the names are {listed(names)}"
