"""Answers of HTTP/1.1 servers from bytes as they come (RFC 9112), strictly; pure, without a socket."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from iris_wsgi.http.request_head import MOST_HEAD, each_field, whole_fields

status_line = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n").match
BEGIN = b"HTTP/1.1 "
# What must not stand there twice: two framings of one answer, or two claims of who gave it.
ONCE = ("content-length", "inference-header-content-length", "x-model-digest")


class BadReply(Exception):
    """What came is no answer that can be believed; the message is for the log and for people."""


class Reply(NamedTuple):
    """A complete answer; the names of `fields` are in lower case. `keeps` tells that its connection takes another request."""

    status: int
    fields: Mapping[str, str]
    body: bytes
    keeps: bool


class Incoming:
    """One answer in the making, whose body has at most `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, bytearray()
        self.head: tuple[int, dict[str, str], int, int] | None = None

    def feed(self, data: bytes) -> Reply | None:
        """The answer, once all of it is here. Raises BadReply."""
        self.held += data
        if self.head is None:
            # What does not even begin like an answer never ends like one, and nobody should wait for that.
            if not self.held.startswith(BEGIN) and not BEGIN.startswith(self.held):
                raise BadReply("what came is no answer in HTTP/1.1")
            end = self.held.find(b"\r\n\r\n")
            if end < 0 and len(self.held) <= MOST_HEAD:
                return None
            self.head = (*parse_head(bytes(self.held[: end + 4]) if 0 <= end <= MOST_HEAD else b"", self.most), end + 4)
        status, fields, length, start = self.head
        if len(self.held) < start + length:
            return None
        if len(self.held) > start + length:
            raise BadReply("there is more behind the answer than it says")
        keeps = "close" not in fields.get("connection", "").lower()
        return Reply(status, fields, bytes(self.held[start:]), keeps)


def parse_head(text: bytes, most: int) -> tuple[int, dict[str, str], int]:
    """Status, fields and the body's length of a head that ends with its empty line. Raises BadReply."""
    found = status_line(text)
    if found is None or not whole_fields(text, found.end()):
        raise BadReply("what came is no answer in HTTP/1.1")
    fields: dict[str, str] = {}
    for field, value in each_field(text, found.end()):
        name = field.decode().lower()
        if name in fields and name in ONCE:
            raise BadReply(f"the answer has the field {name} twice")
        fields[name] = value.strip(b" \t").decode("latin-1")
    length = fields.get("content-length", "")
    if "transfer-encoding" in fields or not (length.isascii() and length.isdigit()) or len(length) > 15:
        raise BadReply("the answer does not tell its length by Content-Length")
    if int(length) > most:
        raise BadReply(f"the answer is over {most} bytes, which is more than was asked for")
    return int(found[1]), fields, int(length)
