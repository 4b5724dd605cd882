"""Clients that are slow on purpose: each deadline ends them, and nobody else notices."""

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from clients import CI, LABEL, LARGEST, LIVEZ, NOT_MEASURED, ROW, Wire, ask, log_to, metric, open_sockets, request, until
from conftest import need, start_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
SHORT = ("--header-seconds", "1", "--request-seconds", "1.5", "--idle-seconds", "1", "--send-seconds", "1")
BODY = json.dumps({"data": [ROW]}).encode()
CHUNKED = b"POST /predict/label HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
# What has come when the client becomes slow, and the bytes that it then repeats for ever.
SLOW = {
    "method": (b"", b"A"),
    "target": (b"GET /", b"a"),
    "field name": (b"GET /livez HTTP/1.1\r\nHost: test\r\n", b"a"),
    "field value": (b"GET /livez HTTP/1.1\r\nHost: test\r\na: ", b"a"),
    "fields": (b"GET /livez HTTP/1.1\r\nHost: test\r\n", b"a:\r\n"),
    "body": (LABEL.replace(b"Content-Length: ", b"Content-Length: 9"), b" "),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "chunk": (CHUNKED + b"ffff\r\n", b" "),
    "chunk extension": (CHUNKED + b"1;a=", b"a"),
    "trailer": (CHUNKED + b"0\r\na: ", b"a"),
}


@pytest.fixture(scope="module")
def hasty():
    """A server whose every deadline is short."""
    server = start_server(*SHORT, under=log_to("/dev/null"))
    yield server
    server.stop()


def drip(*each: tuple[Wire, bytes]) -> list[float]:
    """Sends each its piece every tenth of a second until the server says something there; how many seconds that took."""
    began, took = time.monotonic(), {}
    for _ in range(300):
        for wire, piece in each:
            if wire not in took and wire.readable():
                took[wire] = time.monotonic() - began
            elif wire not in took:
                wire.send(piece)
        if len(took) == len(each):
            break
        time.sleep(0.1)
    return [took[wire] for wire, _ in each]


def test_a_request_that_drips_gets_408_however_steadily_it_drips(hasty):
    with ExitStack() as stack:
        wires = {part: stack.enter_context(Wire(hasty)).send(start) for part, (start, _) in SLOW.items()}
        took = drip(*((wire, SLOW[part][1]) for part, wire in wires.items()))
        # Never before its time; and 30 s of drips have not moved it.
        assert min(took) > 0.9 and max(took) < 15
        for part, wire in wires.items():
            answer = wire.answer()
            assert (part, answer.status, answer.closes) == (part, 408, True)
            assert answer.fields["content-type"] == "application/problem+json"
            assert answer.json()["request_id"] == answer.fields["x-request-id"]
            assert (part, *wire.end()) == (part, "closed", b"")


def test_a_second_request_that_drips_is_refused_like_a_first(hasty):
    with Wire(hasty) as wire:
        assert wire.ask(LIVEZ).status == 200
        drip((wire.send(b"GET /livez"), b"a"))
        assert wire.answer().status == 408


def test_a_client_that_drips_on_after_its_408_is_cut_off(hasty):
    with Wire(hasty) as wire:
        drip((wire, b"A"))
        until(lambda: fails(wire, b"A"), "a connection that takes no more")


def fails(wire: Wire, piece: bytes) -> bool:
    try:
        wire.send(piece)
    except OSError:
        return True
    return False


def test_a_new_connection_that_says_nothing_is_closed_without_a_word(hasty):
    with Wire(hasty) as wire:
        assert wire.end() == ("closed", b"")


def test_a_connection_that_asks_nothing_more_is_closed_without_a_word(hasty):
    with Wire(hasty) as wire:
        assert not wire.ask(LIVEZ).closes
        assert wire.end() == ("closed", b"")


def test_a_connection_that_goes_on_asking_outlives_every_deadline(hasty):
    began = time.monotonic()
    with Wire(hasty) as wire:
        while time.monotonic() - began < 2.5:
            assert wire.ask(LABEL).status == 200
            time.sleep(0.1)


