"""Incremental parser of HTTP/1.1 requests: bytes in, complete requests out."""

import re
from urllib.parse import unquote_to_bytes

from iris_wsgi.http.request_head import (
    MAX_CACHED_HEAD,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_TARGET,
    TOKEN,
    HTTPParseError,
    RawRequest,
    RequestHead,
    cached_head,
    find_fields,
    invalid_field,
    parse_head,
    parse_request_line,
    valid_fields,
)

MAX_CHUNK_LINE = 256
# The beginning of the path of an invalid request.
path_start = re.compile(rb"[^ \r\n]{1,32} (?:http://[^/ \r\n]{0,255})?(/[^ ?\r\n]{0,64})", re.IGNORECASE).match
bare_line_end = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)").search
# Extensions of a chunk (RFC 9112, section 7.1.1). Blanks between the size and the first extension are rejected.
BLANKS = rb"[\t ]*+"
QUOTED = rb'"(?:[\t !\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+'
NAME = BLANKS + rb";" + BLANKS + TOKEN
EQUALS = BLANKS + rb"=" + BLANKS
EXTENSION = NAME + rb"(?:" + EQUALS + rb"(?:" + TOKEN + rb"|" + QUOTED + rb'"))?'
# An incomplete extension.
BEGUN = rb"(?:" + BLANKS + rb"(?:;" + BLANKS + rb")?+|" + NAME + BLANKS + rb"|" + NAME + EQUALS + rb"(?:" + QUOTED + rb"\\?+)?+)"
chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16})(?![\t ])(?:" + EXTENSION + rb")*\r\n").fullmatch
chunk_line_start = re.compile(
    rb"[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?![\t ])(?:" + EXTENSION + rb")*(?:\r|" + BEGUN + rb"))?"
).fullmatch
NEVER_IN_TRAILERS = {b"content-length", b"host", b"transfer-encoding"}


