"""Options of commands that read rows: the columns, and how a line is split."""

import argparse
import csv
import re
from collections.abc import Callable, Mapping
from typing import Any

from iris_wsgi.settings import checked, flag_of

# Delimiters, in the order in which they are looked for in a header.
DELIMITED = ",;\t|"
# What a blank line may contain.
BLANK = b'\r\n \t"'


def add_column_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--features", metavar="A,B,…", help="columns of the features, in the model's order (default: its own names)"
    )
    parser.add_argument("--keep", metavar="A,B,…", help="columns that answers repeat, such as the key (default: none)")
    parser.add_argument("--no-header", action="store_true", help="CSV without names; columns are then numbers, from 1")
    parser.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        help="between the columns of CSV, such as ; or tab (default: comma, or as in the header)",
    )


def asked(given: Mapping[str, Any], name: str, cast: Callable[[str], Any], otherwise: Any) -> Any:
    return otherwise if given[name] is None else checked(flag_of(name), given[name], cast)


def names(value: str) -> tuple[str, ...]:
    try:
        # As in CSV a name may be in quotes, and then hold a comma.
        found = tuple(one.strip() for one in next(csv.reader([value], skipinitialspace=True, strict=True), []))
    except csv.Error:
        found = ()
    if not found or not all(found) or len(set(found)) != len(found):
        raise ValueError("must be different names with commas between them")
    return found


def delimiter(value: str) -> str:
    found = {"tab": "\t", "\\t": "\t"}.get(value, value)
    # Nothing that can be a part of a number, of a quoted field, or of the end of a line.
    if not re.fullmatch(r"[\t !#$%&'()*,/:;<=>?@\[\\\]^_`{|}~]", found):
        raise ValueError("must be one character that is neither a letter, a digit, a quote nor a sign of numbers, or tab")
    return found
