"""Differential test against h11: damaged requests that h11 refuses must be refused here too."""

import os
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import h11
import pytest
from request_vectors import VECTORS

from iris_wsgi.http.request_head import HTTPParseError
from iris_wsgi.http.request_parser import RequestParser

CASES = 100_000 if os.environ.get("CI") == "true" else 5_000
SHARDS = 10
SEED = 9112
MOST_BODY = 1_048_576
SEEDS = [vector.request for vector in VECTORS if len(vector.request) < 1500]
SERVED = [vector.request for vector in VECTORS if len(vector.request) < 1500 and vector.statuses[0] < 400]

BYTES = bytes(range(33)) + b'"#%(),/:;<=>?@[\\]{|}~+-_.*09aAfFgG' + b"\x7f\x80\x85\xa0\xb2\xff"
TOKENS = rb"""
    GET POST HEAD CONNECT OPTIONS * / // http://a/ https:// a:80 [::1] ? # % %2f %00 %41
    HTTP/1.1 HTTP/1.0 HTTP/1.2 HTTP/2.0 HTTP/0.9 Host: Host Content-Length: Content-Length Content_Length:
    Transfer-Encoding: Transfer-Encoding Transfer_Encoding: chunked Chunked gzip identity Connection: close keep-alive Upgrade:
    Expect: 100-continue X: 0 00 1 5 20 1f +5 -1 0x5 1_0 fffffffffffffffff 32 ;a ;a=b , ; : :: =
""".split()
LINES = rb"""X: y|X : y|X:|: y|X|Host: a|Host: b|Host:|Host: a b|Content-Length: 0|Content-Length: 5|Content-Length: 32
Content-Length: 5, 5|Content-Length: +5|Transfer-Encoding: chunked|Transfer-Encoding: gzip|Transfer-Encoding: chunked, chunked
Transfer-Encoding:|Connection: close|Upgrade: h2c|Expect: 100-continue|Trailer: X|GET / HTTP/1.1| folded"""
ENDS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b"\r\r\n",
    b"",
    b"  ",
    b"\t",
    b"\tfolded\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
]
INSERTED = [line + b"\r\n" for line in re.split(rb"[|\n]", LINES)] + ENDS

line_ends = re.compile(rb"(?<=\n)")
sizes = re.compile(rb"(?<=\r\n)[0-9A-Fa-f]{1,16}(?=[\r;])")
digits = re.compile(rb"[0-9]+")
Change = Callable[[bytes, random.Random], bytes]


class Read(NamedTuple):
    """Result of a parser for the first request."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes


def read_by_h11(data: bytes) -> Read | None:
    """Returns the first request as h11 reads it, or None if h11 refuses it or needs more bytes."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 30)
    # RFC 9112, section 2.2, allows an empty line before the request line. h11 refuses this line.
    connection.receive_data(data.removeprefix(b"\r\n"))
    connection.receive_data(b"")
    head, body = None, []
    try:
        while True:
            event = connection.next_event()
            if type(event) is h11.Request:
                head = event
            elif type(event) is h11.Data:
                body.append(bytes(event.data))
            elif type(event) is h11.EndOfMessage:
                break
            else:
                assert event in (h11.NEED_DATA, h11.PAUSED) or type(event) is h11.ConnectionClosed
                return None
    except h11.RemoteProtocolError:
        return None
    assert head is not None
    fields = [(name.decode().upper(), value.decode("latin-1")) for name, value in head.headers]
    return Read(head.method.decode(), head.target.decode("latin-1"), fields, b"".join(body))


def read_by_parser(pieces: list[bytes]) -> Read | None:
    """Returns the first request as our parser reads it, or None if the parser refuses it or needs more bytes."""
    reader = RequestParser(MOST_BODY)
    request = None
    try:
        for piece in pieces:
            reader.feed(piece)
            if request := reader.next():
                break
            reader.wants_continue()
    except HTTPParseError:
        return None
    if request is None:
        return None
    head = request.head
    assert unquote_to_bytes(path_of(head.target)).decode("latin-1") == head.path
    head_fields = [(name, value) for name, value in head.environ.items() if name.startswith(("HTTP_", "CONTENT_"))]
    fields = [(name.removeprefix("HTTP_").replace("_", "-"), value) for name, value in head_fields]
    return Read(head.method, head.target, fields, request.body)


