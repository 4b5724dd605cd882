"""Clients that send correct and malformed requests, and compare the responses with the expected ones."""

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

from expected import ExpectedResponses, Rows
from faults import Faults
from http_clients import HttpResponse, RawConnection, fetch, http_request
from processes import IDLE_SECONDS, Deployment, Server
from request_vectors import VECTORS

LINGER = struct.pack("ii", 1, 0)
# Malformed requests with a single response, after which the server closes the connection.
MALFORMED = [vector for vector in VECTORS if len(vector.statuses) == 1 and vector.closes and vector.statuses[0] >= 400]
# 501 means that the server does not implement a method or a coding, which is the client's error.
NOT_IMPLEMENTED, REQUEST_TIMEOUT = 501, 408


class Excused(Exception):
    """Request that failed because of a fault that excuses the failure."""


class UnexpectedResponse(Exception):
    """Response that is wrong, or a failure that no fault excuses."""


class Results:
    """Results of all clients."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.lock = threading.Lock()
        self.statuses: Counter[tuple[str, str, int]] = Counter()
        self.excused: Counter[tuple[str, str, int, str]] = Counter()
        self.failures: list[str] = []
        # Acknowledged jobs that no client has seen finished, and the number of those that a client has.
        self.unfinished: dict[str, Server] = {}
        self.finished = 0

    def record(self, server: str, operation: str, status: int, since: float, details: object = "") -> None:
        """Counts a response, or a broken connection (0). Raises Excused or UnexpectedResponse for a failure."""
        with self.lock:
            self.statuses[server, operation, status] += 1
        if status == NOT_IMPLEMENTED or (0 < status < 500 and status != REQUEST_TIMEOUT):
            return
        if fault := self.faults.excused(server, operation, status, since, time.time()):
            with self.lock:
                self.excused[server, operation, status, fault] += 1
            raise Excused
        raise UnexpectedResponse(f"{server} {operation}: {status or 'broken connection'} {details}")

    def seen(self) -> list[tuple[str, str, int]]:
        """Returns the server, the operation, and the status of each kind of response until now."""
        with self.lock:
            return list(self.statuses)

    def add_failure(self, text: str) -> None:
        with self.lock:
            self.failures.append(f"{time.strftime('%H:%M:%S')} {text}")


@dataclass
class Item:
    """Possible rows of an item: those of the last acknowledged write, and those of each write without a response."""

    acknowledged: Rows | None = None
    unacknowledged: list[Rows] = field(default_factory=list)


class Client:
    """Client of one server, which keeps a connection for some requests."""

    def __init__(self, traffic: "Traffic", server: Server, number: int) -> None:
        self.traffic, self.server, self.number = traffic, server, number
        self.results, self.expected = traffic.results, traffic.expected
        self.connection: RawConnection | None = None
        self.remaining_requests, self.last_used = 0, 0.0
        # Only this client writes these items.
        self.items = {f"{server.name}-{number}-{i}": Item() for i in range(20)}

    def close(self) -> None:
        if self.connection:
            self.connection.socket.close()
            self.connection = None

    def open(self, **options: Any) -> RawConnection:
        """Opens a connection, or reuses one that the server does not close soon. Raises Excused while the server is down."""
        is_fresh = self.remaining_requests > 0 and time.monotonic() < self.last_used + IDLE_SECONDS / 2
        if self.connection and is_fresh and not self.connection.readable():
            self.remaining_requests -= 1
            return self.connection
        self.close()
        began = time.time()
        try:
            self.connection = RawConnection(self.server, **options)
        except OSError as error:
            self.results.record(self.server.name, "connect", 0, began, repr(error))
        # Half of the connections have a single request.
        self.remaining_requests = random.choice((0, random.randrange(1, 50)))
        return self.connection

    def ask(
        self, operation: str, path: str, document: object = None, *headers: str, statuses: tuple[int, ...] = (200,)
    ) -> HttpResponse:
        """Sends a request and returns the response with one of these statuses. Raises Excused and UnexpectedResponse."""
        headers = (*headers, "Connection: close") if random.random() < 0.1 else headers
        # Comes first: to encode a large document may take as long as the server keeps the connection.
        data = http_request(operation.partition(" ")[0], path, document, *headers)
        connection, began, self.last_used = self.open(), time.time(), time.monotonic()
        try:
            response = connection.exchange(data)
        except (OSError, EOFError) as error:
            self.close()
            self.results.record(self.server.name, operation, 0, began, repr(error))
            raise
        if response.closes:
            self.close()
        self.results.record(self.server.name, operation, response.status, began, response.body[:300])
        if response.status not in statuses:
            raise UnexpectedResponse(f"{self.server.name} {operation} {path}: {response.status} {response.body[:300]!r}")
        return response

    def check_equal(self, name: str, found: object, expected: object) -> None:
        if found != expected:
            raise UnexpectedResponse(f"{self.server.name} {name}: {str(found)[:300]}, expected {str(expected)[:300]}")


Scenario = Callable[[Client], None]


class Traffic:
    """Clients of all servers, each in a thread; `pause` is the mean time between two requests of a client, in seconds."""

    def __init__(
        self,
        deployment: Deployment,
        faults: Faults,
        scenarios: dict[str, list[Scenario]],
        sweep: Scenario,
        clients: int,
        pause: float,
    ) -> None:
        self.faults, self.pause = faults, pause
        self.results, self.expected = Results(faults), ExpectedResponses()
        self.numbers = count()
        servers = deployment.servers
        documents = {name: fetch(server, http_request("GET", "/openapi.json")).json() for name, server in servers.items()}
        # Each operation must have a successful response by the end.
        self.operations = {
            (name, f"{method.upper()} {path}")
            for name, document in documents.items()
            for path, methods in document["paths"].items()
            for method in methods
        }
        readable = {
            name: [path for path, methods in document["paths"].items() if "get" in methods and "{id}" not in path]
            for name, document in documents.items()
        }
        self.readable_paths = {name: cycle(paths) for name, paths in readable.items()}
        # The model's name in the protocol's paths, for the roles that have a model.
        indexes = {name: fetch(server, http_request("POST", "/v2/repository/index", {})) for name, server in servers.items()}
        self.models = {name: index.json()[0]["name"] for name, index in indexes.items() if index.status == 200}
        self.training = fetch(servers["all"], http_request("GET", "/training")).json()["rows"]
        self.running, self.stopping = threading.Event(), threading.Event()
        self.busy = Counter[int]()
        self.threads = []
        for name, server in servers.items():
            for number in range(clients - 1):
                self.add_client(Client(self, server, number), scenarios[name], [])
            # Even the shortest soak uses each operation once.
            once = [*dict.fromkeys(scenarios[name]), *[sweep] * len(readable[name])]
            self.add_client(Client(self, server, clients), scenarios[name], once)
            self.add_client(Client(self, server, clients + 1), ABUSIVE, [], 20)

    def add_client(self, client: Client, scenarios: list[Scenario], first: list[Scenario], slower: float = 1.0) -> None:
        self.threads.append(threading.Thread(target=self.run, args=(client, scenarios, first, slower)))

    def number(self) -> int:
        """Returns a number that no other call returns."""
        return next(self.numbers)

    def run(self, client: Client, scenarios: list[Scenario], first: list[Scenario], slower: float) -> None:
        """Runs the scenarios of `first` in order, then random ones."""
        left = first[::-1]
        thread = threading.get_ident()
        while not self.stopping.is_set():
            if not self.running.is_set():
                client.close()
                self.busy[thread] = 0
                self.running.wait(0.2)
                continue
            self.busy[thread] = 1
            try:
                (left.pop() if left else random.choice(scenarios))(client)
            except Excused:
                time.sleep(0.05)
            except UnexpectedResponse as error:
                self.results.add_failure(str(error))
                client.close()
            except Exception as error:
                self.results.add_failure(f"{client.server.name}: {error!r}")
                client.close()
            self.stopping.wait(random.expovariate(1 / (self.pause * slower)))
        client.close()
        self.busy[thread] = 0

    def __enter__(self) -> "Traffic":
        for thread in self.threads:
            thread.start()
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(120)

    def rest(self) -> None:
        """Stops the traffic until resume(), and waits for the requests in progress."""
        self.running.clear()
        while any(self.busy.values()):
            time.sleep(0.05)

    def resume(self) -> None:
        self.running.set()


# Scenarios of abusive clients, for every server.


def slow_sender(client: Client) -> None:
    """Sends a request in pieces over a second or two; the server responds."""
    data = http_request("GET", "/metadata", None, "Connection: close")
    with new_connection(client) as connection:
        began = time.time()
        with RecordedErrors(client, "GET /metadata", began):
            for i in range(0, len(data), 10):
                connection.send(data[i : i + 10])
                client.traffic.stopping.wait(0.1)
            response = connection.receive()
            client.results.record(client.server.name, "GET /metadata", response.status, began)


def too_slow_sender(client: Client) -> None:
    """Sends half of a request head; the server responds with 408 after its time limit."""
    with new_connection(client) as connection:
        began = time.time()
        with RecordedErrors(client, "half a head", began):
            connection.send(b"GET /metadata HTTP/1.1\r\nHost: a\r\n")
            client.check_equal("half a head", connection.receive().status, REQUEST_TIMEOUT)


def silent(client: Client) -> None:
    """Connects and sends nothing until the server closes the connection."""
    with new_connection(client) as connection:
        began = time.time()
        with RecordedErrors(client, "silence", began):
            connection.read_to_end()


def aborting(client: Client) -> None:
    """Closes or resets the connection in the middle of a request, or before the response."""
    large = http_request("POST", "/predict/batch", {"data": [[5.1, 3.5, 1.4, 0.2]] * random.randrange(1, 5000)})
    with new_connection(client) as connection, suppress(OSError):
        connection.socket.sendall(large[: random.choice((10, len(large) // 2, len(large)))])
        if random.random() < 0.5:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


def slow_reader(client: Client) -> None:
    """Reads a large response in small pieces."""
    began = time.time()
    with new_connection(client, receive_buffer=4096) as connection, RecordedErrors(client, "GET /openapi.json", began):
        connection.send(http_request("GET", "/openapi.json", None, "Connection: close"))
        while data := connection.socket.recv(2048):
            connection.buffer += data
            client.traffic.stopping.wait(0.02)
        response = connection.receive()
        client.results.record(client.server.name, "GET /openapi.json", response.status, began)
        json.loads(response.body)


def malformed(client: Client) -> None:
    """Sends one of the malformed requests of request_vectors.py."""
    vector = random.choice(MALFORMED)
    began = time.time()
    with new_connection(client) as connection, RecordedErrors(client, f"malformed: {vector.name}", began):
        with suppress(BrokenPipeError):
            connection.socket.sendall(vector.request)
        response = connection.receive(to_head=bool(vector.head_indexes))
        if response.status == REQUEST_TIMEOUT != vector.statuses[0]:
            client.results.record(client.server.name, vector.name, response.status, began)
        if "predict" not in str(vector.request) or response.status not in (404, 405):
            client.check_equal(vector.name, response.status, vector.statuses[0])


def new_connection(client: Client, **options: Any) -> RawConnection:
    client.close()
    connection = client.open(**options)
    client.connection = None
    return connection


class RecordedErrors:
    """Context manager that records an error of the connection as a broken connection."""

    def __init__(self, client: Client, operation: str, began: float) -> None:
        self.client, self.operation, self.began = client, operation, began

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (OSError, EOFError)):
            self.client.results.record(self.client.server.name, self.operation, 0, self.began, repr(error))


ABUSIVE: list[Scenario] = [slow_sender, too_slow_sender, silent, aborting, slow_reader, *[malformed] * 4]
