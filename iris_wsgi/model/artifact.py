"""The artifact of a model: its folder, and golden.json, whose checksums every other file is compared with."""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from iris_wsgi.codec.model_schema import (
    BOTH,
    CLASSIFIER,
    COLUMN_NAMES,
    KINDS,
    LABELS,
    REGRESSOR,
    TYPES,
    Array,
    Feature,
    RowSchema,
    is_text,
)
from iris_wsgi.console import script
from iris_wsgi.errors import BadModel

GOLDEN = "golden.json"
# The folder of the fast model, in the folder of the full model.
FAST_FOLDER = "fast"
LABELS_FILE = "label.json"
TRAINING_FILE = "training.csv"
# Its column of the class, after the features.
TRAINING_LABEL = "label"
# The origin of the predictions of the golden rows: the estimator, columns of a file, or the graph itself.
ESTIMATOR, EXPECTED, SELF = "estimator", "expected", "self"
PROOFS = (ESTIMATOR, EXPECTED, SELF)
PROOF_TEXTS = {
    ESTIMATOR: "the golden rows have the predictions of the original library",
    EXPECTED: "the golden rows have the predictions of the file that pack was given",
    SELF: "the golden rows have the graph's own predictions: nothing outside of the graph was compared",
}
# Files that pack turns into a model folder.
UNPACKED_SUFFIXES = (".onnx", ".joblib", ".pkl")
# Spellings in CSV, in lower case.
BOOLEANS = {"true": True, "false": False}
Read = Callable[[str], bytes]
Kind = TypeVar("Kind")


class GoldenRow(NamedTuple):
    """A row with the outputs that the model must give for it: label and probabilities, label and scores, or values.

    The values of the row are those of JSON; None is a missing value. A regressor has no label.
    """

    row: list[Any]
    label: str
    outputs: list[float]


class ModelDescription(NamedTuple):
    """The members of golden.json that describe the model: its kind, its classes, its features, and the origin of its rows.

    An older golden.json says none of it, and then the graph and label.json decide.
    """

    kind: str = CLASSIFIER
    label: str = BOTH
    labels: tuple[str, ...] = ()
    # The graph's own values of the classes.
    classes: tuple[Any, ...] = ()
    # Names of the targets or of the scores.
    columns: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    name: str = ""
    version: str = ""
    proof: str = SELF
    runtime: str = ""


class ArtifactManifest(NamedTuple):
    """golden.json: the file of the model, the SHA-256 of each file, the golden rows, and the tolerance of their outputs.

    Its own SHA-256 is the seal of the folder, because it contains those of all other files.
    """

    model: str
    files: dict[str, str]
    tolerance: float
    cases: list[GoldenRow]
    seal: str
    description: ModelDescription = ModelDescription()


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Returns the content of a file. Raises BadModel, also for a file of more than `max_bytes`."""
    try:
        with path.open("rb") as file:
            return file.read() if max_bytes is None else check_size(str(path), file.read(max_bytes + 1), max_bytes)
    except OSError as error:
        hint = hint_for_golden(path.parent) if path.name == GOLDEN else ""
        raise BadModel(f"{path} cannot be read: {error.strerror}{hint}") from None


def hint_for_golden(folder: Path) -> str:
    """Returns the command that packs the model of the folder, if there is one. Otherwise the folder is probably a wrong one."""
    if not (names := unpacked_models(folder)):
        return "; IRIS_MODEL_DIR names the folder of a model"
    # Imported only for this message.
    from shlex import quote

    command = f"{script('pack')} {quote(str(folder / names[0]))} --rows rows.csv --out {quote(str(folder))}"
    return f"; {names[0]} is not packed yet, so write {GOLDEN} with rows of your data: {command}"


def unpacked_models(folder: Path) -> list[str]:
    """Returns the names of the files in a folder that pack takes, graphs first."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
    return [name for suffix in UNPACKED_SUFFIXES for name in names if name.endswith(suffix)]


