"""One request and its answer on one connection that never blocks."""

import errno
import os
import select
import socket
from contextlib import suppress
from math import inf
from time import monotonic

from iris_wsgi.http.response_parser import BadReply, Incoming, Reply

RECEIVED = 65536
# A machine that is gone answers nothing, and another address may be well. Within a cluster a connection takes a millisecond.
CONNECT_SECONDS = 1.0
# Family and socket address, as getaddrinfo gives them.
Address = tuple[socket.AddressFamily, tuple[str, int]]


class Lost(Exception):
    """There is no connection, or there was none any more: nobody has answered a byte."""


class Connection:
    """A TCP connection, which may still be on its way when it is made; `used` tells that it has carried an answer before."""

    def __init__(self, address: Address) -> None:
        """Raises Lost."""
        family, place = address
        try:
            self.socket = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise Lost(error.strerror) from None
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.used, self.born, self.idle_since = False, monotonic(), 0.0
        result = self.socket.connect_ex(place)
        if result not in (0, errno.EINPROGRESS):
            self.close()
            raise Lost(os.strerror(result))

    def silent(self) -> bool:
        """Whether it is as a connection should be that waits for its next request: open, and nothing to read."""
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
    """Sends `message` and takes the answer, in pieces, as often as poll() reports one of `events`."""

    def __init__(self, connection: Connection, message: bytes, most: int) -> None:
        """The answer's body may have `most` bytes."""
        self.connection, self.unsent, self.incoming = connection, memoryview(message), Incoming(most)
        self.begun, self.began = connection.used, monotonic()
        self.connect_by = inf if self.begun else self.began + CONNECT_SECONDS

    @property
    def events(self) -> int:
        return select.POLLOUT if self.unsent else select.POLLIN

    def advance(self) -> Reply | None:
        """The answer, once all of it is here. Raises Lost, and BadReply for anything else than an answer and nothing more."""
        if not self.begun:
            self.begun, self.connect_by = True, inf
            if error := self.connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise Lost(os.strerror(error))
        try:
            if self.unsent:
                self.unsent = self.unsent[self.connection.socket.send(self.unsent) :]
                return None
            data = self.connection.socket.recv(RECEIVED)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self.ended(error.strerror or type(error).__name__) from None
        if not data:
            raise self.ended("it was closed without an answer")
        return self.incoming.feed(data)

    def ended(self, why: str) -> Lost | BadReply:
        """A server may end a connection that it has kept while a request is on its way; a fresh one that ends is no accident."""
        if self.connection.used and not self.incoming.held:
            return Lost(why)
        return BadReply(f"the connection ended in the middle: {why}")
