"""Clients that are slow on purpose: each deadline ends them, and other clients are not affected."""

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack

import pytest
from http_clients import (
    LABEL_REQUEST,
    LARGEST_REQUEST,
    LIVEZ,
    NO_COVERAGE,
    ROW,
    RawConnection,
    fetch,
    http_request,
    metric_sum,
    open_socket_count,
    stderr_to,
    wait_until,
)
from optional_programs import require_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
SHORT = ("--request-seconds", "1.5")
SHORT_TIMES = {f"iris_wsgi.server.connection.{name}_SECONDS": 1.0 for name in ("HEADER", "KEEP_ALIVE", "SEND")}
BODY = json.dumps({"data": [ROW]}).encode()
CHUNKED = (
    b"POST /predict/label HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
# Bytes that the server has received before the client becomes slow, and the bytes that the client then repeats.
SLOW = {
    "method": (b"", b"A"),
    "target": (b"GET /", b"a"),
    "field name": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"a"),
    "field value": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\na: ", b"a"),
    "fields": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"a:\r\n"),
    "body": (LABEL_REQUEST.replace(b"Content-Length: ", b"Content-Length: 9"), b" "),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "chunk": (CHUNKED + b"ffff\r\n", b" "),
    "chunk extension": (CHUNKED + b"1;a=", b"a"),
    "trailer": (CHUNKED + b"0\r\na: ", b"a"),
}


@pytest.fixture
def slow_time(run, clock):
    """Server with the test's clock."""
    return ServerWithClock(run(*SHORT, constants=SHORT_TIMES, under=stderr_to("/dev/null"), clock=clock), clock)


class ServerWithClock:
    """Server and its clock."""

    def __init__(self, server, clock) -> None:
        self.server, self.clock = server, clock

    def wire(self, **options) -> RawConnection:
        """Opens a connection and waits until the server has accepted it."""
        before = open_socket_count(self.server.worker_pid)
        connection = RawConnection(self.server, **options)
        wait_until(lambda: open_socket_count(self.server.worker_pid) > before, "the connection is accepted")
        return connection

    def advance(self, seconds: float) -> None:
        """Advances the clock. Returns after the server has read all sent bytes and has applied the expired deadlines."""
        settle(self.server)
        self.clock.advance(seconds)
        settle(self.server)


def settle(server) -> None:
    """Waits for one round of the server's loop."""
    with RawConnection(server) as connection:
        # The server closes late connections after it has handled all events, so before its second response.
        assert [connection.exchange(LIVEZ).status for _ in range(2)] == [200, 200]


def drip(timed: ServerWithClock, *slow_connections: tuple[RawConnection, bytes]) -> list[float]:
    """Sends the piece of each connection every tenth of a second until the server responds. Returns the time of each response."""
    began, took = timed.clock.now(), {}
    for _ in range(300):
        for connection, piece in slow_connections:
            if connection not in took and connection.readable():
                took[connection] = timed.clock.now() - began
            elif connection not in took:
                connection.send(piece)
        if len(took) == len(slow_connections):
            break
        timed.advance(0.1)
    return [took[connection] for connection, _ in slow_connections]


def test_a_request_that_drips_gets_408_at_any_pace(slow_time):
    with ExitStack() as stack:
        connections = {part: stack.enter_context(slow_time.wire()).send(start) for part, (start, _) in SLOW.items()}
        took = drip(slow_time, *((connection, SLOW[part][1]) for part, connection in connections.items()))
        # The response never comes early. The server looks for late requests four times a second, so it comes soon after.
        for part, seconds in zip(SLOW, took, strict=True):
            due = 1.5 if part.startswith(("body", "chunk", "trailer")) else 1.0
            assert due - 0.01 < seconds < due + 0.4, part
        for part, connection in connections.items():
            response = connection.receive()
            assert (part, response.status, response.closes) == (part, 408, True)
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["request_id"] == response.headers["x-request-id"]
            assert (part, *connection.read_to_end()) == (part, "closed", b"")


def test_a_second_request_that_drips_is_refused_like_the_first(slow_time):
    with slow_time.wire() as connection:
        assert connection.exchange(LIVEZ).status == 200
        drip(slow_time, (connection.send(b"GET /livez"), b"a"))
        assert connection.receive().status == 408


def test_a_client_that_keeps_dripping_after_its_408_is_cut_off(slow_time):
    with slow_time.wire() as connection:
        drip(slow_time, (connection, b"A"))

        def cut() -> bool:
            slow_time.advance(0.1)
            return failure_of(connection, b"A")

        wait_until(cut, "a connection that accepts no more bytes")


def test_a_refused_body_that_drips_is_cut_off_at_the_same_time_as_others(slow_time):
    with slow_time.wire() as connection:
        assert connection.exchange(SLOW["body"][0].replace(b"Content-Length: 9", b"Content-Length: 99999")).status == 413

        def cut() -> bool:
            slow_time.advance(0.1)
            return failure_of(connection, b" ")

        wait_until(cut, "a connection that accepts no more bytes")


def failure_of(connection: RawConnection, piece: bytes) -> bool:
    try:
        connection.send(piece)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("first_bytes", [False, True], ids=["new", "idle"])
def test_an_idle_connection_is_closed_without_a_response(slow_time, first_bytes):
    with slow_time.wire() as connection:
        assert not first_bytes or not connection.exchange(LIVEZ).closes
        slow_time.advance(0.9)
        assert not connection.readable()
        slow_time.advance(0.4)
        assert connection.read_to_end() == ("closed", b"")


