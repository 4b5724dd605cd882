"""Table runs over PostgreSQL: a run locks the rows of its chunk, so that several processes share one table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from iris_wsgi.codec.model_schema import INTEGER_TYPES, REGRESSOR, OutputSchema
from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.database import DIGEST, PREDICTION, Column, Dialect, InputTable, PredictionRows, prediction_columns
from iris_wsgi.patterns.batch.options import TableName, quoted
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.postgres import NOT_CONVERTIBLE, PostgresError, Row, connect, parse_url

# Defaults for parameters that the URL does not set.
OPTIONS = {"connect_timeout": "10", "application_name": "iris_wsgi"}
# Maximum idle time of a transaction, as while a slow model scores its rows. Then the server releases its locks.
IDLE_SECONDS = 900
GRANT = (
    "grant the role SELECT and UPDATE on the table, CREATE in its schema,"
    " and SELECT, INSERT and UPDATE on NAME_prediction and NAME_run"
)
PRIMARY = "the address must lead to the primary, and the role must not be read-only"
UTF8 = "use a database that was created with ENCODING 'UTF8'"
NO_CHARACTER = f"the encoding of the database lacks a character of a name or a label; {UTF8}"
# A feature that is not UTF-8 makes a bad row instead.
NOT_UTF8 = (
    f"the database has the encoding SQL_ASCII and a text that is not UTF-8 in the key or a name; correct the text, or {UTF8}"
)
# The encoding of a database whose texts are bytes of any encoding.
ANY_BYTES = "SQL_ASCII"
UNTRANSLATABLE = "22P05"
# By SQLSTATE.
REMEDIES = {"42501": GRANT, "25006": PRIMARY, UNTRANSLATABLE: NO_CHARACTER, "22021": NOT_UTF8}
# Messages of libpq for an address that a retry does not repair.
PERMANENT_ERRORS = ("authentication failed", "does not exist", "invalid connection option", "invalid URI", NOT_CONVERTIBLE)
# Types whose values are integers or doubles. All others are read as text, so that no value is out of range.
INTEGERS = {"integer", "smallint", "bigint"}
DOUBLES = {"double precision", "real", *INTEGERS}
FIND = """
SELECT n.nspname, c.oid, c.relkind = 'r' AND c.relhassubclass
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
# Unique indexes with the collations of their columns.
KEYS = """
SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.place)
FROM pg_index i, unnest(i.indkey, i.indcollation) WITH ORDINALITY AS k (attnum, coll, place)
LEFT JOIN pg_attribute a ON a.attrelid = %s AND a.attnum = k.attnum AND k.coll IN (0, a.attcollation)
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid, i.indisprimary ORDER BY i.indexrelid
"""
# For one transaction: a pool in transaction mode then lends the connection to another client.
SET = """
SELECT set_config(name, setting, true) FROM unnest(%s::text[], %s::text[]) AS s (name, setting)
"""


def feature_expression(name: str, kind: str, feature: str) -> str:
    """Returns the expression that reads a column of the type `kind` for a feature of a type.

    A number is not a valid string, so that it is not read as text for one.
    """
    if feature == "string":
        return f"{name}::{'float8' if kind in DOUBLES or kind.startswith('numeric') else 'int' if kind == 'boolean' else 'text'}"
    if feature in INTEGER_TYPES and kind in INTEGERS:
        return f"{name}::int8"
    return f"{name}::{'float8' if kind in DOUBLES else 'text'}"


def bytes_expression(name: str, kind: str, feature: str) -> str:
    """Returns the expression of a database whose texts may not be UTF-8, which the server would refuse to send as texts."""
    expression = feature_expression(name, kind, feature)
    return f"convert_to({expression}, '{ANY_BYTES}')" if expression.endswith("::text") else expression


