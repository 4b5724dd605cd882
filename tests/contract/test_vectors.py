"""Every vector of request_vectors.py on a real socket: in one piece, with separate bodies, and in random pieces."""

import json
import random
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from http_clients import CI, ready_events
from request_vectors import HOST, MARKER, NEXT, VECTORS, Vector, get, message

SECONDS = 9.0
LIVE = b'{"live":true}\n'
DRIPPED = [vector for vector in VECTORS if 3 < len(vector.request) < 2048]
# These vectors are also sent byte by byte: they have bytes between CR and LF, in a size, in a trailer, and before a refusal.
BYTEWISE = [
    "get-/livez",
    "expect",
    "chunk-extension-;a;b;c=d",
    "trailer-two",
    "pipeline-of-3-mixed",
    "pipeline-ends-with-close",
    "head-ends-with-cr-cr-lf",
    "lines-end-with-cr-and-nothing-follows",
    "lines-end-with-lf-and-nothing-follows",
    "chunk-end-alone-583a20790d7a",
    "chunk-alone-20\\x0dx",
    "chunk-data-ends-with-0d0d0a",
    "coding-twice",
    "trailer-with-a-bare-lf",
    "1.0-Connection:\\x20keep-alive",
]

answer_head = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([A-Za-z -]+)\r\n((?:[A-Za-z-]+: [\x20-\x7e]*\r\n)*)\r\n").match
expecting_head = re.compile(rb"Expect: *\t? *100-continue[^\r]*\r\n(?:[^\r\n]+\r\n)*\r\n", re.IGNORECASE)
imf_date = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)
numbers_of_requests = re.compile(rb"\r\nX-Request-ID: (p[0-9]+)\r\n").findall


class Answer(NamedTuple):
    """Final response."""

    status: int
    fields: list[tuple[str, str]]
    content: bytes

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field.lower() == name]


class Client:
    """Connection that stores all received bytes. Each wait for an event takes at most SECONDS."""

    def __init__(self, server) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.ended = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def read(self) -> None:
        """Reads the available bytes. A reset of the connection is an error."""
        data = self.socket.recv(1 << 18)
        self.received += data
        self.ended = not data

    def send(self, data: bytes) -> None:
        """Sends all bytes and reads at the same time, so that no side blocks the other. Stops if the server has closed."""
        unsent = memoryview(data)
        while unsent and not self.ended:
            events = ready_events(self.socket, select.POLLIN | select.POLLOUT, SECONDS)
            assert events, "the server takes nothing"
            if events != select.POLLOUT:
                self.read()
            else:
                unsent = unsent[self.socket.send(unsent) :]

    def read_what_is_there(self) -> None:
        while not self.ended and ready_events(self.socket, select.POLLIN, 0):
            self.read()

    def read_until(self, is_complete: Callable[[], bool]) -> None:
        """Reads until the condition is true or the connection ends.

        After a timeout it returns, and the caller's assertion fails.
        """
        end = time.monotonic() + SECONDS
        while not (self.ended or is_complete()):
            if not ready_events(self.socket, select.POLLIN, max(0.0, end - time.monotonic())):
                return
            self.read()

    def answers(self, heads: tuple[int, ...] = ()) -> tuple[list[Answer], int, bytes]:
        """Returns the complete final responses, the number of 100 responses, and the remaining bytes."""
        responses: list[Answer] = []
        continues, position = 0, 0
        while found := answer_head(self.received, position):
            status = int(found[1])
            fields = [tuple(line.split(": ", 1)) for line in found[3].decode().splitlines()]
            lengths = [value for name, value in fields if name.lower() == "content-length"]
            assert not [value for name, value in fields if name.lower() == "transfer-encoding"]
            if status < 200:
                assert (status, fields) == (100, [])
                continues, position = continues + 1, found.end()
                continue
            assert (status == 204) == (not lengths) and len(lengths) < 2, "one Content-Length, and none with 204"
            size = 0 if status == 204 or len(responses) in heads else int(lengths[0])
            if len(self.received) < found.end() + size:
                break
            responses.append(Answer(status, fields, bytes(self.received[found.end() : found.end() + size])))
            position = found.end() + size
        return responses, continues, bytes(self.received[position:])


