"""Command-line options of batch, and the files and tables that they name."""

import argparse
import os
import re
import stat
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.setting_types import integer, seconds
from iris_wsgi.settings import BadSetting, flag_of
from iris_wsgi.storage.files import PARTIAL, WHOLE, temporary_path
from iris_wsgi.storage.remote_files import is_url, shown
from iris_wsgi.tabular.columns import add_column_flags, delimiter, names, parse_option

STANDARD = "-"
FORMATS = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}
# The suffix of the checkpoint of an output file.
CHECKPOINT = ".run.json"
# The suffix of the list of bad rows of an output file.
BAD_ROWS = ".errors.csv"
CHECKPOINT_SECONDS = 1.0
MAX_LINKS = 40
# The folder in which Linux lists the open descriptors of a process.
is_descriptor_folder = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd").fullmatch
PART = r'(?:"((?:[^"]|"")+)"|([^".]+))'
is_table_name = re.compile(rf"(?:{PART}\.)?{PART}").fullmatch


class FileSpec(NamedTuple):
    """A path, a URL, or - for a standard stream; its format; whether it is compressed; whether it is not a regular file.

    A run reads or writes a stream once, from start to end: it cannot resume, rename, or remove it. An output with a `url` is
    uploaded when it is complete.
    """

    path: str
    format: str
    gzip: bool
    is_stream: bool
    url: str = ""

    @property
    def name(self) -> str:
        """The path or URL for messages and records."""
        return shown(self.url or self.path)


class TableName(NamedTuple):
    """Name of a table. Without a schema, the database searches its default schema."""

    schema: str | None
    table: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table

    def sibling(self, suffix: str) -> "TableName":
        return TableName(self.schema, self.table + suffix)


class MaxBad(NamedTuple):
    """Maximum number of bad rows, or maximum percentage; with neither, only a run without any good row fails."""

    rows: int | None = None
    percent: float | None = None


class Options(NamedTuple):
    """Options of a file run. `shard` is (i, n): the run scores the chunks whose number modulo n is i."""

    source: FileSpec
    target: FileSpec
    features: tuple[str, ...]
    keep: tuple[str, ...]
    header: bool
    delimiter: str
    digest: bool
    errors: FileSpec
    max_bad: MaxBad
    shard: tuple[int, int]
    checkpoint_seconds: float
    force: bool
    quiet: bool


class TableOptions(NamedTuple):
    """Options of a table run. Defaults are the primary key and the model's feature names; `chunk` is a number of rows."""

    table: TableName
    key: tuple[str, ...]
    features: tuple[str, ...]
    redo_older: bool
    chunk: int
    max_bad: MaxBad
    quiet: bool


FILE_ONLY = ("in_format", "out_format", "keep", "no_header", "delimiter", "digest", "errors", "shard", "force")
TABLE_ONLY = ("database_url", "key", "redo_older", "chunk")


def add_flags(parser: argparse.ArgumentParser) -> None:
    formats = sorted(set(FORMATS.values()))
    parser.add_argument("source", metavar="IN", nargs="?", help="input file, directory, pattern, or URL, or - for standard input")
    parser.add_argument("target", metavar="OUT", nargs="?", help="output file, directory, or URL, or - for standard output")
    parser.add_argument("--in-format", choices=formats, help="format of IN (default: from its name, without .gz)")
    parser.add_argument("--out-format", choices=formats, help="format of OUT (default: from its name, else that of IN)")
    add_column_flags(parser)
    parser.add_argument("--digest", action="store_true", help="add a last column with the digest of the model")
    parser.add_argument("--errors", metavar="FILE", help="file of bad rows: line, column, reason (default OUT.errors.csv)")
    parser.add_argument("--max-bad", metavar="N|N%%", help="more bad rows fail the run (default: any number, but not all)")
    parser.add_argument("--shard", metavar="I/N", help="score only every Nth chunk of IN, or file of a directory, from I on")
    interval = "seconds between checkpoints, the maximum work that a killed run loses (default 1)"
    parser.add_argument("--checkpoint", metavar="SECONDS", type=seconds(0, 3600), help=interval)
    engines = "local: processes of this machine (default); ray: a Ray cluster, with OUT as a directory"
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help=engines)
    parser.add_argument("--table", metavar="NAME", help="score the rows of this table, in place of IN and OUT")
    url = "database of --table: sqlite:///file or postgresql://… (IRIS_DATABASE_URL, which hides it from other users)"
    parser.add_argument("--database", "--database-url", dest="database_url", metavar="URL", help=url)
    parser.add_argument("--key", metavar="A,B,…", help="columns that identify a row of --table (default: its primary key)")
    parser.add_argument("--redo-older", action="store_true", help="with --table: also rows with a prediction of another model")
    parser.add_argument("--chunk", metavar="N", help="rows of --table per transaction (default 5000)")
    parser.add_argument("--force", action="store_true", help="start again, and overwrite OUT")
    parser.add_argument("--quiet", action="store_true", help="do not print progress and a summary")


