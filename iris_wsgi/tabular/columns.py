"""Columns of the input: their command-line flags, and the positions of the features and of the kept columns in CSV."""

import argparse
import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from iris_wsgi.settings import BadSetting, checked, flag_of

if TYPE_CHECKING:
    # The flags must be known without the packages of the model.
    from iris_wsgi.model.session import Model

# Separators of columns, in the order in which a header is searched for them.
SEPARATORS = ",;\t|"
# The characters of a blank line.
BLANK = b'\r\n \t"'
has_other_separator = re.compile(r"[0-9][;\t|][+-]?[0-9]").search


class Columns(NamedTuple):
    """Number and names of the columns of CSV, and the positions of the features and of the kept columns."""

    total: int
    names: Sequence[str]
    features: Sequence[int]
    keep: Sequence[int]


def add_column_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--features", metavar="A,B,…", help="columns of the features, in the model's order (default: the model's feature names)"
    )
    parser.add_argument("--keep", metavar="A,B,…", help="columns to copy to the output, such as the key (default: none)")
    parser.add_argument("--no-header", action="store_true", help="CSV without a header; columns are numbers, from 1")
    parser.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        help="separator of the columns of CSV, such as ; or tab (default: comma, or the separator of the header)",
    )


def parse_option(given: Mapping[str, Any], name: str, cast: Callable[[str], Any], default: Any) -> Any:
    """Returns the value of a flag. Raises BadSetting."""
    return default if given[name] is None else checked(flag_of(name), given[name], cast)


def names(value: str) -> tuple[str, ...]:
    try:
        # A quoted name may contain a comma, as in CSV.
        found = tuple(name.strip() for name in next(csv.reader([value], skipinitialspace=True, strict=True), []))
    except csv.Error:
        found = ()
    if not found or not all(found) or len(set(found)) != len(found):
        raise ValueError("must be different names with commas between them")
    return found


def delimiter(value: str) -> str:
    found = {"tab": "\t", "\\t": "\t"}.get(value, value)
    # Characters of numbers, of quoted fields, and of line ends are excluded.
    if not re.fullmatch(r"[\t !#$%&'()*,/:;<=>?@\[\\\]^_`{|}~]", found):
        raise ValueError("must be one character that is neither a letter, a digit, a quote nor a sign of numbers, or tab")
    return found


def feature_names(model: "Model", given: Sequence[str]) -> Sequence[str]:
    """Returns the columns of the features, by default the model's feature names. Raises BadSetting."""
    features = given or [feature.name for feature in model.features]
    if len(features) != model.width:
        raise BadSetting(f"--features names {len(features)} columns; the model takes {model.width}")
    return features


def spelled_names(features: Sequence[str], columns: Sequence[str]) -> Sequence[str]:
    """Returns the features as the columns of the input spell them. Raises BadSetting if several columns fit one feature."""
    from iris_wsgi.tabular.feature_values import AmbiguousColumns, FeatureColumns

    try:
        found = FeatureColumns(features).find(columns)
    except AmbiguousColumns as error:
        raise BadSetting(f"the columns of IN are ambiguous: {error}; name the columns of all features by --features") from None
    return [column or feature for column, feature in zip(found, features, strict=True)]


def csv_columns(model: "Model", first: bytes, delimiter: str, header: bool, given: Sequence[str], keep: Sequence[str]) -> Columns:
    """Finds the columns in the first record, which is the header or a row. Raises BadSetting.

    The names of features are those of the model, in any spelling, unless `given` lists exact names of columns. Without a
    header, columns are numbers from 1, and the first columns are the features unless `given` lists others.
    """
    features = feature_names(model, given)
    try:
        record = split_record(first.decode("utf-8", "strict" if header else "replace"), delimiter)
    except UnicodeDecodeError:
        raise BadSetting("the header of IN is not UTF-8") from None
    if not header:
        numbers = [int(name) for name in given if name.isdecimal()] or range(1, model.width + 1)
        positions = [i for i, feature in zip(numbers, model.features, strict=False) if feature.type != "string"]
        if odd := [field for i, field in enumerate(record, 1) if i in positions and has_other_separator(field)]:
            raise BadSetting(
                f"the first row of IN has the field {odd[0][:40]!r}; set the separator of its columns by --delimiter"
            )
        record, features = [str(i + 1) for i in range(len(record))], given or [str(i + 1) for i in range(model.width)]
        if 0 < len(record) < model.width:
            raise BadSetting(f"IN has {len(record)} columns, the model takes {model.width} features")
    found = [name.strip() for name in record]
    if not any(found):
        raise BadSetting(f"IN is empty{': it does not have a header' if header else ''}")
    if header and not given:
        features = spelled_names(features, found)
    feature_positions, kept = ([column_index(name, found, header) for name in wanted] for wanted in (features, keep))
    return Columns(len(found), found, feature_positions, kept)


def split_record(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])


def column_index(name: str, names: Sequence[str], header: bool) -> int:
    if (count := names.count(name)) == 1:
        return names.index(name)
    if not header:
        raise BadSetting(f"without a header columns are numbers from 1 to {len(names)}, not {name!r}")
    has = "several columns" if count else "no column"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    other = ", or --delimiter" if any(separator in "".join(names) for separator in SEPARATORS[1:]) else ""
    raise BadSetting(f"IN has {has} {name!r}; it has {shown}. Name them by --features, or use --no-header{other}")
