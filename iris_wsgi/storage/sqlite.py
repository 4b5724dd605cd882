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

from iris_wsgi.errors import BackendUnavailable, BadStore, JobError, OperationDenied
from iris_wsgi.storage.sqlite_files import Files, address, are_open, files_at, set_aside

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
SPOILT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
READ_ONLY = "The state of this server is read-only: let it write the files and the folder of IRIS_STATE_DIR."
MISSING = "The files of this server's state were moved or deleted: put them back, or restart the server, which makes new ones."
REPLACED = "The files of this server's state were replaced while it runs: it uses the new ones from now on."
FOREIGN = "The files of this server's state are damaged or not its own: put them back, or restore them from a backup."


class SqliteSchema(NamedTuple):
    """What a file must hold: the number that marks it as ours (SQLite's application_id), the version, how to make it.

    `opened` is called with each database that is opened, once its tables are there; it may write to it.
    """

    application: int
    version: int
    script: str
    opened: Callable[[sqlite3.Connection], None]


class QueuedWrite(Generic[T]):
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
        except (JobError, BackendUnavailable) as error:
            self.error = error

    def end(self, failed: BackendUnavailable | None) -> None:
        # Each caller gets an error of its own, as a traceback is added to it.
        self.error, self.done = type(failed)(str(failed), failed.remedy) if failed else self.error, True
        self.woken.set()


