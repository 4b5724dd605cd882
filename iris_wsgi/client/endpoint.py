"""An endpoint: the addresses of a server, its pool of connections, retry budget, circuit breaker, and metrics."""

import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

from iris_wsgi.client.v2_messages import RemoteModel
from iris_wsgi.observability.metrics import Counter, Gauge, Histogram, Registry
from iris_wsgi.observability.trace_context import Headers, no_headers
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker, LogEvent

OUTCOMES = ("ok", "unreachable", "late", "bad_answer", "refused")
# Shorter than the 60 seconds after which a server of this project closes an idle connection.
IDLE_SECONDS = 30.0
# A connection stays with one of the servers behind a name. New servers get their share as old connections are replaced.
LIFE_SECONDS = 60.0
# A call that times out sooner is not a failure of the endpoint: the client may have asked for too short a time.
FAIR_SECONDS = 0.5
# Each call earns a tenth of a retry, so that retries add at most 10 % to the load of an endpoint.
RETRIES_PER_CALL, MAX_RETRIES = 0.1, 5.0
# Family and socket address, as getaddrinfo() returns them.
SocketAddress = tuple[socket.AddressFamily, tuple[str, int]]


class Address(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(url: str) -> Address:
    """Returns the address of a URL http://host[:port], which the settings have validated."""
    parts = urlsplit(url)
    return Address(parts.hostname or "", parts.port or 80)


class ConnectFailed(Exception):
    """There is no connection, or a kept one was closed before the first byte of a response."""


class Connection:
    """A TCP connection, possibly still being established; `used` is true after its first response."""

    def __init__(self, address: SocketAddress) -> None:
        """Raises ConnectFailed."""
        family, socket_address = address
        try:
            self.socket = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectFailed(error.strerror) from None
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.used, self.created, self.idle_since = False, monotonic(), 0.0
        result = self.socket.connect_ex(socket_address)
        if result not in (0, errno.EINPROGRESS):
            self.close()
            raise ConnectFailed(os.strerror(result))

    def is_idle(self) -> bool:
        """Returns whether the connection is open and has no data to read, as one between two requests must be."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        with suppress(OSError):
            self.socket.close()


class RetryBudget:
    """Limits retries to a share of the calls."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.retries = 0.0

    def earn(self) -> None:
        with self.lock:
            self.retries = min(MAX_RETRIES, self.retries + RETRIES_PER_CALL)

    def spend(self) -> bool:
        """Returns whether a retry is allowed now."""
        with self.lock:
            # The tenths do not add up exactly.
            if self.retries < 1 - 1e-9:
                return False
            self.retries -= 1
            return True


class CallMetrics:
    """Metrics of calls by endpoint. All label values are known at the start."""

    def __init__(self, registry: Registry, endpoints: Sequence[str]) -> None:
        labels, values = ("target",), [endpoints]
        self.calls = Counter(
            registry,
            "remote_calls_total",
            "Calls to another server by outcome; refused: not made, because its circuit breaker was open.",
            ("target", "outcome"),
            [endpoints, OUTCOMES],
        )
        self.seconds = Histogram(registry, "remote_call_duration_seconds", "Seconds of successful calls.", labels, values)
        self.retries = Counter(registry, "remote_retries_total", "Calls repeated after a failed connection.", labels, values)
        self.opened = Counter(registry, "remote_connections_opened_total", "Connections opened.", labels, values)
        self.connections = Gauge(registry, "remote_connections", "Open connections.", labels, values)
        self.down = Gauge(registry, "remote_breaker_open", "Processes with an open circuit breaker.", labels, values)


class Endpoint:
    """A server, by the name that metrics and messages have for it. Thread-safe."""

    def __init__(
        self,
        name: str,
        address: Address,
        metrics: CallMetrics,
        tell: LogEvent,
        timeout_seconds: float = inf,
        credentials: Callable[[], Headers] = no_headers,
    ) -> None:
        """`timeout_seconds` is the default timeout of a call. Each call sends `credentials` as headers."""
        self.fair_seconds = min(FAIR_SECONDS, 0.9 * timeout_seconds)
        self.name, self.address, self.metrics, self.tell, self.credentials = name, address, metrics, tell, credentials
        self.breaker = CircuitBreaker(tell, f"{name} is not called", f"{name} is called again")
        self.budget = RetryBudget()
        self.lock = threading.Lock()
        self.idle: deque[Connection] = deque()
        self.socket_addresses: Sequence[SocketAddress] = ()
        self.next_address, self.closed = 0, False
        # The model of the server once it is verified, and otherwise the reason against it.
        self.model: RemoteModel | None = None
        self.unavailable = "it has not responded yet"

    def resolve(self) -> None:
        """Looks up the host name. It may take long, so no request does it. Raises ConnectFailed."""
        try:
            found = socket.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectFailed(f"the host name {self.address.host} cannot be resolved: {error.strerror}") from None
        self.socket_addresses = [(family, address[:2]) for family, _, _, _, address in found]  # type: ignore[misc]

    def connection(self, new: bool = False) -> Connection:
        """Returns an idle connection, or a new one to the next socket address. Raises ConnectFailed."""
        while not new and (idle := self.pop_idle()):
            if monotonic() - idle.idle_since < IDLE_SECONDS and idle.is_idle():
                return idle
            self.close(idle)
        with self.lock:
            self.next_address += 1
        if not self.socket_addresses:
            raise ConnectFailed(f"no address of {self.address.host} is known yet")
        opened = Connection(self.socket_addresses[self.next_address % len(self.socket_addresses)])
        self.metrics.opened.add((self.name,))
        self.metrics.connections.add((self.name,))
        return opened

    def pop_idle(self) -> Connection | None:
        # The most recently used one: the others expire and are closed when fewer are needed.
        with self.lock:
            return self.idle.pop() if self.idle else None

    def keep(self, connection: Connection) -> None:
        """Returns a connection to the pool, or closes it if it is old. Closes one that has been idle for too long."""
        connection.used, connection.idle_since = True, monotonic()
        if connection.idle_since - connection.created > LIFE_SECONDS:
            self.close(connection)
            return
        with self.lock:
            self.idle.append(connection)
            is_expired = self.closed or self.idle[0].idle_since < monotonic() - IDLE_SECONDS
            expired = self.idle.popleft() if is_expired else None
        if expired:
            self.close(expired)

    def end(self) -> None:
        """Closes the idle connections, and keeps none from now on."""
        self.closed = True
        while idle := self.pop_idle():
            self.close(idle)

    def close(self, connection: Connection) -> None:
        connection.close()
        self.metrics.connections.add((self.name,), -1)

    def why_not(self) -> str | None:
        """Returns in a sentence why the endpoint is not called now, or None if it is."""
        if self.model is None:
            return f"{self.name} at {self.address.authority} cannot be used: {self.unavailable}."
        return None if self.breaker.up else f"{self.name} at {self.address.authority} does not respond: {self.breaker.reason}."

    def mark_available(self, model: RemoteModel) -> None:
        if self.model is None:
            self.tell("info", f"{self.name} at {self.address.authority} has the model {model.name} {model.digest}")
        self.model, self.unavailable = model, ""

    def mark_unavailable(self, why: str) -> None:
        """Stops calls until the prober has verified the model of the server."""
        if why != self.unavailable:
            self.tell("error", f"{self.name} at {self.address.authority} cannot be used: {why}")
        self.model, self.unavailable = None, why

    def succeeded(self, seconds: float) -> None:
        """Records a call that took `seconds`."""
        self.metrics.seconds.observe(seconds, (self.name,))
        self.update_breaker(self.breaker.record_success)

    def failed(self, why: str) -> None:
        self.update_breaker(lambda: self.breaker.record_failure(why))

    def update_breaker(self, update: Callable[[], None]) -> None:
        """Updates the circuit breaker, and counts it in the metrics if that opened or closed it."""
        with self.lock:
            was_up = self.breaker.up
            update()
            if was_up != self.breaker.up:
                self.metrics.down.add((self.name,), 1 if was_up else -1)
