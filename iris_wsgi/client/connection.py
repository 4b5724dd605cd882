"""Non-blocking HTTP/1.1 connections to other servers, and one request and response on such a connection."""

import errno
import os
import select
import socket
from contextlib import suppress
from math import inf
from time import monotonic

from iris_wsgi.http.response_parser import InvalidResponse, ParsedResponse, ResponseParser

RECEIVE_BYTES = 65536
# A machine that is gone does not answer, and another address may work. Within a cluster a connection takes a millisecond.
CONNECT_SECONDS = 1.0
# Family and socket address, as getaddrinfo() returns them.
SocketAddress = tuple[socket.AddressFamily, tuple[str, int]]


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


class Exchange:
    """Sends `message` and receives the response; call `advance` whenever poll() reports one of `events`."""

    def __init__(self, connection: Connection, message: bytes, max_bytes: int) -> None:
        """`max_bytes` limits the body of the response."""
        self.connection, self.unsent, self.parser = connection, memoryview(message), ResponseParser(max_bytes)
        self.connected, self.started = connection.used, monotonic()
        self.connect_deadline = inf if self.connected else self.started + CONNECT_SECONDS

    @property
    def events(self) -> int:
        return select.POLLOUT if self.unsent else select.POLLIN

    def advance(self) -> ParsedResponse | None:
        """Returns the response once it is complete. Raises ConnectFailed and InvalidResponse."""
        if not self.connected:
            self.connected, self.connect_deadline = True, inf
            if error := self.connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise ConnectFailed(os.strerror(error))
        try:
            if self.unsent:
                self.unsent = self.unsent[self.connection.socket.send(self.unsent) :]
                return None
            data = self.connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self.closed(error.strerror or type(error).__name__) from None
        if not data:
            raise self.closed("the server closed it without a response")
        return self.parser.feed(data)

    def closed(self, why: str) -> ConnectFailed | InvalidResponse:
        """A server may close a kept connection while a request is on its way. The end of a new connection is a fault."""
        if self.connection.used and not self.parser.received:
            return ConnectFailed(why)
        return InvalidResponse(f"the connection ended before the response was complete: {why}")
