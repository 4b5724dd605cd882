"""Tables of a PostgreSQL: rows of a chunk are locked, so that several processes share one table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.database import Answers, Column, Name, Row, Source, quoted
from iris_wsgi.patterns.batch.postgres_sql import COLUMNS, DIALECT, FIND, KEYS, SET, makers, written
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.postgres import PostgresError, connect, parse_url

# Of a connection whose URL does not say otherwise.
OPTIONS = {"connect_timeout": "10", "client_encoding": "UTF8", "application_name": "iris_wsgi"}
# So long may a transaction do nothing, as while a slow model works on its rows; then the server gives them to others.
IDLE_SECONDS = 900
GRANT = (
    "grant the role SELECT and UPDATE on the table, CREATE in its schema,"
    " and SELECT, INSERT and UPDATE on NAME_prediction and NAME_run"
)
PRIMARY = "the address must lead to the primary, and the role must not be read-only"
# By the SQLSTATE.
REMEDIES = {"42501": GRANT, "25006": PRIMARY}
# What libpq says of an address that will not be right later either.
is_wrong = ("authentication failed", "does not exist", "invalid connection option", "invalid URI")


class PostgresDatabase:
    """A Database. Nobody waits longer than `seconds` for an answer, whatever becomes of the server or the way there."""

    dialect = DIALECT

    def __init__(self, url: str, seconds: float) -> None:
        """Raises BadSetting for an address at which there is none, and Stopped where it is down."""
        self.seconds = seconds
        try:
            given = parse_url(url)
        except ValueError:
            raise BadSetting("the URL of the database is none that PostgreSQL understands") from None
        self.place = f"{given.get('host') or 'localhost'}:{given.get('port') or 5432}/{given.get('dbname') or ''}"
        try:
            self.connection = connect(url, **{name: value for name, value in OPTIONS.items() if name not in given})
        except PostgresError as error:
            failed = self.failed(error)
            raise BadSetting(str(failed)) if any(one in error.details for one in is_wrong) else failed from None
        self.settings = settings_of(seconds)

    def failed(self, error: PostgresError) -> Stopped:
        why = f"no answer within {self.seconds:g} s" if error.timed_out else str(error)[:300]
        failed = f"the PostgreSQL at {self.place} does not do its work: {why}"
        remedy = REMEDIES.get(error.sqlstate)
        return Forbidden(f"{failed}; {remedy}") if remedy else Stopped(failed)

    def find(self, name: Name) -> Source | None:
        found = self.execute(FIND, (name.written(quoted),))
        if not found:
            return None
        ((schema, oid, has_heirs),) = found
        columns = {one: Column(one, kind, nullable) for one, kind, nullable in self.execute(COLUMNS, (oid,))}
        told = [(is_primary, tuple(names)) for is_primary, names in self.execute(KEYS, (oid, oid))]
        primary = next((names for is_primary, names in told if is_primary), ())
        # A key is not unique over the tables that inherit from this one.
        keys = [] if has_heirs else [names for _, names in told]
        return Source(Name(schema, name.table), columns, keys, primary)

    def count(self, name: Name) -> int | None:
        """As the server's statistics have it."""
        ((rows,),) = self.execute("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(%s)", (name.written(quoted),))
        return rows if rows > 0 else None

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
        for statement in makers(source.name, key, labels):
            self.execute(statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Its settings end with it, so that none of them reaches the next client of a connection pool."""
        # Rows that another has just committed must be seen, whatever this role usually has.
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
        """Opens a transaction where none is open."""
        if self.connection.in_transaction:
            return self.run(statement, values)
        with self.transaction():
            return self.run(statement, values)

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """The server limits a statement to `seconds`; the longer deadline here is for a server that hangs."""
        try:
            return self.connection.query(statement, values, 1.5 * self.seconds, binary=True)
        except PostgresError as error:
            raise self.failed(error) from None

    def write(
        self, target: str, key: Sequence[Column], labels: Sequence[str], answers: Answers, digest: str, run: str, redo: bool
    ) -> list[tuple[str | None, int]]:
        """Rows that another has written between the look at them and their lock are left as they are, and not counted."""
        statement = written(target, key, labels, redo)
        columns = [*map(list, zip(*answers.keys, strict=True)), answers.labels, *answers.probabilities, answers.errors]
        return [(label, count) for label, count in self.execute(statement, (digest, run, *columns))]

    def close(self) -> None:
        self.connection.close()


def settings_of(seconds: float) -> dict[str, str]:
    """The settings of each transaction, in which a statement may take `seconds`."""
    return {
        "statement_timeout": str(int(seconds * 1000)),
        # Sooner, so that the one who waits for a lock is told so.
        "lock_timeout": str(int(seconds * 800)),
        "idle_in_transaction_session_timeout": str(IDLE_SECONDS * 1000),
        # Numbers as texts that are exactly those numbers.
        "extra_float_digits": "1",
        # A page is found by its key, even if statistics of a table that has just been filled say there is nothing in it.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "jit": "off",
    }


class Forbidden(Stopped):
    """What this user may not do."""
