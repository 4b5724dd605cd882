"""Models on other servers: the validation of their responses, and the effects of failures."""

import json
import os
import socket
import threading
import time
from contextlib import ExitStack
from math import inf
from operator import le

import numpy as np
import pytest
from applications import RecordingLog
from fault_proxy import FaultProxy
from http_clients import wait_until
from predictors import of_arrays
from project import MODEL

from iris_wsgi.client.call import Call, run_calls
from iris_wsgi.client.endpoint import Address, CallMetrics, Endpoint, RetryBudget
from iris_wsgi.client.inference import remote_predictor
from iris_wsgi.client.prober import Prober
from iris_wsgi.client.v2_messages import RemoteModel, infer_request, parse_probabilities
from iris_wsgi.errors import BadGateway, DeadlineExceeded, ServiceUnavailable
from iris_wsgi.http.response_parser import InvalidResponse, ParsedResponse, ResponseParser
from iris_wsgi.model.predictor import PredictContext
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.observability.trace_context import request_ids

ROWS = np.array([[-0.9, 1.02, -1.34, -1.31], [0.5, -0.1, 0.6, 0.4]], np.float32)
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"


class CheckedEndpoint:
    """Endpoint after one health check, with its predictor."""

    def __init__(self, server, wait_seconds: float = inf) -> None:
        self.log, self.registry = RecordingLog(), Registry()
        metrics = CallMetrics(self.registry, ["pred"])
        self.registry.join()
        self.endpoint = Endpoint("pred", Address(server.host, server.port), metrics, self.log.event, wait_seconds)
        self.prober = Prober(self.endpoint, ROWS[:1], lambda peer: None)
        self.prober.probe()
        self.ask = of_arrays(remote_predictor(self.endpoint))

    def check(self) -> str | None:
        self.prober.probe_at = 0.0
        self.prober.probe()
        return self.endpoint.why_not()

    def count(self, family: str, outcome: str | None = None) -> float:
        key = ("pred", outcome) if outcome else ("pred",)
        item = getattr(self.endpoint.metrics, family)
        return self.registry.total(item.first[key])


@pytest.fixture(scope="session")
def pred(upstream_settings):
    host, port = upstream_settings["prep"]["pred_url"].removeprefix("http://").split(":")
    return Address(host, int(port))


@pytest.fixture
def faulty(pred):
    with FaultProxy(pred) as server:
        yield server


@pytest.fixture
def endpoint_under_test(faulty):
    endpoint_under_test = CheckedEndpoint(faulty)
    assert endpoint_under_test.endpoint.why_not() is None
    faulty.requests.clear()
    yield endpoint_under_test
    endpoint_under_test.endpoint.end()


# Responses as bytes


def parse_pieces(data: bytes, max_bytes: int = 100, step: int = 1000) -> ParsedResponse | None:
    incoming = ResponseParser(max_bytes)
    found = None
    for i in range(0, len(data), step):
        assert found is None
        found = incoming.feed(data[i : i + step])
    return found


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_response_is_the_same_in_any_pieces(step):
    assert parse_pieces(GOOD, step=step) == ParsedResponse(200, {"content-length": "5", "x-a": "b"}, b"hello", True)


def test_a_connection_that_announces_its_close_is_not_kept():
    assert not parse_pieces(GOOD.replace(b"X-A: b", b"Connection: Close")).keep_alive


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\x00\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2 200\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX-Model-Digest: a\r\nX-Model-Digest: b\r\nContent-Length: 0\r\n\r\n",
        GOOD + b"x",
        GOOD * 2,
        b"x" * 20_000,
        b"x",
        b"HTTP/1.0",
    ],
)
def test_invalid_bytes_are_distinguished_from_a_response(data):
    with pytest.raises(InvalidResponse):
        parse_pieces(data, step=100_000)


PEER = RemoteModel("m", "scaled", 4, "probabilities", 3, 10, {"digest": "sha256:1"})
OUTPUT = {"name": "probabilities", "datatype": "FP32", "shape": [1, 3]}
VALUES = np.array([[0.5, 0.25, 0.25]], np.float32).tobytes()


