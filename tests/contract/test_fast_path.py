"""Both paths of a request, the fast one and that of the state machine, give the same responses, log lines, and metrics."""

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from http_clients import ROW, TIMEOUT_SECONDS, HttpResponse, RawConnection, http_request, wait_until
from input_bodies import ACCEPTED, FIXED, NOT_DECODABLE, NOT_VALID, TAKING, row
from live_loops import EMPTY_LINE, LiveLoop, post, serving
from metrics_text import metric_families
from request_vectors import VECTORS
from v2_vectors import MALFORMED

from iris_wsgi.errors import Problem
from iris_wsgi.server.connection import RECEIVE_BYTES
from iris_wsgi.server.event_loop import TURN_EVENTS
from iris_wsgi.server.fast_path import MAX_HEADS
from iris_wsgi.wsgi.application import App

# Samples that differ between two requests for the same prediction.
is_own = re.compile(r"process_|http_(connections|held_bytes|requests_queued)|.*(_sum|_bucket|_seconds_total)").match
TOKEN = "a-token.of~some+letters/and=="
INFER = "/v2/models/iris_svc/infer"
TENSOR = {"name": "features", "datatype": "FP32", "shape": [1, 4]}
ENSEMBLE = "/ensemble/predict"


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Iterator[LiveLoop]:
    with serving(tmp_path_factory.mktemp("live"), role="all", drain_seconds=0) as server:
        yield server


def comparable(response: HttpResponse) -> tuple[int, dict, bytes]:
    """Returns a response without its date and its id."""
    headers = {name: value for name, value in response.headers.items() if name not in ("date", "x-request-id")}
    request_id = response.headers["x-request-id"].encode()
    return response.status, headers, response.body.replace(request_id, b"ID")


def bodies() -> Iterator[tuple[str, bytes]]:
    """Yields paths and bodies of every kind that the tables of input have."""
    valid = [FIXED.encode(), b'{"data":[[5.1,3.5,1.4,0.2]]}', *ACCEPTED.values()]
    named = [
        b'{"data": [{"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}]}'
    ]
    several = [json.dumps({"data": [ROW] * count}).encode() for count in (2, 30)]
    for path in (*TAKING, ENSEMBLE):
        for body in (*valid, *named, *several, *NOT_DECODABLE.values(), *(body for body, _ in NOT_VALID.values())):
            yield path, body
    for body in (*valid, b'{"instances": [[5.1, 3.5, 1.4, 0.2]]}', b'{"instances": [5.1]}', b"{}", b"x"):
        yield "/v1/models/iris_svc:predict", body
    for request in MALFORMED.values():
        yield INFER, request[0].body
    for members in ({"data": ROW}, {"data": [ROW]}, {"data": ROW[:3]}, {"data": ["x"] * 4}):
        for rest in ({}, {"id": "mine"}, {"outputs": [{"name": "label"}]}, {"parameters": {"timeout": 1}}):
            yield INFER, json.dumps({"inputs": [TENSOR | members], **rest}).encode()


LABEL = post("/predict/label", FIXED.encode())
REQUESTS = [post(path, body) for path, body in bodies() if len(body) < 16_000]
HEADERS = """
    Prefer: wait=5|Prefer: wait=0|Accept-Encoding: gzip|Cache-Control: no-cache|X-Request-ID: mine|X-Request-ID: not ok
    Content-Encoding: gzip|Content-Encoding: identity|Content-Type: text/plain|Content-Type: application/json; charset=utf-8
    Connection: close|Connection: keep-alive|Expect: 100-continue|Host: other|Inference-Header-Content-Length: 5|Via: 1.1 a
    Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01|X-Forwarded-Prefix: /x|Origin: http://a
"""


def test_both_paths_give_the_same_response_to_each_body(live):
    fast = 0
    for request in REQUESTS:
        first, second, was_fast = live.both(request)
        assert comparable(first) == comparable(second), request
        fast += was_fast
    # Only larger bodies and those of a size that the loop does not run take the other path.
    assert fast > len(REQUESTS) / 2


@pytest.mark.parametrize("field", [field.strip() for field in re.split(r"[|\n]", HEADERS.strip())])
def test_both_paths_give_the_same_response_with_each_header(live, field):
    for path, body in (("/predict/label", FIXED.encode()), ("/predict", row("null")), ("/predict/batch", FIXED.encode())):
        request = post(path, body, field)
        if field.startswith("Content-Type"):
            request = request.replace(b"Content-Type: application/json\r\n", b"", 1)
        for _ in range(2):
            first, second, _ = live.both(request)
            first_id, second_id = (one.headers["x-request-id"] for one in (first, second))
            assert comparable(first) == comparable(second)
            assert (first_id == second_id) == (field == "X-Request-ID: mine")


