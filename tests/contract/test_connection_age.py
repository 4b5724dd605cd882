"""A connection past its age, or at its last request, ends with a response, and no request that has arrived is lost."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest
from http_clients import (
    LABEL_REQUEST,
    LIVEZ,
    POOLED_REQUEST,
    ROW,
    TIMEOUT_SECONDS,
    RawConnection,
    fetch,
    http_request,
    wait_until,
)
from input_bodies import FIXED
from live_loops import EMPTY_LINE, post, serving

from iris_wsgi.server import connection as connections
from iris_wsgi.server import event_loop
from iris_wsgi.server.connection import MAX_AGE, PIPELINE_SECONDS, RECEIVE_BYTES, retirement_time
from iris_wsgi.server.event_loop import EventLoop
from iris_wsgi.settings import Settings

# A usual request that fills one read: its body ends in blanks.
HEAD_BYTES = len(post("/predict/label", bytes(RECEIVE_BYTES))) - RECEIVE_BYTES
FILLED_REQUEST = post("/predict/label", FIXED.encode().ljust(RECEIVE_BYTES - HEAD_BYTES))
# Idle connections and requests in progress have more time than this.
AGE = 5.0
JUST_PAST = AGE * MAX_AGE
PATHS = pytest.mark.parametrize("prefix", [b"", EMPTY_LINE], ids=["fast path", "state machine"])


class LaterClock:
    """Monotonic time of an event loop in this process, which a test advances."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def now(self) -> float:
        return time.monotonic() + self.skipped

    def advance(self, loop: EventLoop, seconds: float) -> None:
        """Advances the time, and waits until the loop has noticed it."""
        self.skipped += seconds
        reached = self.now()
        wait_until(lambda: loop.now >= reached, "a turn of the loop")


@pytest.fixture
def later(monkeypatch) -> LaterClock:
    clock = LaterClock()
    monkeypatch.setattr(event_loop, "monotonic", clock.now)
    return clock


def assert_last(connection: RawConnection, response) -> None:
    """The response closes the connection, which ends without a reset and without a further response."""
    assert (response.status, response.closes) == (200, True)
    assert connection.read_to_end() == ("closed", b"")


@PATHS
@pytest.mark.parametrize("data", [LABEL_REQUEST, LIVEZ, POOLED_REQUEST], ids=["usual", "GET", "pooled"])
def test_the_first_response_after_the_age_closes_the_connection(tmp_path, later, prefix, data):
    with serving(tmp_path, role="web_single", connection_seconds=AGE) as server, RawConnection(server) as connection:
        for _ in range(3):
            response = connection.exchange(prefix + data)
            assert (response.status, response.closes) == (200, False)
        later.advance(server.loop, JUST_PAST)
        # An idle connection stays open, because a close could cross the next request.
        assert not connection.readable()
        assert_last(connection, connection.exchange(prefix + data))
        assert not fetch(server, prefix + data).closes
    assert any(server.fast) == (data == LABEL_REQUEST and not prefix)


@pytest.mark.long
@PATHS
def test_without_an_age_a_connection_stays_open(tmp_path, later, prefix):
    with serving(tmp_path, role="web_single", connection_seconds=0) as server, RawConnection(server) as connection:
        for _ in range(10):
            assert not connection.exchange(prefix + LABEL_REQUEST).closes
            # Less than the time limit of an idle connection.
            later.advance(server.loop, 50)


@PATHS
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_last_request_of_a_connection_closes_it(tmp_path, prefix, count):
    with serving(tmp_path, role="web_single", connection_requests=count) as server:
        for data in (LABEL_REQUEST, LIVEZ, POOLED_REQUEST):
            with RawConnection(server) as connection:
                responses = [connection.exchange(prefix + data) for _ in range(count)]
                assert [response.closes for response in responses] == [False] * (count - 1) + [True]
                assert_last(connection, responses[-1])


@contextmanager
def paused(loop: EventLoop) -> Iterator[None]:
    """Stops the loop between two turns, so that several requests arrive before it reads."""
    waits, continues = threading.Event(), threading.Event()
    loop.tick = lambda: (waits.set(), continues.wait())
    assert waits.wait(TIMEOUT_SECONDS)
    loop.tick = lambda: None
    yield
    continues.set()


# Pipelined requests that arrive before the loop reads: in one read, in several, and one in each.
PIPELINES = {
    "usual": [LABEL_REQUEST] * 3,
    "GET": [LIVEZ] * 3,
    "mixed": [POOLED_REQUEST, LIVEZ, LABEL_REQUEST],
    "many": [LIVEZ, LABEL_REQUEST] * 100,
    "one in a read": [FILLED_REQUEST] * 3,
}


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("limit", ["age", "requests"])
def test_all_requests_that_have_arrived_are_answered_and_the_last_response_closes(tmp_path, later, limit, pipeline):
    limits = {"connection_seconds": AGE} if limit == "age" else {"connection_requests": 2}
    with serving(tmp_path, role="web_single", **limits) as server, RawConnection(server) as connection:
        assert not connection.exchange(LIVEZ).closes
        with paused(server.loop):
            connection.send(b"".join(pipeline))
            later.skipped += JUST_PAST
        responses = [connection.receive() for _ in pipeline]
        assert {response.status for response in responses} == {200}
        assert [response.closes for response in responses] == [False] * (len(pipeline) - 1) + [True]
        assert connection.read_to_end() == ("closed", b"")


