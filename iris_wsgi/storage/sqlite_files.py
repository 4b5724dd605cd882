"""The files of an SQLite database by device and inode: whether open connections still lead to the files at its path."""

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

# SQLite's own files beside a database with a write-ahead log.
SUFFIXES = ("", "-wal", "-shm")
OPEN = "/proc/self/fd"
Identity = tuple[int, int]
Files = tuple[Identity | None, ...]


def files_at(path: str) -> Files:
    """None for a file that is not there."""
    return tuple(identity(path + suffix) for suffix in SUFFIXES)


def identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def are_open(files: Files) -> bool:
    """Whether this process has every one of them open, where that can be seen."""
    if not os.path.isdir(OPEN):
        return True
    return set(files) <= {identity(f"{OPEN}/{one}") for one in os.listdir(OPEN)}


def set_aside(path: str, old: Files) -> None:
    """Renames the log of a database that was replaced: SQLite would apply it to the new one."""
    for suffix, identity_of_old in list(zip(SUFFIXES, old, strict=True))[1:]:
        if identity_of_old is not None and identity(path + suffix) == identity_of_old:
            with suppress(OSError):
                os.replace(path + suffix, f"{path}{suffix}-replaced")


def address(path: Path) -> str:
    """A URI by which SQLite opens the file, and never makes one."""
    return f"file://{quote(os.fsencode(os.path.abspath(path)))}?mode=rw"