DIALECT = Dialect(
    placeholder="%s",
    now="clock_timestamp()",
    # Every type can be converted to text and back. Python cannot represent some values, such as an infinite date.
    key="{}::text",
    feature=feature_expression,
    # psycopg treats a single % as a placeholder.
    quoted=lambda name: quoted(name).replace("%", "%%"),
    text="text",
    real="double precision",
    time="timestamptz",
    # Foreign keys may still refer to the locked rows.
    lock=" FOR NO KEY UPDATE OF s",
    skip=" SKIP LOCKED",
)


class Forbidden(Stopped):
    """The database refuses a statement for a reason that no retry repairs, such as a missing permission."""


class PostgresTables:
    """Connection to PostgreSQL with the methods of SqliteTables; a call ends after `seconds`, even without a server."""

    def __init__(self, url: str, seconds: float) -> None:
        """Raises BadSetting for an invalid address, and Stopped if the server is down."""
        self.seconds = seconds
        try:
            given = parse_url(url)
        except ValueError:
            raise BadSetting("the URL of the database is not valid for PostgreSQL") from None
        self.place = f"{given.get('host') or 'localhost'}:{given.get('port') or 5432}/{given.get('dbname') or ''}"
        try:
            self.connection = connect(url, **{name: value for name, value in OPTIONS.items() if name not in given})
        except PostgresError as error:
            failed = self.failure(error)
            raise BadSetting(str(failed)) if any(text in error.details for text in PERMANENT_ERRORS) else failed from None
        self.settings = transaction_settings(seconds)
        self.dialect = DIALECT
        if self.connection.database_encoding == ANY_BYTES:
            self.dialect = DIALECT._replace(feature=bytes_expression)
            self.connection.read_bytes_as_text()

    def failure(self, error: PostgresError) -> Stopped:
        reason = f"no response within {self.seconds:g} s" if error.timed_out else str(error)[:300]
        failed = f"the PostgreSQL at {self.place} failed: {reason}"
        remedy = REMEDIES.get(error.sqlstate) or (UTF8 if NOT_CONVERTIBLE in error.details else None)
        return Forbidden(f"{failed}; {remedy}") if remedy else Stopped(failed)

    def find(self, name: TableName) -> InputTable | None:
        """Raises BadSetting for a name that the encoding of the database cannot have."""
        try:
            found = self.execute(FIND, (plain(name),))
        except Forbidden as error:
            # No table has a name with a character that the encoding of the database lacks.
            raise BadSetting(str(error)) from None
        if not found:
            return None
        ((schema, oid, has_heirs),) = found
        columns = {column: Column(column, kind, nullable) for column, kind, nullable in self.execute(COLUMNS, (oid,))}
        indexes = [(is_primary, tuple(names)) for is_primary, names in self.execute(KEYS, (oid, oid))]
        primary = next((names for is_primary, names in indexes if is_primary), ())
        # A key is not unique across tables that inherit from this one.
        keys = [] if has_heirs else [names for _, names in indexes]
        return InputTable(TableName(schema, name.table), columns, keys, primary)

    def count(self, name: TableName) -> int | None:
        """Returns the number in the server's statistics."""
        ((rows,),) = self.execute("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(%s)", (plain(name),))
        return rows if rows > 0 else None

    def uses_index(self, page: str, values: Sequence[Any]) -> bool:
        return True

    @contextmanager
    def setup(self, name: TableName) -> Iterator[None]:
        """Makes other runs wait, because two that create a table at once would fail. Raises BadSetting without permission."""
        try:
            with self.transaction():
                self.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"iris_wsgi {name}",))
                yield
        except Forbidden as error:
            raise BadSetting(str(error)) from None

    def create(self, source: InputTable, key: Sequence[Column], outputs: OutputSchema) -> None:
        """Creates the table; types and collations of the key are those of the source."""
        names = ", ".join(DIALECT.quoted(column.name) for column in key)
        added = [f"ADD COLUMN {definition}" for definition in DIALECT.definitions(outputs)]
        target = DIALECT.table(source.name.sibling(PREDICTION))
        self.execute(f"CREATE TABLE {target} AS SELECT {names} FROM {DIALECT.table(source.name)} WITH NO DATA")
        self.execute(f"ALTER TABLE {target} {', '.join(added)}, ADD PRIMARY KEY ({names})")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Limits settings to the transaction, so that they do not affect the next client of a connection pool."""
        # Rows committed by other runs must be visible, even if the role has another default.
        self.run("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            self.run(SET, (list(self.settings), list(self.settings.values())))
            yield
            self.run("COMMIT")
        except BaseException:
            with suppress(Stopped):
                self.run("ROLLBACK")
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Runs a statement in the open transaction, or in a new one."""
        if self.connection.in_transaction:
            return self.run(statement, values)
        with self.transaction():
            return self.run(statement, values)

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Runs a statement. The server limits it to `seconds`; the longer deadline here is for a server that hangs."""
        try:
            return self.connection.query(statement, values, 1.5 * self.seconds, binary=True)
        except PostgresError as error:
            raise self.failure(error) from None

    def write(
        self, target: str, key: Sequence[Column], outputs: OutputSchema, rows: PredictionRows, digest: str, run: str, redo: bool
    ) -> list[tuple[str | None, int]]:
        """Skips rows that another run wrote between the claim and the lock. Returns the number of written rows by label."""
        statement = insert_statement(target, key, outputs, redo)
        labels = [] if outputs.kind == REGRESSOR else [rows.labels]
        columns = [*map(list, zip(*rows.keys, strict=True)), *labels, *rows.values, rows.errors]
        return [(label, count) for label, count in self.execute(statement, (digest, run, *columns))]

    def close(self) -> None:
        self.connection.close()


def plain(name: TableName) -> str:
    """Returns the name as a value, not as a part of a statement."""
    return ".".join(quoted(part) for part in name if part)


def transaction_settings(seconds: float) -> dict[str, str]:
    """Returns the settings of a transaction in which a statement may take `seconds`."""
    return {
        "statement_timeout": str(int(seconds * 1000)),
        # Shorter, so that the error names the lock.
        "lock_timeout": str(int(seconds * 800)),
        "idle_in_transaction_session_timeout": str(IDLE_SECONDS * 1000),
        # Texts of floats are exact.
        "extra_float_digits": "1",
        # The key finds a page, even if the statistics of a table that was just filled call it empty.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "jit": "off",
    }


def insert_statement(target: str, key: Sequence[Column], outputs: OutputSchema, redo: bool) -> str:
    """Inserts rows and counts them by label. Values: digest, run, and arrays of keys, labels, values, and errors.

    Rows of a regressor are counted by an empty label, or NULL for a bad row.
    """
    has_label = outputs.kind != REGRESSOR
    columns = [DIALECT.quoted(name) for name in (*(column.name for column in key), *prediction_columns(outputs))]
    names, digest = ", ".join(columns[: len(key)]), DIALECT.quoted(DIGEST)
    changed = ", ".join(f"{name} = excluded.{name}" for name in columns[len(key) :])
    action = f"UPDATE SET {changed} WHERE p.{digest} <> excluded.{digest}" if redo else "NOTHING"
    # The columns u.c0, u.c1, … of the rows.
    kinds = ["text"] * (len(key) + has_label) + ["float8"] * len(outputs.columns) + ["text"]
    label = "p.label" if has_label else "CASE WHEN p.error IS NULL THEN '' END AS label"
    read = [f"u.c{i}::{column.type.replace('%', '%%')}" for i, column in enumerate(key)]
    read += [f"u.c{i}" for i in range(len(key), len(kinds) - 1)] + ["%s", "%s", DIALECT.now, f"u.c{len(kinds) - 1}"]
    return (
        f"WITH written AS (INSERT INTO {target} AS p ({', '.join(columns)}) SELECT {', '.join(read)} "
        f"FROM unnest({', '.join(f'%s::{kind}[]' for kind in kinds)}) AS u ({', '.join(f'c{i}' for i in range(len(kinds)))}) "
        f"ON CONFLICT ({names}) DO {action} RETURNING {label}) SELECT label, count(*) FROM written GROUP BY label"
    )
