"""Tables of a PostgreSQL: rows of a chunk are locked, so that several processes share one table."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from iris_wsgi.batch.statements import DIGEST, ERROR, PREDICTION, RUN, RUN_ID, TIME, answer_columns
from iris_wsgi.batch.tables import Answers, Column, Dialect, Failed, Name, Row, Source, quoted
from iris_wsgi.batch.writers import LABEL
from iris_wsgi.settings import BadSetting

# Of a connection whose URL does not say otherwise.
OPTIONS = {"connect_timeout": "10", "client_encoding": "UTF8", "application_name": "iris_wsgi"}
# So long may a transaction do nothing, as while a slow model works on its rows; then the server gives them to others.
IDLE_SECONDS = 900
# Types whose values are doubles without a doubt; all others are read as text, in which nothing can be out of range.
DOUBLES = {"double precision", "real", "integer", "smallint", "bigint"}
TYPES = {LABEL: "text", DIGEST: "text NOT NULL", RUN_ID: "text NOT NULL", TIME: "timestamptz NOT NULL", ERROR: "text"}
# What libpq says of an address that will not be right later either.
is_wrong = ("authentication failed", "does not exist", "invalid connection option", "invalid URI")

FIND = """
SELECT n.nspname, c.oid, c.reltuples::bigint, c.relkind = 'r' AND c.relhassubclass
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
# Unique indexes that compare as the columns do.
KEYS = """
SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.place)
FROM pg_index i, unnest(i.indkey, i.indcollation) WITH ORDINALITY AS k (attnum, coll, place)
LEFT JOIN pg_attribute a ON a.attrelid = %s AND a.attnum = k.attnum AND k.coll IN (0, a.attcollation)
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid, i.indisprimary ORDER BY i.indexrelid
"""
SET = """
SELECT set_config(name, setting, false) FROM unnest(%s::text[], %s::text[]) AS s (name, setting)
"""


def feature(name: str, kind: str) -> str:
    return f"{name}::float8" if kind in DOUBLES else f"{name}::text"


DIALECT = Dialect(
    "%s",
    "clock_timestamp()",
    # Any type has a text and comes from it again; Python has no word for some of their values, such as a date of infinity.
    "{}::text",
    feature,
    # psycopg takes a lone % for a mark.
    lambda name: quoted(name).replace("%", "%%"),
    # Others may still refer to the rows meanwhile, as foreign keys do.
    " FOR NO KEY UPDATE OF s",
    " SKIP LOCKED",
    63,
    False,
)


