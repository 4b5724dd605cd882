"""The request parser alone: its results do not depend on the division of the bytes, and its cost is linear."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from iris_wsgi.http import request_parser as reading
from iris_wsgi.http.request_head import HTTPParseError, RequestHead, cached_head, parse_head
from iris_wsgi.http.request_parser import RequestParser

STREAM = (
    b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    b'POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n{"a":'
    b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n"
    b"GET http://b/label?q HTTP/1.0\r\n\r\n"
)
BROKEN = [
    STREAM + b"GET /livez HTTP/1.1\r\nHost: a\r\n fold\r\n\r\n",
    STREAM + b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n",
    STREAM + b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n",
    STREAM + b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    STREAM + b"\r\n\r\n",
]


def read(pieces: list[bytes], max_body_bytes: int = 1000) -> list:
    """Returns the results for these pieces: requests, and a status if the rest is refused."""
    reader, found = RequestParser(max_body_bytes), []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (request := reader.next()) is not None:
                found.append((request.head.method, request.head.path, request.head.version, request.body))
        except HTTPParseError as refused:
            return [*found, refused.status]
    return found


def split_randomly(stream: bytes, positions: list[int]) -> list[bytes]:
    edges = [0, *sorted({position % len(stream) for position in positions} - {0}), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("stream", [STREAM, *BROKEN])
def test_byte_by_byte_gives_the_same_as_all_at_once(stream):
    assert read([stream[i : i + 1] for i in range(len(stream))]) == read([stream])
    assert len(read([stream])) == (4 if stream == STREAM else 5)


@settings(max_examples=examples(300), deadline=None)
@given(stream=st.sampled_from([STREAM, *BROKEN]), positions=st.lists(st.integers(0, 10_000), max_size=8))
def test_every_split_gives_the_same_as_all_at_once(stream, positions):
    assert read(split_randomly(stream, positions)) == read([stream])


@settings(max_examples=examples(500), deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_raise_anything_except_a_refusal(noise, position):
    read([STREAM[:position] + noise + STREAM[position:]])


def test_a_cached_head_is_the_same_head():
    text = STREAM[: STREAM.index(b"\r\n\r\n") + 4]
    assert cached_head(text) == cached_head(text) == parse_head(text)
    assert isinstance(parse_head(text), RequestHead)


def test_heads_that_are_refused_or_long_are_not_cached():
    before = cached_head.cache_info().currsize
    for i in range(50):
        read([b"GET / HTTP/1.1\r\nHost: a b\r\nX: %d\r\n\r\n" % i])
        read([b"GET / HTTP/1.1\r\nHost: a\r\nX: %d%s\r\n\r\n" % (i, b"x" * 2000)])
    assert cached_head.cache_info().currsize == before


def test_continue_is_sent_once_and_only_before_the_body():
    reader = RequestParser(100)
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert reader.next() is None
    assert [reader.wants_continue(), reader.wants_continue()] == [True, False]
    reader.feed(b"ab")
    assert reader.next().body == b"ab"
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\na")
    assert reader.next() is None
    assert not reader.wants_continue()


def test_a_body_in_pieces_is_not_copied_again_for_each_piece():
    """Counts bytes instead of seconds: the buffer must grow in place."""
    reader = RequestParser(1 << 20)
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    assert reader.next() is None
    buffer_ids = set()
    for _ in range(999):
        reader.feed(b"x" * 1000)
        assert reader.next() is None
        buffer_ids.add(id(reader.buffer))
    assert type(reader.buffer) is bytearray
    assert len(buffer_ids) <= 2
    reader.feed(random.Random(0).randbytes(1000))
    assert len(reader.next().body) == 1_000_000


def test_the_host_of_an_absolute_target_overrides_the_header():
    head = parse_head(b"GET http://b:1/x?y HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (head.environ["HTTP_HOST"], head.path, head.environ["QUERY_STRING"]) == ("b:1", "/x", "y")


def test_trailers_in_single_bytes_are_not_searched_again_from_their_start(monkeypatch):
    """Counts the searched bytes instead of seconds."""
    looked, search = [], reading.bare_line_end
    monkeypatch.setattr(
        reading, "bare_line_end", lambda buffer, start: looked.append(len(buffer) - start) or search(buffer, start)
    )
    reader = RequestParser(100)
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    for byte in b"X: " + b"y" * 5000:
        reader.feed(bytes([byte]))
        assert reader.next() is None
    assert sum(looked) < 5 * 5003
    reader.feed(b"\r\n\r\n")
    assert reader.next().body == b""


@pytest.mark.parametrize("size", ["1", "20", "00", "fff"])
def test_a_chunk_line_is_refused_at_its_first_invalid_byte(size):
    """The two expressions agree: each prefix of a valid line is accepted, and each accepted prefix belongs to a valid line."""
    chance, alphabet = random.Random(size), b'0;;= \t"\\a!\x80\x01\r,'
    for _ in range(20_000):
        line = size.encode() + bytes(chance.choices(alphabet, k=chance.randrange(9)))
        if reading.chunk_line(line + b"\r\n"):
            assert all(reading.chunk_line_start(line[:end]) for end in range(len(line) + 1)), line
        if reading.chunk_line_start(line):
            assert any(reading.chunk_line(line + end) for end in ENDS_OF_LINES), line


# Endings that complete a line after any valid prefix.
ENDS_OF_LINES = [b"\n", b"\r\n", b";a\r\n", b"a\r\n", b'"\r\n', b'""\r\n', b'a"\r\n', b'\\"\r\n', b"=a\r\n"]


def test_one_empty_line_before_each_request_is_ignored():
    request = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    assert len(read([b"\r\n" + request + b"\r\n" + request + b"\r\n"])) == 2
    assert read([b"\r\n", b"\r", b"\n", request])[-1] == 400
    reader = RequestParser(100)
    reader.feed(b"\r\n")
    assert reader.next() is None and not reader.started and not reader.buffered
