"""Takes a connection's bytes as they come and gives whole requests: heads, bodies with a length, bodies in chunks."""

import re
from urllib.parse import unquote_to_bytes

from iris_wsgi.http.request_head import (
    MOST_FIELDS,
    MOST_HEAD,
    MOST_REMEMBERED,
    MOST_TARGET,
    TOKEN,
    Head,
    Refused,
    Request,
    each_field,
    malformed_field,
    parse_head,
    parse_request_line,
    remembered_head,
    whole_fields,
)

MOST_CHUNK_LINE = 256
# The path of a request that was not understood, as far as it is there; of a long one its beginning will do.
path_start = re.compile(rb"[^ \r\n]{1,32} (?:http://[^/ \r\n]{0,255})?(/[^ ?\r\n]{0,64})", re.IGNORECASE).match
bare_line_end = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)").search
# Extensions of a chunk (RFC 9112, section 7.1.1). Blanks between the size and the first one are refused all the same.
BLANKS = rb"[\t ]*+"
QUOTED = rb'"(?:[\t !\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+'
NAME = BLANKS + rb";" + BLANKS + TOKEN
EQUALS = BLANKS + rb"=" + BLANKS
EXTENSION = NAME + rb"(?:" + EQUALS + rb"(?:" + TOKEN + rb"|" + QUOTED + rb'"))?'
# An extension that has begun and is not complete.
BEGUN = rb"(?:" + BLANKS + rb"(?:;" + BLANKS + rb")?+|" + NAME + BLANKS + rb"|" + NAME + EQUALS + rb"(?:" + QUOTED + rb"\\?+)?+)"
chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16})(?![\t ])(?:" + EXTENSION + rb")*\r\n").fullmatch
chunk_line_start = re.compile(
    rb"[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?![\t ])(?:" + EXTENSION + rb")*(?:\r|" + BEGUN + rb"))?"
).fullmatch
NEVER_IN_TRAILERS = {b"content-length", b"host", b"transfer-encoding"}


