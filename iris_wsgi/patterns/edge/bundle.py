"""Bundle of a model for devices, and its manifest.json, validated so that no file outside the bundle can be read or written."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GOLDEN, ArtifactManifest, read_file, read_object, sha256
from iris_wsgi.model.golden import check_shapes, golden_array, self_test
from iris_wsgi.model.session import RUNTIME_VERSION, Model, load_model

MANIFEST = "manifest.json"
# Folder of the model's files.
MODEL = "model/"
MANIFEST_BYTES = 1 << 20
BUNDLE_BYTES = 1 << 30
MAX_LENGTH = 200

# Letters, digits, and - . _ in each part. No part starts with a period: none is hidden, and none leads out of the bundle.
is_path = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*", re.ASCII).fullmatch
is_digest = re.compile(r"[0-9a-f]{64}").fullmatch
is_bundle = re.compile(r"(?=.{1,80}\Z)[0-9A-Za-z][0-9A-Za-z._+-]*-([0-9a-f]{12})").fullmatch
is_version = re.compile(r"(\d{1,6}(?:\.\d{1,6})*)(?:[^\d].*|\..*)?", re.ASCII).fullmatch


class ManifestEntry(NamedTuple):
    sha256: str
    bytes: int


class Manifest(NamedTuple):
    """Name of the bundle, the model's name, version, and digest, minimum versions of the runtimes, and the files by path.

    `source` is the digest of the model of the server, from which the build made that of the bundle. Usually both are equal.
    """

    bundle: str
    name: str
    version: str
    digest: str
    source: str
    minimum: dict[str, str]
    files: dict[str, ManifestEntry]

    @property
    def model(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def model_files(self) -> dict[str, ManifestEntry]:
        return {path: entry for path, entry in self.files.items() if path.startswith(MODEL)}

    def check_runtime(self, version: str) -> None:
        """Raises BadModel if this version of onnxruntime is too old for the bundle."""
        wanted = self.minimum.get("onnxruntime", "0")
        if (minimum := parse_version(wanted)) is None:
            raise BadModel(f"{self.bundle} needs an invalid version of onnxruntime")
        if (parse_version(version) or ()) < minimum:
            raise BadModel(f"{self.bundle} needs onnxruntime {wanted} or later; this is {version}")


class Bundle(NamedTuple):
    folder: Path
    manifest: Manifest

    def load(self) -> tuple[Model, ArtifactManifest]:
        """Loads the model and compares its files with the manifest. Raises BadModel."""
        if (entry := self.manifest.files.get(MODEL + GOLDEN)) is None:
            raise BadModel(f"{self.manifest.bundle} has no {MODEL}{GOLDEN}")
        model, golden = load_model(self.folder / MODEL, f"sha256:{entry.sha256}")
        if model.digest != self.manifest.digest:
            raise BadModel(f"{self.manifest.bundle} holds another model than its manifest says")
        return model, golden

    def test(self) -> str:
        """Runs the self-test of the model on this device and returns its line. Raises BadModel."""
        self.manifest.check_runtime(RUNTIME_VERSION)
        model, golden = self.load()
        check_shapes(model, golden_array(model, golden.cases[:1]))
        return self_test(model, golden.cases, golden.tolerance)


def open_bundle(folder: Path) -> Bundle:
    """Raises BadModel."""
    return Bundle(folder, parse_manifest(read_file(folder / MANIFEST), str(folder / MANIFEST)))


def read_checked(read: Callable[[str, int], bytes], path: str, entry: ManifestEntry) -> bytes:
    """Reads a file of the bundle with `read`. Raises BadModel if it differs from the manifest."""
    content = read(path, entry.bytes)
    if len(content) != entry.bytes:
        raise BadModel(f"{path} ends after {len(content)} of {entry.bytes} bytes")
    if (found := sha256(content)) != entry.sha256:
        raise BadModel(f"{path} has the SHA-256 {found[:12]}…, the manifest says {entry.sha256[:12]}…")
    return content


def bundle_digest(files: Mapping[str, ManifestEntry]) -> str:
    """Returns the suffix of the bundle's name: 12 digits of the SHA-256 over the sorted output of sha256sum for all files."""
    return sha256("".join(sorted(f"{entry.sha256}  {path}\n" for path, entry in files.items())).encode())[:12]


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Raises BadModel with a message that repeats nothing of the content."""
    document = read_object(content, where)
    try:
        model = document["model"]
        manifest = Manifest(
            document["bundle"],
            model["name"],
            model["version"],
            model["digest"],
            model.get("source", model["digest"]),
            dict(document["minimum"]),
            {path: ManifestEntry(file["sha256"], file["bytes"]) for path, file in document["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadModel(f"{where} does not have the members bundle, model, minimum and files in their right form") from None
    if (error := manifest_error(manifest)) is not None:
        raise BadModel(f"{where} {error}")
    return manifest


def manifest_error(manifest: Manifest) -> str | None:
    """Returns the reason for which a manifest is invalid, if any."""
    texts: list[Any] = [*manifest[:5], *manifest.minimum, *manifest.minimum.values()]
    if not all(isinstance(text, str) and text.isprintable() and len(text) <= MAX_LENGTH for text in texts):
        return f"does not give bundle, model and minimum in texts of at most {MAX_LENGTH} characters"
    for path, entry in manifest.files.items():
        if not is_path(path) or len(path) > MAX_LENGTH or path == MANIFEST:
            return "names a file outside of the bundle, or with characters other than letters, digits and - . _"
        if not isinstance(entry.sha256, str) or not is_digest(entry.sha256) or type(entry.bytes) is not int or entry.bytes < 0:
            return "does not give each file a SHA-256 and a number of bytes"
    if sum(entry.bytes for entry in manifest.files.values()) > BUNDLE_BYTES:
        return f"lists more than {BUNDLE_BYTES} bytes"
    found = is_bundle(manifest.bundle)
    if not found or found[1] != bundle_digest(manifest.files):
        return "has another name than its files give it"
    return None


def parse_version(version: str) -> tuple[int, ...] | None:
    """Returns the leading numbers without trailing zeros, for comparison: 1.31.0.dev1 is (1, 31)."""
    found = is_version(version)
    if not found:
        return None
    numbers = [int(number) for number in found[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
