"""Incremental, strict parser of HTTP/1.1 responses (RFC 9112), without I/O."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from iris_wsgi.http.request_head import MAX_HEAD, find_fields, valid_fields

status_line = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n").match
PREFIX = b"HTTP/1.1 "
# Headers that must not be repeated: they would give a response two lengths or two senders.
UNIQUE = ("content-length", "inference-header-content-length", "x-model-digest")


class InvalidResponse(Exception):
    """The response is malformed, or is not the one that the client requires."""


class ParsedResponse(NamedTuple):
    """A complete response with header names in lower case; `keep_alive` allows another request on its connection."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


class ResponseParser:
    """Parses one response whose body has at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.received = max_bytes, bytearray()
        self.head: tuple[int, dict[str, str], int, int] | None = None

    def feed(self, data: bytes) -> ParsedResponse | None:
        """Returns the response once it is complete. Raises InvalidResponse."""
        self.received += data
        if self.head is None:
            # Data that do not begin like a response never become one, so the caller must not wait for more.
            if not self.received.startswith(PREFIX) and not PREFIX.startswith(self.received):
                raise InvalidResponse("the server did not send an HTTP/1.1 response")
            end = self.received.find(b"\r\n\r\n")
            if end < 0 and len(self.received) <= MAX_HEAD:
                return None
            head = bytes(self.received[: end + 4]) if 0 <= end <= MAX_HEAD else b""
            self.head = (*parse_head(head, self.max_bytes), end + 4)
        status, headers, length, start = self.head
        if len(self.received) < start + length:
            return None
        if len(self.received) > start + length:
            raise InvalidResponse("the response is longer than its Content-Length")
        keep_alive = "close" not in headers.get("connection", "").lower()
        return ParsedResponse(status, headers, bytes(self.received[start:]), keep_alive)


def parse_head(text: bytes, max_bytes: int) -> tuple[int, dict[str, str], int]:
    """Returns the status, the headers, and the length of the body. Raises InvalidResponse."""
    line = status_line(text)
    if line is None or not valid_fields(text, line.end()):
        raise InvalidResponse("the server did not send an HTTP/1.1 response")
    headers: dict[str, str] = {}
    for field, value in find_fields(text, line.end()):
        name = field.decode().lower()
        if name in headers and name in UNIQUE:
            raise InvalidResponse(f"the response has the header {name} twice")
        headers[name] = value.strip(b" \t").decode("latin-1")
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()) or len(length) > 15:
        raise InvalidResponse("the response has no valid Content-Length")
    if int(length) > max_bytes:
        raise InvalidResponse(f"the response has over {max_bytes} bytes, which is the limit for this request")
    return int(line[1]), headers, int(length)
