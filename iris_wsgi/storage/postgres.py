"""PostgreSQL connections whose calls end at a deadline, and a pool of them."""

import select
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format, TransactionStatus

# The minimum that libpq accepts, in seconds.
CONNECT_SECONDS = 2
MAX_CONNECTING = 32
# The kernel ends a connection to an unreachable machine after these times.
KEEPALIVE: dict[str, Any] = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
# Events that psycopg's generators wait for and receive, as the events of poll().
READ, WRITE = 1, 2
EVENTS = {READ: select.POLLIN, WRITE: select.POLLOUT, READ | WRITE: select.POLLIN | select.POLLOUT}

# The only encoding that PostgreSQL does not convert to UTF-8. It is the same word in the error messages of every language.
NOT_CONVERTIBLE = "MULE_INTERNAL"

T = TypeVar("T")
Row = tuple[Any, ...]


class PostgresError(Exception):
    """A call that failed: one line without the URL, and the SQLSTATE if the server sent one."""

    def __init__(self, error: Exception) -> None:
        text = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
        super().__init__(text.partition("\n")[0] or type(error).__name__)
        # libpq has no SQLSTATE for a refused connection, and puts the reason into any of its lines.
        self.details = str(error)
        self.sqlstate: str = getattr(error, "sqlstate", None) or ""
        self.timed_out = isinstance(error, TimeoutError)


class PostgresConnection(psycopg.Connection[Row]):
    """Waits for the server until `deadline`, a monotonic time; psycopg and libpq have no timeout for a response."""

    deadline = inf

    def wait(self, gen: Generator[int, int, T], *_: object, **__: object) -> T:
        poller, socket = select.poll(), self.pgconn.socket
        try:
            wanted = next(gen)
            while True:
                poller.register(socket, EVENTS[wanted])
                left = self.deadline - monotonic()
                if left <= 0 or not (found := poller.poll(None if left == inf else left * 1000)):
                    # The late response must not become the response to the next statement.
                    self.close()
                    raise TimeoutError("no response in time")
                # The generator reads an error, or the end of the connection.
                events = found[0][1]
                wanted = gen.send((READ if events & ~select.POLLOUT else 0) | (WRITE if events & select.POLLOUT else 0))
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]

    def query(self, sql: str, values: Sequence[Any] = (), seconds: float = inf, binary: bool = False) -> list[Row]:
        """Runs one statement and returns its rows, if it has any. Raises PostgresError."""
        self.deadline = monotonic() + seconds
        try:
            with self.cursor() as cursor:
                cursor.execute(sql.encode(), values, binary=binary)
                return cursor.fetchall() if cursor.description else []
        except (psycopg.Error, OSError, UnicodeError) as error:
            raise PostgresError(error) from None

    @property
    def in_transaction(self) -> bool:
        return self.info.transaction_status != TransactionStatus.IDLE

    @property
    def database_encoding(self) -> str:
        return self.info.parameter_status("server_encoding") or ""

    def read_bytes_as_text(self) -> None:
        """Makes texts of the values of type bytea. Bytes that are not UTF-8 become surrogates."""
        self.adapters.register_loader("bytea", TextOfBytes)


class TextOfBytes(Loader):
    """Loader of values of type bytea as texts."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return bytes(data).decode(errors="surrogateescape")


def parse_url(url: str) -> dict[str, Any]:
    """Returns the parameters that a URL sets. Raises ValueError, without the text of libpq, which could show the password."""
    try:
        return psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        raise ValueError("not a connection URL of PostgreSQL") from None


def connect(url: str, **parameters: Any) -> PostgresConnection:
    """Opens a connection. Parameters replace those of the URL. Raises PostgresError.

    There are no prepared statements: a connection pool in transaction mode has no place for them. A plan made for an empty
    table would also stay in use when the table is full.
    """
    # Of every database, also against the URL and PGCLIENTENCODING. Otherwise psycopg reads the texts of SQL_ASCII as bytes.
    parameters["client_encoding"] = "UTF8"
    try:
        return PostgresConnection.connect(url, autocommit=True, prepare_threshold=None, **parameters)
    except (psycopg.Error, OSError, UnicodeError) as error:
        raise PostgresError(error) from None


class ConnectionPool:
    """Connections of one process. `prepare` is called with each new connection before its first use."""

    def __init__(self, url: str, prepare: Callable[[PostgresConnection], None]) -> None:
        self.url, self.prepare = url, prepare
        self.lock = threading.Lock()
        self.free: list[PostgresConnection] = []
        self.connecting = 0

    def query(self, sql: str, values: Sequence[Any], seconds: float) -> list[Row]:
        """Runs one statement. Repeats it if the connection broke since its last use. Raises PostgresError."""
        deadline = monotonic() + seconds
        while True:
            connection, used = self.acquire(deadline)
            try:
                rows = connection.query(sql, values, deadline - monotonic())
            except PostgresError as error:
                connection.close()
                if not used or error.timed_out or monotonic() >= deadline:
                    raise
            else:
                with self.lock:
                    self.free.append(connection)
                return rows

    def acquire(self, deadline: float) -> tuple[PostgresConnection, bool]:
        """Returns a connection, and whether it was used before. Raises PostgresError."""
        with self.lock:
            if self.free:
                return self.free.pop(), True
            if self.connecting >= MAX_CONNECTING:
                raise PostgresError(TimeoutError(f"{MAX_CONNECTING} threads wait for a connection"))
            self.connecting += 1
        opened: Future[PostgresConnection] = Future()
        # In a thread, because a name server or a server that hangs ignores the deadline.
        threading.Thread(target=self.open, args=(opened,), daemon=True, name="connect to the database").start()
        futures.wait([opened], deadline - monotonic())
        if opened.cancel():
            raise PostgresError(TimeoutError("no connection in time"))
        return opened.result(), False

    def open(self, opened: "Future[PostgresConnection]") -> None:
        """Opens a connection for the thread that waits for it. If that thread gave up, one connection stays for the next."""
        connection = failure = None
        try:
            connection = connect(self.url, connect_timeout=CONNECT_SECONDS, **KEEPALIVE)
            self.prepare(connection)
        except Exception as error:
            failure = error if isinstance(error, PostgresError) else PostgresError(error)
        with self.lock:
            self.connecting -= 1
            awaited = opened.set_running_or_notify_cancel()
            if kept := connection is not None and not awaited and not failure and not self.free:
                self.free.append(connection)
        if failure and awaited:
            opened.set_exception(failure)
        elif connection and awaited:
            opened.set_result(connection)
        if connection and (failure or not (awaited or kept)):
            connection.close()

    def close(self) -> None:
        with self.lock:
            free, self.free = self.free, []
        for connection in free:
            with suppress(psycopg.Error, OSError):
                connection.close()
