"""What goes wrong during a soak, one thing at a time, and which answers that excuses meanwhile."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fleet import NAMES, Fleet, Server, Store
from http_clients import is_alive, wait_until
from postgres_server import PostgresServer

# What was begun while it lasted may be told a little later.
AFTER_SECONDS = 2.0
ROW = {"data": [[5.1, 3.5, 1.4, 0.2]]}
JOBS = ("POST /jobs", "GET /jobs", "GET /jobs/{id}", "DELETE /jobs/{id}")
ITEMS = ("GET /items/{id}", "GET /items/{id}/prediction", "PUT /items/{id}")


class Excuse(NamedTuple):
    """A status of these operations of a server; 0 is a connection that broke, "" any operation."""

    server: str
    statuses: tuple[int, ...]
    operations: tuple[str, ...] = ("",)


class Fault(NamedTuple):
    """Something that goes wrong: how, how it is put right, when it is over."""

    name: str
    excuses: tuple[Excuse, ...]
    begin: Callable[[], object]
    mend: Callable[[], object]
    over: Callable[[], object]


class Window(NamedTuple):
    """When a fault was; `end` is 0 while it lasts."""

    fault: Fault
    begin: float
    end: float


def killed(server: Server, *excuses: Excuse) -> Fault:
    """kill -9 of one of its two processes."""

    def begin() -> None:
        wait_until(server.serving, f"{server.name} serves")
        os.kill(random.choice(server.serving()), signal.SIGKILL)

    return Fault(
        f"kill -9 of a process of {server.name}",
        (Excuse(server.name, (0,)), *excuses),
        begin,
        lambda: None,
        lambda: len(server.serving()) == 2 and server.is_ready(),
    )


def reloaded(server: Server) -> Fault:
    """SIGHUP, which costs nobody anything."""
    before: list[int] = []

    def begin() -> None:
        before[:] = server.serving()
        server.process.send_signal(signal.SIGHUP)

    def over() -> bool:
        return not any(map(is_alive, before)) and len(server.serving()) == 2

    return Fault(f"SIGHUP to {server.name}", (), begin, lambda: None, over)


def gone(server: Server, over: Callable[[], object], *excuses: Excuse) -> Fault:
    """The whole server killed, and started again."""
    own = Excuse(server.name, (0,))
    return Fault(f"{server.name} is killed", (own, *excuses), server.kill, server.start, lambda: server.is_ready() and over())


def store_faults(fleet: Fleet) -> Iterator[Fault]:
    """Those of Redis and PostgreSQL: killed, and stopped so that they take connections and say nothing."""
    servers = fleet.servers

    def jobs_go_on() -> bool:
        return all(servers[name].answers("POST", "/jobs", ROW) for name in ("asynchronous", "sync_async"))

    def cache_goes_on() -> bool:
        return servers["prediction_cache"].answers("DELETE", "/cache")

    def items_go_on() -> bool:
        # Its own item, so that nobody else's changes.
        return servers["data_cache"].answers("PUT", "/items/after-a-fault", ROW)

    stores = (
        ("jobs", fleet.jobs, [Excuse(one, (503,), JOBS) for one in ("asynchronous", "sync_async")], jobs_go_on),
        ("the cache", fleet.cache, [Excuse("prediction_cache", (503,), ("DELETE /cache",))], cache_goes_on),
        ("items", fleet.items, [], items_go_on),
    )
    for what, store, excuses, over in stores:
        yield Fault(f"the Redis of {what} is killed", tuple(excuses), store.kill, store.start, over)
        begin, mend = standing_still(store)
        yield Fault(f"the Redis of {what} stands still", tuple(excuses), begin, mend, over)
    down, postgres = Excuse("data_cache", (503,), ITEMS), fleet.postgres
    yield Fault("PostgreSQL is killed", (down,), postgres.stop, postgres.start, items_go_on)
    begin, mend = standing_still(postgres)
    yield Fault("PostgreSQL stands still", (down,), begin, mend, items_go_on)


def standing_still(store: Store) -> tuple[Callable[[], object], Callable[[], object]]:
    """How one takes connections and says nothing, and how it goes on; its process may be another one by then."""

    def send(number: int) -> None:
        # PostgreSQL is many processes.
        if isinstance(store, PostgresServer):
            store.signal(number)
        else:
            store.process.send_signal(number)

    return (lambda: send(signal.SIGSTOP)), (lambda: send(signal.SIGCONT))


def process_faults(fleet: Fleet) -> Iterator[Fault]:
    """Those that cost a server its processes, whose memory is then that of others."""
    servers = fleet.servers
    predictions = ("POST /predict", "POST /predict/label", "POST /predict/proba", "POST /predict/batch")
    unanswered = Excuse("prep", (502, 503, 504), (*predictions, "GET /predict/test", "GET /predict/test/label", "GET /readyz"))
    for server in servers.values():
        if server.workers == 2:
            yield killed(server, *((unanswered,) if server.name == "pred" else ()))
            yield reloaded(server)
    prep = servers["prep"]
    yield gone(servers["pred"], lambda: prep.is_ready() and prep.answers("POST", "/predict", ROW), unanswered)
    for name in NAMES[:2]:
        yield member_fault(fleet, name)


def member_fault(fleet: Fleet, name: str) -> Fault:
    """No answer of the gateway fails by it; that one is missing in them is told."""
    gateway, missing = fleet.servers["gateway"], Excuse("gateway", (0,), (A_VOTE,))
    return gone(fleet.servers[f"member-{name}"], lambda: gateway.answers("POST", "/ensemble/predict", ROW), missing)


# What is no answer of its own: that a member's vote is missing in one.
A_VOTE = "a vote"


def nothing() -> None:
    pass


# Servers wait 0.2 s for a store. A machine that needs longer than this to sleep and to write a byte cannot keep that limit.
SHORT_STALL_SECONDS = 0.1
# The other time limits of servers are 1 s and more: for members and connections, for requests, for connections without a request.
LONG_STALL_SECONDS = 0.5
# How long before and after a stall its consequences may be seen.
AROUND_SECONDS = 5.0
# Statuses that a time limit causes: the server closes the connection, gives up on a request that comes too slowly, on another
# server, on a store, or on its own answer. A wrong answer and an internal error (500) have no excuse.
TIMED_OUT = (0, 408, 502, 503, 504)


class Faults:
    """Lets things go wrong, one after the other, and remembers when; and when the machine itself stood still.

    No time limit can be kept on a machine that stands still, however good the servers are, so a stall excuses what limits
    cause: a short one the limits for stores, a long one all of them.
    """

    def __init__(self, say: Callable[[str], None], fleet: Fleet) -> None:
        self.say = say
        self.folder = fleet.folder
        self.windows: list[Window] = []
        self.wrong: list[str] = []
        self.ending = threading.Event()
        excuses = {excuse for fault in store_faults(fleet) for excuse in fault.excuses}
        excuses |= {Excuse("all", (503,), (*JOBS, *ITEMS)), *(Excuse(one, (0,), (A_VOTE,)) for one in ("gateway", "all"))}
        self.short_stall = Fault("the machine stood still for a moment", tuple(excuses), nothing, nothing, nothing)
        excuses = {Excuse(name, TIMED_OUT) for name in fleet.servers}
        self.long_stall = Fault("the machine stood still", tuple(excuses), nothing, nothing, nothing)
        self.stalls: dict[Fault, list[Window]] = {self.short_stall: [], self.long_stall: []}
        self.longest_stall = self.measured = 0.0
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self) -> "Faults":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.thread.join()

    def watch(self) -> None:
        """Measures how long the machine takes to sleep for a moment and to write a byte to the disk."""
        with (self.folder / "probe").open("wb", buffering=0) as file:
            while not self.ending.is_set():
                began = time.time()
                time.sleep(0.04)
                file.write(b".")
                os.fsync(file)
                now = time.time()
                self.stood_still(began, now - began - 0.04)
                self.measured = now

    def stood_still(self, began: float, seconds: float) -> None:
        """Records a stall, if it was long enough to be one."""
        self.longest_stall = max(self.longest_stall, seconds)
        for fault, least in ((self.short_stall, SHORT_STALL_SECONDS), (self.long_stall, LONG_STALL_SECONDS)):
            if seconds > least:
                window = Window(fault, began - AROUND_SECONDS, began + seconds + AROUND_SECONDS)
                if (windows := self.stalls[fault]) and windows[-1].end >= window.begin:
                    windows[-1] = windows[-1]._replace(end=window.end)
                else:
                    windows.append(window)

    def windows_until(self, till: float) -> list[Window]:
        """Returns the windows of all faults and stalls, once the stall that the machine may be in at `till` is measured."""
        wait_until(lambda: self.measured > till or self.ending.is_set(), "the machine's speed is measured")
        return [*self.windows, *self.stalls[self.long_stall], *self.stalls[self.short_stall]]

    def run(self, faults: list[Fault], seconds: float, hold: float, pause: float) -> None:
        """All of them in turn, again and again, for so long; each lasts for `hold` seconds."""
        end = time.time() + seconds
        while time.time() < end:
            for fault in random.sample(faults, len(faults)):
                left = end - time.time()
                if left <= 0 or self.ending.wait(min(pause, left)):
                    return
                self.happen(fault, hold)

    def happen(self, fault: Fault, hold: float) -> None:
        began = Window(fault, time.time(), 0)
        self.windows.append(began)
        self.say(fault.name)
        fault.begin()
        # An end of the soak must leave nothing that stands still.
        self.ending.wait(hold)
        fault.mend()
        try:
            wait_until(fault.over, f"over: {fault.name}")
        except AssertionError as error:
            self.wrong.append(str(error))
        self.windows[self.windows.index(began)] = began._replace(end=time.time() + AFTER_SECONDS)

    def excused(self, server: str, operation: str, status: int, since: float, till: float) -> str:
        """The fault by which an answer between these times may be so, or nothing."""
        for fault, begin, end in self.windows_until(till):
            if begin <= till and (not end or since <= end):
                for excuse in fault.excuses:
                    named = operation in excuse.operations or "" in excuse.operations
                    if excuse.server == server and status in excuse.statuses and named:
                        return fault.name
        return ""

    def during(self, since: float, till: float) -> bool:
        """Whether anything went wrong between these times."""
        return any(begin <= till and (not end or since <= end) for _, begin, end in self.windows_until(till))
