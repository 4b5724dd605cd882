"""Directory OUT of a run on a cluster, on a file system or on object storage, whose parts get their names at the end."""

import csv
import fcntl
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.options import BAD_ROWS
from iris_wsgi.patterns.batch.results import check_same_run, timestamp
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import PARTIAL, replace_file, sync
from iris_wsgi.storage.remote_files import RemoteFiles, is_url, shown, staging_folder

# The folder of the parts of a run, the record, and the list of bad rows. Readers of directories skip names that start with _.
PARTS, RECORD, ERRORS = "_parts", "_run.json", "_errors.csv"
ERRORS_HEADER = ("file", "line", "column", "reason")
is_part = re.compile(r"part-\d{5,}\.(?:csv|tsv|jsonl|parquet)").fullmatch


class ScoredPiece(NamedTuple):
    """Number of a piece, the name of its part, and its rows. The bad rows are in a file next to the part, if there are any."""

    piece: int
    part: str
    ok: int
    bad: int
    labels: dict[str, int]


class Parts(Protocol):
    """Place at which the processes of a cluster write the parts of a run."""

    def unfinished(self, piece: int) -> int:
        """Returns how often a process began a part of a piece, and did not finish it."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yields the local path at which a part is written. It is complete at the end of the context."""
        ...


class LocalParts(NamedTuple):
    """Folder that all machines of the cluster have."""

    folder: Path

    def unfinished(self, piece: int) -> int:
        return len(list(self.folder.glob(f"{piece}-*{PARTIAL}")))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        yield self.folder / name


class RemoteParts(NamedTuple):
    """Folder on object storage. An empty object marks a part that is being written."""

    url: str

    def unfinished(self, piece: int) -> int:
        return len(RemoteFiles(f"{self.url}/{piece}-*{PARTIAL}").find())

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        mark = RemoteFiles(f"{self.url}/{name}{PARTIAL}")
        mark.write(b"")
        with uploading(self.url, name, name + BAD_ROWS) as folder:
            yield folder / name
        mark.remove()


@contextmanager
def uploading(url: str, *names: str) -> Iterator[Path]:
    """Yields a local folder. At the end, its files of these names are uploaded."""
    with TemporaryDirectory(prefix="iris_wsgi-") as folder:
        yield Path(folder)
        for name in names:
            if (Path(folder) / name).exists():
                RemoteFiles(f"{url}/{name}").upload(Path(folder) / name)


class Folder(Protocol):
    """Directory by its name for messages. Names are relative to it, and its methods raise OSError, BadSetting, and Stopped."""

    name: str

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, content: bytes) -> None:
        """Replaces a file at once."""

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yields the local path at which a file is written."""
        ...

    def remove(self, name: str) -> None: ...
    def remove_tree(self, name: str) -> None:
        """Removes a directory with its files, if it exists."""

    def move(self, old: Sequence[str], new: Sequence[str]) -> None: ...
    def parts(self, name: str) -> Parts:
        """Makes a folder for parts."""
        ...

    def close(self) -> None: ...


class LocalFolder:
    """Directory of this machine. One run at a time may write it."""

    def __init__(self, name: str) -> None:
        """Raises BadSetting if another run writes the directory, or if it cannot be written."""
        # Processes of the cluster have other working directories.
        self.name, self.path = name, Path(name).absolute()
        self.descriptor = locked(self.path, name)

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if not name.startswith("."))

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        replace_file(self.path / name, content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        yield self.path / name

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def remove_tree(self, name: str) -> None:
        shutil.rmtree(self.path / name, ignore_errors=True)

    def move(self, old: Sequence[str], new: Sequence[str]) -> None:
        for source, target in zip(old, new, strict=True):
            (self.path / source).replace(self.path / target)
        sync(self.path)

    def parts(self, name: str) -> LocalParts:
        (self.path / name).mkdir(parents=True)
        return LocalParts(self.path / name)

    def close(self) -> None:
        # If another run has parts there, they remain.
        with suppress(OSError):
            (self.path / PARTS).rmdir()
        os.close(self.descriptor)


class RemoteFolder:
    """Directory on object storage. One run of this user on this machine may write it at a time."""

    def __init__(self, url: str) -> None:
        """Raises BadSetting if another run writes the directory."""
        self.url = url.rstrip("/")
        self.name = shown(self.url)
        self.descriptor = locked(staging_folder(self.url), self.name)

    def file(self, name: str) -> RemoteFiles:
        return RemoteFiles(f"{self.url}/{name}")

    def names(self) -> list[str]:
        found = {url.removeprefix(f"{self.url}/").partition("/")[0] for url in self.file("").find()}
        return sorted(name for name in found if name and not name.startswith("."))

    def read(self, name: str) -> bytes | None:
        return self.file(name).read()

    def write(self, name: str, content: bytes) -> None:
        self.file(name).write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with uploading(self.url, name) as folder:
            yield folder / name

    def remove(self, name: str) -> None:
        self.file(name).remove()

    def remove_tree(self, name: str) -> None:
        self.file(name).remove_tree()

    def move(self, old: Sequence[str], new: Sequence[str]) -> None:
        # The old objects are removed with their folder.
        self.file("").copy(old, new)

    def parts(self, name: str) -> RemoteParts:
        return RemoteParts(f"{self.url}/{name}")

    def close(self) -> None:
        os.close(self.descriptor)


def open_folder(target: str) -> Folder:
    """Returns the directory at a path or URL. Raises BadSetting."""
    return RemoteFolder(target) if is_url(target) else LocalFolder(target)


def locked(folder: Path, name: str) -> int:
    """Returns the descriptor of a directory that one process at a time may lock. Raises BadSetting."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BadSetting(f"another run is writing {name}") from None
    except OSError as error:
        raise BadSetting(f"{name} cannot be written: {error.strerror}") from None
    return descriptor


