"""Clients for tests of a live server: one connection by hand, and closed-loop load that notes every request that was lost."""

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

# How long a test waits for what must come, on a machine that has much else to do.
TIMEOUT_SECONDS = 120.0
CI = os.environ.get("CI") == "true"
ROW = [5.1, 3.5, 1.4, 0.2]
NO_COVERAGE = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
find_content_length = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE).search
find_connection_close = re.compile(rb"\r\nconnection: close\r\n", re.IGNORECASE).search


def http_request(method: str, path: str, document=None, *fields: str) -> bytes:
    """The bytes of a request; `fields` are further header lines."""
    body = b"" if document is None else json.dumps(document).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields]
    if document is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


LIVEZ, READYZ, METRICS = (http_request("GET", path) for path in ("/livez", "/readyz", "/metrics"))
LABEL_REQUEST = http_request("POST", "/predict/label", {"data": [ROW]})
# Over the size up to which the I/O loop answers by itself, so this one goes to the thread pool.
POOLED_REQUEST = http_request("POST", "/predict/batch", {"data": [ROW] * 1000})
LARGEST_REQUEST = http_request("POST", "/predict/batch", {"data": [ROW] * 10_000})


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition to become true. The bound only ends a test that would hang; nothing is judged by it."""
    give_up = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < give_up, f"not within {TIMEOUT_SECONDS} s: {what}"
        time.sleep(0.01)


class HttpResponse(NamedTuple):
    """What came back for one request; the names of the fields are in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.fields.get("connection") == "close"

    def json(self):
        return json.loads(self.body)


