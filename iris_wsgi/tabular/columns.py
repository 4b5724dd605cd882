"""Which columns of CSV are the features and which are kept: by name, or by number where there are no names."""

import csv
import io
import re
from collections.abc import Sequence

from iris_wsgi.model.session import Model
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.csv_reader import Columns


def features_of(model: Model, given: Sequence[str]) -> Sequence[str]:
    """The names of the columns in the model's order: its own where none are given. Raises BadSetting."""
    features = given or [feature.name for feature in model.features]
    if len(features) != model.width:
        raise BadSetting(f"--features names {len(features)} columns; the model takes {model.width}")
    return features


def columns_of(model: Model, first: bytes, delimiter: str, header: bool, given: Sequence[str], keep: Sequence[str]) -> Columns:
    """By the first record, in which the names are; without a `header` columns are numbers from 1, and the features the first
    ones unless they are given. Raises BadSetting."""
    features = features_of(model, given)
    try:
        record = fields_of(first.decode("utf-8", "strict" if header else "replace"), delimiter)
    except UnicodeDecodeError:
        raise BadSetting("the header of IN is not UTF-8") from None
    if not header:
        places = [int(one) for one in given if one.isdecimal()] or range(1, model.width + 1)
        if odd := [one for i, one in enumerate(record, 1) if i in places and delimited(one)]:
            raise BadSetting(
                f"the first row of IN has the field {odd[0][:40]!r}; name what is between its columns by --delimiter"
            )
        record, features = [str(i + 1) for i in range(len(record))], given or [str(i + 1) for i in range(model.width)]
        if 0 < len(record) < model.width:
            raise BadSetting(f"IN has {len(record)} columns, the model takes {model.width} features")
    names = [name.strip() for name in record]
    if not any(names):
        raise BadSetting(f"IN is empty{': it has not even a header' if header else ''}")
    found, kept = ([place_of(name, names, header) for name in wanted] for wanted in (features, keep))
    return Columns(len(names), names, found, kept)


def delimited(field: str) -> bool:
    """Whether a field looks like numbers with another delimiter between them, which only --delimiter can tell."""
    return bool(re.search(r"[0-9][;\t|][+-]?[0-9]", field))


def fields_of(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])


def place_of(name: str, names: Sequence[str], header: bool) -> int:
    if (count := names.count(name)) == 1:
        return names.index(name)
    if not header:
        raise BadSetting(f"without a header columns are numbers from 1 to {len(names)}, not {name!r}")
    has = "several columns" if count else "no column"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    other = ", or --delimiter" if any(one in "".join(names) for one in ";\t|") else ""
    raise BadSetting(f"IN has {has} {name!r}; it has {shown}. Name them by --features, or say --no-header{other}")