class PartFolder:
    """Directory OUT of a run: parts, the bad rows, and the record, which is written last."""

    parts: Parts

    def __init__(self, target: str, run_of: dict[str, Any]) -> None:
        """Takes a path or URL, and the identity of the run. Raises BadSetting if the directory cannot be written."""
        self.folder = open_folder(target)
        self.document: dict[str, Any] = {"run": secrets.token_hex(8), "status": "running", "started": timestamp(), "of": run_of}
        self.run_parts = f"{PARTS}/{self.document['run']}"

    @property
    def name(self) -> str:
        return self.folder.name

    def close(self) -> None:
        """Removes all parts that were not moved. No process of the cluster may write any more."""
        # The next run removes what object storage does not remove now.
        with suppress(OSError, BadSetting, Stopped):
            self.folder.remove_tree(self.run_parts)
        self.folder.close()

    def finished_run(self, force: bool) -> str:
        """Returns the id of the run that has written the directory with this input, model, and options, if any.

        Raises BadSetting for the output of another run without `force`, and always for other files, which a reader of the
        directory would take for predictions.
        """
        names = self.folder.names()
        if other := [name for name in names if name not in (PARTS, RECORD, ERRORS) and not is_part(name)]:
            raise BadSetting(f"{self.name} has files that are not of a run, such as {other[0]}; name an empty directory")
        if force or not names:
            return ""
        try:
            found = json.loads(self.folder.read(RECORD) or b"")
            of, run, status, parts = found["of"], str(found["run"]), found["status"], found.get("parts")
        except (OSError, ValueError, TypeError, KeyError):
            raise BadSetting(f"{self.name} has parts without the record of their run; --force overwrites them") from None
        check_same_run(self.name, of, self.document["of"])
        return run if status == "succeeded" and len(list(filter(is_part, names))) == parts else ""

    def begin(self) -> None:
        """Removes what an earlier run has left, and makes the folder of the parts. Raises OSError, BadSetting, and Stopped."""
        # From now on the directory has no complete output, and is known as that of this run.
        self.save("running")
        for name in self.folder.names():
            if is_part(name) or name == ERRORS:
                self.folder.remove(name)
        self.folder.remove_tree(PARTS)
        self.parts = self.folder.parts(self.run_parts)

    def save(self, status: str, **more: Any) -> None:
        self.document |= {"status": status, "updated": timestamp(), **more}
        self.folder.write(RECORD, (json.dumps(self.document, indent=1) + "\n").encode())

    def write_errors(self, pieces: Sequence[ScoredPiece], names: Sequence[str]) -> None:
        """Joins the lists of bad rows of the pieces, whose files have these names. Raises OSError, BadSetting, and Stopped."""
        if not any(piece.bad for piece in pieces):
            return
        with self.folder.writing(ERRORS) as path, open(path, "w", encoding="utf-8", newline="") as target:
            writer = csv.writer(target, lineterminator="\n")
            writer.writerow(ERRORS_HEADER)
            for piece, name in zip(pieces, names, strict=True):
                if piece.bad:
                    found = self.folder.read(f"{self.run_parts}/{piece.part}{BAD_ROWS}") or b""
                    rows = csv.reader(io.StringIO(found.decode(), newline=""))
                    next(rows)
                    writer.writerows([name, *row] for row in rows)

    def commit(self, pieces: Sequence[ScoredPiece], **more: Any) -> None:
        """Moves the parts of the pieces into the directory, in this order. Raises OSError, BadSetting, and Stopped."""
        new = [f"part-{i:05}{Path(piece.part).suffix}" for i, piece in enumerate(pieces)]
        self.folder.move([f"{self.run_parts}/{piece.part}" for piece in pieces], new)
        self.save("succeeded", parts=len(pieces), **more)
