"""From what a run over a table is asked for to what it does: the database, the key, the features, the tables beside."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iris_wsgi.batch.columns import features_of
from iris_wsgi.batch.statements import PREDICTION, RECORD, RUN, Statements, answer_columns
from iris_wsgi.batch.table_options import TableOptions
from iris_wsgi.batch.tables import Column, Database, Name, Source
from iris_wsgi.model import Model
from iris_wsgi.settings import SQLITE, BadSetting

# So long a database may take for one statement, a lock among them.
SECONDS = 60.0


class Plan(NamedTuple):
    """What is read and written: the statements, the key and the features, the name of the predictions, about how many rows."""

    statements: Statements
    key: list[Column]
    features: tuple[str, ...]
    target: Name
    rows: int | None


def opened(url: str, seconds: float = SECONDS) -> Database:
    """Raises BadSetting and Failed."""
    if url.startswith(SQLITE):
        from iris_wsgi.batch.sqlite import SqliteDatabase

        return SqliteDatabase(url.removeprefix(SQLITE), seconds)
    try:
        from iris_wsgi.batch.postgres import PostgresDatabase
    except ImportError:
        raise BadSetting(
            "PostgreSQL wants the package psycopg: bin/setup postgres, pip install 'iris_wsgi[postgres]', or the image `full`"
        ) from None
    return PostgresDatabase(url, seconds)


def planned(database: Database, options: TableOptions, model: Model) -> Plan:
    """Looks whether all is there, and makes the tables that are not. Raises BadSetting and Failed."""
    source = database.find(options.table)
    if source is None:
        raise BadSetting(f"there is no table {options.table}; names are taken exactly as they are written")
    features = features_of(model, options.features)
    key = [source.columns[name] for name in key_of(source, options.key)]
    statements = Statements(database.dialect, source.name, key, [column_of(source, name) for name in features])
    fits(database, source, key, model.labels)
    with database.preparing(source.name):
        if any(one.nullable for one in key) and database.execute(statements.keyless()):
            raise BadSetting(f"{source.name} has rows without a key: {named(one.name for one in key)} must not be NULL")
        if not database.walks(statements.page_end(True), (None,) * len(key) + (1,)):
            raise BadSetting(f"the index of {named(one.name for one in key)} has another collation than the columns")
        database.make(source, key, model.labels)
        has_columns(database, source.name.beside(PREDICTION), [*(one.name for one in key), *answer_columns(model.labels)])
        has_columns(database, source.name.beside(RUN), RECORD)
        made = database.find(source.name.beside(PREDICTION))
        if made is None or {one.name for one in key} not in map(set, made.keys):
            raise BadSetting(f"{source.name.beside(PREDICTION)} has another key than {named(one.name for one in key)}")
    return Plan(statements, key, features, source.name.beside(PREDICTION), database.count(source.name))


def key_of(source: Source, wanted: Sequence[str]) -> list[str]:
    """The columns by which a row is known, in the order in which an index has them."""
    names = [column_of(source, name).name for name in wanted or source.primary]
    if not names:
        raise BadSetting(f"{source.name} has no primary key; name a unique key by --key")
    found = next((key for key in source.keys if set(key) == set(names)), None)
    if found is None:
        raise BadSetting(f"{named(names)} is no key of {source.name}: it wants a unique index over just that, without conditions")
    return list(found)


def column_of(source: Source, name: str) -> Column:
    if name not in source.columns:
        shown = ", ".join([*source.columns][:12]) + (", …" if len(source.columns) > 12 else "")
        raise BadSetting(f"{source.name} has no column {name!r}; it has {shown}")
    return source.columns[name]


def fits(database: Database, source: Source, key: Sequence[Column], labels: Sequence[str]) -> None:
    """Whether the names of what is made are good names there."""
    dialect = database.dialect
    columns = [*(one.name for one in key), *answer_columns(labels)]
    spelled = [one.lower() for one in columns] if dialect.folds else columns
    if twice := next((name for name, one in zip(columns, spelled, strict=True) if spelled.count(one) > 1), None):
        raise BadSetting(f"{source.name.beside(PREDICTION)} would have two columns {twice!r}")
    for name in (source.name.table + PREDICTION, *columns):
        if dialect.name_bytes is not None and len(name.encode()) > dialect.name_bytes:
            raise BadSetting(f"{name!r} is longer than the {dialect.name_bytes} bytes that a name may have")


def has_columns(database: Database, name: Name, columns: Sequence[str]) -> None:
    """An earlier run has made the table, for the same key and classes."""
    found = database.find(name)
    lacking = [one for one in columns if found is None or one not in found.columns]
    if lacking:
        raise BadSetting(f"{name} is there and has no column {lacking[0]!r}; give it another name, or bring it up to date")


def named(names: Iterable[str]) -> str:
    return ", ".join(names)
