"""Strict parser of HTTP/1.1 request heads (RFC 9112), which rejects every deviation."""

import re
import socket
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

MAX_TARGET = 8192
MAX_HEAD = 16384
MAX_FIELDS = 100
# Longer heads are not cached: a client with large heads could fill the cache.
MAX_CACHED_HEAD = 1024

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
# A comma is legal in a host name, but a Host field with a comma is two joined fields.
AUTHORITY = rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})++)(?::([0-9]{0,5}))?"

request_line = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]++) HTTP/(1\.[01])\r\n")
any_version = re.compile(TOKEN + rb" [\x21-\x7e]++ HTTP/[0-9]\.[0-9]\r\n").match
valid_fields = re.compile(rb"(?:" + TOKEN + rb":" + VALUE + rb"\r\n)*+\r\n").fullmatch
find_fields = re.compile(rb"(" + TOKEN + rb"):(" + VALUE + rb")\r\n").findall
origin_form = re.compile(rb"((?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})++)(?:\?([\x21\x22\x24-\x7e]*+))?").fullmatch
absolute_form = re.compile(rb"http://(" + AUTHORITY + rb")((?:[/?].*)?)", re.IGNORECASE).fullmatch
valid_authority = re.compile(AUTHORITY).fullmatch
# A proxy could interpret an encoded slash or control character differently from this server.
forbidden_escape = re.compile(rb"%(?:2[fF]|[01][0-9A-Fa-f]|7[fF])").search

ONCE = {"CONTENT_LENGTH", "HTTP_HOST", "HTTP_TRANSFER_ENCODING"}