class LoopBarrier:
    """Second connection to the same loop.

    The loop serves both connections in turn. After three responses it has read everything that the test sent before: one response
    may come during its accept, and one during its read.
    """

    def __init__(self, server) -> None:
        self.client = Client(server)

    def wait(self) -> None:
        for _ in range(3):
            self.client.received.clear()
            self.client.send(NEXT)
            self.client.read_until(lambda: self.client.received.endswith(LIVE))
            assert self.client.received.endswith(LIVE)


@pytest.fixture(scope="module")
def barrier(live_server) -> Iterator[LoopBarrier]:
    barrier = LoopBarrier(live_server)
    yield barrier
    barrier.client.socket.close()


def assert_common_headers(response: Answer) -> None:
    """Asserts the requirements for every response."""
    assert response.all("server") == []
    (date,) = response.all("date")
    assert imf_date.fullmatch(date)
    (request_id,) = response.all("x-request-id")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", request_id)
    (media,) = response.all("content-type") or ["none"]
    assert (media == "none") == (response.status == 204)
    assert (media == "application/problem+json") == (response.status >= 400)
    assert bool(response.all("allow")) >= (response.status == 405)
    if response.status >= 400 and response.content:
        problem = json.loads(response.content)
        assert (problem["status"], problem["request_id"]) == (response.status, request_id)
        assert problem["title"] and problem["detail"].endswith(".")


def is_complete(vector: Vector, client: Client) -> bool:
    """Returns whether all responses are complete, or one of them is incorrect.

    Waits for the end of a connection that must close.
    """
    statuses = tuple(response.status for response in client.answers(vector.head_indexes)[0])
    return statuses != vector.statuses[: len(statuses)] or (statuses == vector.statuses and not vector.closes)


def run_vector(server, vector: Vector, cuts: list[int], barrier: LoopBarrier | None = None) -> None:
    """Sends a vector in the pieces between `cuts`, and compares the responses with the vector."""
    with Client(server) as client:
        for start, end in zip([0, *cuts], [*cuts, len(vector.request)], strict=True):
            client.send(vector.request[start:end])
            if barrier and end < len(vector.request):
                barrier.wait()
                client.read_what_is_there()
        client.read_until(lambda: is_complete(vector, client))
        responses, continues, rest = client.answers(vector.head_indexes)
        assert [response.status for response in responses] == list(vector.statuses), vector.reason
        # The server sends 100 only if the body is late, which is the case if a cut is right after a head.
        assert continues == (
            len({found.end() for found in expecting_head.finditer(vector.request)} & set(cuts)) if vector.continues else 0
        )
        assert rest == b"", f"after the last answer: {rest[:80]!r}"
        assert MARKER not in client.received, "the response repeats a part of the request"
        assert client.ended is vector.closes
        for index, response in enumerate(responses):
            assert_common_headers(response)
            if index in vector.head_indexes:
                assert int(response.all("content-length")[0]) > 0
            closes = vector.closes and index == len(responses) - 1
            assert ("close" in response.all("connection")) is closes
            if (
                response.status == 200
                and response.content
                and b"/predict/label" in vector.request
                and b"livez" not in vector.request
            ):
                assert json.loads(response.content) == {"prediction": "setosa"}
        # The responses belong to the requests in this order. A response of the parser has no number.
        numbers = [number.decode() for number in numbers_of_requests(vector.request)]
        assert [response.all("x-request-id")[0] for response in responses][: len(numbers)] == numbers
        if vector.closes:
            return
        if len(responses) == 1 and b" HTTP/1.0\r\n" in vector.request:
            assert responses[0].all("connection") == ["keep-alive"]
        client.received.clear()
        client.send(NEXT)
        client.read_until(lambda: bool(client.answers()[0]))
        ((status, _, content),), _, rest = client.answers()
        assert (status, content, rest) == (200, LIVE, b""), "the connection works no longer"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_every_vector_in_one_piece_gets_its_responses(live_server, vector):
    run_vector(live_server, vector, [])