class RawConnection:
    """One connection to a server, with nothing between the test and the bytes."""

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
        return bool(self.buffer or select.select([self.socket], [], [], 0)[0])

    def answer(self, bare: bool = False) -> HttpResponse:
        """The next answer; `bare` is one to a HEAD request. An end before its last byte is an EOFError."""
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = 0 if bare else int(fields.get("content-length", "0"))
        while len(self.buffer) < length:
            self.more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return HttpResponse(int(first.split(" ")[1]), fields, body)

    def more(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise EOFError(f"closed after {self.buffer[:200]!r}")
        self.buffer += data

    def ask(self, data: bytes) -> HttpResponse:
        return self.send(data).answer()

    def end(self) -> tuple[str, bytes]:
        """How the connection ends, closed or reset, and what came before that."""
        try:
            while data := self.socket.recv(1 << 20):
                self.buffer += data
        except ConnectionResetError:
            return "reset", self.buffer
        return "closed", self.buffer


def fetch(server, data: bytes, timeout: float = TIMEOUT_SECONDS) -> HttpResponse:
    """One request on a connection of its own."""
    with RawConnection(server, timeout=timeout) as wire:
        return wire.ask(data)


class LoadClient:
    """One of the clients of a load."""

    def __init__(self, keeps: bool, wanted: Iterator[bytes]) -> None:
        self.keeps, self.wanted = keeps, wanted
        self.socket: socket.socket | None = None
        self.connected = False
        self.answers = 0
        self.sent_at = 0.0
        self.data = b""


class LoadGenerator:
    """Clients in one thread, each of which sends its next request when it has the answer to the last.

    Some keep their connection, the others take a new one each time. A request is lost if its connection was established and no
    complete answer came. It is not lost if the connection was refused, or was closed before the request was sent on it.
    """

    def __init__(self, server, keeping: int, fresh: int, requests: Iterable[bytes] = (LABEL_REQUEST,)) -> None:
        """Who is refused stops; who has no answer after TIMEOUT_SECONDS counts as lost."""
        self.address = (server.host, server.port)
        requests = list(requests)
        # Each client begins with another request, so that at any moment there are some of each.
        self.idle = [LoadClient(i < keeping, cycle_from(requests, i)) for i in range(keeping + fresh)]
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        # A few of the answers other than 200.
        self.others: list[bytes] = []
        self.refused = self.closed_between = 0
        self.stopping = False
        self.poller = select.epoll()
        self.busy: dict[int, LoadClient] = {}
        self.thread = threading.Thread(target=self.run)

    @property
    def answers(self) -> int:
        return self.statuses.total()

    def run(self, seconds: float = 600.0) -> "LoadGenerator":
        """Until stop(), until all were refused, or for so many seconds."""
        end = time.monotonic() + seconds
        try:
            for slot in self.idle:
                self.next(slot)
            while self.busy:
                for fd, _ in self.poller.poll(0.05):
                    self.handle(self.busy[fd])
                now = time.monotonic()
                if now > end:
                    self.stopping = True
                for slot in [one for one in self.busy.values() if now - one.sent_at > TIMEOUT_SECONDS]:
                    self.lose(slot, "no answer")
        finally:
            for slot in self.idle:
                if slot.socket:
                    slot.socket.close()
            self.poller.close()
        return self

    def next(self, slot: LoadClient) -> None:
        """Sends the next request of a client."""
        if slot.socket and not slot.keeps:
            self.drop(slot)
        if self.stopping:
            self.drop(slot)
            return
        if slot.socket and self.was_closed(slot):
            self.drop(slot)
        slot.sent_at = time.monotonic()
        if slot.socket:
            self.send(slot)
            return
        slot.socket, slot.connected, slot.answers = socket.socket(), False, 0
        slot.socket.setblocking(False)
        slot.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        refused = slot.socket.connect_ex(self.address)
        if refused not in (0, errno.EINPROGRESS):
            self.refuse(slot)
            return
        self.busy[slot.socket.fileno()] = slot
        self.poller.register(slot.socket.fileno(), select.EPOLLOUT)

    def was_closed(self, slot: LoadClient) -> bool:
        """Whether the server ended a kept connection before anything was sent on it again."""
        try:
            slot.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as error:
            self.lost.append(f"idle connection: {error!r}")
        else:
            self.closed_between += 1
        return True

    def send(self, slot: LoadClient) -> None:
        data = next(slot.wanted)
        slot.data = b""
        try:
            sent = slot.socket.send(data)
        except OSError as error:
            self.lose(slot, f"sending: {error!r}")
            return
        if sent < len(data):
            # Only what is larger than the socket's buffer; loopback takes it soon.
            slot.socket.setblocking(True)
            slot.socket.settimeout(TIMEOUT_SECONDS)
            try:
                slot.socket.sendall(data[sent:])
            except OSError as error:
                self.lose(slot, f"sending the rest: {error!r}")
                return
            slot.socket.setblocking(False)
        self.poller.modify(slot.socket.fileno(), select.EPOLLIN)

    def handle(self, slot: LoadClient) -> None:
        if not slot.connected:
            if slot.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.refuse(slot)
            else:
                slot.connected = True
                self.send(slot)
            return
        try:
            data = slot.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(slot, repr(error))
            return
        if not data:
            self.lose(slot, "closed")
            return
        slot.data += data
        end = slot.data.find(b"\r\n\r\n")
        length = find_content_length(slot.data, 0, end + 2) if end >= 0 else None
        if length and len(slot.data) >= end + 4 + int(length[1]):
            status = int(slot.data[9:12])
            self.statuses[status] += 1
            if status != 200 and len(self.others) < 5:
                self.others.append(slot.data)
            slot.answers += 1
            if find_connection_close(slot.data, 0, end + 2):
                self.drop(slot)
            self.next(slot)

    def lose(self, slot: LoadClient, how: str) -> None:
        after = time.monotonic() - slot.sent_at
        self.lost.append(f"{how} after {after:.3f} s, {slot.answers} answers before, {slot.data[:60]!r}")
        self.drop(slot)

    def refuse(self, slot: LoadClient) -> None:
        self.refused += 1
        self.drop(slot)

    def drop(self, slot: LoadClient) -> None:
        if slot.socket:
            self.busy.pop(slot.socket.fileno(), None)
            slot.socket.close()
            slot.socket = None

    def stop(self) -> None:
        """Lets each client have its answer, and ends."""
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
    """What several processes of load had together."""

    statuses: Counter[int]
    lost: list[str]
    refused: int


@contextmanager
def load_processes(server, processes: int, keeping: int, fresh: int, seconds: float) -> Iterator[Callable[[], LoadTotals]]:
    """Load from processes of its own, each with so many clients; what is given waits for them and adds them up."""
    command = [sys.executable, __file__, server.host, str(server.port), str(keeping), str(fresh), str(seconds)]
    environment = {**os.environ, **NO_COVERAGE}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(processes)]

    def totals() -> LoadTotals:
        reports = [json.loads(process.communicate(timeout=seconds + TIMEOUT_SECONDS)[0]) for process in started]
        statuses: Counter[int] = Counter()
        for report in reports:
            statuses.update({int(status): count for status, count in report["statuses"].items()})
        return LoadTotals(statuses, [one for report in reports for one in report["lost"]], sum(r["refused"] for r in reports))

    try:
        yield totals
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def child_pids(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def signal_tree(pid: int, number: int) -> None:
    """Sends a signal to a server, the parent first, and to its workers."""
    for one in (pid, *child_pids(pid)):
        os.kill(one, number)


def kill_tree(process: subprocess.Popen) -> None:
    """Kills a server and its workers, as a power cut does."""
    if process.poll() is None:
        # A parent that stands still starts no other worker meanwhile.
        process.send_signal(signal.SIGSTOP)
        for pid in (*child_pids(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def is_asleep(pid: int) -> bool:
    """Whether no thread of a process runs, or waits for a processor."""
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return "R" not in states


def stays_asleep(pid: int) -> bool:
    """Whether a process was asleep at each of many looks; one that spins never is."""
    for _ in range(50):
        if not is_asleep(pid):
            return False
        time.sleep(0.002)
    return True


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process stand for: paths of files, and socket:[…]."""
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(one))
    return found


def open_socket_count(pid: int) -> int:
    """How many sockets a process has, the listener among them."""
    return sum(one.startswith("socket:") for one in open_files(pid))


def metric_sum(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    total = 0.0
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(f'{key}="{wanted}"' in series for key, wanted in labels.items()):
            total += float(value)
    return total


def stderr_to(path: Path | str) -> tuple[str, ...]:
    """What to start a server under, so that its standard error goes to a file."""
    return ("sh", "-c", f'exec "$@" 2>"{path}"', "sh")


def main(host: str, port: str, keeping: str, fresh: str, seconds: str) -> None:
    class Address(NamedTuple):
        host: str
        port: int

    load = LoadGenerator(Address(host, int(port)), int(keeping), int(fresh)).run(float(seconds))
    json.dump(load.report(), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