def path_of(target: str) -> str:
    """Returns the encoded path of a target in origin or absolute form."""
    path = re.sub(r"\Ahttps?://[^/?]*", "", target, flags=re.IGNORECASE).split("?")[0]
    return path or "/"


def comparable(read: Read) -> tuple[str, str, dict[str, str], bytes]:
    """Removes what WSGI cannot represent: names with an underscore, the chunked coding, and the line breaks within a list."""
    fields: dict[str, str] = {}
    for name, value in read.fields:
        if "_" not in name and name != "TRANSFER-ENCODING":
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    if not read.target.startswith(("/", "*")):
        # Our parser replaces Host by the target's authority (RFC 9112, section 3.2.2). h11 leaves this to its caller.
        fields.pop("HOST", None)
    return read.method, read.target, fields, read.body


# --- Damage -----------------------------------------------------------------------------------------------------------


def random_position(data: bytes, chance: random.Random) -> int:
    """Returns a random position, often next to a line end or a colon, where parsers differ most."""
    if chance.random() < 0.4:
        line_ends_found = [found.start() for found in re.finditer(rb"[\r\n:; ]", data)]
        if line_ends_found:
            return chance.choice(line_ends_found) + chance.randrange(2)
    return chance.randrange(len(data) + 1)


def flip(data: bytes, chance: random.Random) -> bytes:
    position = min(random_position(data, chance), len(data) - 1)
    return data[:position] + bytes([data[position] ^ (1 << chance.randrange(8))]) + data[position + 1 :]


def replace(data: bytes, chance: random.Random) -> bytes:
    position = random_position(data, chance)
    return data[:position] + bytes([chance.choice(BYTES)]) + data[position + 1 :]


def insert_byte(data: bytes, chance: random.Random) -> bytes:
    position = random_position(data, chance)
    return data[:position] + bytes([chance.choice(BYTES)]) + data[position:]


def insert_token(data: bytes, chance: random.Random) -> bytes:
    position = random_position(data, chance)
    return data[:position] + chance.choice(TOKENS) + data[position:]


def insert_line(data: bytes, chance: random.Random) -> bytes:
    lines = line_ends.split(data)
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(INSERTED))
    return b"".join(lines)


def delete(data: bytes, chance: random.Random) -> bytes:
    position = random_position(data, chance)
    return data[:position] + data[position + chance.choice((1, 1, 1, 2, 3, 8, 40)) :]


def delete_line(data: bytes, chance: random.Random) -> bytes:
    lines = line_ends.split(data)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def double_line(data: bytes, chance: random.Random) -> bytes:
    lines = line_ends.split(data)
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
    return b"".join(lines)


def swap_lines(data: bytes, chance: random.Random) -> bytes:
    lines = line_ends.split(data)
    first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def swap_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    first, second = chance.randrange(len(data)), chance.randrange(len(data))
    changed[first], changed[second] = changed[second], changed[first]
    return bytes(changed)