def parse_file_options(given: Mapping[str, Any]) -> Options:
    """Returns the options of a run over one file. Raises BadSetting."""
    source = file_spec(given["source"], given["in_format"], None, "IN")
    target = output_spec(given["target"], given["out_format"], source.format, "OUT")
    errors_path = given["errors"] or (STANDARD if target.is_stream else target.path + BAD_ROWS)
    errors = output_spec(errors_path, "csv", None, "--errors")
    if is_url(errors.path) and not is_url(target.path):
        raise BadSetting(f"--errors is a URL, and OUT is not: {errors.name}; use a file")
    check_distinct(source, target, errors)
    wanted_delimiter = parse_option(given, "delimiter", delimiter, "")
    if wanted_delimiter and source.format not in ("csv", "tsv"):
        raise BadSetting("--delimiter is for CSV")
    return Options(
        source,
        target,
        parse_option(given, "features", names, ()),
        parse_option(given, "keep", names, ()),
        not given["no_header"],
        wanted_delimiter,
        given["digest"],
        errors,
        parse_option(given, "max_bad", max_bad, MaxBad()),
        parse_option(given, "shard", shard, (0, 1)),
        CHECKPOINT_SECONDS if given["checkpoint"] is None else given["checkpoint"],
        given["force"],
        given["quiet"],
    )


def check_file_options(given: Mapping[str, Any]) -> None:
    """Raises BadSetting for a flag of tables, and without IN and OUT."""
    if flag := first_given(given, TABLE_ONLY):
        raise BadSetting(f"{flag} is for --table")
    if not given["source"] or not given["target"]:
        raise BadSetting("batch needs IN and OUT, or --table; - is standard input or output")


def parse_table_options(given: Mapping[str, Any], url: str) -> TableOptions:
    """Returns the options of a run over a table of the database at `url`. Raises BadSetting."""
    if flag := "IN" if given["source"] else first_given(given, FILE_ONLY):
        raise BadSetting(f"{flag} is for files, and not for --table")
    if not url:
        raise BadSetting("--table needs --database or IRIS_DATABASE_URL: sqlite:///file or postgresql://…")
    for value in (given["table"], given["key"], given["features"]):
        if not (value or "").isprintable():
            raise BadSetting("names of tables and columns must be printable text")
    return TableOptions(
        parse_table_name(given["table"]),
        parse_option(given, "key", names, ()),
        parse_option(given, "features", names, ()),
        given["redo_older"],
        parse_option(given, "chunk", integer(1, 1_000_000), 5000),
        parse_option(given, "max_bad", max_bad, MaxBad()),
        given["quiet"],
    )


def first_given(given: Mapping[str, Any], flags: Sequence[str]) -> str:
    return next((flag_of(flag) for flag in flags if given[flag] not in (None, False)), "")


def max_bad(value: str) -> MaxBad:
    if re.fullmatch(r"[0-9]{1,12}", value):
        return MaxBad(rows=int(value))
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?%", value) and float(value[:-1]) <= 100:
        return MaxBad(percent=float(value[:-1]))
    raise ValueError("must be a number of rows, or a share like 0.5%")