def answer_of(outputs=(OUTPUT,), values: bytes = VALUES, digest: str = "sha256:1", length: str | None = None) -> ParsedResponse:
    document = json.dumps({"model_name": "m", "outputs": list(outputs)}).encode()
    result = str(len(document)) if length is None else length
    fields = {"x-model-digest": digest, "inference-header-content-length": result}
    return ParsedResponse(200, {name: value for name, value in fields.items() if value}, document + values, True)


def test_a_response_with_the_expected_shape_and_model_is_accepted():
    assert parse_probabilities(answer_of(), PEER, 1).tolist() == [[0.5, 0.25, 0.25]]


@pytest.mark.parametrize(
    "reply",
    [
        answer_of(digest="sha256:2"),
        answer_of(digest=""),
        answer_of(length=""),
        answer_of(length="-1"),
        answer_of(length="9" * 20),
        answer_of(length="100000"),
        answer_of(length="0"),
        answer_of(length="3"),
        answer_of(outputs=()),
        answer_of(outputs=(OUTPUT, OUTPUT)),
        answer_of(outputs=(1,)),
        answer_of(outputs=(OUTPUT | {"name": "label"},)),
        answer_of(outputs=(OUTPUT | {"datatype": "FP64"},)),
        answer_of(outputs=(OUTPUT | {"shape": [3, 1]},)),
        answer_of(outputs=(OUTPUT | {"shape": None},)),
        answer_of(values=VALUES[:-1]),
        answer_of(values=VALUES + b"\0"),
        answer_of(values=np.array([[np.nan, 0, 0]], np.float32).tobytes()),
        answer_of(values=np.array([[np.inf, 0, 0]], np.float32).tobytes()),
        ParsedResponse(200, {"x-model-digest": "sha256:1", "inference-header-content-length": "2"}, b"[]" + VALUES, True),
    ],
)
def test_a_response_with_another_shape_or_model_is_refused(reply):
    with pytest.raises(InvalidResponse):
        parse_probabilities(reply, PEER, 1)


# Calls


def test_the_second_half_responds_like_its_model(endpoint_under_test):
    from iris_wsgi.model.session import load_model

    model, _ = load_model(MODEL / "pred")
    rows = np.random.default_rng(1).normal(0, 3, (25_000, 4)).astype(np.float32)
    assert endpoint_under_test.ask(rows).tobytes() == model.predict(rows).tobytes()
    # The maximum number of rows that the other server accepts in one call.
    assert endpoint_under_test.count("calls", "ok") == 3


def test_the_request_has_the_id_the_trace_and_the_remaining_time(pred, faulty):
    endpoint_under_test = CheckedEndpoint(faulty)
    came = {"HTTP_X_REQUEST_ID": "mine", "HTTP_TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01", "HTTP_TRACESTATE": "x=1"}
    ids = request_ids(came)
    faulty.requests.clear()
    remote_predictor(endpoint_under_test.endpoint)(ROWS, PredictContext(time.monotonic() + 5, ids=ids))
    head, _, body = faulty.requests[-1].partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert (fields["X-Request-ID"], fields["traceparent"], fields["tracestate"]) == (
        "mine",
        f"00-{'a' * 32}-{ids.context.span}-01",
        "x=1",
    )
    timeout = json.loads(body[: int(fields["Inference-Header-Content-Length"])])["parameters"]["timeout"]
    assert 0 < timeout <= 5_000_000
    endpoint_under_test.endpoint.end()


