"""What a run over a table is asked for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from iris_wsgi.batch.options import MaxBad, given_of, max_bad, names
from iris_wsgi.batch.tables import Name, name_of
from iris_wsgi.settings import BadSetting, checked, whole

# What only a run over a file may be given.
FILE_ONLY = ("in_format", "out_format", "keep", "no_header", "digest", "errors", "shard", "force")


class TableOptions(NamedTuple):
    """A run over a table; without a key or features they are those of the table and of the model. `chunk` is a number of rows."""

    table: Name
    key: tuple[str, ...]
    features: tuple[str, ...]
    redo_older: bool
    chunk: int
    max_bad: MaxBad
    quiet: bool


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
        names("--key", given["key"]),
        names("--features", given["features"]),
        given["redo_older"],
        checked("--chunk", given["chunk"] or "5000", whole(1, 1_000_000)),
        max_bad(given["max_bad"]),
        given["quiet"],
    )
