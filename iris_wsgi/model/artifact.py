"""A model's folder: golden.json, and with its help every other file checked before it is used."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.errors import BadModel

GOLDEN = "golden.json"
Read = Callable[[str], bytes]


class GoldenRow(NamedTuple):
    """One golden row with the label and the probabilities that the model must give for it."""

    row: list[float]
    label: str
    probabilities: list[float]


class ArtifactManifest(NamedTuple):
    """golden.json: which file is the model, the SHA-256 of each file, the rows to try and how far an answer may be off.

    Its own SHA-256 is the seal of the folder, since it holds those of all other files.
    """

    model: str
    files: dict[str, str]
    tolerance: float
    cases: list[GoldenRow]
    seal: str


def read_file(path: Path, most: int | None = None) -> bytes:
    """Raises BadModel, also where there are more than `most` bytes."""
    try:
        with path.open("rb") as file:
            return file.read() if most is None else within(str(path), file.read(most + 1), most)
    except OSError as error:
        # Most often the folder is another one than was meant.
        hint = "; IRIS_MODEL_DIR names the folder of a model" if path.name == GOLDEN else ""
        raise BadModel(f"{path} cannot be read: {error.strerror}{hint}") from None


def within(where: str, content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise BadModel(f"{where} is over {most} bytes")
    return content


def read_all(read: Read, where: str, seal: str = "") -> tuple[ArtifactManifest, dict[str, bytes]]:
    """What golden.json says, and every file that it names by name, whose SHA-256 is as it says.

    `read` gives the bytes of a file of the folder that `where` names; golden.json must have the `seal`, where one is given.
    Raises BadModel.
    """
    content = read(GOLDEN)
    golden = parse_golden(content, f"{where}/{GOLDEN}")
    if seal and golden.seal != seal:
        raise BadModel(f"{where} is sealed with {golden.seal}, wanted is {seal}: it holds another model")
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
    """The digest of the model in a folder, as its golden.json has it. Raises BadModel."""
    golden = parse_golden(read_file(folder / GOLDEN), str(folder / GOLDEN))
    return f"sha256:{golden.files.get(golden.model, '')}"


def fast_folder(whole: Path, named: str) -> Path:
    """Where the fast model is: in the full one's folder, unless another is named."""
    return Path(named or whole / "fast")


def member_folders(whole: Path) -> dict[str, Path]:
    """The folders of the models of one species beside the whole one, by species, in the order of their names."""
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