def check_size(where: str, content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise BadModel(f"{where} is over {max_bytes} bytes")
    return content


def read_all(read: Read, where: str, seal: str = "") -> tuple[ArtifactManifest, dict[str, bytes]]:
    """Returns golden.json, and the content of every file that it names, by name, after comparing the SHA-256 of each.

    `read` returns the content of a file in the folder `where`. If a `seal` is given, golden.json must have it. Raises BadModel.
    """
    content = read(GOLDEN)
    golden = parse_golden(content, f"{where}/{GOLDEN}")
    if seal and golden.seal != seal:
        raise BadModel(f"{where} is sealed with {golden.seal}, expected is {seal}: the folder has another model")
    files = {GOLDEN: content}
    for name, digest in golden.files.items():
        files[name] = read(name)
        if (found := sha256(files[name])) != digest:
            raise BadModel(
                f"{where}/{name} has the SHA-256 {found[:12]}…, golden.json says {digest[:12]}…: the file was changed or damaged"
            )
    labels = () if golden.description.kind == REGRESSOR else (LABELS_FILE,)
    for name in (golden.model, *labels):
        if name not in golden.files:
            raise BadModel(f"{where}/{GOLDEN} gives no SHA-256 for {name}")
    return golden, files


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest_digest(folder: Path) -> str:
    """Returns the digest of the model in a folder, according to its golden.json. Raises BadModel."""
    golden = parse_golden(read_file(folder / GOLDEN), str(folder / GOLDEN))
    names = [golden.model, *external_names(golden)]
    return f"sha256:{combined_digest([golden.files.get(name, '') for name in names])}"


def check_classifier(pattern: str, kind: str) -> None:
    """Raises BadModel for a model without probabilities, in a pattern that is for classifiers."""
    if kind != CLASSIFIER:
        raise BadModel(f"the pattern {pattern} is for classifiers with probabilities; this model gives {COLUMN_NAMES[kind]}")


def external_names(golden: ArtifactManifest) -> list[str]:
    """Returns the names of the files with weights of the graph, sorted."""
    return sorted(set(golden.files) - {golden.model, LABELS_FILE, TRAINING_FILE})


def combined_digest(digests: Sequence[str]) -> str:
    """Returns the digest of a graph from the SHA-256 of its file and of each file with its weights."""
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode())


def member_folders(whole: Path) -> dict[str, Path]:
    """Returns the folders of the members of the ensemble by species, sorted by name."""
    return {folder.name: folder for folder in sorted((whole / "members").glob("*/")) if folder.is_dir()}


