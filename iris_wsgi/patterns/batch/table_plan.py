"""From what a run over a table is asked for to what it does: the database, the key, the features, the tables beside."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from iris_wsgi.model.session import Model
from iris_wsgi.patterns.batch.database import Column, Database, Name, Source
from iris_wsgi.patterns.batch.options import TableOptions
from iris_wsgi.patterns.batch.sql import PREDICTION, RECORD, RUN, Statements, answer_columns
from iris_wsgi.setting_types import SQLITE
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.columns import feature_names

# So long a database may take for one statement, a lock among them.
SECONDS = 60.0


class Plan(NamedTuple):
    """What is read and written: the statements, the key and the features, the name of the predictions, about how many rows."""

    statements: Statements
    key: list[Column]
    features: Sequence[str]
    target: Name
    rows: int | None


def opened(url: str, seconds: float = SECONDS) -> Database:
    """Raises BadSetting and Stopped."""
    if url.startswith(SQLITE):
        from iris_wsgi.patterns.batch.sqlite import SqliteDatabase

        return SqliteDatabase(url.removeprefix(SQLITE), seconds)
    try:
        from iris_wsgi.patterns.batch.postgres import PostgresDatabase
    except ImportError:
        raise BadSetting(
            "PostgreSQL wants the package psycopg: bin/setup postgres, pip install 'iris_wsgi[postgres]', or the image `full`"
        ) from None
    return PostgresDatabase(url, seconds)


def planned(database: Database, options: TableOptions, model: Model) -> Plan:
    """Looks whether all is there, and makes the tables that are not. Raises BadSetting and Stopped."""
    source = found(database, options.table)
    features = feature_names(model, options.features)
    key = [source.columns[name] for name in key_of(source, options.key)]
    statements = Statements(database.dialect, source.name, key, [column_of(source, name) for name in features])
    target, names = source.name.beside(PREDICTION), [one.name for one in key]
    check_names(target, names, answer_columns(model.labels), database.dialect.folded)
    with database.preparing(source.name):
        if any(one.nullable for one in key) and database.execute(statements.keyless()):
            raise BadSetting(f"{source.name} has rows without a key: {', '.join(names)} must not be NULL")
        if not database.walks(statements.page_end(True), (None,) * len(key) + (1,)):
            raise BadSetting(f"the index of {', '.join(names)} has another collation than the columns")
        if database.find(target) is None:
            database.make(source, key, model.labels)
        if database.find(source.name.beside(RUN)) is None:
            database.execute(statements.make_runs())
        made = found(database, target, [*names, *answer_columns(model.labels)])
        found(database, source.name.beside(RUN), RECORD)
        if set(names) not in map(set, made.keys):
            raise BadSetting(f"{target} has another key than {', '.join(names)}")
    return Plan(statements, key, features, target, database.count(source.name))


def check_names(target: Name, key: Sequence[str], answers: Sequence[str], folded: Callable[[str], str]) -> None:
    """Raises BadSetting if two columns of the predictions would have one name for the database."""
    seen: dict[str, str] = {}
    for name in (*answers, *key):
        if (other := seen.setdefault(folded(name), name)) is not name:
            way_out = "name another unique key by --key" if name in key else "rename the labels in label.json"
            raise BadSetting(f"{target} cannot have the columns {other!r} and {name!r}, which are one name; {way_out}")


def key_of(source: Source, wanted: Sequence[str]) -> list[str]:
    """The columns by which a row is known, in the order in which an index has them."""
    names = [column_of(source, name).name for name in wanted or source.primary]
    if not names:
        raise BadSetting(f"{source.name} has no primary key; name a unique key by --key")
    unique = next((key for key in source.keys if set(key) == set(names)), None)
    if unique is None:
        raise BadSetting(
            f"{', '.join(names)} is no key of {source.name}: it wants a unique index over just that, without conditions"
        )
    return list(unique)


def column_of(source: Source, name: str) -> Column:
    if name not in source.columns:
        shown = ", ".join([*source.columns][:12]) + (", …" if len(source.columns) > 12 else "")
        raise BadSetting(f"{source.name} has no column {name!r}; it has {shown}")
    return source.columns[name]


def found(database: Database, name: Name, columns: Sequence[str] = ()) -> Source:
    """A table; that of an earlier run has to have been made for the same key and classes."""
    table = database.find(name)
    if table is None:
        raise BadSetting(f"there is no table {name}; names are taken exactly as they are written")
    if lacking := [one for one in columns if one not in table.columns]:
        raise BadSetting(f"{name} is there and has no column {lacking[0]!r}; give it another name, or bring it up to date")
    return table