def test_an_empty_line_after_a_response_does_not_start_a_request_with_a_deadline(slow_time):
    with slow_time.wire() as connection:
        assert connection.exchange(LIVEZ).status == 200
        connection.send(b"\r\n")
        slow_time.advance(0.9)
        assert not connection.readable()
        # The server closes it like any idle connection, without a 408.
        slow_time.advance(0.4)
        assert connection.read_to_end() == ("closed", b"")


def test_with_the_real_clock_an_idle_connection_is_closed_without_a_response(run):
    with RawConnection(run(*SHORT, constants=SHORT_TIMES, under=stderr_to("/dev/null"))) as connection:
        assert connection.read_to_end() == ("closed", b"")


def test_a_connection_with_regular_requests_outlives_every_deadline(slow_time):
    with slow_time.wire() as connection:
        for _ in range(10):
            assert connection.exchange(LABEL_REQUEST).status == 200
            slow_time.advance(0.9)


def test_a_response_of_the_thread_pool_has_no_deadline_of_the_connection(run, clock):
    server = run(*SHORT, "--deadline-ms", "0", "--threads", "1", constants=SHORT_TIMES, under=stderr_to("/dev/null"), clock=clock)
    timed = ServerWithClock(server, clock)
    with ExitStack() as stack:
        connections = [stack.enter_context(timed.wire()) for _ in range(12)]
        for connection in connections:
            connection.send(LARGEST_REQUEST)
        # Each request was complete at once, and the deadlines apply to incomplete requests only.
        timed.advance(60)
        assert [connection.receive().status for connection in connections] == [200] * 12


def test_a_client_that_reads_no_response_is_cut_off(slow_time):
    pid = slow_time.server.worker_pid
    before = open_socket_count(pid)
    with slow_time.wire(receive_buffer=2048) as connection:
        connection.send(LARGEST_REQUEST * 12)

        def cut() -> bool:
            slow_time.advance(0.1)
            return open_socket_count(pid) <= before

        wait_until(cut, "the end of the connection")
        how, received = connection.read_to_end()
    # The data in the kernel's buffers may still arrive, but not all of the response.
    assert len(received) < 12 * 760_000, how


def test_a_client_that_reads_slowly_but_steadily_gets_its_whole_response(slow_time):
    # The rule is 16 KiB within a second. This client reads more, because the kernel passes data in large pieces.
    with slow_time.wire(receive_buffer=16384) as connection:
        connection.send(LARGEST_REQUEST * 6)
        count = 0
        for _ in range(8):
            expected = count + 320_000
            while count < expected:
                count += len(connection.socket.recv(16384))
            slow_time.advance(0.9)
        assert count < 6 * 760_000
        rest = 6 * 760_000 - count
        while rest > 0:
            data = connection.socket.recv(1 << 20)
            assert data, f"closed with {rest} bytes to come"
            rest -= len(data)


class Good:
    """Well-behaved client that sends requests every 50 ms, on a persistent connection and on new ones."""

    def __init__(self, server) -> None:
        self.server = server
        self.statuses: Counter[object] = Counter()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        with RawConnection(self.server) as persistent:
            while not self.stopping.wait(0.05):
                for item in (
                    lambda: persistent.exchange(LABEL_REQUEST),
                    lambda: fetch(self.server, LABEL_REQUEST),
                    lambda: fetch(self.server, LIVEZ),
                ):
                    try:
                        self.statuses[item().status] += 1
                    except (OSError, EOFError) as error:
                        self.statuses[repr(error)] += 1

    def goes_on(self) -> None:
        """Waits until the client has sent each of its requests once more."""
        answered = self.statuses.total()
        wait_until(lambda: self.statuses.total() >= answered + 6, "good responses")

    def __enter__(self) -> "Good":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join(60)


ATTACKS = {
    "slow headers": ("-H", "-i", "1", "-x", "8"),
    "slow body": ("-B", "-i", "1", "-x", "8", "-s", "8192"),
    "slow read": ("-X", "-w", "16", "-y", "32", "-n", "1", "-z", "8", "-k", "4"),
}


@pytest.mark.long
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_thousand_slow_connections_are_closed_soon_and_other_clients_are_not_affected(run, clock, attack):
    tool = require_program("slowhttptest")
    constants = dict.fromkeys(SHORT_TIMES, 2.0)
    # In this role /openapi.json has thirty kilobytes. That of the role `all` would let the attack take the machine.
    arguments = ("--role", "web_single", "--request-seconds", "2")
    server = run(*arguments, constants=constants, under=stderr_to("/dev/null"), clock=clock, **NO_COVERAGE)
    url = server.url + ("/openapi.json" if attack == "slow read" else "/predict/label")
    # The attack ends by itself long after the test's timeout.
    command = [tool, "-c", "1000", "-r", "1000", "-l", "3600", "-p", "600", *ATTACKS[attack], "-u", url]
    with Good(server) as good:
        slow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        def gone() -> bool:
            # The good client sends a request on its connection before the clock advances.
            good.goes_on()
            clock.advance(0.5)
            return open_socket_count(server.worker_pid) < 20

        try:
            wait_until(lambda: open_socket_count(server.worker_pid) > 900, "most of the slow connections")
            began = clock.now()
            wait_until(gone, "the end of the slow connections")
            # A refused client has two seconds to close, and more clients may have connected in the meantime.
            assert clock.now() - began < 30
            good.goes_on()
        finally:
            slow.terminate()
            out = slow.communicate(timeout=60)[0]
    assert set(good.statuses) == {200}, good.statuses
    fds = metric_sum(fetch(server, http_request("GET", "/metrics")).body.decode(), "process_open_fds")
    assert fds < 40
    assert not re.search(r"service available: *NO", out)
