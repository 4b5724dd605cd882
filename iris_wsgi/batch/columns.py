"""Which columns of CSV are the features and which are kept: by name, or by number where there are no names."""

import csv
import io
from collections.abc import Sequence

from iris_wsgi.batch.csv_rows import Columns
from iris_wsgi.model import Model
from iris_wsgi.settings import BadSetting


def features_of(model: Model, given: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the columns in the model's order: its own where none are given. Raises BadSetting."""
    features = given or tuple(feature.name for feature in model.features)
    if len(features) != model.width:
        raise BadSetting(f"--features names {len(features)} columns; the model takes {model.width}")
    return features


def named(header: bytes, delimiter: str, features: Sequence[str], keep: Sequence[str]) -> Columns:
    """By the names in the header. Raises BadSetting."""
    try:
        text = header.decode()
    except UnicodeDecodeError:
        raise BadSetting("the header of IN is not UTF-8") from None
    record = first_of(text, delimiter)
    names = [name.strip() for name in record]
    if not any(names):
        raise BadSetting("IN is empty: it has not even a header")
    return Columns(len(names), names, [place_of(one, names) for one in features], [place_of(one, names) for one in keep])


def first_of(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])


def place_of(name: str, names: Sequence[str]) -> int:
    if (count := names.count(name)) != 1:
        has = "several columns" if count else "no column"
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        raise BadSetting(f"IN has {has} {name!r}; it has {shown}. Name them by --features, or say --no-header")
    return names.index(name)


def numbered(first: bytes, delimiter: str, width: int, features: Sequence[str], keep: Sequence[str]) -> Columns:
    """By numbers from 1, of as many columns as the first record has; the features are the first ones unless told otherwise."""
    record = first_of(first.decode("utf-8", "replace"), delimiter)
    if not record:
        raise BadSetting("IN is empty")
    places = [numbered_place(one, len(record)) for one in features] or list(range(width))
    if len(record) < width:
        raise BadSetting(f"IN has {len(record)} columns, the model takes {width} features")
    return Columns(
        len(record), [str(i + 1) for i in range(len(record))], places, [numbered_place(one, len(record)) for one in keep]
    )


def numbered_place(text: str, count: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and 1 <= int(text) <= count):
        raise BadSetting(f"without a header columns are numbers from 1 to {count}, not {text!r}")
    return int(text) - 1