def change_line_end(data: bytes, chance: random.Random) -> bytes:
    line_ends_found = [found.start() for found in re.finditer(rb"\r\n", data)]
    if not line_ends_found:
        return data
    position = chance.choice(line_ends_found)
    return (
        data[:position]
        + chance.choice((b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n", b"\r\n ", b"\r\n\r\n", b""))
        + data[position + 2 :]
    )


def change_size(data: bytes, chance: random.Random) -> bytes:
    """Changes the size of a chunk, or another number."""
    found = list((sizes if chance.random() < 0.6 else digits).finditer(data))
    if not found:
        return data
    item = chance.choice(found)
    size = int(item[0], 16)
    other = b"%x" % max(0, size + chance.choice((-1, 1, 2, 16)))
    before = [start + item[0] for start in (b"0", b"0" * 15, b"+", b"-", b"0x", b" ")]
    after = [item[0] + end for end in (b" ", b"\t", b"_0", b";a=b", b"\x00", b".0", b"\r", b"\n")]
    changed = chance.choice([other, b"%X" % size, b"", b"f" * 17, *before, *after])
    return data[: item.start()] + changed + data[item.end() :]


def change_case(data: bytes, chance: random.Random) -> bytes:
    lines = line_ends.split(data)
    position = chance.randrange(len(lines))
    lines[position] = lines[position].swapcase()
    return b"".join(lines)


def splice(data: bytes, chance: random.Random) -> bytes:
    other = chance.choice(SEEDS)
    return data[: random_position(data, chance)] + other[random_position(other, chance) :]


def splice_lines(data: bytes, chance: random.Random) -> bytes:
    lines, others = line_ends.split(data), line_ends.split(chance.choice(SEEDS))
    return b"".join(lines[: chance.randrange(len(lines) + 1)] + others[chance.randrange(len(others) + 1) :])


BYTEWISE: list[Change] = [flip, replace, insert_byte, insert_token, delete, swap_bytes, change_size, splice]
LINEWISE: list[Change] = [insert_line, delete_line, double_line, swap_lines, change_line_end, change_case, splice_lines]


def damage(chance: random.Random) -> bytes:
    """Returns a request with one to three changes. The original is usually valid."""
    data = chance.choice(SERVED if chance.random() < 0.7 else SEEDS)
    for _ in range(chance.choice((1, 1, 1, 1, 2, 2, 3))):
        data = chance.choice(BYTEWISE + LINEWISE)(data, chance) or b"\r\n"
    return data


def split_randomly(data: bytes, chance: random.Random) -> list[bytes]:
    cut_positions = sorted({0, *(random_position(data, chance) for _ in range(chance.randrange(1, 5))), len(data)})
    return [data[start:end] for start, end in pairwise(cut_positions)]


# --- The tests --------------------------------------------------------------------------------------------------------


def compare(data: bytes, chance: random.Random) -> str:
    """Compares one request with h11, and with the same request in pieces. Returns the outcome for the statistics."""
    try:
        parser_result, h11_result = read_by_parser([data]), read_by_h11(data)
        assert read_by_parser(split_randomly(data, chance)) == parser_result, "in pieces it is read otherwise"
        if parser_result is None:
            return "refused by both" if h11_result is None else "refused by us"
        assert h11_result is not None, "h11 refuses what we accept"
        assert comparable(parser_result) == comparable(h11_result), "it is read otherwise than by h11"
    except Exception as failure:
        failure.add_note(f"the case: {data[:1500]!r}")
        raise
    return "accepted by both"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_request_that_h11_refuses_is_accepted_and_both_parsers_read_the_same(shard):
    chance = random.Random(SEED + shard)
    became = Counter(compare(damage(chance), chance) for _ in range(CASES // SHARDS))
    # Otherwise the damage is too large or too small for a useful test.
    for outcome in ("accepted by both", "refused by both", "refused by us"):
        assert became[outcome] > CASES // SHARDS // 50, became


@pytest.mark.long
def test_h11_and_the_parser_read_the_vectors_alike():
    chance = random.Random(SEED)
    for vector in VECTORS:
        compare(vector.request, chance)


def test_the_parser_refuses_the_invalid_vectors_without_a_server():
    """Runs without a socket, so that a debugger can follow the parser."""
    own = {400, 413, 414, 417, 431}
    for vector in VECTORS:
        if vector.statuses[0] < 400:
            assert read_by_parser([vector.request]), vector.name
        elif (
            len(vector.statuses) == 1
            and vector.closes
            and vector.statuses[0] in own
            and vector.name != "1.0-post-without-a-length"
        ):
            assert not read_by_parser([vector.request]), vector.name