class HTTPParseError(Exception):
    """Raised for an invalid request, with the status and detail of the response. The connection then closes."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class RequestHead(NamedTuple):
    """A request line and its fields. `length` is the size of the body in bytes, or None for a chunked body.

    `environ` has the CGI variables (RFC 3875) of the head. It is shared and must not be changed.
    """

    method: str
    target: str
    path: str
    version: str
    environ: dict[str, str]
    length: int | None
    close: bool
    expects_continue: bool


class RawRequest(NamedTuple):
    """A complete request."""

    head: RequestHead
    body: bytes


def invalid_field() -> HTTPParseError:
    return HTTPParseError(400, "A field is not a name, a colon, a value of legal characters, and CRLF, on one line.")


def parse_request_line(line: bytes) -> tuple[str, bytes, str]:
    """Returns method, target, and version of a line that ends with CRLF. Raises HTTPParseError."""
    found = request_line.fullmatch(line)
    if found is None:
        if any_version(line):
            raise HTTPParseError(400, "This server speaks HTTP/1.1 and HTTP/1.0.")
        raise HTTPParseError(400, "The request line is not a method, a target, and HTTP/1.1, separated by single blanks.")
    if len(found[2]) > MAX_TARGET:
        raise HTTPParseError(414, f"The request target is over the limit of {MAX_TARGET} bytes.")
    return found[1].decode(), found[2], found[3].decode()


def parse_head(text: bytes) -> RequestHead:
    """Parses a head of at most MAX_HEAD bytes, including its empty line. Raises HTTPParseError."""
    end = text.index(b"\r\n") + 2
    method, target, version = parse_request_line(text[:end])
    section = text[end:]
    if not valid_fields(section):
        raise invalid_field()
    environ = field_environ(section)
    path, query, authority = parse_target(method, target)
    if "HTTP_HOST" not in environ:
        if version == "1.1":
            raise HTTPParseError(400, "The field Host is missing.")
    # An empty value is legal (RFC 9110, section 7.2), and some load balancers send it.
    elif environ["HTTP_HOST"] and not is_authority(environ["HTTP_HOST"].encode("latin-1")):
        raise HTTPParseError(400, "The field Host is not a host with an optional port.")
    if authority:
        # The authority of the target takes precedence over the field (RFC 9112, section 3.2.2).
        environ["HTTP_HOST"] = authority
    length = body_length(environ, version)
    expects_continue = version == "1.1" and expectation(environ) and length != 0
    options = {option.strip(" \t").lower() for option in environ.get("HTTP_CONNECTION", "").split(",")}
    close = "close" in options or (version == "1.0" and "keep-alive" not in options)
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "SERVER_PROTOCOL": f"HTTP/{version}"}
    return RequestHead(method, target.decode(), path, version, environ, length, close, expects_continue)


cached_head = lru_cache(256)(parse_head)


@lru_cache(1024)
def environ_name(field: bytes) -> str | None:
    """Returns the CGI variable of a field, or None for a name with an underscore, which could imitate another field."""
    if b"_" in field:
        return None
    name = field.decode().upper().replace("-", "_")
    return name if name in ("CONTENT_LENGTH", "CONTENT_TYPE") else "HTTP_" + name


def field_environ(section: bytes) -> dict[str, str]:
    fields = find_fields(section)
    if len(fields) > MAX_FIELDS:
        raise HTTPParseError(431, f"There are more than {MAX_FIELDS} fields.")
    environ: dict[str, str] = {}
    for field, value in fields:
        name = environ_name(field)
        if name is None:
            continue
        text = value.strip(b" \t").decode("latin-1")
        if name not in environ:
            environ[name] = text
        elif name in ONCE:
            raise HTTPParseError(400, "The field Host, Content-Length, or Transfer-Encoding occurs more than once.")
        else:
            environ[name] += ", " + text
    return environ


def is_authority(value: bytes) -> bool:
    """Returns whether the value is a non-empty uri-host [":" port] (RFC 9110, section 7.2)."""
    found = valid_authority(value)
    if found is None or int(found[2] or 0) > 65535:
        return False
    if found[1]:
        try:
            socket.inet_pton(socket.AF_INET6, found[1].decode())
        except OSError:
            return False
    return True


def parse_target(method: str, target: bytes) -> tuple[str, str, str]:
    """Returns path (decoded for WSGI), query, and authority of a target in any form of RFC 9112, section 3.2."""
    if method == "CONNECT":
        host_and_port = is_authority(target) and target[-1:].isdigit() and b":" in target
        raise HTTPParseError(501, "This server is not a proxy.") if host_and_port else invalid_target()
    if target == b"*":
        if method != "OPTIONS":
            raise invalid_target()
        return "*", "", ""
    authority = b""
    absolute = absolute_form(target)
    if absolute:
        if not is_authority(absolute[1]):
            raise invalid_target()
        authority = absolute[1]
        target = absolute[4] if absolute[4].startswith(b"/") else b"/" + absolute[4]
    found = origin_form(target) if target.startswith(b"/") else None
    if found is None or forbidden_escape(found[1]):
        raise invalid_target()
    path = unquote_to_bytes(found[1]) if b"%" in found[1] else found[1]
    return path.decode("latin-1"), (found[2] or b"").decode(), authority.decode()


def invalid_target() -> HTTPParseError:
    return HTTPParseError(
        400, "The request target is not a path of legal characters. %2F and encoded control characters are not accepted."
    )


def body_length(environ: dict[str, str], version: str) -> int | None:
    """Returns the size of the body, or None for chunks (RFC 9112, section 6.3). Raises HTTPParseError for ambiguous framing."""
    coding = environ.pop("HTTP_TRANSFER_ENCODING", None)
    length = environ.get("CONTENT_LENGTH")
    if coding is not None:
        if version == "1.0" or length is not None:
            raise HTTPParseError(400, "Transfer-Encoding occurs in an HTTP/1.0 request or together with Content-Length.")
        if coding.lower() == "chunked":
            return None
        codings = [one.strip(" \t").lower() for one in coding.split(",")]
        # The end of the body is known only if chunked is the last coding, and no other one.
        if codings[-1] != "chunked" or {"chunked", ""}.intersection(codings[:-1]):
            raise HTTPParseError(400, "Transfer-Encoding must be chunked.")
        raise HTTPParseError(501, "This server supports no transfer coding except chunked.")
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()) or len(length) > 20:
        raise HTTPParseError(400, "Content-Length is not a number of at most 20 digits.")
    return int(length)


def expectation(environ: dict[str, str]) -> bool:
    expected = environ.get("HTTP_EXPECT")
    if expected is not None and expected.lower() != "100-continue":
        raise HTTPParseError(417, "This server supports no expectation except 100-continue.")
    return expected is not None
