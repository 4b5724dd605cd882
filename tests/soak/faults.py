"""Faults of a soak, one at a time, and the responses that each fault excuses."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from http_clients import is_alive, wait_until
from postgres_server import PostgresServer
from processes import NAMES, Deployment, Server, Store

# A request that began during a fault may fail a little later.
AFTER_SECONDS = 2.0
ROW = {"data": [[5.1, 3.5, 1.4, 0.2]]}
JOBS = ("POST /jobs", "GET /jobs", "GET /jobs/{id}", "DELETE /jobs/{id}")
ITEMS = ("GET /items/{id}", "GET /items/{id}/prediction", "PUT /items/{id}")
# Pseudo-operation: the vote of an ensemble member, which may be missing in a successful response.
VOTE = "a vote"


class Excuse(NamedTuple):
    """Statuses that these operations of a server may have; 0 is a broken connection, "" any operation."""

    server: str
    statuses: tuple[int, ...]
    operations: tuple[str, ...] = ("",)


class Fault(NamedTuple):
    """Fault with the functions that inject and repair it, and the condition under which it is over."""

    name: str
    excuses: tuple[Excuse, ...]
    inject: Callable[[], object]
    repair: Callable[[], object]
    is_over: Callable[[], object]


class Window(NamedTuple):
    """Time of a fault; `end` is 0 during the fault."""

    fault: Fault
    begin: float
    end: float


def killed_worker(server: Server, *excuses: Excuse) -> Fault:
    """Returns the fault that kills one of the two workers of a server with SIGKILL."""

    def inject() -> None:
        wait_until(server.accepting_pids, f"{server.name} accepts connections")
        os.kill(random.choice(server.accepting_pids()), signal.SIGKILL)

    return Fault(
        f"kill -9 of a worker of {server.name}",
        (Excuse(server.name, (0,)), *excuses),
        inject,
        lambda: None,
        lambda: len(server.accepting_pids()) == 2 and server.is_ready(),
    )


def reloaded(server: Server) -> Fault:
    """Returns the fault that sends SIGHUP to a server; it excuses nothing."""
    before: list[int] = []

    def inject() -> None:
        before[:] = server.accepting_pids()
        server.process.send_signal(signal.SIGHUP)

    def is_over() -> bool:
        return not any(map(is_alive, before)) and len(server.accepting_pids()) == 2

    return Fault(f"SIGHUP to {server.name}", (), inject, lambda: None, is_over)


def killed_server(server: Server, is_over: Callable[[], object], *excuses: Excuse) -> Fault:
    """Returns the fault that kills all processes of a server; its repair starts the server again."""
    return Fault(
        f"{server.name} is killed",
        (Excuse(server.name, (0,)), *excuses),
        server.kill,
        server.start,
        lambda: server.is_ready() and is_over(),
    )


def store_faults(deployment: Deployment) -> Iterator[Fault]:
    """Yields the faults of Redis and PostgreSQL: killed, and stopped so that they accept connections and do not answer."""
    servers = deployment.servers

    def jobs_work() -> bool:
        return all(servers[name].succeeds("POST", "/jobs", ROW) for name in ("asynchronous", "sync_async"))

    def cache_works() -> bool:
        return servers["prediction_cache"].succeeds("DELETE", "/cache")

    def items_work() -> bool:
        # No client uses this item.
        return servers["data_cache"].succeeds("PUT", "/items/after-a-fault", ROW)

    stores = (
        ("jobs", deployment.jobs, [Excuse(name, (503,), JOBS) for name in ("asynchronous", "sync_async")], jobs_work),
        ("the cache", deployment.cache, [Excuse("prediction_cache", (503,), ("DELETE /cache",))], cache_works),
        ("items", deployment.items, [], items_work),
    )
    for use, store, excuses, is_over in stores:
        yield Fault(f"the Redis of {use} is killed", tuple(excuses), store.kill, store.start, is_over)
        inject, repair = stop_and_continue(store)
        yield Fault(f"the Redis of {use} is stopped", tuple(excuses), inject, repair, is_over)
    down, postgres = Excuse("data_cache", (503,), ITEMS), deployment.postgres
    yield Fault("PostgreSQL is killed", (down,), postgres.stop, postgres.start, items_work)
    inject, repair = stop_and_continue(postgres)
    yield Fault("PostgreSQL is stopped", (down,), inject, repair, items_work)


def stop_and_continue(store: Store) -> tuple[Callable[[], object], Callable[[], object]]:
    """Returns the functions that stop a store with SIGSTOP and continue it; another fault may replace its process."""

    def send(number: int) -> None:
        # PostgreSQL has several processes.
        if isinstance(store, PostgresServer):
            store.signal(number)
        else:
            store.process.send_signal(number)

    return (lambda: send(signal.SIGSTOP)), (lambda: send(signal.SIGCONT))


def process_faults(deployment: Deployment) -> Iterator[Fault]:
    """Yields the faults that replace processes, so that their memory cannot be compared any longer."""
    servers = deployment.servers
    predictions = ("POST /predict", "POST /predict/label", "POST /predict/proba", "POST /predict/batch")
    upstream_down = Excuse("prep", (502, 503, 504), (*predictions, "GET /predict/test", "GET /predict/test/label", "GET /readyz"))
    for server in servers.values():
        if server.workers == 2:
            yield killed_worker(server, *((upstream_down,) if server.name == "pred" else ()))
            yield reloaded(server)
    prep = servers["prep"]
    yield killed_server(servers["pred"], lambda: prep.is_ready() and prep.succeeds("POST", "/predict", ROW), upstream_down)
    for name in NAMES[:2]:
        yield member_fault(deployment, name)


def member_fault(deployment: Deployment, name: str) -> Fault:
    """Returns the fault that kills an ensemble member. The responses of the gateway succeed and name the missing vote."""
    gateway, missing = deployment.servers["gateway"], Excuse("gateway", (0,), (VOTE,))
    return killed_server(
        deployment.servers[f"member-{name}"], lambda: gateway.succeeds("POST", "/ensemble/predict", ROW), missing
    )


def nothing() -> None:
    pass


# Servers wait 0.2 s for a store, and a write has about five steps: server, network, store, disk, and back. A machine that needs
# longer than this to sleep and to write a byte can need it for each step.
SHORT_STALL_SECONDS = 0.04
# The other time limits of servers are 1 s and more: for members and connections, for requests, for connections without a request.
LONG_STALL_SECONDS = 0.5
# The consequences of a stall may be seen so long before and after it.
AROUND_SECONDS = 5.0
# Statuses that a time limit causes. The server closes the connection, or gives up on a slow request, another server, a store, or
# its own response. A wrong response and an internal error (500) have no excuse.
TIMED_OUT = (0, 408, 502, 503, 504)


class Faults:
    """Injects one fault after the other, and records the time of each fault and of each stall of the machine.

    No server can keep a time limit on a machine that stalls. Therefore a stall excuses the failures that time limits cause: a
    short stall those of the limits for stores, a long stall all of them.
    """

    def __init__(self, log: Callable[[str], None], deployment: Deployment) -> None:
        self.log = log
        self.folder = deployment.folder
        self.windows: list[Window] = []
        self.failures: list[str] = []
        self.stopping = threading.Event()
        excuses = {excuse for fault in store_faults(deployment) for excuse in fault.excuses}
        excuses |= {Excuse("all", (503,), (*JOBS, *ITEMS)), *(Excuse(name, (0,), (VOTE,)) for name in ("gateway", "all"))}
        self.short_stall = Fault("a short stall of the machine", tuple(excuses), nothing, nothing, nothing)
        excuses = {Excuse(name, TIMED_OUT) for name in deployment.servers}
        self.long_stall = Fault("a long stall of the machine", tuple(excuses), nothing, nothing, nothing)
        self.stalls: dict[Fault, list[Window]] = {self.short_stall: [], self.long_stall: []}
        self.longest_stall = self.measured_until = 0.0
        self.thread = threading.Thread(target=self.measure_stalls)

    def __enter__(self) -> "Faults":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()

    def measure_stalls(self) -> None:
        """Measures again and again how long the machine takes to sleep for a moment and to write a byte to the disk."""
        with (self.folder / "probe").open("wb", buffering=0) as file:
            while not self.stopping.is_set():
                began = time.time()
                time.sleep(0.04)
                file.write(b".")
                os.fsync(file)
                now = time.time()
                self.record_stall(began, now - began - 0.04)
                self.measured_until = now

    def record_stall(self, began: float, seconds: float) -> None:
        """Records a stall that is long enough. Windows that overlap become one."""
        self.longest_stall = max(self.longest_stall, seconds)
        for fault, min_seconds in ((self.short_stall, SHORT_STALL_SECONDS), (self.long_stall, LONG_STALL_SECONDS)):
            if seconds > min_seconds:
                window = Window(fault, began - AROUND_SECONDS, began + seconds + AROUND_SECONDS)
                if (windows := self.stalls[fault]) and windows[-1].end >= window.begin:
                    windows[-1] = windows[-1]._replace(end=window.end)
                else:
                    windows.append(window)

    def windows_until(self, until: float) -> list[Window]:
        """Returns the windows of all faults and stalls, once a stall that lasts at time `until` is recorded."""
        wait_until(lambda: self.measured_until > until or self.stopping.is_set(), "stalls are recorded")
        return [*self.windows, *self.stalls[self.long_stall], *self.stalls[self.short_stall]]

    def run(self, faults: list[Fault], seconds: float, hold: float, pause: float) -> None:
        """Runs all faults in random order, again and again, for `seconds`; each lasts for `hold` seconds."""
        end = time.time() + seconds
        while time.time() < end:
            for fault in random.sample(faults, len(faults)):
                left = end - time.time()
                if left <= 0 or self.stopping.wait(min(pause, left)):
                    return
                self.run_fault(fault, hold)

    def run_fault(self, fault: Fault, hold: float) -> None:
        window = Window(fault, time.time(), 0)
        self.windows.append(window)
        self.log(fault.name)
        fault.inject()
        # No process may remain stopped at the end of the soak.
        self.stopping.wait(hold)
        fault.repair()
        try:
            wait_until(fault.is_over, f"over: {fault.name}")
        except AssertionError as error:
            self.failures.append(str(error))
        self.windows[self.windows.index(window)] = window._replace(end=time.time() + AFTER_SECONDS)

    def excused(self, server: str, operation: str, status: int, since: float, until: float) -> str:
        """Returns the name of the fault that excuses a response between these times, or an empty string."""
        for fault, begin, end in self.windows_until(until):
            if begin <= until and (not end or since <= end):
                for excuse in fault.excuses:
                    covers = operation in excuse.operations or "" in excuse.operations
                    if excuse.server == server and status in excuse.statuses and covers:
                        return fault.name
        return ""

    def during(self, since: float, until: float) -> bool:
        """Returns whether there was a fault or a stall between these times."""
        return any(begin <= until and (not end or since <= end) for _, begin, end in self.windows_until(until))
