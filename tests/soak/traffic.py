"""Clients that ask for everything, well and badly, and compare what they get with what is right."""

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

from answers import Right, Rows
from faults import Faults
from fleet import IDLE_SECONDS, Fleet, Server
from http_clients import HttpResponse, RawConnection, fetch, http_request
from request_vectors import VECTORS

LINGER = struct.pack("ii", 1, 0)
# Whose one answer is a refusal after which the server closes; 501 says that a method or a coding is none of ours.
REFUSED = [one for one in VECTORS if len(one.answers) == 1 and one.closed and one.answers[0] >= 400]
NO_FAULT_OF_OURS, REQUEST_TIMEOUT = 501, 408


class Excused(Exception):
    """A request that came to nothing by a fault that was announced."""


class Wrong(Exception):
    """An answer that must not be."""


class Ledger:
    """What all clients have seen."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.lock = threading.Lock()
        self.statuses: Counter[tuple[str, str, int]] = Counter()
        self.excused: Counter[tuple[str, str, int, str]] = Counter()
        self.wrong: list[str] = []
        # Jobs that were acknowledged, and not yet seen to be done; and how many were.
        self.unfinished: dict[str, Server] = {}
        self.finished = 0

    def note(self, server: str, operation: str, status: int, since: float, more: object = "") -> None:
        """An answer, or a connection that broke (0). Raises Excused, or Wrong for a failure that no fault excuses."""
        with self.lock:
            self.statuses[server, operation, status] += 1
        if status == NO_FAULT_OF_OURS or (0 < status < 500 and status != REQUEST_TIMEOUT):
            return
        if fault := self.faults.excused(server, operation, status, since, time.time()):
            with self.lock:
                self.excused[server, operation, status, fault] += 1
            raise Excused
        raise Wrong(f"{server} {operation}: {status or 'broken'} {more}")

    def seen(self) -> list[tuple[str, str, int]]:
        """Returns the server, the operation, and the status of each kind of answer so far."""
        with self.lock:
            return list(self.statuses)

    def complain(self, what: str) -> None:
        with self.lock:
            self.wrong.append(f"{time.strftime('%H:%M:%S')} {what}")


@dataclass
class Item:
    """The rows that an item may have: of the last write that was acknowledged, and of each that was not."""

    acknowledged: Rows | None = None
    unacknowledged: list[Rows] = field(default_factory=list)


class Client:
    """One that asks a server, on a connection that it keeps for some requests."""

    def __init__(self, traffic: "Traffic", server: Server, number: int) -> None:
        self.traffic, self.server, self.number = traffic, server, number
        self.ledger, self.right = traffic.ledger, traffic.right
        self.wire: RawConnection | None = None
        self.left, self.used = 0, 0.0
        # Written by this client alone.
        self.items = {f"{server.name}-{number}-{i}": Item() for i in range(20)}

    def close(self) -> None:
        if self.wire:
            self.wire.socket.close()
            self.wire = None

    def open(self, **options: Any) -> RawConnection:
        """Opens a connection, or reuses one that the server does not close soon. Raises Excused while the server is gone."""
        if self.wire and self.left > 0 and not self.wire.readable() and time.monotonic() < self.used + IDLE_SECONDS / 2:
            self.left -= 1
            return self.wire
        self.close()
        began = time.time()
        try:
            self.wire = RawConnection(self.server, **options)
        except OSError as error:
            self.ledger.note(self.server.name, "connect", 0, began, repr(error))
        # Every other is for one request.
        self.left = random.choice((0, random.randrange(1, 50)))
        return self.wire

    def ask(
        self, operation: str, path: str, document: object = None, *fields: str, well: tuple[int, ...] = (200,)
    ) -> HttpResponse:
        """An answer with one of these statuses. Raises Excused and Wrong."""
        fields = (*fields, "Connection: close") if random.random() < 0.1 else fields
        # Before a kept connection is looked at: to write a large document may take as long as that is kept.
        data = http_request(operation.partition(" ")[0], path, document, *fields)
        wire, began, self.used = self.open(), time.time(), time.monotonic()
        try:
            answer = wire.ask(data)
        except (OSError, EOFError) as error:
            self.close()
            self.ledger.note(self.server.name, operation, 0, began, repr(error))
            raise
        if answer.closes:
            self.close()
        self.ledger.note(self.server.name, operation, answer.status, began, answer.body[:300])
        if answer.status not in well:
            raise Wrong(f"{self.server.name} {operation} {path}: {answer.status} {answer.body[:300]!r}")
        return answer

    def equal(self, what: str, found: object, right: object) -> None:
        if found != right:
            raise Wrong(f"{self.server.name} {what}: {str(found)[:300]}, and right is {str(right)[:300]}")


Turn = Callable[[Client], None]


class Traffic:
    """The clients of a fleet, until they are ended; `pause` holds them back between two requests, in seconds on average."""

    def __init__(
        self, fleet: Fleet, faults: Faults, turns: dict[str, list[Turn]], sweep: Turn, clients: int, pause: float
    ) -> None:
        self.fleet, self.faults, self.pause = fleet, faults, pause
        self.ledger, self.right = Ledger(faults), Right()
        self.numbers = count()
        documents = {
            name: fetch(one, http_request("GET", "/openapi.json")).json()["paths"] for name, one in fleet.servers.items()
        }
        # What must have been asked for, and well answered, in the end.
        self.operations = {
            (name, f"{method.upper()} {path}")
            for name, paths in documents.items()
            for path, told in paths.items()
            for method in told
        }
        self.readable = {
            name: cycle([path for path, told in paths.items() if "get" in told and "{id}" not in path])
            for name, paths in documents.items()
        }
        # The model's name in the paths of the protocol, where a role has one.
        indices = {name: fetch(one, http_request("POST", "/v2/repository/index", {})) for name, one in fleet.servers.items()}
        self.models = {name: index.json()[0]["name"] for name, index in indices.items() if index.status == 200}
        self.training = fetch(fleet.servers["all"], http_request("GET", "/training")).json()["rows"]
        self.going, self.ending = threading.Event(), threading.Event()
        self.busy = Counter[int]()
        self.threads = []
        for name, server in fleet.servers.items():
            for number in range(clients - 1):
                one = Client(self, server, number)
                self.threads.append(threading.Thread(target=self.run, args=(one, turns[name], [])))
            # Even the shortest soak asks for everything once.
            paths = sum("get" in told and "{id}" not in path for path, told in documents[name].items())
            once = [*dict.fromkeys(turns[name]), *[sweep] * paths]
            self.threads.append(threading.Thread(target=self.run, args=(Client(self, server, clients), turns[name], once)))
            self.threads.append(threading.Thread(target=self.run, args=(Client(self, server, clients + 1), RUDE, [], 20)))

    def number(self) -> int:
        """Another one each time."""
        return next(self.numbers)

    def run(self, client: Client, turns: list[Turn], first: list[Turn], slower: float = 1.0) -> None:
        """Takes turns by chance, after those that come `first`."""
        left = first[::-1]
        mine = threading.get_ident()
        while not self.ending.is_set():
            if not self.going.is_set():
                client.close()
                self.busy[mine] = 0
                self.going.wait(0.2)
                continue
            self.busy[mine] = 1
            try:
                (left.pop() if left else random.choice(turns))(client)
            except Excused:
                time.sleep(0.05)
            except Wrong as wrong:
                self.ledger.complain(str(wrong))
                client.close()
            except Exception as error:
                self.ledger.complain(f"{client.server.name}: {error!r}")
                client.close()
            self.ending.wait(random.expovariate(1 / (self.pause * slower)))
        client.close()
        self.busy[mine] = 0

    def __enter__(self) -> "Traffic":
        for one in self.threads:
            one.start()
        self.going.set()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        for one in self.threads:
            one.join(120)

    def rest(self) -> None:
        """Lets nobody ask until `going` is set again, and waits for those that do."""
        self.going.clear()
        while any(self.busy.values()):
            time.sleep(0.05)


# Those that are rude to whichever server it is.


def slow_sender(client: Client) -> None:
    """A request in pieces over a second or two, which is answered."""
    data = http_request("GET", "/metadata", None, "Connection: close")
    with fresh(client) as wire:
        began = time.time()
        with Excusing(client, "GET /metadata", began):
            for i in range(0, len(data), 10):
                wire.send(data[i : i + 10])
                client.traffic.ending.wait(0.1)
            answer = wire.answer()
            client.ledger.note(client.server.name, "GET /metadata", answer.status, began)


def too_slow_sender(client: Client) -> None:
    """Half a head and nothing more: 408 by and by."""
    with fresh(client) as wire:
        began = time.time()
        with Excusing(client, "half a head", began):
            wire.send(b"GET /metadata HTTP/1.1\r\nHost: a\r\n")
            client.equal("half a head", wire.answer().status, 408)


def silent(client: Client) -> None:
    """Connects and says nothing, until the server has enough."""
    with fresh(client) as wire:
        began = time.time()
        with Excusing(client, "silence", began):
            wire.end()


def aborting(client: Client) -> None:
    """Goes away in the middle of a request, or before its answer, by a reset or by an end."""
    large = http_request("POST", "/predict/batch", {"data": [[5.1, 3.5, 1.4, 0.2]] * random.randrange(1, 5000)})
    with fresh(client) as wire, suppress(OSError):
        wire.socket.sendall(large[: random.choice((10, len(large) // 2, len(large)))])
        if random.random() < 0.5:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


def slow_reader(client: Client) -> None:
    """Takes a large answer in small pieces."""
    began = time.time()
    with fresh(client, receive_buffer=4096) as wire, Excusing(client, "GET /openapi.json", began):
        wire.send(http_request("GET", "/openapi.json", None, "Connection: close"))
        while data := wire.socket.recv(2048):
            wire.buffer += data
            client.traffic.ending.wait(0.02)
        answer = wire.answer()
        client.ledger.note(client.server.name, "GET /openapi.json", answer.status, began)
        json.loads(answer.body)


def refused(client: Client) -> None:
    """One of the malformed requests of request_vectors.py."""
    vector = random.choice(REFUSED)
    began = time.time()
    with fresh(client) as wire, Excusing(client, f"malformed: {vector.name}", began):
        with suppress(BrokenPipeError):
            wire.socket.sendall(vector.sent)
        answer = wire.answer(bare=bool(vector.heads))
        if answer.status == REQUEST_TIMEOUT != vector.answers[0]:
            client.ledger.note(client.server.name, vector.name, answer.status, began)
        if "predict" not in str(vector.sent) or answer.status not in (404, 405):
            client.equal(vector.name, answer.status, vector.answers[0])


def fresh(client: Client, **options: Any) -> RawConnection:
    client.close()
    wire = client.open(**options)
    client.wire = None
    return wire


class Excusing:
    """Around what a rude client does: what breaks is noted as any broken connection is."""

    def __init__(self, client: Client, what: str, began: float) -> None:
        self.client, self.what, self.began = client, what, began

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (OSError, EOFError)):
            self.client.ledger.note(self.client.server.name, self.what, 0, self.began, repr(error))


RUDE: list[Turn] = [slow_sender, too_slow_sender, silent, aborting, slow_reader, refused, refused, refused, refused]
