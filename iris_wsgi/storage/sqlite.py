"""SQLite database for the threads and processes of one machine, with group commit, detection of moved files, and a clock."""

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
from urllib.parse import quote

from iris_wsgi.errors import BackendUnavailable, BadStore, JobError, OperationDenied

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Seconds = Callable[[], float]
# Device and inode of the database, its write-ahead log, and its shared memory; None for a file that does not exist.
Identity = tuple[int, int]
Files = tuple[Identity | None, ...]
SUFFIXES = ("", "-wal", "-shm")
DESCRIPTORS = "/proc/self/fd"
# The first opening takes an exclusive lock, for which several processes may have to wait.
OPEN_SECONDS = 5.0
REASONS = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_FULL: "has no room left to grow",
    sqlite3.SQLITE_IOERR: "cannot be written or read",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database",
    sqlite3.SQLITE_READONLY: "is read-only",
}
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
READ_ONLY = "The state of this server is read-only: allow the server to write to the folder IRIS_STATE_DIR and its files."
MISSING = "The state files of this server were moved or deleted: put them back, or restart the server, which creates new files."
REPLACED = "The state files of this server were replaced while it runs: the server uses the new files from now on."
FOREIGN = "The state files of this server are damaged or belong to another program: put them back, or restore a backup."

BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Smaller differences are not a step of the system clock. A leap second is smaller too.
STEP_SECONDS = 1.5
ANCHORS = "CREATE TABLE IF NOT EXISTS boot (id TEXT PRIMARY KEY, epoch REAL NOT NULL) STRICT, WITHOUT ROWID"
STEPPED = "The system clock was moved by {:+d} s while the store was in use; ages of jobs and leases do not follow the change."


class SqliteSchema(NamedTuple):
    """Tables of a database, and the application_id and version that identify them.

    `on_open` is called with each database that is opened, after its tables exist. It may write to the database.
    """

    application: int
    version: int
    script: str
    on_open: Callable[[sqlite3.Connection], None]


class QueuedWrite(Generic[T]):
    """Function that waits for the next transaction, and its outcome."""

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.result: T | None = None
        self.error: Exception | None = None
        self.done = False
        # One event for each write: a shared condition would wake all waiting threads at each commit.
        self.wake = threading.Event()

    def run(self, connection: sqlite3.Connection) -> None:
        try:
            self.result = self.work(connection)
        except (JobError, BackendUnavailable) as error:
            self.error = error

    def complete(self, failure: BackendUnavailable | None) -> None:
        # Each caller gets a separate exception, because raising adds a traceback to it.
        self.error, self.done = type(failure)(str(failure), failure.remedy) if failure else self.error, True
        self.wake.set()


