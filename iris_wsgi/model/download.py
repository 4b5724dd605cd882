"""Downloads a model into a folder, after comparing its seal."""

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GOLDEN, check_size, read_all, read_file
from iris_wsgi.storage.files import destination, replace_file

TIMEOUT_SECONDS = 30.0
MAX_BYTES = 1 << 30
is_url = re.compile(r"https?://", re.IGNORECASE).match


class ArtifactSource(Protocol):
    """Returns the content of a file in a folder, by name. Raises BadModel, also for a file of more than `max_bytes`."""

    def __call__(self, name: str, max_bytes: int = MAX_BYTES, /) -> bytes: ...


def download(source: str, folder: Path, seal: str, baked: Path | None = None) -> str:
    """Copies the model at `source`, a folder or its http(s) URL, into `folder`. Returns one line of report.

    golden.json must have the SHA-256 `seal`. It contains the SHA-256 of the other files, so the source need not be trusted.
    After a failure `folder` has no model, or the model of `baked` if that is given. Raises BadModel.
    """
    try:
        golden, files = read_all(artifact_source(source), source.rstrip("/"), seal)
    except BadModel as error:
        forget(folder)
        if baked is None:
            raise
        golden, files = read_all(artifact_source(str(baked)), str(baked))
        put(files, folder)
        return f"took the model of {baked}, sealed with {golden.seal}, because {error}"
    put(files, folder)
    return f"took {golden.model} from {source}, sealed with {golden.seal}"


def artifact_source(source: str) -> ArtifactSource:
    """Returns the source for a folder or for the http(s) URL of one."""
    if not is_url(source):
        return lambda name, max_bytes=MAX_BYTES, /: read_file(Path(source, name), max_bytes)
    return lambda name, max_bytes=MAX_BYTES, /: fetch(f"{source.rstrip('/')}/{name}", max_bytes)


def fetch(url: str, max_bytes: int) -> bytes:
    """Returns the content at a URL. Raises BadModel."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            return check_size(url, response.read(max_bytes + 1), max_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        raise BadModel(f"{url} cannot be fetched: the server answered {error.code}") from None
    except HTTPException as error:
        # The message may contain anything that the server sent.
        raise BadModel(f"{url} cannot be fetched: {type(error).__name__}") from None
    except (OSError, ValueError) as error:
        raise BadModel(f"{url} cannot be fetched: {getattr(error, 'reason', None) or error or type(error).__name__}") from None


def put(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the files, golden.json last: without it a folder is not a model. Raises BadModel."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        destination(folder / GOLDEN).unlink(missing_ok=True)
        # If one file cannot be written, none is.
        for name in files:
            destination(folder / name)
        for name in sorted(files, key=lambda name: (name == GOLDEN, name)):
            replace_file(folder / name, files[name])
    except OSError as error:
        raise BadModel(f"{error.filename or folder} cannot be written: {error.strerror}") from None


def forget(folder: Path) -> None:
    """Removes golden.json, so that the folder is not a model. Raises BadModel."""
    try:
        destination(folder / GOLDEN).unlink(missing_ok=True)
    except OSError as error:
        raise BadModel(f"{folder / GOLDEN} cannot be removed: {error.strerror}") from None
