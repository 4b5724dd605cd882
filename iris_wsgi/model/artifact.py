"""The artifact of a model: its folder, and golden.json, whose checksums every other file is compared with."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.errors import BadModel

GOLDEN = "golden.json"
# The folder of the fast model, in the folder of the full model.
FAST_FOLDER = "fast"
Read = Callable[[str], bytes]


class GoldenRow(NamedTuple):
    """A row with the label and the probabilities that the model must predict for it."""

    row: list[float]
    label: str
    probabilities: list[float]


class ArtifactManifest(NamedTuple):
    """golden.json: the file of the model, the SHA-256 of each file, the golden rows, and the tolerance of their probabilities.

    Its own SHA-256 is the seal of the folder, because it contains those of all other files.
    """

    model: str
    files: dict[str, str]
    tolerance: float
    cases: list[GoldenRow]
    seal: str


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Returns the content of a file. Raises BadModel, also for a file of more than `max_bytes`."""
    try:
        with path.open("rb") as file:
            return file.read() if max_bytes is None else check_size(str(path), file.read(max_bytes + 1), max_bytes)
    except OSError as error:
        # The usual cause is a wrong folder.
        hint = "; IRIS_MODEL_DIR names the folder of a model" if path.name == GOLDEN else ""
        raise BadModel(f"{path} cannot be read: {error.strerror}{hint}") from None


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
    for name in (golden.model, "label.json"):
        if name not in golden.files:
            raise BadModel(f"{where}/{GOLDEN} gives no SHA-256 for {name}")
    return golden, files


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest_digest(folder: Path) -> str:
    """Returns the digest of the model in a folder, according to its golden.json. Raises BadModel."""
    golden = parse_golden(read_file(folder / GOLDEN), str(folder / GOLDEN))
    return f"sha256:{golden.files.get(golden.model, '')}"


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
        files = {str(name): str(digest) for name, digest in document["files"].items()}
        rows = [
            GoldenRow([float(v) for v in case["row"]], str(case["label"]), [float(p) for p in case["probabilities"]])
            for case in document["rows"]
        ]
        golden = ArtifactManifest(str(document["model"]), files, float(document["tolerance"]), rows, f"sha256:{sha256(content)}")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadModel(f"{path} does not have the members model, files, tolerance and rows in their right form") from None
    if not golden.cases:
        raise BadModel(f"{path} holds no rows to test the model with")
    if any(Path(name).name != name for name in golden.files):
        raise BadModel(f"{path} names a file outside its own folder")
    return golden


def read_labels(content: bytes, file: str) -> tuple[str, ...]:
    document = read_object(content, file)
    names = tuple(document.get(str(i)) for i in range(len(document)))
    if len(names) < 2 or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
        raise BadModel(f'{file} must map "0", "1", … without a gap to class names that differ')
    return names  # type: ignore[return-value]