@pytest.mark.parametrize(
    ("mode", "problem", "outcome"),
    [
        ("garbage", BadGateway, "bad_answer"),
        ("half", BadGateway, "bad_answer"),
        ("twice", BadGateway, "bad_answer"),
        ("hang", DeadlineExceeded, "late"),
        ("drip", DeadlineExceeded, "late"),
    ],
)
def test_each_fault_has_its_own_error_and_recovery_needs_no_action(endpoint_under_test, faulty, mode, problem, outcome):
    faulty.mode = mode
    for _ in range(3):
        with pytest.raises(problem):
            # The requests that get a response have enough time.
            endpoint_under_test.ask(ROWS, time.monotonic() + (0.6 if outcome == "late" else 60))
    assert endpoint_under_test.count("calls", outcome) == 3
    # The breaker is open now, so there is no call.
    request_count = len(faulty.requests)
    with pytest.raises(ServiceUnavailable):
        endpoint_under_test.ask(ROWS, time.monotonic() + 60)
    assert (len(faulty.requests), endpoint_under_test.count("calls", "refused"), endpoint_under_test.count("down")) == (
        request_count,
        1,
        1,
    )
    faulty.mode = "pass"
    wait_until(lambda: endpoint_under_test.check() is None, "the server is called again")
    assert endpoint_under_test.ask(ROWS).shape == (2, 3)
    assert endpoint_under_test.count("down") == 0 and endpoint_under_test.count("connections") == 1
    result = [line["message"] for line in endpoint_under_test.log.events() if line["message"].startswith("pred is")]
    assert result[0].startswith("pred is not called: ") and result[-1] == "pred is called again"


@pytest.mark.parametrize("mode", ["reset", "mute"])
def test_a_kept_connection_that_ends_without_a_response_is_tried_once_more_on_a_new_one(endpoint_under_test, faulty, mode):
    for _ in range(10):
        endpoint_under_test.ask(ROWS)
    faulty.mode, faulty.remaining = mode, 1
    assert endpoint_under_test.ask(ROWS).shape == (2, 3)
    assert (
        endpoint_under_test.count("retries"),
        endpoint_under_test.count("connections"),
        endpoint_under_test.endpoint.breaker.failures,
    ) == (1, 1, 0)
    # A new connection that ends in this way has had its request.
    faulty.mode, faulty.remaining = mode, 2
    with pytest.raises((BadGateway, ServiceUnavailable)):
        endpoint_under_test.ask(ROWS)


def test_a_kept_connection_that_the_server_has_closed_costs_no_retry(endpoint_under_test, faulty):
    endpoint_under_test.ask(ROWS)
    (waiting,) = endpoint_under_test.endpoint.idle
    for connection in list(faulty.connections):
        connection.shutdown(2)
    wait_until(lambda: not waiting.is_idle(), "the end of the connection has arrived")
    endpoint_under_test.ask(ROWS)
    assert endpoint_under_test.count("retries") == 0


@pytest.mark.parametrize("host", ["refuses", "says nothing"])
def test_of_two_addresses_the_working_one_is_found(endpoint_under_test, host):
    for _ in range(10):
        endpoint_under_test.ask(ROWS)
    endpoint_under_test.endpoint.end()
    with ExitStack() as stack:
        dead = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        gone = dead.getsockname()
        if host == "refuses":
            dead.close()
        else:
            # No process accepts, and the backlog is full.
            for _ in range(4):
                item = stack.enter_context(socket.socket())
                item.setblocking(False)
                item.connect_ex(gone)
        (alive,) = endpoint_under_test.endpoint.socket_addresses
        endpoint_under_test.endpoint.closed = False
        endpoint_under_test.endpoint.socket_addresses, endpoint_under_test.endpoint.next_address = [alive, (alive[0], gone)], 0
        assert endpoint_under_test.ask(ROWS, time.monotonic() + 30).shape == (2, 3)
    assert (endpoint_under_test.count("retries"), endpoint_under_test.count("connections")) == (1, 1)


def test_an_old_connection_is_replaced(endpoint_under_test, monkeypatch):
    endpoint_under_test.ask(ROWS)
    opened = endpoint_under_test.count("opened")
    monkeypatch.setattr("iris_wsgi.client.endpoint.LIFE_SECONDS", 0.0)
    endpoint_under_test.ask(ROWS)
    assert (endpoint_under_test.count("opened"), endpoint_under_test.count("connections")) == (opened, 0)
    endpoint_under_test.ask(ROWS)
    assert endpoint_under_test.count("opened") == opened + 1


