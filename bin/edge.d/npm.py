"""Takes files of one package from the npm registry, as the lockfile pins it; no node is needed for that."""

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
    """A package that cannot be had as it is locked; the message is one line."""


class Taken(NamedTuple):
    """The version that is locked, and the files by the path that was wanted."""

    version: str
    files: dict[str, bytes]


def take(lockfile: Path, cache: Path, wanted: Mapping[str, str]) -> Taken:
    """Files of onnxruntime-web, `wanted` by their path in its archive; downloaded once, checked each time. Raises NotTaken."""
    locked = json.loads(lockfile.read_text())["packages"]["node_modules/onnxruntime-web"]
    content = archive(locked["resolved"], locked["integrity"], cache)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as files:
        # Read one by one into memory, so that nothing in the archive can choose where it goes.
        found = {wanted[one.name]: files.extractfile(one).read() for one in files if one.isfile() and one.name in wanted}
    if missing := set(wanted.values()) - set(found):
        raise NotTaken(f"{locked['resolved']} has no file for {', '.join(sorted(missing))}")
    return Taken(locked["version"], found)


def archive(url: str, integrity: str, cache: Path) -> bytes:
    """The archive at `url`, or what was kept of it, if that is what the lockfile says."""
    kept = cache / url.rpartition("/")[2]
    if kept.exists() and integrity_of(content := kept.read_bytes()) == integrity:
        return content
    content = fetch(url)
    if (found := integrity_of(content)) != integrity:
        raise NotTaken(f"{url} has the integrity {found[:20]}…, the lockfile says {integrity[:20]}…")
    cache.mkdir(parents=True, exist_ok=True)
    replace_file(kept, content)
    return content


def fetch(url: str) -> bytes:
    """By the proxies and the certificates that the environment names, as urllib has it."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.read(MOST_BYTES)
    except (OSError, HTTPException, ValueError) as error:
        raise NotTaken(f"{url} cannot be fetched: {getattr(error, 'reason', None) or error}") from None


def integrity_of(content: bytes) -> str:
    """As lockfiles have it (Subresource Integrity)."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