class RequestParser:
    """Parses the bytes of a connection, and returns complete requests one at a time."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.buffer: bytes | bytearray = b""
        self.scanned = 0
        self.head: RequestHead | None = None
        self.body = bytearray()
        self.continued = self.skipped = False

    def feed(self, data: bytes) -> None:
        """Appends received bytes."""
        if not self.buffer:
            self.buffer = data
            return
        if type(self.buffer) is bytes:
            # Appending to bytes copies them, which is quadratic for a client that sends single bytes.
            self.buffer = bytearray(self.buffer)
        self.buffer += data

    def next(self) -> RawRequest | None:
        """Returns the next complete request, or None if bytes are missing. Raises HTTPParseError, which is final."""
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
        return RawRequest(head, body)

    @property
    def started(self) -> bool:
        """True if a part of a request has arrived."""
        return bool(self.buffer) or self.head is not None

    @property
    def buffered(self) -> int:
        """The number of bytes of the incomplete request."""
        return len(self.buffer) + len(self.body)

    @property
    def is_head_request(self) -> bool:
        """True if the incomplete request is a HEAD request, whose response has no content."""
        return self.head.method == "HEAD" if self.head is not None else self.buffer.startswith(b"HEAD ")

    @property
    def path(self) -> str:
        """The path of the incomplete request, or its beginning. It is empty if no path has arrived."""
        if self.head is not None:
            return self.head.path
        found = path_start(self.buffer)
        return unquote_to_bytes(found[1]).decode("latin-1") if found else ""

    @property
    def missing(self) -> int:
        """The number of bytes of the body that are known to be missing."""
        return (self.head.length or 0) - len(self.buffer) if self.head is not None else 0

    def wants_continue(self) -> bool:
        """Returns whether to send `100 Continue` now, which is true once for a request (RFC 9110, section 10.1.1)."""
        head = self.head
        if head is None or not head.expects_continue or self.continued or self.buffer or self.body:
            return False
        self.continued = True
        return True

    def skip_empty_line(self) -> None:
        """Skips one CRLF before a request line, which some clients send after a body (RFC 9112, section 2.2)."""
        if not self.skipped and self.buffer.startswith(b"\r\n"):
            self.buffer = self.buffer[2:]
            self.skipped, self.scanned = True, 0

    def read_head(self) -> bool:
        self.skip_empty_line()
        if not self.buffer or (self.buffer == b"\r" and not self.skipped):
            return False
        end = self.buffer.find(b"\r\n\r\n", max(0, self.scanned - 3))
        if end < 0:
            check_start(self.buffer, max(0, self.scanned - 1))
            self.scanned = len(self.buffer)
            return False
        if end + 4 > MAX_HEAD:
            check_start(self.buffer[: end + 4], 0)
        text = bytes(self.buffer[: end + 4])
        self.head = cached_head(text) if end < MAX_CACHED_HEAD else parse_head(text)
        self.buffer = self.buffer[end + 4 :]
        self.scanned, self.skipped = 0, False
        if self.head.length is not None and self.head.length > self.max_body_bytes:
            raise self.too_large()
        return True

    def too_large(self) -> HTTPParseError:
        return HTTPParseError(413, f"The body is over the limit of {self.max_body_bytes} bytes; send fewer rows in a request.")

    def read_chunks(self) -> bool:
        """Moves complete chunks from the buffer to the body. Returns whether the last chunk and the trailers are complete."""
        position, complete = 0, False
        while not complete:
            end = self.buffer.find(b"\r\n", position, position + MAX_CHUNK_LINE)
            if end < 0:
                check_chunk_start(bytes(self.buffer[position : position + MAX_CHUNK_LINE]))
                break
            found = chunk_line(self.buffer, position, end + 2)
            if found is None:
                raise invalid_chunk()
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
            # Checked as soon as possible, because a client that waits for the response sends nothing more.
            if not b"\r\n".startswith(self.buffer[stop : stop + 2]):
                raise HTTPParseError(400, "A chunk does not end with CRLF where its size says.")
            if len(self.buffer) < stop + 2:
                break
            self.body += self.buffer[end + 2 : stop]
            position = stop + 2
        if position:
            self.buffer = self.buffer[position:]
            self.scanned = max(0, self.scanned - position)
        return complete

    def trailers_end(self, start: int) -> int | None:
        """Checks the trailer section that begins at `start`. Returns the position of its end, or None if it is incomplete."""
        if self.buffer.startswith(b"\r\n", start):
            return start + 2
        seen = max(start, self.scanned - 3)
        end = self.buffer.find(b"\r\n\r\n", seen)
        size = (end if end >= 0 else len(self.buffer)) - start
        if size > MAX_HEAD:
            raise HTTPParseError(431, f"The trailer fields are over the limit of {MAX_HEAD} bytes.")
        if end < 0:
            if bare_line_end(self.buffer, seen):
                raise invalid_field()
            self.scanned = len(self.buffer)
            return None
        section = bytes(self.buffer[start : end + 4])
        if not valid_fields(section):
            raise invalid_field()
        names = [name.lower() for name, _ in find_fields(section)]
        if len(names) > MAX_FIELDS:
            raise HTTPParseError(431, f"There are more than {MAX_FIELDS} trailer fields.")
        if NEVER_IN_TRAILERS.intersection(names):
            raise HTTPParseError(400, "The trailers contain a field that frames or routes the message.")
        return end + 4


def check_start(start: bytes | bytearray, scanned: int) -> None:
    """Raises HTTPParseError if no valid head begins with `start`, whose first `scanned` bytes were checked before."""
    line = start.find(b"\r\n")
    if line < 0 and len(start) > MAX_TARGET + 100:
        raise HTTPParseError(414, f"The request target is over the limit of {MAX_TARGET} bytes.")
    if bare_line_end(start, scanned):
        raise HTTPParseError(400, "A line ends with a lone CR or LF.")
    if line >= 0:
        parse_request_line(bytes(start[: line + 2]))
    elif start[:1] < b"\x21":
        raise HTTPParseError(400, "The request does not begin with a method.")
    if len(start) > MAX_HEAD:
        raise HTTPParseError(431, f"The request line and the fields are over the limit of {MAX_HEAD} bytes.")


def check_chunk_start(start: bytes) -> None:
    if len(start) >= MAX_CHUNK_LINE or not chunk_line_start(start):
        raise invalid_chunk()


def invalid_chunk() -> HTTPParseError:
    return HTTPParseError(400, "A chunk does not begin with its size in hexadecimal digits, well-formed extensions, and CRLF.")
