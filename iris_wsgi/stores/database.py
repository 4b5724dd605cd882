"""One SQLite file for all threads and processes of a machine: its schema, its transactions, and what can go wrong with it."""

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

from iris_wsgi.errors import BadStore, JobError, StoreDown

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
# Opening a file for the first time takes an exclusive lock, for which several processes may have to wait.
OPEN_SECONDS = 5.0
REASONS = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_FULL: "has no room left to grow",
    sqlite3.SQLITE_IOERR: "cannot be written or read",
    sqlite3.SQLITE_NOTADB: "is no SQLite database",
    sqlite3.SQLITE_READONLY: "may not be written",
}


class Schema(NamedTuple):
    """What a file must hold: the number that marks it as ours (SQLite's application_id), the version, how to make it."""

    application: int
    version: int
    script: str


class Pending(Generic[T]):
    """One piece of work that waits to be written, and then its outcome."""

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.answer: T | None = None
        self.error: Exception | None = None
        self.done = False
        # Each has its own: who is woken has something to do, where a condition for all would wake all of them at each commit.
        self.woken = threading.Event()

    def run(self, connection: sqlite3.Connection) -> None:
        try:
            self.answer = self.work(connection)
        except JobError as error:
            self.error = error

    def end(self, failed: StoreDown | None) -> None:
        self.error, self.done = StoreDown(str(failed)) if failed else self.error, True
        self.woken.set()


