"""Concurrent HTTP calls to several servers from one thread: each with one retry, and all with the same deadline."""

import os
import select
import socket
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import Literal, NamedTuple

from iris_wsgi.client.endpoint import ConnectFailed, Connection, Endpoint
from iris_wsgi.http.response_parser import InvalidResponse, ParsedResponse, ResponseParser

RECEIVE_BYTES = 65536
# A machine that is gone does not answer, and another address may work. Within a cluster a connection takes a millisecond.
CONNECT_SECONDS = 1.0
Outcome = Literal["ok", "unreachable", "late", "bad_answer", "refused"]


class CallFailure(NamedTuple):
    """The reason for a failed call: the label of its metric, and a text for people."""

    outcome: Outcome
    why: str


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


class Call:
    """One request to one endpoint, with a `result` once it has ended.

    A request without a connection is sent a second time if the retry budget of the endpoint allows it.
    """

    def __init__(self, endpoint: Endpoint, message: bytes, max_bytes: int, earns: bool = True) -> None:
        """`max_bytes` limits the body of the response; `earns` adds the call to the retry budget."""
        self.endpoint, self.message, self.max_bytes, self.earns = endpoint, message, max_bytes, earns
        self.exchange: Exchange | None = None
        self.result: ParsedResponse | CallFailure | None = None
        # The time from request to response.
        self.seconds = 0.0
        self.may_retry = True

    def begin(self) -> None:
        if self.earns:
            self.endpoint.budget.earn()
        self.connect(new=False)

    def connect(self, new: bool) -> None:
        try:
            self.exchange = Exchange(self.endpoint.connection(new), self.message, self.max_bytes)
        except ConnectFailed as error:
            self.retry(error)

    def retry(self, error: ConnectFailed) -> None:
        if self.may_retry and self.endpoint.budget.spend():
            self.may_retry = False
            self.endpoint.metrics.retries.add((self.endpoint.name,))
            self.connect(new=True)
        else:
            self.result = CallFailure("unreachable", str(error))

    def advance(self, exchange: Exchange) -> None:
        """Sends or receives on the connection of the call, which is ready."""
        try:
            response = exchange.advance()
        except ConnectFailed as error:
            self.close()
            self.retry(error)
        except InvalidResponse as error:
            self.end(CallFailure("bad_answer", str(error)))
        else:
            if response:
                self.exchange, self.result = None, response
                self.seconds = monotonic() - exchange.started
                (self.endpoint.keep if response.keep_alive else self.endpoint.close)(exchange.connection)

    @property
    def connect_deadline(self) -> float:
        return self.exchange.connect_deadline if self.exchange else inf

    def check_connect(self, now: float) -> None:
        """Ends a connection attempt that is past its deadline."""
        if now >= self.connect_deadline:
            self.close()
            self.retry(ConnectFailed("the connection was not established in time"))

    def end(self, result: CallFailure) -> None:
        self.result = result
        self.close()

    def close(self) -> None:
        if self.exchange:
            self.endpoint.close(self.exchange.connection)
            self.exchange = None


def run_calls(calls: Sequence[Call], deadline: float) -> None:
    """Makes all calls. Returns when each has a result, at `deadline` (monotonic) at the latest."""
    try:
        for call in calls:
            call.begin()
        while open_calls := [call for call in calls if call.result is None]:
            now = monotonic()
            for call in open_calls:
                if now >= deadline:
                    call.end(CallFailure("late", "it did not respond in time"))
                else:
                    call.check_connect(now)
            if now < deadline:
                advance_ready(open_calls, min(deadline, *(call.connect_deadline for call in open_calls)) - now)
    finally:
        # No connection stays open, whatever happened.
        for call in calls:
            if call.result is None:
                call.end(CallFailure("late", "the call was aborted"))


def advance_ready(calls: Sequence[Call], seconds: float) -> None:
    """Waits up to `seconds` for any connection, and advances the calls whose connections are ready."""
    poller, waiting = select.poll(), {}
    for call in calls:
        if call.exchange:
            descriptor = call.exchange.connection.socket.fileno()
            poller.register(descriptor, call.exchange.events)
            waiting[descriptor] = (call, call.exchange)
    if waiting:
        for descriptor, _ in poller.poll(max(0.0, seconds) * 1000):
            call, exchange = waiting[descriptor]
            call.advance(exchange)
