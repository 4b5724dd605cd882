"""Files on object storage and web servers, by URL: s3://, gs://, https://, and every other file system of fsspec."""

import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import urlsplit, urlunsplit

from iris_wsgi.console import remedy_for_extra
from iris_wsgi.errors import Stopped
from iris_wsgi.settings import BadSetting

is_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://").match
# The extra that has the packages of a scheme. For another scheme, users install the package that fsspec names.
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "http": "https", "https": "https"}
WEB = ("http", "https")
MAGIC = "*?["
# Bytes of one request for data.
BLOCK_BYTES = 1 << 22


class RemoteFile(io.RawIOBase):
    """A file that is read, whose failures are OSError as those of a local file."""

    def __init__(self, url: str, file: Any) -> None:
        self.url, self.file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self.file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return int(self.file.seek(offset, whence))

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return bytes(self.file.read(-1 if size is None else size))
        except Exception as error:
            raise OSError(f"{reason_of(error)}") from None


class RemoteFiles:
    """The file system of one URL."""

    def __init__(self, url: str) -> None:
        """Raises BadSetting for an unknown scheme and for a missing package."""
        self.url, self.scheme = url, scheme_of(url)
        try:
            from fsspec.core import url_to_fs

            self.system, self.path = url_to_fs(url)
        except ImportError as error:
            extra = EXTRAS.get(self.scheme)
            remedy = remedy_for_extra(extra) if extra else str(error)
            raise BadSetting(f"{shown(url)} needs another package: {remedy}") from None
        except ValueError as error:
            raise BadSetting(f"{shown(url)} cannot be used: {reason_of(error)}") from None

    def is_directory(self) -> bool:
        """Raises BadSetting and Stopped. A web server has files only."""
        if self.scheme in WEB:
            return False
        with self.translated():
            return self.url.endswith("/") or bool(self.system.isdir(self.path))

    def find(self) -> list[str]:
        """Returns the URLs of all files in a directory or of a pattern. Raises BadSetting and Stopped."""
        with self.translated():
            # Other processes write into the directories of a cluster.
            self.system.invalidate_cache()
            search = self.system.glob if is_pattern_url(self.url) else self.system.find
            found = search(self.path, detail=True)
        scheme = self.url.partition("://")[0]
        return sorted(f"{scheme}://{path}" for path, info in found.items() if info["type"] == "file")

    def identity(self) -> dict[str, Any]:
        """Returns what identifies the content of a file. Raises BadSetting if it does not exist, and Stopped."""
        with self.translated():
            info = self.system.info(self.path)
        if info["type"] != "file":
            raise BadSetting(f"{shown(self.url)} is a directory; end its name with /")
        version = {name: str(info[name]) for name in ("ETag", "etag", "LastModified", "Last-Modified", "updated") if name in info}
        return {"path": shown(self.url), "bytes": info["size"], **version}

    def open(self) -> tuple[RemoteFile, int]:
        """Opens a file for reading, and returns its size. Raises BadSetting and Stopped.

        A file of a server that cannot send parts of it is downloaded first.
        """
        with self.translated():
            file = self.system.open(self.path, "rb", block_size=BLOCK_BYTES)
            if self.scheme in WEB and not sends_parts(file):
                copy = self.downloaded()
                return RemoteFile(self.url, copy), os.fstat(copy.fileno()).st_size
            return RemoteFile(self.url, file), file.size

    def downloaded(self) -> BinaryIO:
        """Returns a temporary copy of a file, which no other process sees."""
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        with self.system.open(self.path, "rb", block_size=0) as source:
            shutil.copyfileobj(source, copy, BLOCK_BYTES)
        copy.seek(0)
        return copy

    def read(self) -> bytes | None:
        """Returns the content of a file, or None if it does not exist. Raises BadSetting and Stopped."""
        with self.translated():
            try:
                return bytes(self.system.cat_file(self.path))
            except FileNotFoundError:
                return None

    def exists(self) -> bool:
        with self.translated():
            return bool(self.system.exists(self.path))

    def upload(self, source: Path) -> None:
        """Writes a file at once: a reader sees the old content or the new content. Raises BadSetting and Stopped."""
        with self.translated():
            self.system.put_file(str(source), self.path)

    def write(self, content: bytes) -> None:
        """Writes a file at once. Raises BadSetting and Stopped."""
        with self.translated():
            self.system.pipe_file(self.path, content)

    def copy(self, old: Sequence[str], new: Sequence[str]) -> None:
        """Copies files of a directory by their names, without a transfer through this machine. Raises BadSetting and Stopped."""
        root = self.path.rstrip("/")
        with self.translated():
            self.system.copy([f"{root}/{name}" for name in old], [f"{root}/{name}" for name in new])

    def remove(self) -> None:
        """Removes a file, if it exists. Raises BadSetting and Stopped."""
        with self.translated():
            if self.system.exists(self.path):
                self.system.rm_file(self.path)

    def remove_tree(self) -> None:
        """Removes the files of a directory. Raises BadSetting and Stopped."""
        if self.find():
            with self.translated():
                self.system.rm(self.path, recursive=True)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns the exceptions of file systems into BadSetting, if a repetition cannot help, or into Stopped."""
        try:
            yield
        except BadSetting:
            raise
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> NoReturn:
        where = shown(self.url)
        if isinstance(error, FileNotFoundError):
            raise BadSetting(f"{where} does not exist") from None
        if isinstance(error, PermissionError) or "credentials" in str(error).lower():
            raise BadSetting(f"{where} is forbidden: {reason_of(error)}") from None
        raise Stopped(f"{where} cannot be reached: {reason_of(error)}") from None


def sends_parts(file: Any) -> bool:
    """Returns whether the web server of an open file sends its last byte alone."""
    if not file.size:
        return False
    try:
        file.seek(file.size - 1)
        file.read(1)
        file.seek(0)
    except ValueError:
        return False
    return True


def check_writable(url: str, name: str) -> None:
    """Raises BadSetting for a URL of a web server. `name` is that of the output in messages."""
    if scheme_of(url) in WEB:
        raise BadSetting(f"{name} cannot be {shown(url)}: a web server takes no files; use a file or object storage")


def scheme_of(location: str) -> str:
    """Returns the scheme of a URL, or an empty string for a path."""
    scheme, separator, _ = location.partition("://")
    return scheme.lower() if separator else ""


def is_pattern_url(url: str) -> bool:
    """Returns whether a URL has special characters of patterns. In that of a web server they are a query."""
    return scheme_of(url) not in WEB and any(character in url for character in MAGIC)


def shown(url: str) -> str:
    """Returns a URL for messages and records: that of a web server without its user, password, and query, which may be secret."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in WEB:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def reason_of(error: Exception) -> str:
    """Returns the first line of an exception without URLs, which may contain a signature."""
    first = (str(error).splitlines() or [""])[0] or type(error).__name__
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", first)[:200]


def staging_folder(url: str) -> Path:
    """Returns the local folder in which the file of a URL is written before its upload. Raises BadSetting.

    A later run of the same user finds it again. The environment variable TMPDIR moves it.
    """
    root = Path(tempfile.gettempdir()) / f"iris-wsgi-{os.getuid()}"
    folder = root / hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        if root.is_symlink() or root.stat().st_uid != os.getuid():
            raise BadSetting(f"{root} belongs to another user; set TMPDIR to another folder")
        root.chmod(0o700)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadSetting(f"{folder} cannot be made: {error.strerror}; set TMPDIR to another folder") from None
    return folder