def test_an_answer_of_the_thread_pool_is_waited_for_beyond_every_deadline(run):
    server = run("--header-seconds", "0.1", "--request-seconds", "0.3", "--idle-seconds", "0.1", "--threads", "1")
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(server)) for _ in range(12)]
        for wire in wires:
            wire.send(LARGEST)
        assert [wire.answer().status for wire in wires] == [200] * 12


def test_a_client_that_takes_no_answer_is_cut_off(hasty):
    before = open_sockets(hasty.process.pid)
    with Wire(hasty, receive_buffer=2048) as wire:
        wire.send(LARGEST * 12)
        until(lambda: open_sockets(hasty.process.pid) > before, "its connection")
        until(lambda: open_sockets(hasty.process.pid) <= before, "the end of its connection")
        how, got = wire.end()
    # What the kernel had taken in may still arrive, all of it cannot.
    assert len(got) < 12 * 760_000, how


def test_a_client_that_reads_slowly_but_steadily_is_served_to_the_end(run):
    # The rule is 16 KiB within half a second, and this client takes ten times as much: kernels pass data on in large pieces.
    server = run("--send-seconds", "0.5")
    with Wire(server, receive_buffer=16384) as wire:
        wire.send(LARGEST * 6)
        began, count = time.monotonic(), 0
        while time.monotonic() - began < 3:
            count += len(wire.socket.recv(16384))
            time.sleep(0.05)
        assert count < 6 * 760_000
        rest = 6 * 760_000 - count
        while rest > 0:
            data = wire.socket.recv(1 << 20)
            assert data, f"closed with {rest} bytes to come"
            rest -= len(data)


class Good:
    """A client that does nothing wrong, every 50 ms, on one connection that it keeps and on new ones."""

    def __init__(self, server) -> None:
        self.server = server
        self.statuses: Counter[object] = Counter()
        self.slowest = 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        with Wire(self.server) as kept:
            while not self.stopping.wait(0.05):
                for one in (lambda: kept.ask(LABEL), lambda: ask(self.server, LABEL), lambda: ask(self.server, LIVEZ)):
                    began = time.monotonic()
                    try:
                        self.statuses[one().status] += 1
                    except (OSError, EOFError) as error:
                        self.statuses[repr(error)] += 1
                    self.slowest = max(self.slowest, time.monotonic() - began)

    def __enter__(self) -> "Good":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join(60)


ATTACKS = {
    "slow headers": ("-H", "-i", "1", "-x", "8"),
    "slow body": ("-B", "-i", "1", "-x", "8", "-s", "8192"),
    "slow read": ("-X", "-w", "16", "-y", "32", "-n", "1", "-z", "8", "-k", "10"),
}


@pytest.mark.long
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_thousand_slow_connections_are_gone_soon_and_nobody_else_notices(run, attack):
    tool = need("slowhttptest")
    seconds = 4 if CI else 2
    deadlines = [f"--{what}-seconds={seconds}" for what in ("header", "request", "idle", "send")]
    # In this role /openapi.json has ten kilobytes. The role `all` has more with each pattern, until the attack takes the machine.
    server = run("--role", "web_single", *deadlines, under=log_to("/dev/null"), **NOT_MEASURED)
    url = server.url + ("/openapi.json" if attack == "slow read" else "/predict/label")
    command = [tool, "-c", "1000", "-r", "1000", "-l", "60", "-p", "5", *ATTACKS[attack], "-u", url]
    with Good(server) as good:
        slow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            until(lambda: open_sockets(server.process.pid) > 600, "most of the slow connections", 30)
            # It may still be opening the rest; and a client that was refused has two seconds to hang up.
            took = until(lambda: open_sockets(server.process.pid) < 20, "the end of the slow connections", 30)
            answered = good.statuses.total()
            until(lambda: good.statuses.total() >= answered + 30, "good answers afterwards")
        finally:
            slow.terminate()
            out = slow.communicate(timeout=30)[0]
    assert set(good.statuses) == {200}, good.statuses
    assert good.slowest < 5
    assert took < 2 * seconds + 6, out
    fds = metric(ask(server, request("GET", "/metrics")).body.decode(), "process_open_fds")
    assert fds < 40
    assert not re.search(r"service available: *NO", out)
