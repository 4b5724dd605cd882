"""Brings a model from elsewhere into a folder, checked by its seal before anybody can use it."""

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GOLDEN, read_all, read_file, within
from iris_wsgi.storage.files import destination, replace_file

SECONDS = 30.0
MOST_BYTES = 1 << 30
is_url = re.compile(r"https?://", re.IGNORECASE).match


class ArtifactSource(Protocol):
    """The bytes of a file of a folder by its name, `most` at most. Raises BadModel."""

    def __call__(self, name: str, most: int = MOST_BYTES, /) -> bytes: ...


def download(source: str, folder: Path, seal: str, baked: Path | None = None) -> str:
    """Copies the model at `source`, a folder or the http(s) URL of one, into `folder`; one line on what was done.

    `seal` is what the model's golden.json must have as its SHA-256; since that file holds the SHA-256 of the others, the
    way here need not be trusted. On any failure `folder` holds no model, or that of `baked` where it is given. Raises BadModel.
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
    """Of a folder, or of the http(s) URL of one."""
    if not is_url(source):
        return lambda name, most=MOST_BYTES, /: read_file(Path(source, name), most)
    return lambda name, most=MOST_BYTES, /: fetch(f"{source.rstrip('/')}/{name}", most)


def fetch(url: str, most: int) -> bytes:
    """The bytes at a URL. Raises BadModel."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return within(url, answer.read(most + 1), most)
    except urllib.error.HTTPError as error:
        error.close()
        raise BadModel(f"{url} cannot be fetched: the server answered {error.code}") from None
    except HTTPException as error:
        # What it says may be anything that the server sent.
        raise BadModel(f"{url} cannot be fetched: {type(error).__name__}") from None
    except (OSError, ValueError) as error:
        raise BadModel(f"{url} cannot be fetched: {getattr(error, 'reason', None) or error or type(error).__name__}") from None


def put(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the files, golden.json last, without which a folder is no model. Raises BadModel."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        destination(folder / GOLDEN).unlink(missing_ok=True)
        # Nothing is written if one of them cannot be.
        for name in files:
            destination(folder / name)
        for name in sorted(files, key=lambda name: (name == GOLDEN, name)):
            replace_file(folder / name, files[name])
    except OSError as error:
        raise BadModel(f"{error.filename or folder} cannot be written: {error.strerror}") from None


def forget(folder: Path) -> None:
    """Removes golden.json, so that the folder holds no model. Raises BadModel."""
    try:
        destination(folder / GOLDEN).unlink(missing_ok=True)
    except OSError as error:
        raise BadModel(f"{folder / GOLDEN} cannot be removed: {error.strerror}") from None