class SqliteDatabase:
    """Reads and durable writes. A caller waits at most `busy_seconds` for a lock.

    The constructor raises BadStore and BackendUnavailable, the methods raise BackendUnavailable.

    A commit costs one fsync, regardless of its size. Therefore writes that wait at the same time share one transaction. The
    thread of the first waiting write is the leader: it commits all of them, and wakes the next leader.
    A process with an open database must not fork (sqlite.org/howtocorrupt.html, section 2.6). Servers open it after the fork.
    No write to a moved or deleted file is acknowledged. Each use of a connection checks that the files at the path are still
    the open ones. Each write checks again after its commit.
    """

    def __init__(self, path: Path, schema: SqliteSchema, busy_seconds: float) -> None:
        self.path, self.schema, self.busy_seconds = path, schema, busy_seconds
        self.absolute_path = os.path.abspath(path)
        self.lock = threading.Lock()
        self.waiting: list[QueuedWrite[Any]] = []
        self.writing = False
        self.writer: sqlite3.Connection | None = None
        self.readers: list[sqlite3.Connection] = []
        # All connections have the same files open: within a process they share SQLite's view of the files.
        self.opening = threading.Lock()
        self.files: Files | None = None
        self.connections = 0
        self.write_lock_fd = self.prepare()

    def write(self, work: Work[T]) -> T:
        """Returns the result of `work` once its changes are durable. A JobError before the first change fails only this write."""
        write = QueuedWrite(work)
        with self.lock:
            self.waiting.append(write)
            is_leader, self.writing = not self.writing, True
        if not is_leader:
            write.wake.wait()
        if not write.done:
            self.commit()
        if write.error:
            raise write.error
        return cast(T, write.result)

    def commit(self) -> None:
        """Commits all waiting writes in one transaction, or none of them; then wakes the next leader."""
        failure: BackendUnavailable | None = BackendUnavailable(f"the store {self.path} was interrupted")
        # A writer whose files are missing has no open transaction, and can continue once the files are back.
        is_idle = False
        with self.lock:
            batch, self.waiting = self.waiting, []
        try:
            writer = self.begin()
            for write in batch:
                write.run(writer)
            writer.execute("COMMIT")
            self.check_files()
            failure = None
        except (sqlite3.Error, OSError) as error:
            failure = self.failure_of(error)
        except BackendUnavailable as error:
            failure, is_idle = error, True
        finally:
            with self.lock:
                if failure:
                    if not is_idle:
                        self.close_writer()
                    self.close_stale(is_leader=True)
                    # Later writes would wait for the same failure again.
                    batch, self.waiting = batch + self.waiting, []
                for write in batch:
                    write.complete(failure)
                self.writing = bool(self.waiting)
                if self.writing:
                    self.waiting[0].wake.set()

    def begin(self) -> sqlite3.Connection:
        """Returns the writer in a transaction.

        A file lock orders the processes. Without it, a process that writes continuously would rarely leave the others a moment
        without the lock of SQLite.
        """
        deadline = time.monotonic() + self.busy_seconds
        self.reopen_lock_file()
        retry_while_locked(partial(fcntl.flock, self.write_lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB), deadline)
        try:
            return retry_while_locked(self.try_to_begin, deadline)
        finally:
            fcntl.flock(self.write_lock_fd, fcntl.LOCK_UN)

    def try_to_begin(self) -> sqlite3.Connection:
        # Opening needs locks too: another process may be closing or recovering the file.
        self.writer = self.writer or self.open(0.0)
        self.check_files()
        self.writer.execute("BEGIN IMMEDIATE")
        return self.writer

    def close_writer(self) -> None:
        """Closes the writer, which rolls back its transaction."""
        if self.writer is not None:
            self.close_connection(self.writer)
        self.writer = None

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lends a connection to one thread. Reads see committed data only."""
        with self.lock:
            connection = self.readers.pop() if self.readers else None
        try:
            connection = connection or self.open(self.busy_seconds)
            self.check_files()
            yield connection
        except sqlite3.Error as error:
            if connection is not None:
                self.close_connection(connection)
                connection = None
            raise self.failure_of(error) from None
        finally:
            with self.lock:
                if connection is not None:
                    self.readers.append(connection)
                self.close_stale()

    def check_files(self) -> None:
        """Raises BackendUnavailable if the files at the path are not the open ones."""
        current = files_at(self.absolute_path)
        if current != self.files:
            raise self.moved(current)

    def moved(self, current: Files) -> BackendUnavailable:
        if current[0] is None:
            return BackendUnavailable(f"the store {self.path} no longer exists", MISSING)
        return BackendUnavailable(f"the store {self.path} or its write-ahead log was replaced", REPLACED)

    def close_stale(self, is_leader: bool = False) -> None:
        """Closes the idle connections if other files replaced theirs. Callers hold the lock.

        Missing files may come back. While there is a leader, only the leader closes the writer.
        """
        current, ours = files_at(self.absolute_path), self.files
        if ours is None or current == ours or current[0] is None:
            return
        idle, self.readers = self.readers, []
        if self.writer is not None and (is_leader or not self.writing):
            idle, self.writer = [*idle, self.writer], None
        if current[0] != ours[0]:
            set_aside(self.absolute_path, ours)
        elif None in current and not (idle and is_checkpointed(idle[-1])):
            self.readers = idle
            return
        for connection in idle:
            self.close_connection(connection)

    def open(self, busy_seconds: float) -> sqlite3.Connection:
        """Returns a new connection to the same files as the others. Raises BackendUnavailable."""
        with self.opening:
            if self.connections:
                self.check_files()
            elif files_at(self.absolute_path)[0] is None:
                raise self.moved((None,))
            connection = self.connect(busy_seconds)
            try:
                self.verify(connection)
            except BaseException:
                connection.close()
                raise
            self.connections += 1
        return connection

    def verify(self, connection: sqlite3.Connection) -> None:
        """Checks the schema and the files of a new connection. Raises BackendUnavailable."""
        try:
            if not self.has_schema(connection):
                raise BackendUnavailable(f"the store {self.path} was replaced by an empty file", MISSING)
        except BadStore as error:
            raise BackendUnavailable(f"the store was replaced: {error}", FOREIGN) from None
        # A copy of a database made by SQLite may lack the write-ahead log. A read opens the log and the shared memory.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if not self.connections:
            self.schema.on_open(connection)
        current = files_at(self.absolute_path)
        if None in current or not are_open(current) or (self.connections and current != self.files):
            raise self.moved(current)
        self.files = current

    def close_connection(self, connection: sqlite3.Connection) -> None:
        with self.opening:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            self.connections -= 1

    def connect(self, busy_seconds: float) -> sqlite3.Connection:
        # A URI with mode=rw never creates a file.
        uri = f"file://{quote(os.fsencode(self.absolute_path))}?mode=rw"
        connection = sqlite3.connect(uri, timeout=busy_seconds, isolation_level=None, check_same_thread=False, uri=True)
        try:
            # A commit reaches the disk before it returns.
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def prepare(self) -> int:
        """Creates the schema in a new file, or checks the schema of an existing one. Returns the descriptor of the lock file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Rows of clients are private. SQLite gives its other files the mode of this one.
            self.path.touch(0o600)
            retry_while_locked(self.create_schema, time.monotonic() + OPEN_SECONDS)
            return self.open_lock_file()
        except OSError as error:
            raise BackendUnavailable(
                f"the store {self.path} cannot be opened: {error.strerror}; set IRIS_STATE_DIR to another folder"
            ) from None
        except sqlite3.Error as error:
            if result_code(error) in DAMAGED:
                raise BadStore(f"{self.path} {REASONS[result_code(error)]}") from None
            raise self.failure_of(error) from None

    def reopen_lock_file(self) -> None:
        """Opens the lock file again if it was deleted: other processes would use a new one."""
        if os.fstat(self.write_lock_fd).st_nlink == 0:
            with contextlib.suppress(OSError):
                new = self.open_lock_file()
                os.dup2(new, self.write_lock_fd, inheritable=False)
                os.close(new)

    def open_lock_file(self) -> int:
        return os.open(f"{self.absolute_path}-gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def create_schema(self) -> None:
        schema = self.schema
        with contextlib.closing(self.connect(0.0)) as connection:
            exists = self.has_schema(connection)
            # A copy of a database made by SQLite may lack the write-ahead log.
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise BadStore(f"{self.path} is on a file system without support for SQLite's write-ahead log")
            if exists:
                schema.on_open(connection)
                return
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have created the schema since the check.
            if not self.has_schema(connection):
                for statement in schema.script.split(";\n\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {schema.application}")
                connection.execute(f"PRAGMA user_version = {schema.version}")
                schema.on_open(connection)
            connection.execute("COMMIT")

    def has_schema(self, connection: sqlite3.Connection) -> bool:
        """Returns False for an empty file. Raises BadStore for a database of another program or version."""
        schema = self.schema
        if connection.in_transaction:
            application, version, tables = header(connection)
        else:
            # One transaction: another process may create the schema between two reads.
            connection.execute("BEGIN")
            application, version, tables = header(connection)
            connection.execute("COMMIT")
        if (application, version, tables) == (0, 0, 0):
            return False
        if application != schema.application:
            raise BadStore(f"{self.path} is an SQLite database of another program")
        if version != schema.version:
            raise BadStore(f"{self.path} has schema version {version}; this program supports version {schema.version}")
        return True

    def failure_of(self, error: sqlite3.Error | OSError) -> BackendUnavailable:
        code = result_code(error)
        message = f"the store {self.path} {REASONS.get(code) or f'failed: {error}'}"
        if code == sqlite3.SQLITE_READONLY:
            return OperationDenied(message, READ_ONLY)
        return BackendUnavailable(message, FOREIGN if code in DAMAGED else "")

    def close(self) -> None:
        """Closes all connections. The caller must be the last user."""
        self.close_writer()
        while self.readers:
            self.close_connection(self.readers.pop())
        os.close(self.write_lock_fd)


def header(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Returns the application_id, the schema version, and the number of tables, indexes, and triggers."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return application, version, tables


def is_checkpointed(connection: sqlite3.Connection) -> bool:
    """Copies the write-ahead log into the database, even if the log was deleted. Returns whether that succeeded."""
    try:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error:
        return False
    return bool(busy == 0)


def retry_while_locked(step: Callable[[], T], deadline: float) -> T:
    """Repeats `step` until the monotonic `deadline` while another process holds the lock.

    Each pause is a tenth of the time waited so far, so little time is lost; SQLite itself pauses for up to 0.1 s.
    """
    started = time.monotonic()
    while True:
        try:
            return step()
        except (sqlite3.OperationalError, BlockingIOError) as error:
            now = time.monotonic()
            if result_code(error) != sqlite3.SQLITE_BUSY or now >= deadline:
                raise
        time.sleep(min(max(0.00005, (now - started) / 10), 0.002))


def result_code(error: sqlite3.Error | OSError) -> int:
    """Returns SQLite's primary result code, or 0 for an error of the Python module."""
    if isinstance(error, OSError):
        return sqlite3.SQLITE_BUSY if isinstance(error, BlockingIOError) else sqlite3.SQLITE_CANTOPEN
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def files_at(path: str) -> Files:
    return tuple(identity(path + suffix) for suffix in SUFFIXES)


def identity(path: str) -> Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def are_open(files: Files) -> bool:
    """Returns whether this process has all files open, or True if the system does not list open files."""
    if not os.path.isdir(DESCRIPTORS):
        return True
    return set(files) <= {identity(f"{DESCRIPTORS}/{name}") for name in os.listdir(DESCRIPTORS)}


def set_aside(path: str, old: Files) -> None:
    """Renames the log of a replaced database: SQLite would apply the log to the new database."""
    for suffix, old_identity in list(zip(SUFFIXES, old, strict=True))[1:]:
        if old_identity is not None and identity(path + suffix) == old_identity:
            with contextlib.suppress(OSError):
                os.replace(path + suffix, f"{path}{suffix}-replaced")


def uptime() -> float:
    """Returns the seconds since the boot, including suspension. A step of the system clock does not change them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """Returns an id of the boot and the time namespace, which has a separate uptime; empty if the system does not provide it."""
    try:
        return f"{Path(BOOT_ID).read_text().strip()} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return ""


class BootClock:
    """Time of the boot plus the uptime. The database stores the time of the boot for all processes.

    A new boot starts at the system time, or at the latest time in the database if that is later.
    """

    def __init__(self, latest: str, wall: Seconds = time.time, uptime: Seconds = uptime, boot: Callable[[], str] = boot) -> None:
        """`latest` is a query for the latest time in the database, or NULL."""
        self.latest, self.wall, self.uptime, self.boot = latest, wall, uptime, boot()
        self.epoch = self.wall() - self.uptime()

    def __call__(self) -> float:
        return self.epoch + self.uptime()

    def anchor(self, db: sqlite3.Connection) -> None:
        """Reads or writes the time of the boot. Callers call it for each opened database, also for a replacement."""
        db.execute(ANCHORS)
        found = db.execute("SELECT epoch FROM boot WHERE id = ?", (self.boot,)).fetchone()
        if found is None or not self.boot:
            (latest,) = db.execute(self.latest).fetchone()
            self.epoch = max(self.wall(), latest or 0.0) - self.uptime()
            db.execute("INSERT OR IGNORE INTO boot VALUES (?, ?)", (self.boot, self.epoch))
            # Another process may have been faster.
            found = db.execute("SELECT epoch FROM boot WHERE id = ?", (self.boot,)).fetchone() if self.boot else None
        self.epoch = found[0] if found else self.epoch

    def step_seconds(self) -> int:
        """Returns by how many seconds the system clock was moved; 0 if it was not."""
        seconds = self.wall() - self()
        return round(seconds) if abs(seconds) >= STEP_SECONDS else 0