def test_a_request_that_has_begun_to_arrive_is_answered_before_the_close(tmp_path, later):
    with serving(tmp_path, role="web_single", connection_seconds=AGE) as server, RawConnection(server) as connection:
        connection.exchange(LIVEZ)
        with paused(server.loop):
            connection.send(LABEL_REQUEST + LABEL_REQUEST[:-5])
            later.skipped += JUST_PAST
        assert not connection.receive().closes
        assert_last(connection, connection.exchange(LABEL_REQUEST[-5:]))


@pytest.mark.parametrize("data", [LABEL_REQUEST, LIVEZ, FILLED_REQUEST], ids=["usual", "GET", "one in a read"])
def test_a_client_that_never_stops_pipelining_is_cut_off_without_a_reset(tmp_path, later, data):
    with serving(tmp_path, role="web_single", connection_seconds=AGE) as server, RawConnection(server) as connection:
        connection.exchange(LIVEZ)
        with paused(server.loop):
            connection.send(data * 3)
            later.skipped += JUST_PAST + PIPELINE_SECONDS
        assert_last(connection, connection.receive())


@pytest.mark.long
def test_a_client_that_still_sends_after_the_last_response_gets_no_reset(tmp_path, later, monkeypatch):
    # Longer than a busy machine may stop this test.
    monkeypatch.setattr(connections, "LINGER_SECONDS", 20.0)
    limits = {"connection_seconds": AGE, "request_seconds": 100}
    with serving(tmp_path, role="web_single", **limits) as server, RawConnection(server) as connection:
        connection.exchange(LIVEZ)
        later.advance(server.loop, JUST_PAST)
        assert connection.exchange(LIVEZ).closes
        # More than the time limit between two pieces of the client in all.
        for _ in range(4):
            connection.send(LABEL_REQUEST)
            later.advance(server.loop, 15)
        assert connection.send(LABEL_REQUEST).read_to_end() == ("closed", b"")
        # Silence has a limit.
        later.advance(server.loop, 21)
        wait_until(lambda: not server.loop.connections, "the end of the connection")


def test_a_connection_of_http_1_0_says_keep_alive_until_its_age(tmp_path, later):
    data = b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    with serving(tmp_path, role="web_single", connection_seconds=AGE) as server, RawConnection(server) as connection:
        assert connection.exchange(data).headers["connection"] == "keep-alive"
        later.advance(server.loop, JUST_PAST)
        assert_last(connection, connection.exchange(data))


def test_a_request_in_the_pool_that_outlives_the_age_closes_the_connection(tmp_path, later):
    with serving(tmp_path, role="web_single", connection_seconds=AGE) as server, RawConnection(server) as connection:
        answer, runs, continues = server.loop.app.answer, threading.Event(), threading.Event()
        server.loop.app.answer = lambda *arguments: (runs.set(), continues.wait(), answer(*arguments))[-1]
        connection.send(POOLED_REQUEST)
        assert runs.wait(TIMEOUT_SECONDS)
        later.advance(server.loop, JUST_PAST)
        continues.set()
        assert_last(connection, connection.receive())


def test_a_long_poll_that_outlives_the_age_closes_the_connection(tmp_path, later):
    with serving(tmp_path, role="asynchronous", connection_seconds=AGE) as server, RawConnection(server) as connection:
        job = fetch(server, http_request("POST", "/jobs", {"data": [ROW]})).headers["location"]
        connection.send(http_request("GET", job, None, "Prefer: wait=30"))
        wait_until(lambda: server.loop.long_polls, "the long poll")
        later.advance(server.loop, JUST_PAST)
        assert fetch(server, http_request("DELETE", job)).status == 200
        assert_last(connection, connection.receive())


def test_a_server_that_stops_closes_connections_before_and_after_their_age(tmp_path, later):
    with serving(tmp_path, role="web_single", connection_seconds=AGE, grace_seconds=60) as server:
        with RawConnection(server) as old:
            assert not old.exchange(LIVEZ).closes
            later.advance(server.loop, JUST_PAST)
            with RawConnection(server) as new:
                assert not new.exchange(LIVEZ).closes
                server.loop.stop()
                for connection in (old, new):
                    assert_last(connection, connection.exchange(LABEL_REQUEST))
        later.advance(server.loop, 60)


def test_the_ages_of_connections_are_spread_by_ten_percent():
    limits = Settings(connection_seconds=300)
    ages = [retirement_time(limits, 1000.0) - 1000 for _ in range(1000)]
    assert 270 <= min(ages) < 280 and 320 < max(ages) <= 330
    assert retirement_time(Settings(connection_seconds=0), 1000.0) == inf
    assert retirement_time(Settings(), 0.0) < inf
