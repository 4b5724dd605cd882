"""What a batch run is asked for: its flags, and what they must be."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from iris_wsgi.patterns.batch.database import Name, name_of
from iris_wsgi.setting_types import integer, seconds
from iris_wsgi.settings import BadSetting, flag_of
from iris_wsgi.tabular.columns import add_column_flags, delimiter, names, parse_option
from iris_wsgi.tabular.paths import FORMATS, STANDARD, FileSpec, check_apart, file_spec, output_spec


class MaxBad(NamedTuple):
    """How many bad rows a run may have: so many, or such a share of all; None is any number, but not all."""

    rows: int | None = None
    percent: float | None = None


class Options(NamedTuple):
    """A run over a file. `shard` is (i, n): only the chunks that are i modulo n."""

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
    """A run over a table; without a key or features they are those of the table and of the model. `chunk` is a number of rows."""

    table: Name
    key: tuple[str, ...]
    features: tuple[str, ...]
    redo_older: bool
    chunk: int
    max_bad: MaxBad
    quiet: bool


# What only a run over a file, and what only one over a table may be given.
FILE_ONLY = ("in_format", "out_format", "keep", "no_header", "delimiter", "digest", "errors", "shard", "force")
TABLE_ONLY = ("database_url", "key", "redo_older", "chunk")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", nargs="?", help="a file of rows, or - for standard input")
    parser.add_argument("target", metavar="OUT", nargs="?", help="where the answers go, or - for standard output")
    parser.add_argument("--in-format", choices=sorted(set(FORMATS.values())), help="of IN (default: by its name, before .gz)")
    parser.add_argument("--out-format", choices=sorted(set(FORMATS.values())), help="of OUT (default: by its name, else as IN)")
    add_column_flags(parser)
    parser.add_argument("--digest", action="store_true", help="a last column with the digest of the model")
    parser.add_argument("--errors", metavar="FILE", help="where bad rows are told: line, column, reason (default OUT.errors.csv)")
    parser.add_argument("--max-bad", metavar="N|N%%", help="more bad rows fail the run (default: any number, but not all)")
    parser.add_argument("--shard", metavar="I/N", help="only every Nth piece of IN, from the Ith, counted from 0")
    parser.add_argument(
        "--checkpoint",
        metavar="SECONDS",
        type=seconds(0, 3600),
        default=1.0,
        help="how much work a killed run may lose (default 1)",
    )
    parser.add_argument("--table", metavar="NAME", help="score the rows of this table, in place of IN and OUT")
    parser.add_argument(
        "--database",
        "--database-url",
        dest="database_url",
        metavar="URL",
        help="where --table is: sqlite:///file or postgresql://… (IRIS_DATABASE_URL, which others do not see)",
    )
    parser.add_argument("--key", metavar="A,B,…", help="columns that tell rows of --table apart (default: its primary key)")
    parser.add_argument("--redo-older", action="store_true", help="with --table: also rows with a prediction of another model")
    parser.add_argument("--chunk", metavar="N", help="rows of --table that are done at once (default 5000)")
    parser.add_argument("--force", action="store_true", help="begin anew, whatever was there")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def options_of(given: Mapping[str, Any]) -> Options:
    """Of a run over a file. Raises BadSetting."""
    if wrong := given_of(given, TABLE_ONLY):
        raise BadSetting(f"{wrong} is for --table")
    if not given["source"] or not given["target"]:
        raise BadSetting("batch wants IN and OUT, or --table; - is standard input or output")
    source = file_spec(given["source"], given["in_format"], None, "IN")
    target = output_spec(given["target"], given["out_format"], source.format, "OUT")
    told = given["errors"] or (STANDARD if target.is_stream else f"{target.path}.errors.csv")
    errors = output_spec(told, "csv", None, "--errors")
    check_apart(source, target, errors)
    return Options(
        source,
        target,
        parse_option(given, "features", names, ()),
        parse_option(given, "keep", names, ()),
        not given["no_header"],
        delimiter_for(given, source.format),
        given["digest"],
        errors,
        parse_option(given, "max_bad", max_bad, MaxBad()),
        parse_option(given, "shard", shard, (0, 1)),
        given["checkpoint"],
        given["force"],
        given["quiet"],
    )


def table_options_of(given: Mapping[str, Any], url: str) -> TableOptions:
    """Of a run over a table of the database at `url`. Raises BadSetting."""
    if wrong := "IN" if given["source"] else given_of(given, FILE_ONLY):
        raise BadSetting(f"{wrong} is for files, and not for --table")
    if not url:
        raise BadSetting("--table wants --database or IRIS_DATABASE_URL, which is sqlite:///file or postgresql://…")
    for value in (given["table"], given["key"], given["features"]):
        if not (value or "").isprintable():
            raise BadSetting("names of tables and columns must be printable text")
    return TableOptions(
        name_of(given["table"]),
        parse_option(given, "key", names, ()),
        parse_option(given, "features", names, ()),
        given["redo_older"],
        parse_option(given, "chunk", integer(1, 1_000_000), 5000),
        parse_option(given, "max_bad", max_bad, MaxBad()),
        given["quiet"],
    )


def given_of(given: Mapping[str, Any], flags: Sequence[str]) -> str:
    """The first of these flags that was given; empty: none."""
    return next((flag_of(one) for one in flags if given[one] not in (None, False)), "")


def delimiter_for(given: Mapping[str, Any], found: str) -> str:
    """The delimiter that is asked for; empty: none. Raises BadSetting where there is none in the format."""
    wanted: str = parse_option(given, "delimiter", delimiter, "")
    if wanted and found not in ("csv", "tsv"):
        raise BadSetting("--delimiter is for CSV")
    return wanted


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