class Database:
    """Reads and durable writes. Nobody waits for a lock longer than `busy_seconds`. Raises BadStore when made, else StoreDown.

    A commit costs an fsync however much is in it, so writes that wait at the same time are committed together, by the thread of
    the first of them: who comes when nobody writes leads, and who has written passes that on.
    A process that has one must not fork (sqlite.org/howtocorrupt.html, section 2.6): servers make theirs after that.
    """

    def __init__(self, path: Path, schema: Schema, busy_seconds: float) -> None:
        self.path, self.busy_seconds = path, busy_seconds
        self.lock = threading.Lock()
        self.waiting: list[Pending[Any]] = []
        self.writing = False
        self.writer: sqlite3.Connection | None = None
        self.readers: list[sqlite3.Connection] = []
        self.gate = self.prepare(schema)

    def write(self, work: Work[T]) -> T:
        """What `work` returns, once what it did is durable; a JobError, which it may raise before it writes, ends it alone."""
        one = Pending(work)
        with self.lock:
            self.waiting.append(one)
            leads, self.writing = not self.writing, True
        if not leads:
            one.woken.wait()
        if not one.done:
            self.commit()
        if one.error:
            raise one.error
        return cast(T, one.answer)

    def commit(self) -> None:
        """All that waits in one transaction, or nothing of it; then the first of those who came meanwhile leads."""
        failed: StoreDown | None = StoreDown(f"the store {self.path} was interrupted")
        with self.lock:
            batch, self.waiting = self.waiting, []
        try:
            writer = self.begin()
            for one in batch:
                one.run(writer)
            writer.execute("COMMIT")
            failed = None
        except (sqlite3.Error, OSError) as error:
            failed = self.down(error)
        finally:
            with self.lock:
                if failed:
                    self.discard()
                    # Those who came meanwhile would wait as long again, for the same.
                    batch, self.waiting = batch + self.waiting, []
                for one in batch:
                    one.end(failed)
                self.writing = bool(self.waiting)
                if self.writing:
                    self.waiting[0].woken.set()

    def begin(self) -> sqlite3.Connection:
        """The writer, in a transaction. One process after another comes through the gate, and who is in it writes next.

        Without it, a process that writes again at once would leave others a moment too short to be met by chance.
        """
        end = time.monotonic() + self.busy_seconds
        patiently(partial(fcntl.flock, self.gate, fcntl.LOCK_EX | fcntl.LOCK_NB), end)
        try:
            return patiently(self.try_to_begin, end)
        finally:
            fcntl.flock(self.gate, fcntl.LOCK_UN)

    def try_to_begin(self) -> sqlite3.Connection:
        # To open takes locks as well: another process may just be closing the file, or putting it in order after an accident.
        self.writer = self.writer or self.open(0.0)
        self.writer.execute("BEGIN IMMEDIATE")
        return self.writer

    def discard(self) -> None:
        """Closes the writer, which rolls back what it was doing."""
        if self.writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self.writer.close()
        self.writer = None

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for one thread for a moment, to read with: what it reads is committed."""
        with self.lock:
            connection = self.readers.pop() if self.readers else None
        try:
            connection = connection or self.open(self.busy_seconds)
            yield connection
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
                connection = None
            raise self.down(error) from None
        finally:
            if connection is not None:
                self.readers.append(connection)

    def open(self, busy_seconds: float) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            # A commit is on the disk before it returns, not only what follows it in order.
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def prepare(self, schema: Schema) -> int:
        """Makes the schema in a new file, and looks at that of one that is there. Returns the gate's descriptor."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # What clients send is nobody's business; SQLite gives its other files the mode of this one.
            self.path.touch(0o600)
            patiently(lambda: self.make(schema), time.monotonic() + OPEN_SECONDS)
            return os.open(f"{self.path}-gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreDown(
                f"the store {self.path} cannot be opened: {error.strerror}; IRIS_STATE_DIR or --state-dir names another folder"
            ) from None
        except sqlite3.Error as error:
            if primary(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise BadStore(f"{self.path} {REASONS[primary(error)]}") from None
            raise self.down(error) from None

    def make(self, schema: Schema) -> None:
        with contextlib.closing(self.open(0.0)) as connection:
            # In one transaction: another process may be making it between two looks.
            connection.execute("BEGIN")
            known = self.known(connection, schema)
            connection.execute("COMMIT")
            if known:
                return
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise BadStore(f"{self.path} is on a file system where SQLite cannot keep a write-ahead log")
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have been first.
            if not self.known(connection, schema):
                for statement in schema.script.split(";\n\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {schema.application}")
                connection.execute(f"PRAGMA user_version = {schema.version}")
            connection.execute("COMMIT")

    def known(self, connection: sqlite3.Connection, schema: Schema) -> bool:
        """Whether the schema is there; not so in an empty file. Raises BadStore for any other."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if (application, version, tables) == (0, 0, 0):
            return False
        if application != schema.application:
            raise BadStore(f"{self.path} is an SQLite database of something else")
        if version != schema.version:
            raise BadStore(f"{self.path} has version {version} of its schema, this program knows {schema.version}")
        return True

    def down(self, error: sqlite3.Error | OSError) -> StoreDown:
        return StoreDown(f"the store {self.path} {REASONS.get(primary(error)) or f'failed: {error}'}")

    def close(self) -> None:
        """For who is the last to use it."""
        self.discard()
        while self.readers:
            self.readers.pop().close()
        os.close(self.gate)


def patiently(step: Callable[[], T], end: float) -> T:
    """Tries again, until the monotonic time `end`, while another process has the lock.

    It looks again after a tenth of what it has waited, so little is lost; SQLite itself pauses for up to 0.1 s.
    """
    started = time.monotonic()
    while True:
        try:
            return step()
        except (sqlite3.OperationalError, BlockingIOError) as error:
            now = time.monotonic()
            if primary(error) != sqlite3.SQLITE_BUSY or now >= end:
                raise
        time.sleep(min(max(0.00005, (now - started) / 10), 0.002))


def primary(error: sqlite3.Error | OSError) -> int:
    """SQLite's result code without its extension; 0 where the error is of Python's own."""
    if isinstance(error, OSError):
        return sqlite3.SQLITE_BUSY if isinstance(error, BlockingIOError) else sqlite3.SQLITE_CANTOPEN
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
