"""Clients that send requests to a gateway, one after another with pauses, and record the time and the result of each."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import rows
from cluster import ENSEMBLE
from http_framing import surplus_bytes

TIMEOUT, TICK = 5.0, 0.005


class TimedResponse(NamedTuple):
    """Start, duration in seconds, and missing members of a response; `missing` is None for an invalid response."""

    began: float
    seconds: float
    missing: list[str] | None

    @property
    def ended(self) -> float:
        return self.began + self.seconds


class GatewayClients:
    """Results of all clients; `stalls` are pairs of a time and the seconds by which an idle thread woke up late."""

    def __init__(self, port: int, connections: int, pause: float) -> None:
        self.port, self.pause = port, pause
        self.responses: list[TimedResponse] = []
        self.stalls: list[tuple[float, float]] = []
        self.stop = threading.Event()
        self.requests = [rows.request(ENSEMBLE, body) for body in rows.some_single_row_bodies(400)]
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(connections)]
        self.threads.append(threading.Thread(target=self.measure_stalls))

    def measure_stalls(self) -> None:
        """Measures how late the machine wakes up an idle thread."""
        while not self.stop.is_set():
            began = time.perf_counter()
            time.sleep(TICK)
            ended = time.perf_counter()
            self.stalls.append((ended, ended - began - TICK))

    def run(self, number: int) -> None:
        connection, at = None, number * 97
        while not self.stop.is_set():
            began = time.perf_counter()
            try:
                connection = connection or socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
                missing = missing_in(exchange(connection, self.requests[at % len(self.requests)]))
            except OSError:
                connection, missing = None, None
            self.responses.append(TimedResponse(began, time.perf_counter() - began, missing))
            time.sleep(self.pause)
            at += 1
        if connection:
            connection.close()


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """Sends a request and returns the response. Raises OSError."""
    connection.sendall(request)
    answer = b""
    while (left := surplus_bytes(answer)) is None or left < 0:
        data = connection.recv(65_536)
        if not data:
            raise ConnectionResetError
        answer += data
    return answer


def missing_in(answer: bytes) -> list[str] | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        return None
    document = json.loads(body)
    return document["missing"] if (document["status"] == "partial") == bool(document["missing"]) else None


@contextlib.contextmanager
def running_clients(port: int, connections: int, pause: float) -> Iterator[GatewayClients]:
    """Context manager with running clients. At exit it waits until they have all their responses."""
    clients = GatewayClients(port, connections, pause)
    for thread in clients.threads:
        thread.start()
    try:
        yield clients
    finally:
        clients.stop.set()
        for thread in clients.threads:
            thread.join()


def percentile_seconds(responses: Sequence[TimedResponse], part: int) -> float:
    """Returns a percentile of the durations."""
    times = sorted(response.seconds for response in responses)
    return times[min(len(times) - 1, len(times) * part // 100)]