def test_both_paths_write_the_same_log_lines_and_count_the_same(tmp_path):
    found = []
    for name, prefix in (("fast", b""), ("slow", EMPTY_LINE)):
        (tmp_path / name).mkdir()
        with serving(tmp_path / name, role="all", drain_seconds=0) as server:
            for request in REQUESTS:
                with RawConnection(server) as connection:
                    connection.exchange(prefix + request)
            wait_until(lambda server=server: len(server.lines()) >= len(REQUESTS), "a line for each request")
            lines = [
                {k: v for k, v in line.items() if k not in ("time", "ms", "request_id")}
                for line in server.lines()
                if "route" in line
            ]
            with RawConnection(server) as connection:
                text = connection.exchange(http_request("GET", "/metrics")).body.decode()
            samples = {
                (sample.name, *sample.labels.items()): sample.value
                for family in metric_families(text).values()
                for sample in family.samples
                if not is_own(sample.name)
            }
            found.append((lines, samples))
            assert any(server.fast) == (name == "fast")
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    assert found[0][1]["http_requests_total", ("method", "POST"), ("route", "/predict/label"), ("status", "200")] > 10


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_a_request_that_deviates_takes_the_path_of_the_state_machine(live, vector):
    count = len(live.fast)
    with RawConnection(live) as connection:
        connection.send(vector.request[:16_384])
        wait_until(lambda: len(live.fast) > count, "the first read")
    usual = vector.statuses == (200,) and vector.request.startswith(b"POST /predict") and not vector.closes
    assert usual or not live.fast[count]


def test_the_usual_request_takes_the_fast_path_from_the_first_one(live):
    for path in (*TAKING, ENSEMBLE):
        assert live.both(post(path, FIXED.encode(), "User-Agent: first"))[2]
    assert live.both(post(INFER, json.dumps({"inputs": [TENSOR | {"data": ROW}]}).encode()))[2]


EMPTY_BODY = b"POST /predict/label HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [(LABEL + LABEL,), (LABEL + EMPTY_BODY[:9], EMPTY_BODY[9:]), (LABEL[:20], LABEL[20:] + LABEL)],
    ids=["two at once", "one and a piece", "a piece, and then the rest with another one"],
)
def test_several_requests_in_a_read_are_answered_in_order(live, pieces):
    with RawConnection(live) as connection:
        for piece in pieces:
            count = len(live.fast)
            connection.send(piece)
            if piece is not pieces[-1]:
                wait_until(lambda count=count: len(live.fast) > count or connection.readable(), "the piece has arrived")
        assert connection.receive().status == 200
        assert connection.receive().status in (200, 400)
        # The connection continues.
        count = len(live.fast)
        assert connection.exchange(LABEL).status == 200
        wait_until(lambda: live.fast[count:] == [True], "the fast path")


def test_an_empty_line_is_skipped_before_every_request_of_a_connection(live):
    with RawConnection(live) as connection:
        for _ in range(3):
            count = len(live.fast)
            connection.send(EMPTY_LINE)
            wait_until(lambda count=count: len(live.fast) > count, "the empty line has arrived")
            assert connection.exchange(LABEL).status == 200


def test_a_limited_number_of_heads_is_remembered(live):
    for number in range(MAX_HEADS + 10):
        with RawConnection(live) as connection:
            assert connection.exchange(post("/predict/label", FIXED.encode(), f"User-Agent: {number}")).status == 200
    assert 0 < len(live.loop.fast_path.heads) <= MAX_HEADS
    heads = dict(live.loop.fast_path.heads)
    with RawConnection(live) as connection:
        connection.exchange(post("/predict/label", FIXED.encode(), "User-Agent: long", f"X-Long: {'x' * 1024}"))
        connection.exchange(post("/predict/label", FIXED.encode(), "X-Request-ID: one"))
        connection.exchange(post("/predict/labels", FIXED.encode()))
        connection.exchange(http_request("GET", "/livez"))
    assert live.loop.fast_path.heads == heads


