"""Brings a model from elsewhere into a folder, checked by its seal before anybody can use it."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.folder import GOLDEN, Read, read_all, read_file

SECONDS = 30.0
MOST_BYTES = 1 << 30
is_url = re.compile(r"https?://", re.IGNORECASE).match


def load(source: str, folder: Path, seal: str, baked: Path | None = None) -> str:
    """Copies the model at `source`, a folder or the http(s) URL of one, into `folder`; one line on what was done.

    `seal` is what the model's golden.json must have as its SHA-256; since that file holds the SHA-256 of the others, the
    way here need not be trusted. On any failure `folder` holds no model, or that of `baked` where it is given. Raises BadModel.
    """
    try:
        golden, files = read_all(reader(source), source.rstrip("/"), seal)
    except BadModel as error:
        (folder / GOLDEN).unlink(missing_ok=True)
        if baked is None:
            raise
        golden, files = read_all(reader(str(baked)), str(baked))
        put(files, folder)
        return f"took the model of {baked}, sealed with {golden.seal}, because {error}"
    put(files, folder)
    return f"took {golden.model} from {source}, sealed with {golden.seal}"


def reader(source: str) -> Read:
    if not is_url(source):
        return lambda name: read_file(Path(source) / name)
    return lambda name: fetch(f"{source.rstrip('/')}/{name}")


def fetch(url: str) -> bytes:
    """The bytes at a URL. Raises BadModel."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            content: bytes = answer.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise BadModel(f"{url} cannot be fetched: the server answered {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise BadModel(f"{url} cannot be fetched: {getattr(error, 'reason', None) or error or type(error).__name__}") from None
    if len(content) > MOST_BYTES:
        raise BadModel(f"{url} is over {MOST_BYTES} bytes")
    return content


def put(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the files, golden.json last, without which a folder is no model. Raises BadModel."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GOLDEN).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: (name == GOLDEN, name)):
            new = folder / f".{name}.new"
            new.write_bytes(files[name])
            os.replace(new, folder / name)
    except OSError as error:
        raise BadModel(f"{folder} cannot be written: {error.strerror}") from None