# On a laptop a third of the vectors is enough for each way of cutting. All of them are sent in one piece.
@pytest.mark.parametrize("vector", VECTORS if CI else VECTORS[::3], ids=lambda vector: vector.name)
def test_every_vector_with_its_bodies_after_its_heads_gets_the_same_responses(live_server, barrier, vector):
    head_ends = [found.end() for found in re.finditer(rb"\r\n\r\n", vector.request) if found.end() < len(vector.request)]
    run_vector(live_server, vector, head_ends, barrier)


@pytest.mark.parametrize("vector", DRIPPED if CI else DRIPPED[::3], ids=lambda vector: vector.name)
def test_every_short_vector_in_random_pieces_gets_the_same_responses(live_server, barrier, vector):
    chance = random.Random(vector.name)
    anywhere = chance.sample(range(1, len(vector.request)), min(2, len(vector.request) - 1))
    between = [found.start() + 1 for found in re.finditer(rb"\r\n", vector.request)] or anywhere
    run_vector(live_server, vector, sorted({*anywhere, chance.choice(between)}), barrier)


@pytest.mark.parametrize("name", BYTEWISE)
def test_single_bytes_get_the_same_responses(live_server, barrier, name):
    (vector,) = [vector for vector in VECTORS if vector.name == name]
    run_vector(live_server, vector, list(range(1, len(vector.request))), barrier)


def test_there_are_at_least_300_vectors_with_unique_names():
    assert len(VECTORS) >= 300
    assert len({vector.name for vector in VECTORS}) == len({vector.request for vector in VECTORS}) == len(VECTORS)


def test_every_status_of_the_server_has_vectors():
    statuses = {status for vector in VECTORS for status in vector.statuses}
    assert statuses == {200, 204, 400, 404, 405, 413, 414, 415, 417, 422, 431, 501}


def test_every_vector_that_starts_with_a_refusal_expects_no_further_response():
    """A refusal ends the connection, so the vectors must not expect more."""
    own = {400, 413, 414, 417, 431}
    for vector in VECTORS:
        assert not set(vector.statuses[:-1]) & own or vector.reason.startswith("RFC 9112 6.3: what is beyond"), vector.name
        assert vector.statuses, vector.name


def test_every_pipeline_has_a_response_for_each_request_and_one_for_a_refusal():
    pipelines = [vector for vector in VECTORS if vector.name.startswith("pipeline-")]
    assert len(pipelines) > 50
    for vector in pipelines:
        refused = vector.closes and vector.statuses[-1] >= 400
        assert len(vector.statuses) == len(numbers_of_requests(vector.request)) + refused, vector.name


def test_no_refused_vector_is_served(live_server):
    """Checks the most important property without the code of the other tests: no 2xx if the first status is a refusal."""
    for vector in VECTORS:
        if vector.statuses[0] >= 400:
            with Client(live_server) as client:
                client.send(vector.request)
                client.read_until(lambda client=client: len(client.received) > 12)
                assert client.received[9:10] in (b"4", b"5"), vector.name


def test_the_responses_to_a_hundred_pipelined_requests_come_in_order(live_server):
    names = [b"r%d" % number for number in range(100)]
    requests = b"".join(get(b"/livez" if len(name) % 2 else b"/nowhere", b"X-Request-ID: " + name) for name in names)
    with Client(live_server) as client:
        client.send(requests)
        client.read_until(lambda: len(client.answers()[0]) >= 100)
        responses, _, rest = client.answers()
    assert [response.all("x-request-id")[0].encode() for response in responses] == names and rest == b""


def test_a_client_that_shuts_down_its_half_of_the_connection_gets_every_response(live_server):
    with Client(live_server) as client:
        client.send(NEXT * 5)
        client.socket.shutdown(socket.SHUT_WR)
        client.read_until(lambda: False)
        assert [response.status for response in client.answers()[0]] == [200] * 5 and client.ended


def test_an_incomplete_request_gets_no_response(live_server):
    for requests in (NEXT[:-1], NEXT[:-2], message(b"GET /livez HTTP/1.1", HOST, b"Content-Length: 5", body=b"1234"), b"G"):
        with Client(live_server) as client:
            client.send(requests)
            client.socket.shutdown(socket.SHUT_WR)
            client.read_until(lambda: False)
            assert (bytes(client.received), client.ended) == (b"", True)
