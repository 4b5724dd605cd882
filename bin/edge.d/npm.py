"""Downloads files of a package that the lockfile pins from the npm registry, without node."""

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

TIMEOUT_SECONDS = 60.0
MAX_BYTES = 1 << 28


class DownloadError(Exception):
    """Failure to get a package as it is locked; the message is one line."""


class PackageFiles(NamedTuple):
    """Locked version of a package, and its files by their paths in the bundle."""

    version: str
    files: dict[str, bytes]


def get_files(lockfile: Path, cache: Path, wanted: Mapping[str, str]) -> PackageFiles:
    """Returns files of onnxruntime-web; `wanted` maps their paths in the archive to their paths in the bundle.

    The archive is downloaded once and verified each time. Raises DownloadError.
    """
    locked = json.loads(lockfile.read_text())["packages"]["node_modules/onnxruntime-web"]
    content = get_archive(locked["resolved"], locked["integrity"], cache)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        # Reads the files into memory, so that no path of the archive is used.
        members = [member for member in archive if member.isfile() and member.name in wanted]
        found = {wanted[member.name]: archive.extractfile(member).read() for member in members}
    if missing := set(wanted.values()) - set(found):
        raise DownloadError(f"{locked['resolved']} has no file for {', '.join(sorted(missing))}")
    return PackageFiles(locked["version"], found)


def get_archive(url: str, integrity: str, cache: Path) -> bytes:
    """Returns the archive at `url` from the cache or the registry, with the integrity of the lockfile."""
    cached = cache / url.rpartition("/")[2]
    if cached.exists() and integrity_of(content := cached.read_bytes()) == integrity:
        return content
    content = fetch(url)
    if (found := integrity_of(content)) != integrity:
        raise DownloadError(f"{url} has the integrity {found[:20]}…, and the lockfile has {integrity[:20]}…")
    cache.mkdir(parents=True, exist_ok=True)
    replace_file(cached, content)
    return content


def fetch(url: str) -> bytes:
    """Downloads a file with the proxies and the certificates that the environment names for urllib."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            return response.read(MAX_BYTES)
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"{url} cannot be fetched: {getattr(error, 'reason', None) or error}") from None


def integrity_of(content: bytes) -> str:
    """Returns the digest in the form of lockfiles (Subresource Integrity)."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
