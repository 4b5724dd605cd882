"""HTTP clients for tests of a live server: a raw connection, and a closed-loop load generator that records lost requests."""

import errno
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

# Bound on every wait, so that a broken test ends. It is long, because the machine may be busy.
TIMEOUT_SECONDS = 120.0
CI = os.environ.get("CI") == "true"
ROW = [5.1, 3.5, 1.4, 0.2]
NO_COVERAGE = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
find_content_length = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE).search
find_connection_close = re.compile(rb"\r\nconnection: close\r\n", re.IGNORECASE).search


def http_request(method: str, path: str, document=None, *header_lines: str) -> bytes:
    """Returns the bytes of a request."""
    body = b"" if document is None else json.dumps(document).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *header_lines]
    if document is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


LIVEZ, READYZ, METRICS = (http_request("GET", path) for path in ("/livez", "/readyz", "/metrics"))
LABEL_REQUEST = http_request("POST", "/predict/label", {"data": [ROW]})
# Too large for the I/O loop, so the server sends this request to the thread pool.
POOLED_REQUEST = http_request("POST", "/predict/batch", {"data": [ROW] * 1000})
LARGEST_REQUEST = http_request("POST", "/predict/batch", {"data": [ROW] * 10_000})


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits until the condition is true. The timeout only ends a test that would hang.

    A condition is called less often if it takes long or stays false for long, because other tests need the processor.
    """
    began = asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < began + TIMEOUT_SECONDS, f"not within {TIMEOUT_SECONDS} s: {what}"
        time.sleep(min(max(0.01, now - asked, (now - began) / 20), 1.0))
        asked = time.monotonic()


class HttpResponse(NamedTuple):
    """Response to a request. The header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"

    def json(self):
        return json.loads(self.body)


def ready_events(connection: socket.socket, events: int, seconds: float) -> int:
    """Waits for one of the events of poll(), and returns those that came. select() refuses descriptors from 1024 on."""
    poll = select.poll()
    poll.register(connection, events)
    return sum(event for _, event in poll.poll(1000 * seconds))


