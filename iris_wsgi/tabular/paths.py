"""Where rows come from and where answers go: files, standard streams, and what else a path can name."""

import os
import re
import stat
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import PARTIAL, WHOLE, temporary_path

STANDARD = "-"
FORMATS = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}
# What a run keeps beside its output.
RECORD = ".run.json"
# The folder in which Linux lists the open descriptors of a process.
is_descriptors = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd").fullmatch
MAX_LINKS = 40


class FileSpec(NamedTuple):
    """A path, or - for a standard stream; the format; whether gzip is around it; whether it is anything but a regular file.

    What is not a regular file is read or written from its start to its end: nothing can be resumed, renamed or removed.
    """

    path: str
    format: str
    packed: bool
    is_stream: bool


def file_spec(path: str, told: str | None, otherwise: str | None, name: str) -> FileSpec:
    """By the suffixes of its name: rows.csv.gz; a stream has none, so that its format must be told or known otherwise.

    Raises BadSetting.
    """
    suffixes = [one[1:].lower() for one in Path(path).suffixes]
    packed = path != STANDARD and suffixes[-1:] == ["gz"]
    by_name = FORMATS.get((suffixes[:-1] if packed else suffixes or [""])[-1:][0]) if path != STANDARD and suffixes else None
    found = told or by_name or otherwise
    if found is None:
        raise BadSetting(
            f"the format of {name} does not follow from {path!r}: say --{name.lower()}-format csv, tsv, jsonl or parquet"
        )
    is_stream = path == STANDARD or is_irregular(path, name)
    if found == "parquet" and (packed or is_stream):
        where = "under gzip" if packed else "on a standard stream" if path == STANDARD else "in what is not a regular file"
        raise BadSetting(f"{name} cannot be Parquet {where}")
    return FileSpec(path, found, packed, is_stream)


def output_spec(path: str, told: str | None, otherwise: str | None, name: str) -> FileSpec:
    """Like file_spec(), and the target of a symbolic link in place of the link. Raises BadSetting."""
    found = file_spec(path, told, otherwise, name)
    return found if found.is_stream or not os.path.islink(path) else found._replace(path=os.path.realpath(path))


def is_irregular(path: str, name: str) -> bool:
    """Whether something other than a regular file is at a path. Raises BadSetting for a directory and a block device."""
    if descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        # What opens the file tells why it cannot.
        mode = stat.S_IFDIR if path.endswith("/") else stat.S_IFREG
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise BadSetting(f"{name} is a {'directory' if stat.S_ISDIR(mode) else 'block device'}: {path}; it must be a file")
    return not stat.S_ISREG(mode)


def descriptor(path: str) -> tuple[int, int] | None:
    """Returns the process and the number of the descriptor that a path names, such as /dev/stdout; None for another path."""
    for _ in range(MAX_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if (process := is_descriptors(folder)) and name.isdecimal():
            return int(process[1]), int(name)
        try:
            path = os.path.join(folder, os.readlink(os.path.join(folder, name)))
        except OSError:
            return None
    return None


def open_output(place: FileSpec, standard: int) -> int:
    """Returns a descriptor that writes to a stream; - is the descriptor `standard`. Raises BadSetting."""
    named = descriptor(place.path)
    try:
        if place.path == STANDARD:
            return os.dup(standard)
        if named is not None and named[0] == os.getpid():
            # A new opening of the file would begin to write at its start.
            return os.dup(named[1])
        return os.open(place.path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise BadSetting(f"{place.path} cannot be written: {error.strerror}") from None


def check_apart(source: FileSpec, target: FileSpec, errors: FileSpec) -> None:
    """Raises BadSetting if a run would write over its own input, or two of its outputs into one file, whatever their names."""
    beside = {} if target.is_stream else {f"OUT{one}": target.path + one for one in (PARTIAL, WHOLE, RECORD)}
    if beside:
        beside["the new OUT.run.json"] = str(temporary_path(Path(target.path + RECORD)))
    outputs = {"OUT": path_of(target, 1), "--errors": path_of(errors, 2)} | beside
    pairs = [("IN", path_of(source, 0), name, path) for name, path in outputs.items()]
    # Standard output and standard error are often one file.
    if not (target.is_stream and errors.is_stream):
        pairs += [(*one, *other) for one, other in combinations(outputs.items(), 2)]
    for one, first, other, second in pairs:
        if is_same(first, second):
            raise BadSetting(f"{one} and {other} are the same file")


def path_of(place: FileSpec, standard: int) -> str | int:
    return standard if place.path == STANDARD else place.path


def is_same(one: str | int, other: str | int) -> bool:
    """Whether two paths or descriptors are one regular file or one pipe; a device such as a terminal may be both ends."""
    if isinstance(one, str) and isinstance(other, str) and os.path.realpath(one) == os.path.realpath(other):
        return not is_device(one)
    try:
        first, second = os.stat(one), os.stat(other)
    except OSError:
        return False
    return os.path.samestat(first, second) and (stat.S_ISREG(first.st_mode) or stat.S_ISFIFO(first.st_mode))


def is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False
