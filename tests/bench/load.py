"""Load generator: a closed loop over epoll in a separate process, with one request in progress on each connection."""

import contextlib
import json
import select
import socket
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import processes
import rows
from http_framing import surplus_bytes

TIMEOUT = 5.0


class LoadGenerator:
    """Connections to one server, and the results of their requests."""

    def __init__(self, port: int, requests: Sequence[bytes], first: int, expected: bytes = b"HTTP/1.1 200 ") -> None:
        self.port, self.requests, self.next, self.expected = port, requests, first, expected
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.parts: dict[int, bytes] = {}
        self.sent_at: dict[int, int] = {}
        self.answered: set[int] = set()
        self.latencies: list[int] = []
        # Connection of each response.
        self.order: list[int] = []
        self.failures = self.closed = 0
        self.wrong = b""

    def connect(self) -> None:
        one = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        one.setblocking(False)
        self.sockets[one.fileno()] = one
        self.poll.register(one, select.EPOLLIN)
        self.ask(one.fileno())

    def connect_all(self, count: int, one_by_one: bool) -> None:
        """Opens connections at once, or each after the first response of the one before."""
        for _ in range(count):
            self.connect()
            if one_by_one:
                self.drive(1, TIMEOUT, more=False)
        for number in set(self.sockets) - set(self.sent_at):
            self.ask(number)

    def ask(self, number: int) -> None:
        """Sends the next request on a connection."""
        request = self.requests[self.next % len(self.requests)]
        self.next += 1
        self.parts[number] = b""
        self.sent_at[number] = time.perf_counter_ns()
        one = self.sockets[number]
        try:
            sent = one.send(request)
        except OSError:
            # recv() reports the closed connection.
            return
        if sent < len(request):
            one.settimeout(TIMEOUT)
            with contextlib.suppress(OSError):
                one.sendall(request[sent:])
            one.setblocking(False)

    def replace(self, number: int) -> None:
        """Replaces a connection that the server closed. It counts as a failure if a request was in progress."""
        self.closed += 1
        self.failures += number in self.sent_at
        self.poll.unregister(number)
        self.sockets.pop(number).close()
        self.sent_at.pop(number, None)
        self.connect()

    def drive(self, count: int, seconds: float, more: bool = True) -> int:
        """Reads up to `count` responses for up to `seconds`; with `more` it sends the next request after each."""
        poll, sockets, parts, sent_at, latencies = self.poll.poll, self.sockets, self.parts, self.sent_at, self.latencies
        clock, answered, served, done = time.perf_counter_ns, self.answered.add, self.order.append, 0
        end = clock() + int(seconds * 1e9)
        while done < count and clock() < end:
            for number, _ in poll(0.1):
                try:
                    data = sockets[number].recv(262_144)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    self.replace(number)
                    continue
                if parts[number]:
                    data = parts[number] + data
                beyond = surplus_bytes(data)
                if beyond is None or beyond < 0:
                    parts[number] = data
                    continue
                latencies.append(clock() - sent_at.pop(number))
                done += 1
                answered(number)
                served(number)
                if beyond or not data.startswith(self.expected):
                    self.failures += 1
                    self.wrong = self.wrong or data.partition(b"\r\n")[0]
                if more:
                    self.ask(number)
        return done

    def warm(self, count: int) -> None:
        """Runs until there are `count` responses, and each connection has one."""
        end = time.perf_counter() + TIMEOUT
        done = self.drive(count, TIMEOUT)
        while (done < count or len(self.answered) < len(self.sockets)) and time.perf_counter() < end:
            done += self.drive(64, 0.5)

    def close(self) -> None:
        """Reads the remaining responses, so that the server sees no reset, and closes the connections."""
        self.drive(len(self.sent_at), 1.0, more=False)
        for one in self.sockets.values():
            one.close()
        self.poll.close()


def idle_connections(count: int, port: int, request: bytes) -> list[socket.socket]:
    """Opens connections that get one response each and then stay open."""
    opened = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        one.sendall(request)
        answer = b""
        while (surplus_bytes(answer) or 0) < 0 or surplus_bytes(answer) is None:
            data = one.recv(65_536)
            if not data:
                break
            answer += data
        one.setblocking(False)
        opened.append(one)
    return opened


def still_open(one: socket.socket) -> bool:
    try:
        return bool(one.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def longest_wait(order: Sequence[int], connections: Collection[int]) -> float:
    """Returns the longest wait of a connection for a response, in turns: responses to all connections per connection.

    A server that serves the connections strictly in turn has 1.0. Waits that begin before or end after the window count up to
    its borders.
    """
    last, longest = dict.fromkeys(connections, -1), 0
    for i, number in enumerate(order):
        longest = max(longest, i - last.get(number, -1))
        last[number] = i
    return max([longest, *(len(order) - at for at in last.values())]) / max(len(last), 1)


def measure(phase: dict[str, Any], requests: Sequence[bytes]) -> dict[str, float]:
    """Measures one window of load, with a maximum of requests and seconds, and with idle connections."""
    idle = idle_connections(phase.get("idle", 0), phase["port"], requests[-1])
    load = LoadGenerator(phase["port"], requests, phase["first"])
    load.connect_all(phase["connections"], phase.get("one_by_one", False))
    load.warm(phase["warm"])
    load.latencies.clear()
    load.order.clear()
    load.failures = load.closed = 0
    pids = processes.tree(phase["pid"])
    # Servers that this server calls.
    others = [pid for root in phase.get("upstream", []) for pid in processes.tree(root)]
    theirs = processes.cpu_times(others)
    own, before, started = time.process_time(), processes.cpu_times(pids), time.perf_counter()
    done = load.drive(phase["requests"], phase["seconds"])
    elapsed, after = time.perf_counter() - started, processes.cpu_times(pids)
    upstream = processes.cpu_between(theirs, processes.cpu_times(others))
    own = time.process_time() - own
    after |= processes.cpu_times(set(processes.tree(phase["pid"])) - set(pids))
    taken = sorted(load.latencies) or [0]
    result = {
        "requests": done,
        "rate": done / elapsed,
        "cpu": processes.cpu_between(before, after) / 1e3 / max(done, 1),
        "upstream": upstream / 1e3 / max(done, 1),
        "p50": taken[len(taken) // 2] / 1e6,
        "p99": taken[min(len(taken) - 1, len(taken) * 99 // 100)] / 1e6,
        "turns": longest_wait(load.order, load.sockets),
        "busy": own / elapsed,
        "failures": load.failures,
        "unanswered": len(load.sockets) - len(load.answered & set(load.sockets)),
        "idle_open": sum(map(still_open, idle)),
    }
    load.close()
    for one in idle:
        one.close()
    return result


def main(phases: list[dict[str, Any]]) -> None:
    made: dict[tuple[str, str], list[bytes]] = {}
    for phase in phases:
        key = phase["kind"], phase["path"]
        made[key] = made.get(key) or rows.requests(*key)
    json.dump([measure_window(phase, made[phase["kind"], phase["path"]]) for phase in phases], sys.stdout)


def measure_window(phase: dict[str, Any], requests: Sequence[bytes]) -> dict[str, Any]:
    """Returns the figures of a window, or the error that ended it."""
    try:
        return measure(phase, requests)
    except OSError as error:
        return {"gave_up": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(json.load(sys.stdin))
