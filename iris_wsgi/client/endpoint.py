"""One server that is asked: its addresses, the connections to it, and whether it is well."""

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

from iris_wsgi.client.connection import Address, Connection, Lost
from iris_wsgi.client.metrics import CallMetrics
from iris_wsgi.client.retry_budget import Budget
from iris_wsgi.client.v2_messages import Peer
from iris_wsgi.observability.trace_context import Fields, nothing
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker, LogEvent

# Below the 60 seconds after which a server of this project closes a connection that waits.
IDLE_SECONDS = 30.0
# A connection stays with one of the servers behind a name; new ones get their share as soon as old connections are replaced.
LIFE_SECONDS = 60.0
FAIR_SECONDS = 0.5


class Place(NamedTuple):
    """Where a server is, from the URL in a setting."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place_of(url: str) -> Place:
    """Of an address http://host[:port] that the settings have checked."""
    parts = urlsplit(url)
    return Place(parts.hostname or "", parts.port or 80)


class Target:
    """A server by the name that metrics and messages have for it. Calls to it come from many threads."""

    def __init__(
        self,
        name: str,
        place: Place,
        metrics: CallMetrics,
        tell: LogEvent,
        wait_seconds: float = inf,
        credentials: Callable[[], Fields] = nothing,
    ) -> None:
        """`wait_seconds` is the default time limit of a call. Each call sends `credentials` as headers."""
        # Who gave it less time has learnt nothing about it: a client may want its answer too soon.
        self.fair_seconds = min(FAIR_SECONDS, 0.9 * wait_seconds)
        self.name, self.place, self.metrics, self.tell, self.credentials = name, place, metrics, tell, credentials
        self.breaker = CircuitBreaker(tell, f"{name} is not asked", f"{name} is asked again")
        self.budget = Budget()
        self.lock = threading.Lock()
        self.idle: deque[Connection] = deque()
        self.addresses: Sequence[Address] = ()
        self.turn, self.ended = 0, False
        # Whose model it is, as long as nothing speaks against it, and else what does.
        self.peer: Peer | None = None
        self.wrong = "it has not answered yet"

    def resolve(self) -> None:
        """Asks for the addresses of its name, which may take long, so no request does it. Raises Lost."""
        try:
            found = socket.getaddrinfo(self.place.host, self.place.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Lost(f"the name {self.place.host} is not known: {error.strerror}") from None
        self.addresses = [(family, address[:2]) for family, _, _, _, address in found]  # type: ignore[misc]

    def connection(self, fresh: bool = False) -> Connection:
        """One that waits for work, or a new one, to the next address if it has several. Raises Lost."""
        while not fresh and (waiting := self.taken_out()):
            if monotonic() - waiting.idle_since < IDLE_SECONDS and waiting.silent():
                return waiting
            self.close(waiting)
        with self.lock:
            self.turn += 1
        if not self.addresses:
            raise Lost(f"no address of {self.place.host} is known yet")
        made = Connection(self.addresses[self.turn % len(self.addresses)])
        self.metrics.opened.add((self.name,))
        self.metrics.connections.add((self.name,))
        return made

    def taken_out(self) -> Connection | None:
        # The one that was used last: the others get old and are closed when fewer are needed.
        with self.lock:
            return self.idle.pop() if self.idle else None

    def keep(self, connection: Connection) -> None:
        """For the next call, unless it is old; and closes one that nobody has needed for long."""
        connection.used, connection.idle_since = True, monotonic()
        if connection.idle_since - connection.born > LIFE_SECONDS:
            self.close(connection)
            return
        with self.lock:
            self.idle.append(connection)
            old = self.idle.popleft() if self.ended or self.idle[0].idle_since < monotonic() - IDLE_SECONDS else None
        if old:
            self.close(old)

    def end(self) -> None:
        """No connection waits for another call from now on."""
        self.ended = True
        while waiting := self.taken_out():
            self.close(waiting)

    def close(self, connection: Connection) -> None:
        connection.close()
        self.metrics.connections.add((self.name,), -1)

    def why_not(self) -> str | None:
        """Why it is not asked now, in a sentence; None if it is."""
        if self.peer is None:
            return f"{self.name} at {self.place.authority} cannot be used: {self.wrong}."
        return None if self.breaker.up else f"{self.name} at {self.place.authority} does not answer: {self.breaker.reason}."

    def trust(self, peer: Peer) -> None:
        """It is who is wanted."""
        if self.peer is None:
            self.tell("info", f"{self.name} at {self.place.authority} has the model {peer.model} {peer.digest}")
        self.peer, self.wrong = peer, ""

    def distrust(self, why: str) -> None:
        """It is not, or nobody knows; it is not asked until it is."""
        if why != self.wrong:
            self.tell("error", f"{self.name} at {self.place.authority} cannot be used: {why}")
        self.peer, self.wrong = None, why

    def works(self, seconds: float) -> None:
        """A call was answered well in that time."""
        self.metrics.seconds.observe(seconds, (self.name,))
        self.turned(self.breaker.record_success)

    def fails(self, why: str) -> None:
        self.turned(lambda: self.breaker.record_failure(why))

    def turned(self, act: Callable[[], None]) -> None:
        """Tells the metrics whether that has opened or closed the breaker."""
        with self.lock:
            was_up = self.breaker.up
            act()
            if was_up != self.breaker.up:
                self.metrics.down.add((self.name,), 1 if was_up else -1)