def test_a_token_counts_until_the_file_has_another_one(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    with serving(tmp_path, role="web_single", token_file=str(file), drain_seconds=0) as server:
        request = post("/predict/label", FIXED.encode(), f"Authorization: Bearer {TOKEN}")
        large = post(
            "/predict/batch", json.dumps({"data": [ROW] * 2000}).encode(), "Authorization: Bearer other-token-of-some-length"
        )
        assert [response.status for response in server.both(request)[:2]] == [200, 200] and server.fast[0]
        assert server.both(large)[0].status == 401
        server.loop.app.tokens.load(b"other-token-of-some-length\n")
        first, second, fast = server.both(request)
        assert (first.status, second.status, fast) == (401, 401, False)
        assert comparable(first) == comparable(second)
        assert server.both(large)[0].status == 200
        server.loop.app.tokens.load(TOKEN.encode())
        assert server.both(request)[0].status == 200


def test_a_body_over_the_limit_gets_413_over_both_paths(tmp_path):
    with serving(tmp_path, role="web_single", max_body_bytes=100, max_rows=5, drain_seconds=0) as server:
        first, second, fast = server.both(post("/predict/batch", json.dumps({"data": [ROW] * 5}).encode()))
        assert (first.status, second.status, fast) == (413, 413, False)


def test_a_request_that_waited_too_long_gets_504_and_nothing_runs(live):
    path = live.loop.fast_path
    now = live.loop.now
    known = path.heads.get(b"") or path.prepare(LABEL.removesuffix(FIXED.encode()))
    assert known is not None and known.inline is not None
    with pytest.raises(Problem) as raised:
        known.inline(FIXED.encode(), now - 1)
    assert raised.value.status == 504


class Stopping:
    """Application that stops the server while it computes a response."""

    def __init__(self, app: App) -> None:
        self.app, self.loop = app, None
        self.answer, self.authorize, self.observer, self.inline, self.schedule, self.failure = (
            app.answer, app.authorize, app.observer, app.inline, app.schedule, app.failure,
        )  # fmt: skip

    def prepare(self, head):
        prepared = self.app.prepare(head)

        def inline(body, deadline):
            self.loop.stop()
            return prepared.inline(body, deadline)

        return prepared._replace(inline=inline)


def test_a_stop_during_a_request_closes_its_connection_after_the_response(tmp_path):
    with serving(tmp_path, Stopping, role="web_single") as server:
        server.loop.app.loop = server.loop
        with RawConnection(server) as connection:
            response = connection.exchange(LABEL)
            assert (response.status, response.headers["connection"]) == (200, "close")
            with pytest.raises(EOFError):
                connection.receive()
    assert server.fast == [True]


def failing(app: App, error: Exception) -> App:
    """Replaces the handlers of an application by one that fails."""
    prepare = app.prepare

    def fail(*_):
        raise error

    app.prepare = lambda head: prepare(head)._replace(inline=None, respond=fail)
    return app


def test_a_handler_that_fails_gets_500_and_only_the_log_has_its_text(tmp_path):
    with serving(tmp_path, lambda app: failing(app, RuntimeError("secret")), role="web_single", drain_seconds=0) as server:
        with RawConnection(server) as connection:
            response = connection.exchange(LABEL)
            assert response.status == 500 and b"secret" not in response.body
            assert connection.exchange(LABEL).status == 500
        wait_until(lambda: len(server.lines()) == 4, "two tracebacks and two lines")
        assert server.fast == [True, True]
        failure, line = server.lines()[:2]
        assert "secret" in failure["traceback"] and line["status"] == 500
        assert failure["request_id"] == line["request_id"] == response.headers["x-request-id"]


def test_no_connection_is_served_twice_while_another_one_waits(tmp_path):
    """Each of many connections has two requests ready, of which one read gets exactly one."""
    count, rounds = 3 * TURN_EVENTS + 5, 2
    head = LABEL.removesuffix(FIXED.encode()).replace(b"Content-Length: 32", b"Content-Length: %d")
    body = FIXED.ljust(RECEIVE_BYTES - len(head % RECEIVE_BYTES)).encode()
    request = head % len(body) + body
    assert len(request) == RECEIVE_BYTES
    with serving(tmp_path, role="web_single", queue=count * rounds, drain_seconds=0) as server, ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(count)]
        wait_until(lambda: len(server.loop.connections) == count, "all connections are accepted")
        serve, order = server.loop.fast_path.serve, []
        server.loop.fast_path.serve = lambda connection, data: order.append(connection.fd) or serve(connection, data)
        waits, continues = threading.Event(), threading.Event()
        server.loop.tick = lambda: (waits.set(), continues.wait())
        assert waits.wait(TIMEOUT_SECONDS)
        for connection in connections:
            connection.send(request * rounds)
        continues.set()
        for connection in connections:
            assert [connection.receive().status for _ in range(rounds)] == [200] * rounds
    assert [len(set(order[i * count : (i + 1) * count])) for i in range(rounds)] == [count] * rounds
    assert len(order) == count * rounds


def test_every_request_before_a_stop_has_its_line_and_its_count(tmp_path):
    with serving(tmp_path, role="web_single", drain_seconds=0) as server:
        with RawConnection(server) as connection:
            for _ in range(50):
                connection.exchange(LABEL)
        server.loop.stop()
        wait_until(lambda: not server.loop.connections and len(server.lines()) == 50, "the lines of all requests")
        assert len({line["request_id"] for line in server.lines()}) == 50


def test_a_reset_by_the_client_leaves_the_loop_alone(live):
    connection = RawConnection(live)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.send(LABEL)
    connection.socket.close()
    with RawConnection(live) as connection:
        assert connection.exchange(LABEL).status == 200