def shard(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError("must be like 0/4, the first of four")
    return int(found[1]), int(found[2])


def parse_table_name(text: str) -> TableName:
    """Parses `table` or `schema.table`; a part with a dot is in double quotes. Raises BadSetting."""
    found = is_table_name(text)
    if not found:
        raise BadSetting(f"--table={text[:60]!r} must be a name or schema.name, in double quotes where a name holds a dot")
    schema, table = ((quoted or "").replace('""', '"') or plain for quoted, plain in (found.group(1, 2), found.group(3, 4)))
    return TableName(schema, table)


def quoted(name: str) -> str:
    """Returns an identifier of standard SQL."""
    return '"' + name.replace('"', '""') + '"'


def file_spec(path: str, given: str | None, default: str | None, name: str) -> FileSpec:
    """Derives the format from the suffixes, as in rows.csv.gz, unless `given` sets it; `default` is the last resort.

    Raises BadSetting.
    """
    suffix, gzip = format_of(path)
    found = given or suffix or default
    if found is None:
        raise BadSetting(
            f"the format of {name} does not follow from {shown(path)!r}: say --{name.lower()}-format csv, tsv, jsonl or parquet"
        )
    is_stream = path == STANDARD or (not is_url(path) and is_irregular(path, name))
    if found == "parquet" and (gzip or is_stream):
        where = "under gzip" if gzip else "on a standard stream" if path == STANDARD else "in what is not a regular file"
        raise BadSetting(f"{name} cannot be Parquet {where}")
    return FileSpec(path, found, gzip, is_stream)


def format_of(path: str) -> tuple[str | None, bool]:
    """Returns the format that the suffixes of a path or URL name, if any, and whether the file is compressed."""
    suffixes = [suffix[1:].lower() for suffix in Path(shown(path)).suffixes] if path != STANDARD else []
    gzip = suffixes[-1:] == ["gz"]
    stems = suffixes[:-1] if gzip else suffixes
    return FORMATS.get(stems[-1]) if stems else None, gzip


def output_spec(path: str, given: str | None, default: str | None, name: str) -> FileSpec:
    """Returns the FileSpec of an output, with the target of a symbolic link. Raises BadSetting."""
    found = file_spec(path, given, default, name)
    return found if found.is_stream or not os.path.islink(path) else found._replace(path=os.path.realpath(path))


def is_irregular(path: str, name: str) -> bool:
    """Returns whether a path is not a regular file. Raises BadSetting for a directory and a block device."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        # The function that opens the file reports the error.
        mode = stat.S_IFDIR if path.endswith("/") else stat.S_IFREG
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise BadSetting(f"{name} is a {'directory' if stat.S_ISDIR(mode) else 'block device'}: {path}; it must be a file")
    return not stat.S_ISREG(mode)


def descriptor_of(path: str) -> tuple[int, int] | None:
    """Returns the process and the number of the descriptor that a path names, such as /dev/stdout; None for another path."""
    for _ in range(MAX_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if (process := is_descriptor_folder(folder)) and name.isdecimal():
            return int(process[1]), int(name)
        try:
            path = os.path.join(folder, os.readlink(os.path.join(folder, name)))
        except OSError:
            return None
    return None


def open_output(target: FileSpec, standard: int) -> int:
    """Returns a descriptor that writes to a stream; - is the descriptor `standard`. Raises BadSetting."""
    named = descriptor_of(target.path)
    try:
        if target.path == STANDARD:
            return os.dup(standard)
        if named is not None and named[0] == os.getpid():
            # If the file were opened again, writes would start at its first byte.
            return os.dup(named[1])
        return os.open(target.path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise BadSetting(f"{target.path} cannot be written: {error.strerror}") from None


def check_distinct(source: FileSpec, target: FileSpec, errors: FileSpec) -> None:
    """Raises BadSetting if a run would overwrite its input, or write two of its outputs into one file."""
    outputs: dict[str, str | int] = {
        "OUT": 1 if target.path == STANDARD else target.path,
        "--errors": 2 if errors.path == STANDARD else errors.path,
    }
    if not target.is_stream:
        outputs |= {f"OUT{suffix}": target.path + suffix for suffix in (PARTIAL, WHOLE, CHECKPOINT)}
        outputs["the new OUT.run.json"] = str(temporary_path(Path(target.path + CHECKPOINT)))
    pairs = [(("IN", 0 if source.path == STANDARD else source.path), output) for output in outputs.items()]
    # Standard output and standard error are often one file.
    if not (target.is_stream and errors.is_stream):
        pairs += combinations(outputs.items(), 2)
    for (first_name, first), (second_name, second) in pairs:
        if is_same(first, second):
            raise BadSetting(f"{first_name} and {second_name} are the same file")


def is_same(one: str | int, other: str | int) -> bool:
    """Returns whether two paths or descriptors are one regular file or one pipe. A terminal may be both input and output."""
    try:
        first = os.stat(one)
    except OSError:
        first = None
    if isinstance(one, str) and isinstance(other, str) and os.path.realpath(one) == os.path.realpath(other):
        return first is None or not stat.S_ISCHR(first.st_mode)
    try:
        second = os.stat(other)
    except OSError:
        return False
    return first is not None and os.path.samestat(first, second) and (stat.S_ISREG(first.st_mode) or stat.S_ISFIFO(first.st_mode))
