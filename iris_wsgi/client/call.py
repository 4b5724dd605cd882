"""Calls to several servers at once, from one thread: each with one retry and the same deadline."""

import select
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import Literal, NamedTuple

from iris_wsgi.client.connection import Exchange, Lost
from iris_wsgi.client.endpoint import Target
from iris_wsgi.http.response_parser import BadReply, Reply

Outcome = Literal["ok", "unreachable", "late", "bad_answer", "refused"]


class Failure(NamedTuple):
    """Why there is no answer, in a word for metrics and in one for people."""

    outcome: Outcome
    why: str


class Call:
    """One request to one target: `result` is there once it has ended.

    A request that was not sent, as its connection was lost, is sent a second time if the target's budget allows it.
    """

    def __init__(self, target: Target, message: bytes, most: int, earns: bool = True) -> None:
        """An answer's body may have `most` bytes; `earns` tells whether second calls are reckoned by calls like this one."""
        self.target, self.message, self.most, self.earns = target, message, most, earns
        self.exchanges: list[Exchange] = []
        self.result: Reply | Failure | None = None
        # How long the request took that was answered.
        self.seconds = 0.0
        self.again = True

    def begin(self) -> None:
        if self.earns:
            self.target.budget.earn()
        self.connect(fresh=False)

    def connect(self, fresh: bool) -> None:
        try:
            self.exchanges.append(Exchange(self.target.connection(fresh), self.message, self.most))
        except Lost as lost:
            self.lost(lost)

    def lost(self, lost: Lost) -> None:
        """Tries once again what has not come to anybody, while nothing else of it is under way."""
        if self.exchanges:
            return
        if self.again and self.target.budget.spend():
            self.again = False
            self.target.metrics.retries.add((self.target.name,))
            self.connect(fresh=True)
        else:
            self.end(Failure("unreachable", str(lost)))

    def advance(self, exchange: Exchange) -> None:
        """Something can be sent or read on it."""
        try:
            reply = exchange.advance()
        except (Lost, BadReply) as error:
            self.drop(exchange)
            if isinstance(error, Lost):
                self.lost(error)
            elif not self.exchanges:
                self.end(Failure("bad_answer", str(error)))
            return
        if reply:
            self.exchanges.remove(exchange)
            self.seconds = monotonic() - exchange.began
            (self.target.keep if reply.keeps else self.target.close)(exchange.connection)
            self.end(reply)

    def drop(self, exchange: Exchange) -> None:
        self.exchanges.remove(exchange)
        self.target.close(exchange.connection)

    @property
    def tick_at(self) -> float:
        """When there is something to do (monotonic), whatever its connections do."""
        return min((exchange.connect_by for exchange in self.exchanges), default=inf)

    def tick(self, now: float) -> None:
        """Ends connection attempts that are past their deadline."""
        for exchange in [one for one in self.exchanges if now >= one.connect_by]:
            self.drop(exchange)
            self.lost(Lost("there was no connection in time"))

    def end(self, result: Reply | Failure) -> None:
        self.result = result
        for exchange in self.exchanges:
            self.target.close(exchange.connection)
        self.exchanges.clear()


def gather(calls: Sequence[Call], until: float) -> None:
    """Makes all calls; when it returns each has a result, at `until` (monotonic) at the latest."""
    try:
        for call in calls:
            call.begin()
        while open_calls := [call for call in calls if call.result is None]:
            now = monotonic()
            for call in open_calls:
                if now >= until:
                    call.end(Failure("late", "it did not answer in time"))
                else:
                    call.tick(now)
            if now < until:
                take_turn(open_calls, min(until, *(call.tick_at for call in open_calls)) - now)
    finally:
        # Whatever happened: no connection stays behind.
        for call in calls:
            if call.result is None:
                call.end(Failure("late", "it was given up"))


def take_turn(calls: Sequence[Call], seconds: float) -> None:
    """Waits so long at most for any connection, and lets those act that can."""
    poller, waiting = select.poll(), {}
    for call in calls:
        for exchange in call.exchanges:
            fd = exchange.connection.socket.fileno()
            poller.register(fd, exchange.events)
            waiting[fd] = (call, exchange)
    if waiting:
        for fd, _ in poller.poll(max(0.0, seconds) * 1000):
            call, exchange = waiting[fd]
            # The other of the same call may just have ended it.
            if exchange in call.exchanges:
                call.advance(exchange)