class SqliteDatabase:
    """Reads and durable writes, which wait for a lock for `busy_seconds`. Raises BadStore at the start, else BackendUnavailable.

    A commit costs an fsync however much is in it, so writes that wait at the same time are committed together, by the thread of
    the first of them: who comes when nobody writes is_leader, and who has written passes that on.
    A process that has one must not fork (sqlite.org/howtocorrupt.html, section 2.6): servers make theirs after that.
    Nothing is acknowledged whose files have no name any more: each use of a connection looks whether the files at the path are
    still those that it has open, and a write looks again after its commit.
    """

    def __init__(self, path: Path, schema: SqliteSchema, busy_seconds: float) -> None:
        self.path, self.schema, self.busy_seconds = path, schema, busy_seconds
        self.place = os.path.abspath(path)
        self.lock = threading.Lock()
        self.waiting: list[QueuedWrite[Any]] = []
        self.writing = False
        self.writer: sqlite3.Connection | None = None
        self.readers: list[sqlite3.Connection] = []
        # The files that all connections have open; the connections of this process share SQLite's view of them.
        self.opening = threading.Lock()
        self.files: Files | None = None
        self.connections = 0
        self.write_lock_fd = self.prepare()

    def write(self, work: Work[T]) -> T:
        """What `work` returns, once what it did is durable; a JobError, which it may raise before it writes, ends it alone."""
        one = QueuedWrite(work)
        with self.lock:
            self.waiting.append(one)
            is_leader, self.writing = not self.writing, True
        if not is_leader:
            one.woken.wait()
        if not one.done:
            self.commit()
        if one.error:
            raise one.error
        return cast(T, one.answer)

    def commit(self) -> None:
        """All that waits in one transaction, or nothing of it; then the first of those who came meanwhile is_leader."""
        failed: BackendUnavailable | None = BackendUnavailable(f"the store {self.path} was interrupted")
        # A writer whose files are not there has no transaction open, and goes on once they are back.
        idle = False
        with self.lock:
            batch, self.waiting = self.waiting, []
        try:
            writer = self.begin()
            for one in batch:
                one.run(writer)
            writer.execute("COMMIT")
            self.check()
            failed = None
        except (sqlite3.Error, OSError) as error:
            failed = self.down(error)
        except BackendUnavailable as error:
            failed, idle = error, True
        finally:
            with self.lock:
                if failed:
                    if not idle:
                        self.discard()
                    self.drop_stale(leading=True)
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
        self.reopen_lock_file()
        retry_while_locked(partial(fcntl.flock, self.write_lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB), end)
        try:
            return retry_while_locked(self.try_to_begin, end)
        finally:
            fcntl.flock(self.write_lock_fd, fcntl.LOCK_UN)

    def try_to_begin(self) -> sqlite3.Connection:
        # To open takes locks as well: another process may just be closing the file, or putting it in order after an accident.
        self.writer = self.writer or self.open(0.0)
        self.check()
        self.writer.execute("BEGIN IMMEDIATE")
        return self.writer

    def discard(self) -> None:
        """Closes the writer, which rolls back what it was doing."""
        if self.writer is not None:
            self.shut(self.writer)
        self.writer = None

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for one thread for a moment, to read with: what it reads is committed."""
        with self.lock:
            connection = self.readers.pop() if self.readers else None
        try:
            connection = connection or self.open(self.busy_seconds)
            self.check()
            yield connection
        except sqlite3.Error as error:
            if connection is not None:
                self.shut(connection)
                connection = None
            raise self.down(error) from None
        finally:
            with self.lock:
                if connection is not None:
                    self.readers.append(connection)
                self.drop_stale()

    def check(self) -> None:
        """Raises BackendUnavailable when the files at the path are not those that connections have open."""
        there = files_at(self.place)
        if there != self.files:
            raise self.moved(there)

    def moved(self, there: Files) -> BackendUnavailable:
        if there[0] is None:
            return BackendUnavailable(f"the store {self.path} is not there any more", MISSING)
        return BackendUnavailable(f"the store {self.path} was replaced, or files beside it were", REPLACED)

    def drop_stale(self, leading: bool = False) -> None:
        """Closes all connections that are not in use, where other files are in the place of theirs; callers hold the lock.

        Files that are not there at all may come back. Only the thread that writes closes the writer while there is one.
        """
        there, ours = files_at(self.place), self.files
        if ours is None or there == ours or there[0] is None:
            return
        idle, self.readers = self.readers, []
        if self.writer is not None and (leading or not self.writing):
            idle, self.writer = [*idle, self.writer], None
        if there[0] != ours[0]:
            set_aside(self.place, ours)
        elif None in there and not (idle and emptied(idle[-1])):
            self.readers = idle
            return
        for connection in idle:
            self.shut(connection)

    def open(self, busy_seconds: float) -> sqlite3.Connection:
        """Another connection; it must have the same files open as the others. Raises BackendUnavailable."""
        with self.opening:
            if self.connections:
                self.check()
            elif files_at(self.place)[0] is None:
                raise self.moved((None,))
            connection = self.connect(busy_seconds)
            try:
                self.join(connection)
            except BaseException:
                connection.close()
                raise
            self.connections += 1
        return connection

    def join(self, connection: sqlite3.Connection) -> None:
        try:
            if not self.known(connection):
                raise BackendUnavailable(f"the store {self.path} was replaced by an empty file", MISSING)
        except BadStore as error:
            raise BackendUnavailable(f"the store was replaced: {error}", FOREIGN) from None
        # A copy that SQLite made of a database need not have a log. Only a read opens the files beside the database.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if not self.connections:
            self.schema.opened(connection)
        there = files_at(self.place)
        if None in there or not are_open(there) or (self.connections and there != self.files):
            raise self.moved(there)
        self.files = there

    def shut(self, connection: sqlite3.Connection) -> None:
        with self.opening:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            self.connections -= 1

    def connect(self, busy_seconds: float) -> sqlite3.Connection:
        uri = address(self.path)
        connection = sqlite3.connect(uri, timeout=busy_seconds, isolation_level=None, check_same_thread=False, uri=True)
        try:
            # A commit is on the disk before it returns, not only what follows it in order.
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def prepare(self) -> int:
        """Makes the schema in a new file, and looks at that of one that is there. Returns the gate's descriptor."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # What clients send is nobody's business; SQLite gives its other files the mode of this one.
            self.path.touch(0o600)
            retry_while_locked(self.make, time.monotonic() + OPEN_SECONDS)
            return self.open_lock_file()
        except OSError as error:
            raise BackendUnavailable(
                f"the store {self.path} cannot be opened: {error.strerror}; IRIS_STATE_DIR names another folder"
            ) from None
        except sqlite3.Error as error:
            if primary(error) in SPOILT:
                raise BadStore(f"{self.path} {REASONS[primary(error)]}") from None
            raise self.down(error) from None

    def reopen_lock_file(self) -> None:
        """Other processes use another file once this one is deleted."""
        if os.fstat(self.write_lock_fd).st_nlink == 0:
            with contextlib.suppress(OSError):
                new = self.open_lock_file()
                os.dup2(new, self.write_lock_fd, inheritable=False)
                os.close(new)

    def open_lock_file(self) -> int:
        return os.open(f"{self.place}-gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def make(self) -> None:
        schema = self.schema
        with contextlib.closing(self.connect(0.0)) as connection:
            known = self.known(connection)
            # A copy that SQLite made of a database need not have a log.
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise BadStore(f"{self.path} is on a file system where SQLite cannot keep a write-ahead log")
            if known:
                self.schema.opened(connection)
                return
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have been first.
            if not self.known(connection):
                for statement in schema.script.split(";\n\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {schema.application}")
                connection.execute(f"PRAGMA user_version = {schema.version}")
                schema.opened(connection)
            connection.execute("COMMIT")

    def known(self, connection: sqlite3.Connection) -> bool:
        """Whether the schema is there; not so in an empty file. Raises BadStore for any other."""
        schema = self.schema
        if connection.in_transaction:
            application, version, tables = header(connection)
        else:
            # In one transaction: another process may be making it between two looks.
            connection.execute("BEGIN")
            application, version, tables = header(connection)
            connection.execute("COMMIT")
        if (application, version, tables) == (0, 0, 0):
            return False
        if application != schema.application:
            raise BadStore(f"{self.path} is an SQLite database of something else")
        if version != schema.version:
            raise BadStore(f"{self.path} has version {version} of its schema, this program knows {schema.version}")
        return True

    def down(self, error: sqlite3.Error | OSError) -> BackendUnavailable:
        why = f"the store {self.path} {REASONS.get(primary(error)) or f'failed: {error}'}"
        if primary(error) == sqlite3.SQLITE_READONLY:
            return OperationDenied(why, READ_ONLY)
        return BackendUnavailable(why, FOREIGN if primary(error) in SPOILT else "")

    def close(self) -> None:
        """For who is the last to use it."""
        self.discard()
        while self.readers:
            self.shut(self.readers.pop())
        os.close(self.write_lock_fd)


def header(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Returns whose database it is, the version of its schema, and the number of its tables, indexes and triggers."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return application, version, tables


def emptied(connection: sqlite3.Connection) -> bool:
    """Whether all that is in the log is in the database now, even if the log has no name any more."""
    try:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error:
        return False
    return bool(busy == 0)


def retry_while_locked(step: Callable[[], T], end: float) -> T:
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
