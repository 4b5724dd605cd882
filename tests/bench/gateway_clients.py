"""Clients that ask a gateway one request after another, with pauses, and note when each was sent, how long it took, what came."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import rows
from cluster import ENSEMBLE
from http_framing import surplus

PATIENCE, TICK = 5.0, 0.005


class Asked(NamedTuple):
    """When it was sent, in seconds that took, and who is missing in it: nobody, some, or None where it is no such answer."""

    began: float
    seconds: float
    missing: list[str] | None

    @property
    def ended(self) -> float:
        return self.began + self.seconds


class Callers:
    """What so many connections have seen; `stalls` are seconds by which a thread that does nothing was woken late, with when."""

    def __init__(self, port: int, connections: int, pause: float) -> None:
        self.port, self.pause = port, pause
        self.answers: list[Asked] = []
        self.stalls: list[tuple[float, float]] = []
        self.stop = threading.Event()
        self.requests = [rows.request(ENSEMBLE, body) for body in rows.singles_of(400)]
        self.threads = [threading.Thread(target=self.go_on, args=(number,)) for number in range(connections)]
        self.threads.append(threading.Thread(target=self.watch))

    def watch(self) -> None:
        """How much of what is late is the machine's."""
        while not self.stop.is_set():
            began = time.perf_counter()
            time.sleep(TICK)
            ended = time.perf_counter()
            self.stalls.append((ended, ended - began - TICK))

    def go_on(self, number: int) -> None:
        connection, at = None, number * 97
        while not self.stop.is_set():
            began = time.perf_counter()
            try:
                connection = connection or socket.create_connection(("127.0.0.1", self.port), PATIENCE)
                missing = missing_in(exchanged(connection, self.requests[at % len(self.requests)]))
            except OSError:
                connection, missing = None, None
            self.answers.append(Asked(began, time.perf_counter() - began, missing))
            time.sleep(self.pause)
            at += 1
        if connection:
            connection.close()


def exchanged(connection: socket.socket, request: bytes) -> bytes:
    """Raises OSError."""
    connection.sendall(request)
    answer = b""
    while (left := surplus(answer)) is None or left < 0:
        data = connection.recv(65_536)
        if not data:
            raise ConnectionResetError
        answer += data
    return answer


def missing_in(answer: bytes) -> list[str] | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        return None
    told = json.loads(body)
    return told["missing"] if (told["status"] == "partial") == bool(told["missing"]) else None


@contextlib.contextmanager
def calling(port: int, connections: int, pause: float) -> Iterator[Callers]:
    """Callers that go on until the exit, after which they have all their answers."""
    callers = Callers(port, connections, pause)
    for thread in callers.threads:
        thread.start()
    try:
        yield callers
    finally:
        callers.stop.set()
        for thread in callers.threads:
            thread.join()


def share(answers: Sequence[Asked], part: int) -> float:
    """Seconds that `part` of 100 answers do not take longer than."""
    taken = sorted(one.seconds for one in answers)
    return taken[min(len(taken) - 1, len(taken) * part // 100)]