def test_an_unreachable_server_is_503_and_retries_are_limited_to_a_tenth(endpoint_under_test, faulty):
    faulty.__exit__()
    endpoint_under_test.endpoint.end()
    for _ in range(300):
        # The breaker gets no failures, so every call is tried.
        endpoint_under_test.endpoint.breaker.failures = 0
        with pytest.raises(ServiceUnavailable):
            endpoint_under_test.ask(ROWS)
    assert endpoint_under_test.count("calls", "unreachable") == 300
    assert 25 <= endpoint_under_test.count("retries") <= 30


def test_a_timeout_after_the_usual_latency_counts_as_a_failure(faulty):
    endpoint_under_test = CheckedEndpoint(faulty, wait_seconds=0.01)
    faulty.mode = "hang"
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            endpoint_under_test.ask(ROWS, time.monotonic() + 0.5)
    assert not endpoint_under_test.endpoint.breaker.up
    endpoint_under_test.endpoint.end()


def test_a_timeout_that_is_shorter_than_the_latency_does_not_count_as_a_failure(endpoint_under_test, faulty):
    faulty.mode = "hang"
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            endpoint_under_test.ask(ROWS, time.monotonic() + 0.05)
    assert endpoint_under_test.endpoint.breaker.failures == 0


def test_hedges_are_limited_to_a_tenth_of_the_calls():
    budget, spent = RetryBudget(), 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend() + budget.spend()
    assert spent == 100
    for _ in range(1000):
        budget.earn()
    # The unused budget does not accumulate.
    assert sum(budget.spend() for _ in range(100)) == 5


# Health checks


def test_a_server_with_another_model_is_not_called_and_states_the_reason(faulty):
    endpoint_under_test = CheckedEndpoint(faulty)
    endpoint_under_test.endpoint.end()
    target = Endpoint(
        "pred", endpoint_under_test.endpoint.address, CallMetrics(Registry(), ["pred"]), endpoint_under_test.log.event
    )
    Prober(target, ROWS[:1], lambda peer: f"it has {peer.digest}").probe()
    assert "it has sha256:" in target.why_not()
    with pytest.raises(ServiceUnavailable):
        of_arrays(remote_predictor(target))(ROWS)
    target.end()
    Prober(target, ROWS[:1, :3], lambda peer: None).probe()
    assert "takes 4 values, not 3" in target.why_not()


def test_a_model_that_changes_during_a_connection_is_noticed_at_once(endpoint_under_test, faulty, upstream_settings):
    host, port = upstream_settings["gateway"]["members"].split(",")[0].partition("=http://")[2].split(":")
    faulty.server = Address(host, int(port))
    with pytest.raises(BadGateway):
        endpoint_under_test.ask(ROWS)
    assert "404" in endpoint_under_test.check() or "answer" in endpoint_under_test.endpoint.why_not()
    endpoint_under_test.check()
    assert endpoint_under_test.endpoint.why_not() is None and endpoint_under_test.endpoint.model.parameters["member"] == "setosa"


@pytest.mark.long
def test_nothing_stays_open_after_ten_thousand_calls_with_faults(endpoint_under_test, faulty):
    def resource_counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    modes = ["garbage", "reset", "mute", "twice"]
    target = endpoint_under_test.endpoint
    message = infer_request(target.model, target.address.authority, ROWS, 1.0, ())
    endpoint_under_test.ask(ROWS)
    endpoint_under_test.endpoint.end()
    endpoint_under_test.endpoint.closed = False
    before = resource_counts()
    for i in range(10_000):
        if i % 500 == 0:
            faulty.mode, faulty.remaining = modes[i // 500 % 4], 3
        call = Call(target, message, 100_000)
        run_calls([call], time.monotonic() + 20)
        assert call.result is not None and not call.exchange
    target.end()
    assert endpoint_under_test.count("connections") == 0
    # The server may have been closing some connections before.
    wait_until(lambda: all(map(le, resource_counts(), before)), "the threads and connections of the server are gone")
