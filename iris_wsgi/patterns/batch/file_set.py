"""Files of a run: one file, or each file of a directory or of a pattern, on this machine or on object storage."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.patterns.batch.options import (
    BAD_ROWS,
    STANDARD,
    Options,
    check_file_options,
    format_of,
    parse_file_options,
    shard,
)
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.remote_files import MAGIC, RemoteFiles, is_pattern_url, is_url, shown
from iris_wsgi.tabular.columns import parse_option


class InputFile(NamedTuple):
    """A path or URL, and the name of the file below the directory of the set."""

    path: str
    name: str


class FileSet(NamedTuple):
    """Runs over files, each with its own output and record, and OUT. With `is_single` the user named one file."""

    runs: Sequence[Options]
    target: str
    is_single: bool
    quiet: bool


def parse_runs(given: Mapping[str, Any]) -> FileSet:
    """Returns the runs over IN. Raises BadSetting, and Stopped if object storage cannot be reached."""
    check_file_options(given)
    source, target = given["source"], given["target"]
    if not is_file_set(source):
        return FileSet([parse_file_options(given)], target, True, given["quiet"])
    check_directory(source, target)
    if given["errors"]:
        raise BadSetting(f"--errors is for one file; each file of a directory has its bad rows in OUT, in a file *{BAD_ROWS}")
    files = find_files(source, given["in_format"])
    names = [output_name(file.name, given["out_format"]) for file in files]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise BadSetting(f"two files of IN would become {repeated[0]} in OUT; rename one, or leave out --out-format")
    index, count = parse_option(given, "shard", shard, (0, 1))
    pairs = [*zip(files, names, strict=True)][index::count]
    runs = [
        parse_file_options({**given, "shard": None, "quiet": True, "source": file.path, "target": f"{target.rstrip('/')}/{name}"})
        for file, name in pairs
    ]
    return FileSet(runs, target, False, given["quiet"])


@contextmanager
def named_failures(name: str) -> Iterator[None]:
    """Adds the name of a file to BadSetting, BadModel, and Stopped."""
    try:
        yield
    except (BadSetting, BadModel, Stopped) as error:
        raise type(error)(f"{name}: {error}") from None


def is_file_set(location: str) -> bool:
    """Returns whether a location is a directory or a pattern. Raises BadSetting, and Stopped."""
    if location == STANDARD:
        return False
    if is_url(location):
        return is_pattern_url(location) or RemoteFiles(location).is_directory()
    return os.path.isdir(location) or is_pattern(location)


def is_pattern(location: str) -> bool:
    """Returns whether a location has special characters of patterns, and is not the name of a file."""
    if is_url(location):
        return is_pattern_url(location)
    return any(character in location for character in MAGIC) and not os.path.lexists(location)


def check_directory(source: str, target: str) -> None:
    """Raises BadSetting if OUT cannot be the directory of the outputs."""
    if target == STANDARD or (not is_url(target) and os.path.lexists(target) and not os.path.isdir(target)):
        raise BadSetting(f"OUT must be a directory, because IN is one: {target}")
    root, folder = root_of(source), target.rstrip("/") + "/"
    if not is_url(source) and not is_url(target):
        root, folder = f"{os.path.realpath(root)}/", f"{os.path.realpath(folder)}/"
    if folder.startswith(root) and (not is_pattern(source) or "**" in source):
        raise BadSetting(f"OUT is in the directory of IN, so that the next run would read it: {shown(target)}")


def root_of(location: str) -> str:
    """Returns the directory of a set, with / at its end: the part of a pattern before its first special character."""
    if not is_pattern(location):
        return location.rstrip("/") + "/"
    end = min(location.find(character) for character in MAGIC if character in location)
    return location[: location.rfind("/", 0, end) + 1]


def find_files(location: str, in_format: str | None = None) -> list[InputFile]:
    """Returns the files of a directory or of a pattern, ordered by path. Raises BadSetting, and Stopped.

    Without `in_format`, files of other formats do not count. Hidden files do not count, and those with names that start with _,
    which Spark and Hive write next to the data.
    """
    root = root_of(location)
    paths = RemoteFiles(location).find() if is_url(location) else find_local(location)
    files = [InputFile(path, path.removeprefix(root)) for path in paths]
    found = [file for file in files if is_data(file.name) and (in_format or format_of(file.name)[0])]
    if not found:
        raise BadSetting(f"IN has no file of CSV, TSV, JSON Lines, or Parquet: {location}")
    return found


def find_local(location: str) -> list[str]:
    """Returns the paths of all regular files of a directory or of a pattern."""
    if is_pattern(location):
        found = glob.glob(location, recursive=True)
    else:
        root = location.rstrip("/") + "/"
        walked = os.walk(root, onerror=raise_unreadable)
        found = [os.path.join(folder, name) for folder, _, names in walked for name in names]
    return sorted(path for path in found if os.path.isfile(path))


def raise_unreadable(error: OSError) -> None:
    raise BadSetting(f"{error.filename} cannot be read: {error.strerror}")


def is_data(name: str) -> bool:
    return not name.endswith(BAD_ROWS) and not any(part.startswith(("_", ".")) for part in name.split("/"))


def output_name(name: str, out_format: str | None) -> str:
    """Returns the name of an output in another format."""
    if not out_format:
        return name
    return f"{os.path.splitext(name.removesuffix('.gz'))[0]}.{out_format}"