class Reader:
    """Takes a connection's bytes as they come and gives complete requests, one at a time."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.buffer: bytes | bytearray = b""
        self.scanned = 0
        self.head: Head | None = None
        self.body = bytearray()
        self.continued = self.skipped = False

    def feed(self, data: bytes) -> None:
        """Appends what was received."""
        if not self.buffer:
            self.buffer = data
            return
        if type(self.buffer) is bytes:
            # Appending to bytes copies them each time: quadratic for whoever sends a byte at a time.
            self.buffer = bytearray(self.buffer)
        self.buffer += data

    def next(self) -> Request | None:
        """The next complete request, or None while bytes are missing. Raises Refused; nothing may be asked after that."""
        if self.head is None and not self.read_head():
            return None
        head = self.head
        assert head is not None
        if head.length is None:
            if not self.read_chunks():
                return None
            body = bytes(self.body)
            self.body, self.scanned = bytearray(), 0
        else:
            if len(self.buffer) < head.length:
                return None
            body = bytes(self.buffer[: head.length])
            self.buffer = self.buffer[head.length :]
        self.head, self.continued = None, False
        return Request(head, body)

    @property
    def started(self) -> bool:
        """Whether a part of a request is here."""
        return bool(self.buffer) or self.head is not None

    @property
    def held(self) -> int:
        """How many bytes of a request that is not complete are here."""
        return len(self.buffer) + len(self.body)

    @property
    def asks_head(self) -> bool:
        """Whether the request under way is a HEAD, which no answer may give content."""
        return self.head.method == "HEAD" if self.head is not None else self.buffer.startswith(b"HEAD ")

    @property
    def path(self) -> str:
        """The path of the request under way, or its beginning; empty as long as there is none."""
        if self.head is not None:
            return self.head.path
        found = path_start(self.buffer)
        return unquote_to_bytes(found[1]).decode("latin-1") if found else ""

    @property
    def missing(self) -> int:
        """How many bytes of the body are known to be missing."""
        return (self.head.length or 0) - len(self.buffer) if self.head is not None else 0

    def wants_continue(self) -> bool:
        """Whether `100 Continue` must be sent now; true once a request (RFC 9110, section 10.1.1)."""
        head = self.head
        if head is None or not head.expects_continue or self.continued or self.buffer or self.body:
            return False
        self.continued = True
        return True

    def skip_empty_line(self) -> None:
        """Drops one CRLF before a request line, which some clients send after a body (RFC 9112, section 2.2)."""
        if not self.skipped and self.buffer.startswith(b"\r\n"):
            self.buffer = self.buffer[2:]
            self.skipped, self.scanned = True, 0

    def read_head(self) -> bool:
        self.skip_empty_line()
        if not self.buffer or (self.buffer == b"\r" and not self.skipped):
            return False
        end = self.buffer.find(b"\r\n\r\n", max(0, self.scanned - 3))
        if end < 0:
            refuse_start(self.buffer, max(0, self.scanned - 1))
            self.scanned = len(self.buffer)
            return False
        if end + 4 > MOST_HEAD:
            refuse_start(self.buffer[: end + 4], 0)
        text = bytes(self.buffer[: end + 4])
        self.head = remembered_head(text) if end < MOST_REMEMBERED else parse_head(text)
        self.buffer = self.buffer[end + 4 :]
        self.scanned, self.skipped = 0, False
        if self.head.length is not None and self.head.length > self.max_body_bytes:
            raise self.too_large()
        return True

    def too_large(self) -> Refused:
        return Refused(413, f"The body is over the limit of {self.max_body_bytes} bytes; send fewer rows in a request.")

    def read_chunks(self) -> bool:
        """Moves complete chunks from the buffer to the body; whether the last one and the trailers are there."""
        position, complete = 0, False
        while not complete:
            end = self.buffer.find(b"\r\n", position, position + MOST_CHUNK_LINE)
            if end < 0:
                refuse_chunk_start(bytes(self.buffer[position : position + MOST_CHUNK_LINE]))
                break
            found = chunk_line(self.buffer, position, end + 2)
            if found is None:
                raise malformed_chunk()
            size = int(found[1], 16)
            if size == 0:
                stop = self.trailers_end(end + 2)
                if stop is None:
                    break
                position, complete = stop, True
                continue
            if len(self.body) + size > self.max_body_bytes:
                raise self.too_large()
            stop = end + 2 + size
            # Looked at as soon as it is there: a client that waits for an answer may send no more.
            if not b"\r\n".startswith(self.buffer[stop : stop + 2]):
                raise Refused(400, "A chunk does not end with CRLF where its size says.")
            if len(self.buffer) < stop + 2:
                break
            self.body += self.buffer[end + 2 : stop]
            position = stop + 2
        if position:
            self.buffer = self.buffer[position:]
            self.scanned = max(0, self.scanned - position)
        return complete

    def trailers_end(self, start: int) -> int | None:
        """Where the trailer section that begins at `start` ends, or None while it does not; it is checked and dropped."""
        if self.buffer.startswith(b"\r\n", start):
            return start + 2
        seen = max(start, self.scanned - 3)
        end = self.buffer.find(b"\r\n\r\n", seen)
        size = (end if end >= 0 else len(self.buffer)) - start
        if size > MOST_HEAD:
            raise Refused(431, f"The trailer fields are over the limit of {MOST_HEAD} bytes.")
        if end < 0:
            if bare_line_end(self.buffer, seen):
                raise malformed_field()
            self.scanned = len(self.buffer)
            return None
        section = bytes(self.buffer[start : end + 4])
        if not whole_fields(section):
            raise malformed_field()
        names = [name.lower() for name, _ in each_field(section)]
        if len(names) > MOST_FIELDS:
            raise Refused(431, f"There are more than {MOST_FIELDS} trailer fields.")
        if NEVER_IN_TRAILERS.intersection(names):
            raise Refused(400, "A field that frames or routes the message stands among the trailers.")
        return end + 4


def refuse_start(start: bytes | bytearray, scanned: int) -> None:
    """Raises Refused if the beginning of a head, of which `scanned` bytes were seen before, can become none that is served."""
    line = start.find(b"\r\n")
    if line < 0 and len(start) > MOST_TARGET + 100:
        raise Refused(414, f"The request target is over the limit of {MOST_TARGET} bytes.")
    if bare_line_end(start, scanned):
        raise Refused(400, "A line ends with a lone CR or LF.")
    if line >= 0:
        parse_request_line(bytes(start[: line + 2]))
    elif start[:1] < b"\x21":
        raise Refused(400, "The request does not begin with a method.")
    if len(start) > MOST_HEAD:
        raise Refused(431, f"The request line and the fields are over the limit of {MOST_HEAD} bytes.")


def refuse_chunk_start(start: bytes) -> None:
    if len(start) >= MOST_CHUNK_LINE or not chunk_line_start(start):
        raise malformed_chunk()


def malformed_chunk() -> Refused:
    return Refused(400, "A chunk does not begin with its size in hexadecimal digits, well-formed extensions and CRLF.")
