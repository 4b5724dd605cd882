"""Table runs over an SQLite file: a chunk is a transaction, and one process at a time writes."""

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from iris_wsgi.codec.model_schema import REGRESSOR, OutputSchema
from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.database import (
    PREDICTION,
    TIME,
    Column,
    Dialect,
    InputTable,
    PredictionRows,
    Row,
    prediction_columns,
)
from iris_wsgi.patterns.batch.options import TableName, quoted
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.sqlite import REASONS, result_code, retry_while_locked

DIALECT = Dialect(
    placeholder="?",
    now="strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    key="{}",
    feature=lambda name, *_: name,
    quoted=quoted,
    text="TEXT",
    real="REAL",
    time="TEXT",
    lock="",
    skip="",
    fold=str.lower,
)
NOT_THERE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB}
# Only STRICT tables keep values of ANY unchanged. In the table of predictions BLOB does, and ANY would convert texts.
KEPT_TYPES = {"ANY": "BLOB"}


class SqliteTables:
    """Connection to an SQLite file, for one thread. Its calls wait at most `seconds` for a lock.

    Each method raises Stopped, after which the transaction is rolled back.
    """

    dialect = DIALECT

    def __init__(self, path: str, seconds: float) -> None:
        """Raises BadSetting if the path is not a database."""
        self.path, self.seconds = path, seconds
        try:
            self.connection = sqlite3.connect(f"file:{quote(path)}?mode=rw", timeout=seconds, isolation_level=None, uri=True)
            self.connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
            # A text that is not UTF-8 makes a bad row; it does not end the run.
            self.connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
            # The records of runs must survive a power failure.
            self.connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            failed = self.failure(error)
            raise BadSetting(str(failed)) if result_code(error) in NOT_THERE else failed from None

    def failure(self, error: sqlite3.Error) -> Stopped:
        return Stopped(f"the database {self.path} {REASONS.get(result_code(error)) or f'failed: {error}'}")

    @contextmanager
    def converted_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self.failure(error) from None
        except UnicodeError:
            raise Stopped(f"the database {self.path} has a key that is text and not UTF-8") from None

    def find(self, name: TableName) -> InputTable | None:
        schema = name.schema or "main"
        if (schema,) not in self.execute("SELECT name FROM pragma_database_list"):
            return None
        found = self.execute('SELECT name, type, "notnull", pk FROM pragma_table_xinfo(?, ?)', (name.table, schema))
        if not found:
            return None
        columns = {column: Column(column, kind, not not_null) for column, kind, not_null, _ in found}
        primary_key = tuple(column for _, column in sorted((pk, column) for column, _, _, pk in found if pk))
        keys = [tuple(index) for index in self.unique_indexes(name.table, schema)]
        # An INTEGER primary key is the row id and has no index.
        keys += [primary_key] if primary_key and set(primary_key) not in map(set, keys) else []
        return InputTable(TableName(schema, name.table), columns, keys, primary_key)

    def count(self, name: TableName) -> int | None:
        """Returns the number of rows, for the progress."""
        ((rows,),) = self.execute(f"SELECT count(*) FROM {DIALECT.table(name)}")
        return int(rows)

    def unique_indexes(self, table: str, schema: str) -> list[dict[str, str]]:
        """Returns the columns of each unique index in order, with the collation of each."""
        found = self.execute('SELECT name FROM pragma_index_list(?, ?) WHERE "unique" AND NOT partial', (table, schema))
        columns = "SELECT name, coll FROM pragma_index_xinfo(?, ?) WHERE key"
        return [dict(self.execute(columns, (index, schema))) for (index,) in found]

    def setup(self, name: TableName) -> AbstractContextManager[None]:
        """Starts the transaction that creates tables."""
        return self.transaction()

    def create(self, source: InputTable, key: Sequence[Column], outputs: OutputSchema) -> None:
        """Creates the table of predictions."""
        names = [column.name for column in key]
        indexes = self.unique_indexes(source.name.table, source.name.schema or "main")
        collations = next((index for index in indexes if set(index) == set(names)), {})
        columns = [
            f"{quoted(column.name)} {quoted(KEPT_TYPES.get(column.type.upper(), column.type)) if column.type else ''} "
            f"COLLATE {quoted(collations.get(column.name, 'BINARY'))} NOT NULL"
            for column in key
        ]
        columns += DIALECT.definitions(outputs)
        columns += [f"PRIMARY KEY ({', '.join(map(quoted, names))})"]
        # With a row id, an INTEGER key would accept integers only; the key of the source may hold other values.
        self.execute(f"CREATE TABLE {DIALECT.table(source.name.sibling(PREDICTION))} ({', '.join(columns)}) WITHOUT ROWID")

    def uses_index(self, page: str, values: Sequence[Any]) -> bool:
        """Returns whether an index finds the pages of the key."""
        return not any("TEMP B-TREE" in detail for *_, detail in self.execute(f"EXPLAIN QUERY PLAN {page}", values))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Polls for the lock: SQLite's own wait has growing pauses, and would miss the gap between two chunks of a run."""
        with self.converted_errors():
            self.connection.execute("PRAGMA busy_timeout = 0")
            retry_while_locked(partial(self.connection.execute, "BEGIN IMMEDIATE"), time.monotonic() + self.seconds)
            self.connection.execute(f"PRAGMA busy_timeout = {int(self.seconds * 1000)}")
        try:
            yield
            self.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        with self.converted_errors():
            return self.connection.execute(statement, values).fetchall()

    def write(
        self, target: str, key: Sequence[Column], outputs: OutputSchema, rows: PredictionRows, digest: str, run: str, redo: bool
    ) -> list[tuple[str | None, int]]:
        """Writes all rows, as no other process wrote since the claim. Returns the number of rows by label."""
        columns = [*(column.name for column in key), *prediction_columns(outputs)]
        marks = [DIALECT.now if name == TIME else "?" for name in columns]
        statement = f"INSERT OR REPLACE INTO {target} ({', '.join(map(quoted, columns))}) VALUES ({', '.join(marks)})"
        labels = [] if outputs.kind == REGRESSOR else [rows.labels]
        rest = zip(*labels, *rows.values, rows.errors, strict=True)
        values = ((*key, *found, digest, run, error) for key, (*found, error) in zip(rows.keys, rest, strict=True))
        with self.converted_errors():
            self.connection.executemany(statement, values)
        return list(Counter(rows.labels).items())

    def close(self) -> None:
        self.connection.close()