def read_object(text: str | bytes, file: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadModel(f"{file} does not hold a JSON object where one is needed")
    return document


def parse_golden(content: bytes, path: str) -> ArtifactManifest:
    document = read_object(content, path)
    try:
        description = parse_description(document)
        golden = ArtifactManifest(
            str(document["model"]),
            {str(name): str(digest) for name, digest in document["files"].items()},
            float(document["tolerance"]),
            [parse_row(case, description) for case in document["rows"]],
            f"sha256:{sha256(content)}",
            description,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise BadModel(f"{path} does not have the members model, files, tolerance and rows in their right form") from None
    if not golden.cases:
        raise BadModel(f"{path} holds no rows to test the model with")
    if any(Path(name).name != name for name in golden.files):
        raise BadModel(f"{path} names a file outside its own folder")
    return golden


def parse_row(case: Mapping[str, Any], description: ModelDescription) -> GoldenRow:
    """Raises KeyError, TypeError, ValueError, and OverflowError."""
    row = [float(v) if type(v) is int and not description.features else v for v in case["row"]]
    label = "" if description.kind == REGRESSOR else str(case["label"])
    return GoldenRow(row, label, [float(value) for value in case[COLUMN_NAMES[description.kind]]])


def parse_description(document: Mapping[str, Any]) -> ModelDescription:
    """Raises KeyError, TypeError, and ValueError."""
    default = ModelDescription()
    kind, label = document.get("kind", default.kind), document.get("label", default.label)
    proof = document.get("proof", default.proof)
    if kind not in KINDS or label not in LABELS or proof not in PROOFS:
        raise ValueError
    return ModelDescription(
        kind=kind,
        label=label,
        classes=distinct(document.get("classes", []), (int, bool, str)),
        columns=distinct(document.get("columns", []), (str,)),
        features=tuple(parse_feature(entry) for entry in typed(document.get("features", []), list)),
        name=text(document.get("name", "")),
        version=text(document.get("version", "")),
        proof=proof,
        runtime=text(document.get("runtime", "")),
    )


def parse_feature(entry: Mapping[str, Any]) -> Feature:
    """Raises KeyError, TypeError, ValueError, and OverflowError."""
    low, high = (None if entry.get(key) is None else float(entry[key]) for key in ("min", "max"))
    kind, unit, missing = entry.get("type", "float32"), entry.get("unit"), entry.get("missing", False)
    if kind not in TYPES or not all(bound is None or isfinite(bound) for bound in (low, high)):
        raise ValueError
    if kind == "string" and (low, high) != (None, None):
        raise ValueError
    name = text(entry["name"])
    if not name:
        raise ValueError
    return Feature(name, unit if unit is None else text(unit), low, high, kind, typed(missing, bool))


def typed(value: Any, kind: type[Kind]) -> Kind:
    """Returns a value of this type. Raises TypeError for any other type, also for a bool in place of an int."""
    if type(value) is not kind:
        raise TypeError
    return value


def text(value: Any) -> str:
    """Raises TypeError, and ValueError for text that cannot be sent as UTF-8."""
    if not is_text(typed(value, str)):
        raise ValueError
    return str(value)


def distinct(values: Any, kinds: Sequence[type]) -> tuple[Any, ...]:
    """Returns the values of a list of one of these types, without a value that occurs twice. Raises TypeError and ValueError."""
    found = tuple(text(value) if type(value) is str else value for value in typed(values, list))
    if len(set(map(type, found))) > 1 or not {type(value) for value in found} <= set(kinds) or len(set(found)) < len(found):
        raise ValueError
    return found


def read_labels(content: bytes, file: str) -> tuple[str, ...]:
    document = read_object(content, file)
    names = tuple(document.get(str(i)) for i in range(len(document)))
    if (
        not all(isinstance(name, str) and name and is_text(name) for name in names)
        or len(names) < 2
        or len(set(names)) < len(names)
    ):
        raise BadModel(f'{file} must map "0", "1", … without a gap to class names that differ')
    return names  # type: ignore[return-value]


def read_training(schema: RowSchema, folder: Path, max_rows: int | None = None) -> tuple[Array, list[str]]:
    """Returns training rows [rows, features], at most `max_rows` at even distances, and their classes if the file has them.

    Raises OSError, and ValueError for a file that does not belong to this model.
    """
    try:
        with (folder / TRAINING_FILE).open(newline="", encoding="utf-8") as file:
            header, *lines = [*csv.reader(file)] or [[]]
    except (csv.Error, UnicodeDecodeError):
        raise ValueError("it is not a CSV in UTF-8") from None
    width = schema.width
    if header[:width] != [feature.name for feature in schema.features]:
        raise ValueError("it has other columns than the model has features")
    if max_rows is not None and len(lines) > max_rows:
        lines = [lines[i * len(lines) // max_rows] for i in range(max_rows)]
    if not lines:
        raise ValueError("it has no rows")
    if (rows := training_rows(schema, lines)) is None:
        raise ValueError("it has values that do not fit the features, or are not finite")
    has_labels = header[width : width + 1] == [TRAINING_LABEL]
    return rows, ["".join(line[width : width + 1]) for line in lines] if has_labels else []


def training_rows(schema: RowSchema, lines: Sequence[Sequence[str]]) -> Array | None:
    """Converts the first cells of lines to rows [n, features]. Returns None for cells that do not fit the features."""
    try:
        values = [[cell_value(cell, feature) for cell, feature in zip(line, schema.features, strict=False)] for line in lines]
    except ValueError:
        return None
    return schema.from_values(values) if all(len(row) == schema.width for row in values) else None


def cell_value(cell: str, feature: Feature) -> Any:
    """Returns the value of a field of CSV. Raises ValueError for one that is not a number where one is needed."""
    if feature.type == "string":
        return cell
    if not cell.strip() and feature.missing:
        return None
    if feature.type == "bool" and (value := BOOLEANS.get(cell.strip().lower())) is not None:
        return value
    try:
        # float64 does not hold every whole number.
        return int(cell)
    except ValueError:
        return float(cell)
