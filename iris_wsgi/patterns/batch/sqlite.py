"""Tables of an SQLite file: one process at a time is in a chunk, which is one transaction."""

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from iris_wsgi.errors import Stopped
from iris_wsgi.patterns.batch.database import Answers, Column, Dialect, Name, Row, Source, quoted
from iris_wsgi.patterns.batch.sql import DIGEST, ERROR, PREDICTION, RUN_ID, TIME, answer_columns
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.sqlite import REASONS, result_code, retry_while_locked
from iris_wsgi.tabular.writers import LABEL

DIALECT = Dialect("?", "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", "{}", lambda name, _: name, quoted, "", "", str.lower)
NOT_THERE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB}
TYPES = {LABEL: "TEXT", DIGEST: "TEXT NOT NULL", RUN_ID: "TEXT NOT NULL", TIME: "TEXT NOT NULL", ERROR: "TEXT"}
# In a table of its own kind values of ANY stay as they are; elsewhere that is so for BLOB, and ANY makes numbers of texts.
KEPT_TYPES = {"ANY": "BLOB"}


class SqliteDatabase:
    """A Database. Nobody waits for a lock longer than `seconds`."""

    dialect = DIALECT

    def __init__(self, path: str, seconds: float) -> None:
        """Raises BadSetting where there is no database."""
        self.path, self.seconds = path, seconds
        try:
            self.connection = sqlite3.connect(f"file:{quote(path)}?mode=rw", timeout=seconds, isolation_level=None, uri=True)
            self.connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
            # A text that is not UTF-8 is a bad row, and not the end of the run.
            self.connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
            # Runs are told as they are even after the power has gone.
            self.connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            told = self.failed(error)
            raise BadSetting(str(told)) if result_code(error) in NOT_THERE else told from None

    def failed(self, error: sqlite3.Error) -> Stopped:
        return Stopped(f"the database {self.path} {REASONS.get(result_code(error)) or f'failed: {error}'}")

    @contextmanager
    def told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self.failed(error) from None
        except UnicodeError:
            raise Stopped(f"the database {self.path} has a key that is text and not UTF-8") from None

    def find(self, name: Name) -> Source | None:
        schema = name.schema or "main"
        if (schema,) not in self.execute("SELECT name FROM pragma_database_list"):
            return None
        told = self.execute('SELECT name, type, "notnull", pk FROM pragma_table_xinfo(?, ?)', (name.table, schema))
        if not told:
            return None
        columns = {one: Column(one, kind, not never) for one, kind, never, _ in told}
        primary_key = tuple(one for _, one in sorted((pk, one) for one, _, _, pk in told if pk))
        keys = [tuple(one) for one in self.unique(name.table, schema)]
        # A key that is the number of the row has no index.
        keys += [primary_key] if primary_key and set(primary_key) not in map(set, keys) else []
        return Source(Name(schema, name.table), columns, keys, primary_key)

    def count(self, name: Name) -> int | None:
        ((rows,),) = self.execute(f"SELECT count(*) FROM {name.written(quoted)}")
        return int(rows)

    def unique(self, table: str, schema: str) -> list[dict[str, str]]:
        """The columns of each unique index, in its order, with the collation in which they are unique."""
        found = self.execute('SELECT name FROM pragma_index_list(?, ?) WHERE "unique" AND NOT partial', (table, schema))
        told = "SELECT name, coll FROM pragma_index_xinfo(?, ?) WHERE key"
        return [dict(self.execute(told, (index, schema))) for (index,) in found]

    def preparing(self, name: Name) -> AbstractContextManager[None]:
        return self.transaction()

    def make(self, source: Source, key: Sequence[Column], labels: Sequence[str]) -> None:
        table, schema = source.name.table, source.name.schema or "main"
        names = [one.name for one in key]
        collations = next((one for one in self.unique(table, schema) if set(one) == set(names)), {})
        columns = [
            f"{quoted(one.name)} {quoted(KEPT_TYPES.get(one.type.upper(), one.type)) if one.type else ''} "
            f"COLLATE {quoted(collations.get(one.name, 'BINARY'))} NOT NULL"
            for one in key
        ]
        columns += [f"{quoted(one)} {TYPES.get(one, 'REAL')}" for one in answer_columns(labels)]
        columns += [f"PRIMARY KEY ({', '.join(map(quoted, names))})"]
        # Without a number of the row an INTEGER key holds whatever that of the source does.
        self.execute(f"CREATE TABLE {source.name.beside(PREDICTION).written(quoted)} ({', '.join(columns)}) WITHOUT ROWID")

    def walks(self, page: str, values: Sequence[Any]) -> bool:
        return not any("TEMP B-TREE" in detail for *_, detail in self.execute(f"EXPLAIN QUERY PLAN {page}", values))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """SQLite's own wait would look again after ever longer pauses, and miss the moment between two chunks of another."""
        with self.told():
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
        with self.told():
            return self.connection.execute(statement, values).fetchall()

    def write(
        self, target: str, key: Sequence[Column], labels: Sequence[str], answers: Answers, digest: str, run: str, redo: bool
    ) -> list[tuple[str | None, int]]:
        """Nobody else has written since the rows were claimed, so all of them are."""
        columns = [*(one.name for one in key), *answer_columns(labels)]
        marks = [DIALECT.now if one == TIME else "?" for one in columns]
        statement = f"INSERT OR REPLACE INTO {target} ({', '.join(map(quoted, columns))}) VALUES ({', '.join(marks)})"
        rest = zip(answers.labels, *answers.probabilities, answers.errors, strict=True)
        rows = ((*one, *told, digest, run, error) for one, (*told, error) in zip(answers.keys, rest, strict=True))
        with self.told():
            self.connection.executemany(statement, rows)
        return list(Counter(answers.labels).items())

    def close(self) -> None:
        self.connection.close()
