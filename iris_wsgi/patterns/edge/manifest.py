"""manifest.json of a bundle: what is in it, read so strictly that nothing outside of it can be fetched or written."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_object, sha256

MANIFEST = "manifest.json"
# Where the files of the model are.
MODEL = "model/"
MANIFEST_BYTES = 1 << 20
BUNDLE_BYTES = 1 << 30
PATH_LENGTH = 200

# Of letters, digits and - . _ in each part; none begins with a point, so none leads elsewhere or hides.
is_path = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*", re.ASCII).fullmatch
is_digest = re.compile(r"[0-9a-f]{64}").fullmatch
is_bundle = re.compile(r"(?=.{1,80}\Z)[0-9A-Za-z][0-9A-Za-z._+-]*-([0-9a-f]{12})").fullmatch
is_version = re.compile(r"(\d{1,6}(?:\.\d{1,6})*)(?:[^\d.].*|\..*)?", re.ASCII).fullmatch


class File(NamedTuple):
    """What a file of a bundle must be."""

    sha256: str
    bytes: int


class Manifest(NamedTuple):
    """A bundle: its name, the model's name, version and digest, the least version of each runtime, its files by path."""

    bundle: str
    name: str
    version: str
    digest: str
    minimum: dict[str, str]
    files: dict[str, File]

    @property
    def of_model(self) -> dict[str, File]:
        return {path: file for path, file in self.files.items() if path.startswith(MODEL)}

    def check_runtime(self, version: str) -> None:
        """Raises BadModel if this version of onnxruntime is too old for the bundle."""
        wanted = self.minimum.get("onnxruntime", "0")
        if (least := release(wanted)) is None:
            raise BadModel(f"{self.bundle} wants a version of onnxruntime that is none")
        if (release(version) or ()) < least:
            raise BadModel(f"{self.bundle} wants onnxruntime {wanted} or later, here is {version}")


def read_checked(read: Callable[[str, int], bytes], path: str, file: File) -> bytes:
    """What `read` gives of a file of the bundle. Raises BadModel if it is not what the manifest says."""
    content = read(path, file.bytes)
    if len(content) != file.bytes:
        raise BadModel(f"{path} ends after {len(content)} of {file.bytes} bytes")
    if (found := sha256(content)) != file.sha256:
        raise BadModel(f"{path} has the SHA-256 {found[:12]}…, the manifest says {file.sha256[:12]}…")
    return content


def mark(files: Mapping[str, File]) -> str:
    """What the name of a bundle ends in: 12 digits of the SHA-256 over hash and path of each file, as sha256sum tells them."""
    return sha256("".join(sorted(f"{file.sha256}  {path}\n" for path, file in files.items())).encode())[:12]


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Raises BadModel, in words that repeat nothing of what is in it."""
    document = read_object(content, where)
    try:
        model = document["model"]
        manifest = Manifest(
            document["bundle"],
            model["name"],
            model["version"],
            model["digest"],
            dict(document["minimum"]),
            {path: File(file["sha256"], file["bytes"]) for path, file in document["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadModel(f"{where} does not have the members bundle, model, minimum and files in their right form") from None
    if (why := fault_of(manifest)) is not None:
        raise BadModel(f"{where} {why}")
    return manifest


def fault_of(manifest: Manifest) -> str | None:
    """What is wrong with it, if anything is."""
    texts: list[Any] = [*manifest[:4], *manifest.minimum, *manifest.minimum.values()]
    if not all(isinstance(text, str) and text.isprintable() and len(text) <= PATH_LENGTH for text in texts):
        return "does not tell bundle, model and minimum in short texts"
    for path, file in manifest.files.items():
        if not is_path(path) or len(path) > PATH_LENGTH or path == MANIFEST:
            return "names a file outside of the bundle, or in other signs than letters, digits and - . _"
        if not isinstance(file.sha256, str) or not is_digest(file.sha256) or type(file.bytes) is not int or file.bytes < 0:
            return "does not give each file a SHA-256 and a number of bytes"
    if sum(file.bytes for file in manifest.files.values()) > BUNDLE_BYTES:
        return f"wants more than {BUNDLE_BYTES} bytes"
    found = is_bundle(manifest.bundle)
    if not found or found[1] != mark(manifest.files):
        return "has another name than its files give it"
    return None


def release(version: str) -> tuple[int, ...] | None:
    """The numbers at its start, to be compared: 1.31.0.dev1 is (1, 31), as zeros at the end say nothing."""
    found = is_version(version)
    if not found:
        return None
    numbers = [int(one) for one in found[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
