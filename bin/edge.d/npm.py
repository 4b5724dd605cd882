"""Downloads files of one package from the npm registry, pinned by the lockfile, without node."""

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.storage.files import replace_file

SECONDS = 60.0
MOST_BYTES = 1 << 28


class NotTaken(Exception):
    """Locked package that is unavailable. The message is one line."""


class Taken(NamedTuple):
    """Locked version, and the requested files by path."""

    version: str
    files: dict[str, bytes]


def take(lockfile: Path, cache: Path, wanted: Mapping[str, str]) -> Taken:
    """Returns the `wanted` files of the archive of onnxruntime-web. Downloads once, and verifies each time. Raises NotTaken."""
    locked = json.loads(lockfile.read_text())["packages"]["node_modules/onnxruntime-web"]
    content = archive(locked["resolved"], locked["integrity"], cache)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as files:
        # Reads the files one by one into memory, so that the archive cannot choose their paths.
        found = {wanted[one.name]: files.extractfile(one).read() for one in files if one.isfile() and one.name in wanted}
    if missing := set(wanted.values()) - set(found):
        raise NotTaken(f"{locked['resolved']} has no file for {', '.join(sorted(missing))}")
    return Taken(locked["version"], found)


def archive(url: str, integrity: str, cache: Path) -> bytes:
    """Returns the archive at `url`, or the cached one, if its digest matches the lockfile."""
    kept = cache / url.rpartition("/")[2]
    if kept.exists() and integrity_of(content := kept.read_bytes()) == integrity:
        return content
    content = fetch(url)
    if (found := integrity_of(content)) != integrity:
        raise NotTaken(f"{url} has the integrity {found[:20]}…, and the lockfile has {integrity[:20]}…")
    cache.mkdir(parents=True, exist_ok=True)
    replace_file(kept, content)
    return content


def fetch(url: str) -> bytes:
    """Downloads with the proxies and certificates of the environment, like urllib."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.read(MOST_BYTES)
    except (OSError, HTTPException, ValueError) as error:
        raise NotTaken(f"{url} cannot be fetched: {getattr(error, 'reason', None) or error}") from None


def integrity_of(content: bytes) -> str:
    """Returns the digest in the form of lockfiles (Subresource Integrity)."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