class PostgresDatabase:
    """A Database. Nobody waits longer than `seconds` for an answer, whatever becomes of the server or the way there."""

    dialect = DIALECT

    def __init__(self, url: str, seconds: float) -> None:
        """Raises BadSetting for an address at which there is none, and Failed where it is down."""
        self.seconds = seconds
        try:
            told = conninfo_to_dict(url)
        except psycopg.Error:
            # Its message could show the password.
            raise BadSetting("the URL of the database is none that PostgreSQL understands") from None
        self.place = f"{told.get('host') or 'localhost'}:{told.get('port') or 5432}/{told.get('dbname') or ''}"
        unless_told = {name: value for name, value in OPTIONS.items() if name not in told}
        try:
            # Statements are planned each time: a plan that was made for an empty table would be one for a full table too.
            self.connection = psycopg.connect(make_conninfo(url, **unless_told), autocommit=True, prepare_threshold=None)
        except (psycopg.Error, OSError, UnicodeError) as error:
            failed = self.failed(error)
            raise BadSetting(str(failed)) if any(one in str(error) for one in is_wrong) else failed from None
        self.set_up()

    def set_up(self) -> None:
        wanted = {
            "statement_timeout": str(int(self.seconds * 1000)),
            # Sooner, so that the one who waits for a lock is told so.
            "lock_timeout": str(int(self.seconds * 800)),
            "idle_in_transaction_session_timeout": str(IDLE_SECONDS * 1000),
            # Rows that another has just committed must be seen, whatever this role usually has.
            "default_transaction_isolation": "read committed",
            # Numbers as texts that are exactly those numbers.
            "extra_float_digits": "1",
            # A page is found by its key, even if statistics of a table that has just been filled say there is nothing in it.
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "jit": "off",
        }
        self.execute(SET, (list(wanted), list(wanted.values())))

    def failed(self, error: Exception, silent: bool = False) -> Failed:
        told = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        reason = told or (str(error).splitlines() or [""])[0] or type(error).__name__
        why = f"no answer within {self.seconds:g} s" if silent else reason[:300]
        return Failed(f"the PostgreSQL at {self.place} does not do its work: {why}")

    def find(self, name: Name) -> Source | None:
        found = self.execute(FIND, (".".join(quoted(part) for part in name if part),))
        if not found:
            return None
        schema, oid, rows, has_heirs = found[0]
        columns = {one: Column(one, kind, nullable) for one, kind, nullable in self.execute(COLUMNS, (oid,))}
        told = [(is_primary, tuple(names)) for is_primary, names in self.execute(KEYS, (oid, oid))]
        primary = next((names for is_primary, names in told if is_primary), ())
        # A key is not unique over the tables that inherit from this one.
        keys = [] if has_heirs else [names for _, names in told]
        return Source(Name(schema, name.table), columns, keys, primary, rows if rows > 0 else None)

    def walks(self, page: str, values: Sequence[Any]) -> bool:
        return True

    @contextmanager
    def preparing(self, name: Name) -> Iterator[None]:
        """Others wait: two that make a table at once would get in each other's way. Raises BadSetting for what is forbidden."""
        try:
            with self.transaction():
                self.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"iris_wsgi {name}",))
                yield
        except Forbidden as error:
            raise BadSetting(str(error)) from None

    def make(self, source: Source, key: Sequence[Column], labels: Sequence[str]) -> None:
        target, runs = (table_of(source.name.beside(one)) for one in (PREDICTION, RUN))
        names = ", ".join(DIALECT.quoted(one.name) for one in key)
        if not self.find(source.name.beside(PREDICTION)):
            columns = [f"ADD COLUMN {DIALECT.quoted(one)} {TYPES.get(one, 'double precision')}" for one in answer_columns(labels)]
            # Types and collations of the key are those of the source.
            self.execute(f"CREATE TABLE {target} AS SELECT {names} FROM {table_of(source.name)} WITH NO DATA")
            self.execute(f"ALTER TABLE {target} {', '.join(columns)}, ADD PRIMARY KEY ({names})")
        if not self.find(source.name.beside(RUN)):
            self.execute(
                f"CREATE TABLE {runs} (run text PRIMARY KEY, model_digest text, source text, started timestamptz,"
                " updated timestamptz, finished timestamptz, status text, ok bigint, bad bigint, labels jsonb)"
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.execute("BEGIN")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with suppress(Failed):
                self.execute("ROLLBACK")
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        with self.bounded(), psycopg.Cursor(self.connection) as cursor:
            cursor.execute(statement.encode(), values, binary=True)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """The server keeps time itself; here it is kept for one that no longer does anything."""
        silent = threading.Event()
        timer = threading.Timer(self.seconds * 1.5, hang_up, (self.connection, silent))
        timer.daemon = True
        timer.start()
        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            raise Forbidden(str(self.failed(error))) from None
        except (psycopg.Error, OSError, UnicodeError) as error:
            raise self.failed(error, silent.is_set()) from None
        finally:
            timer.cancel()

    def write(
        self, target: str, key: Sequence[Column], labels: Sequence[str], answers: Answers, digest: str, run: str, redo: bool
    ) -> list[tuple[str | None, int]]:
        """Rows that another has written between the look at them and their lock are left as they are, and not counted."""
        columns = [DIALECT.quoted(one) for one in (*(one.name for one in key), *answer_columns(labels))]
        names = ", ".join(DIALECT.quoted(one.name) for one in key)
        digest_name = DIALECT.quoted(DIGEST)
        changed = ", ".join(f"{one} = excluded.{one}" for one in columns[len(key) :])
        done = f"UPDATE SET {changed} WHERE p.{digest_name} <> excluded.{digest_name}" if redo else "NOTHING"
        numbers = len(answers.probabilities)
        # The columns u.c1, u.c2, … of the rows: keys and the label as texts, numbers, the error.
        kinds = ["text"] * (len(key) + 1) + ["float8"] * numbers + ["text"]
        read = [f"u.c{i}::{one.type.replace('%', '%%')}" for i, one in enumerate(key)]
        read += [f"u.c{i}" for i in range(len(key), len(kinds) - 1)] + ["%s", "%s", DIALECT.now, f"u.c{len(kinds) - 1}"]
        statement = (
            f"WITH written AS (INSERT INTO {target} AS p ({', '.join(columns)}) SELECT {', '.join(read)} "
            f"FROM unnest({', '.join(f'%s::{kind}[]' for kind in kinds)}) AS u ({', '.join(f'c{i}' for i in range(len(kinds)))}) "
            f"ON CONFLICT ({names}) DO {done} "
            f"RETURNING label) SELECT label, count(*) FROM written GROUP BY label"
        )
        keys = [texts(column) for column in zip(*answers.keys, strict=True)]
        rest = [texts(answers.labels), *map(numbers_of, answers.probabilities), texts(answers.errors)]
        return [(label, count) for label, count in self.execute(statement, (digest, run, *keys, *rest))]

    def close(self) -> None:
        self.connection.close()


class Forbidden(Failed):
    """What this user may not do."""


def table_of(name: Name) -> str:
    return ".".join(DIALECT.quoted(part) for part in name if part)


def texts(values: Sequence[str | None]) -> str:
    """As an array that PostgreSQL reads."""
    inside = ("NULL" if one is None else '"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"' for one in values)
    return "{" + ",".join(inside) + "}"


def numbers_of(values: Sequence[float | None]) -> str:
    return "{" + ",".join("NULL" if one is None else repr(one) for one in values) + "}"


def hang_up(connection: "psycopg.Connection[Any]", silent: threading.Event) -> None:
    """The one who waits is told by the socket."""
    silent.set()
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