class RawConnection:
    """TCP connection to a server. The test sends and receives bytes."""

    def __init__(self, server, receive_buffer: int = 0, timeout: float = TIMEOUT_SECONDS) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.buffer = b""
        try:
            self.socket.connect((server.host, server.port))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> "RawConnection":
        self.socket.sendall(data)
        return self

    def readable(self) -> bool:
        return bool(self.buffer or ready_events(self.socket, select.POLLIN, 0))

    def receive(self, to_head: bool = False) -> HttpResponse:
        """Returns the next response. A response `to_head` has no body.

        Raises EOFError if the connection ends before the last byte.
        """
        while b"\r\n\r\n" not in self.buffer:
            self.receive_more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = 0 if to_head else int(headers.get("content-length", "0"))
        while len(self.buffer) < length:
            self.receive_more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return HttpResponse(int(status_line.split(" ")[1]), headers, body)

    def receive_more(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise EOFError(f"closed after {self.buffer[:200]!r}")
        self.buffer += data

    def exchange(self, data: bytes) -> HttpResponse:
        """Sends a request and returns its response."""
        return self.send(data).receive()

    def read_to_end(self) -> tuple[str, bytes]:
        """Returns how the connection ends, "closed" or "reset", and the bytes before its end."""
        try:
            while data := self.socket.recv(1 << 20):
                self.buffer += data
        except ConnectionResetError:
            return "reset", self.buffer
        return "closed", self.buffer


def fetch(server, data: bytes, timeout: float = TIMEOUT_SECONDS) -> HttpResponse:
    """Sends a request on a new connection and returns the response."""
    with RawConnection(server, timeout=timeout) as connection:
        return connection.exchange(data)


class LoadClient:
    """Client of a load generator."""

    def __init__(self, keep_alive: bool, requests: Iterator[bytes]) -> None:
        self.keep_alive, self.requests = keep_alive, requests
        self.socket: socket.socket | None = None
        self.connected = False
        self.responses = 0
        self.sent_at = 0.0
        self.data = b""


class LoadGenerator:
    """Closed-loop clients in one thread. Each client sends its next request after the response to the previous one.

    `persistent` clients keep their connection. `fresh` clients open a connection for each request. A request is lost if its
    connection was established and the response is incomplete. It is not lost if the server refused the connection, or closed it
    before the client sent the request.
    """

    def __init__(self, server, persistent: int, fresh: int, requests: Iterable[bytes] = (LABEL_REQUEST,)) -> None:
        """A refused client stops. A request without a response after TIMEOUT_SECONDS is lost."""
        self.address = (server.host, server.port)
        requests = list(requests)
        # Each client starts with a different request, so that the server always has a mixture.
        self.clients = [LoadClient(i < persistent, cycle_from(requests, i)) for i in range(persistent + fresh)]
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        # The first responses with a status other than 200.
        self.errors: list[bytes] = []
        self.refused = self.closed_between = 0
        self.stopping = False
        self.poller = select.epoll()
        self.busy: dict[int, LoadClient] = {}
        self.thread = threading.Thread(target=self.run)

    @property
    def responses(self) -> int:
        return self.statuses.total()

    def run(self, seconds: float = 600.0) -> "LoadGenerator":
        """Runs until stop(), until the server has refused every client, or for this time."""
        end = time.monotonic() + seconds
        try:
            for client in self.clients:
                self.start_request(client)
            while self.busy:
                for fd, _ in self.poller.poll(0.05):
                    self.handle(self.busy[fd])
                now = time.monotonic()
                if now > end:
                    self.stopping = True
                for client in [client for client in self.busy.values() if now - client.sent_at > TIMEOUT_SECONDS]:
                    self.lose(client, "no response")
        finally:
            for client in self.clients:
                if client.socket:
                    client.socket.close()
            self.poller.close()
        return self

    def start_request(self, client: LoadClient) -> None:
        """Sends the next request of a client, on a new connection if there is none."""
        if client.socket and not client.keep_alive:
            self.drop(client)
        if self.stopping:
            self.drop(client)
            return
        if client.socket and self.was_closed(client):
            self.drop(client)
        client.sent_at = time.monotonic()
        if client.socket:
            self.send(client)
            return
        client.socket, client.connected, client.responses = socket.socket(), False, 0
        client.socket.setblocking(False)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = client.socket.connect_ex(self.address)
        if error not in (0, errno.EINPROGRESS):
            self.refuse(client)
            return
        self.busy[client.socket.fileno()] = client
        self.poller.register(client.socket.fileno(), select.EPOLLOUT)

    def was_closed(self, client: LoadClient) -> bool:
        """Returns whether the server closed an idle connection."""
        try:
            client.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as error:
            self.lost.append(f"idle connection: {error!r}")
        else:
            self.closed_between += 1
        return True

    def send(self, client: LoadClient) -> None:
        data = next(client.requests)
        client.data = b""
        try:
            sent = client.socket.send(data)
        except OSError as error:
            self.lose(client, f"sending: {error!r}")
            return
        if sent < len(data):
            # The request is larger than the socket's buffer. The loopback interface accepts the rest soon.
            client.socket.setblocking(True)
            client.socket.settimeout(TIMEOUT_SECONDS)
            try:
                client.socket.sendall(data[sent:])
            except OSError as error:
                self.lose(client, f"sending the rest: {error!r}")
                return
            client.socket.setblocking(False)
        self.poller.modify(client.socket.fileno(), select.EPOLLIN)

    def handle(self, client: LoadClient) -> None:
        if not client.connected:
            if client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.refuse(client)
            else:
                client.connected = True
                self.send(client)
            return
        try:
            data = client.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(client, repr(error))
            return
        if not data:
            self.lose(client, "closed")
            return
        client.data += data
        end = client.data.find(b"\r\n\r\n")
        length = find_content_length(client.data, 0, end + 2) if end >= 0 else None
        if length and len(client.data) >= end + 4 + int(length[1]):
            status = int(client.data[9:12])
            self.statuses[status] += 1
            if status != 200 and len(self.errors) < 5:
                self.errors.append(client.data)
            client.responses += 1
            if find_connection_close(client.data, 0, end + 2):
                self.drop(client)
            self.start_request(client)

    def lose(self, client: LoadClient, how: str) -> None:
        after = time.monotonic() - client.sent_at
        self.lost.append(f"{how} after {after:.3f} s and {client.responses} responses, {client.data[:60]!r}")
        self.drop(client)

    def refuse(self, client: LoadClient) -> None:
        self.refused += 1
        self.drop(client)

    def drop(self, client: LoadClient) -> None:
        if client.socket:
            self.busy.pop(client.socket.fileno(), None)
            client.socket.close()
            client.socket = None

    def stop(self) -> None:
        """Sends no more requests. The run ends after the responses to the current ones."""
        self.stopping = True

    def __enter__(self) -> "LoadGenerator":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def report(self) -> dict[str, object]:
        return {"statuses": {str(k): v for k, v in self.statuses.items()}, "lost": self.lost, "refused": self.refused}


def cycle_from(requests: list[bytes], start: int) -> Iterator[bytes]:
    while True:
        yield requests[start % len(requests)]
        start += 1


class LoadTotals(NamedTuple):
    """Sums over several processes of load."""

    statuses: Counter[int]
    lost: list[str]
    refused: int


@contextmanager
def load_processes(server, processes: int, persistent: int, fresh: int, seconds: float) -> Iterator[Callable[[], LoadTotals]]:
    """Runs a load generator in each process. Yields a function that waits for the processes and returns their totals."""
    command = [sys.executable, __file__, server.host, str(server.port), str(persistent), str(fresh), str(seconds)]
    environment = {**os.environ, **NO_COVERAGE}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(processes)]

    def totals() -> LoadTotals:
        reports = [json.loads(process.communicate(timeout=seconds + TIMEOUT_SECONDS)[0]) for process in started]
        statuses: Counter[int] = Counter()
        for report in reports:
            statuses.update({int(status): count for status, count in report["statuses"].items()})
        lost = [description for report in reports for description in report["lost"]]
        return LoadTotals(statuses, lost, sum(report["refused"] for report in reports))

    try:
        yield totals
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def child_pids(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def signal_tree(pid: int, number: int) -> None:
    """Sends a signal to a server: first to the parent, then to its workers."""
    for target in (pid, *child_pids(pid)):
        os.kill(target, number)


def kill_tree(process: subprocess.Popen) -> None:
    """Kills a server and its workers at once, like a power failure."""
    if process.poll() is None:
        # A stopped parent cannot start another worker. A fork in progress ends before it stops.
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_state(process.pid) in "TZX", "the parent stops")
        for pid in (*child_pids(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Returns whether a process runs. A zombie does not run."""
    return process_state(pid) not in "ZX"


def process_state(pid: int) -> str:
    """Returns the letter of the state in /proc, which is X for a process that does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_asleep(pid: int) -> bool:
    """Returns whether no thread of the process runs or waits for a processor."""
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return "R" not in states


def stays_asleep(pid: int) -> bool:
    """Returns whether the process sleeps in each of 50 samples. A process in a busy loop does not."""
    for _ in range(50):
        if not is_asleep(pid):
            return False
        time.sleep(0.002)
    return True


def cpu_seconds(pid: int) -> float:
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> list[str]:
    """Returns the targets of the process's file descriptors: paths, and socket:[…]."""
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            targets.append(os.readlink(descriptor))
    return targets


def open_socket_count(pid: int) -> int:
    """Returns the number of the process's sockets, including the listener."""
    return sum(target.startswith("socket:") for target in open_files(pid))


def metric_sum(text: str, name: str, **labels: str) -> float:
    """Returns the sum of a metric's series with these labels."""
    total = 0.0
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(f'{key}="{label}"' in series for key, label in labels.items()):
            total += float(value)
    return total


def stderr_to(path: Path | str) -> tuple[str, ...]:
    """Returns a command prefix that redirects standard error to a file."""
    return ("sh", "-c", f'exec "$@" 2>"{path}"', "sh")


def main(host: str, port: str, persistent: str, fresh: str, seconds: str) -> None:
    class Address(NamedTuple):
        host: str
        port: int

    load = LoadGenerator(Address(host, int(port)), int(persistent), int(fresh)).run(float(seconds))
    json.dump(load.report(), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
