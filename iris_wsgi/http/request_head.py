"""The heads of HTTP/1.1 requests (RFC 9112), strictly: what is not exactly right is refused, and never guessed at."""

import re
import socket
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

MOST_TARGET = 8192
MOST_HEAD = 16384
MOST_FIELDS = 100
# Longer heads are parsed as well, but not remembered: a cache must not be filled by whoever sends the largest.
MOST_REMEMBERED = 1024

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
# A comma is legal in a name, but a field with one is two fields that somebody joined.
AUTHORITY = rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})++)(?::([0-9]{0,5}))?"

request_line = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]++) HTTP/(1\.[01])\r\n")
any_version = re.compile(TOKEN + rb" [\x21-\x7e]++ HTTP/[0-9]\.[0-9]\r\n").match
whole_fields = re.compile(rb"(?:" + TOKEN + rb":" + VALUE + rb"\r\n)*+\r\n").fullmatch
each_field = re.compile(rb"(" + TOKEN + rb"):(" + VALUE + rb")\r\n").findall
origin_form = re.compile(rb"((?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})++)(?:\?([\x21\x22\x24-\x7e]*+))?").fullmatch
absolute_form = re.compile(rb"http://(" + AUTHORITY + rb")((?:[/?].*)?)", re.IGNORECASE).fullmatch
valid_authority = re.compile(AUTHORITY).fullmatch
# An encoded slash or control would be another path to us than to a proxy that looked at it first.
treacherous_escape = re.compile(rb"%(?:2[fF]|[01][0-9A-Fa-f]|7[fF])").search

ONCE = {"CONTENT_LENGTH", "HTTP_HOST", "HTTP_TRANSFER_ENCODING"}


class Refused(Exception):
    """A request that must not be served: the status and the sentence to answer, after which the connection is closed."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Head(NamedTuple):
    """A request line and its fields. `length` is the body's in bytes, None where it comes in chunks.

    `variables` are the CGI variables (RFC 3875) that a WSGI environ takes from it; they must not be changed.
    """

    method: str
    target: str
    path: str
    version: str
    variables: dict[str, str]
    length: int | None
    close: bool
    expects_continue: bool


class Request(NamedTuple):
    """A complete request."""

    head: Head
    body: bytes


def malformed_field() -> Refused:
    return Refused(400, "A field is not a name, a colon, a value of legal characters and CRLF, on one line.")


def parse_request_line(line: bytes) -> tuple[str, bytes, str]:
    """Method, target and version of `line`, which ends with CRLF."""
    found = request_line.fullmatch(line)
    if found is None:
        if any_version(line):
            raise Refused(400, "This server speaks HTTP/1.1 and HTTP/1.0.")
        raise Refused(400, "The request line is not a method, a target and HTTP/1.1, with one blank between them.")
    if len(found[2]) > MOST_TARGET:
        raise Refused(414, f"The request target is over the limit of {MOST_TARGET} bytes.")
    return found[1].decode(), found[2], found[3].decode()


def parse_head(text: bytes) -> Head:
    """A head of at most MOST_HEAD bytes, up to and with its empty line. Raises Refused."""
    end = text.index(b"\r\n") + 2
    method, target, version = parse_request_line(text[:end])
    section = text[end:]
    if not whole_fields(section):
        raise malformed_field()
    variables = field_variables(section)
    path, query, authority = parse_target(method, target)
    if "HTTP_HOST" not in variables:
        if version == "1.1":
            raise Refused(400, "The field Host is missing.")
    # An empty value is legal (RFC 9110, section 7.2), and load balancers send it.
    elif variables["HTTP_HOST"] and not is_authority(variables["HTTP_HOST"].encode("latin-1")):
        raise Refused(400, "The field Host is not a host with an optional port.")
    if authority:
        # A target with an authority wins over the field (RFC 9112, section 3.2.2).
        variables["HTTP_HOST"] = authority
    length = body_length(variables, version)
    expects_continue = version == "1.1" and expectation(variables) and length != 0
    options = {option.strip(" \t").lower() for option in variables.get("HTTP_CONNECTION", "").split(",")}
    close = "close" in options or (version == "1.0" and "keep-alive" not in options)
    variables |= {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "SERVER_PROTOCOL": f"HTTP/{version}"}
    return Head(method, target.decode(), path, version, variables, length, close, expects_continue)


remembered_head = lru_cache(256)(parse_head)


@lru_cache(1024)
def variable_name(field: bytes) -> str | None:
    """The CGI variable of a field; none for a name with an underscore, which could pose as another field."""
    if b"_" in field:
        return None
    name = field.decode().upper().replace("-", "_")
    return name if name in ("CONTENT_LENGTH", "CONTENT_TYPE") else "HTTP_" + name


def field_variables(section: bytes) -> dict[str, str]:
    fields = each_field(section)
    if len(fields) > MOST_FIELDS:
        raise Refused(431, f"There are more than {MOST_FIELDS} fields.")
    variables: dict[str, str] = {}
    for field, value in fields:
        name = variable_name(field)
        if name is None:
            continue
        text = value.strip(b" \t").decode("latin-1")
        if name not in variables:
            variables[name] = text
        elif name in ONCE:
            raise Refused(400, "The field Host, Content-Length or Transfer-Encoding stands more than once.")
        else:
            variables[name] += ", " + text
    return variables


def is_authority(value: bytes) -> bool:
    """Whether it is uri-host [":" port] (RFC 9110, section 7.2), not empty."""
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
    """Path, decoded as WSGI wants it, query and authority of a target in any form of RFC 9112, section 3.2."""
    if method == "CONNECT":
        host_and_port = is_authority(target) and target[-1:].isdigit() and b":" in target
        raise Refused(501, "This server is no proxy.") if host_and_port else malformed_target()
    if target == b"*":
        if method != "OPTIONS":
            raise malformed_target()
        return "*", "", ""
    authority = b""
    absolute = absolute_form(target)
    if absolute:
        if not is_authority(absolute[1]):
            raise malformed_target()
        authority = absolute[1]
        target = absolute[4] if absolute[4].startswith(b"/") else b"/" + absolute[4]
    found = origin_form(target) if target.startswith(b"/") else None
    if found is None or treacherous_escape(found[1]):
        raise malformed_target()
    path = unquote_to_bytes(found[1]) if b"%" in found[1] else found[1]
    return path.decode("latin-1"), (found[2] or b"").decode(), authority.decode()


def malformed_target() -> Refused:
    return Refused(400, "The request target is not a path of legal characters; in it %2F and encoded controls are not taken.")


def body_length(variables: dict[str, str], version: str) -> int | None:
    """How many bytes the body has, None for chunks (RFC 9112, section 6.3); what could be framed in two ways is refused."""
    coding = variables.pop("HTTP_TRANSFER_ENCODING", None)
    length = variables.get("CONTENT_LENGTH")
    if coding is not None:
        if version == "1.0" or length is not None:
            raise Refused(400, "Transfer-Encoding stands in an HTTP/1.0 request or beside Content-Length.")
        if coding.lower() == "chunked":
            return None
        codings = [one.strip(" \t").lower() for one in coding.split(",")]
        # Without chunked at the end, and only there, nobody can tell where the body ends.
        if codings[-1] != "chunked" or {"chunked", ""}.intersection(codings[:-1]):
            raise Refused(400, "Transfer-Encoding must be chunked.")
        raise Refused(501, "This server knows no transfer coding but chunked.")
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()) or len(length) > 20:
        raise Refused(400, "Content-Length is not a number of at most 20 digits.")
    return int(length)


def expectation(variables: dict[str, str]) -> bool:
    expected = variables.get("HTTP_EXPECT")
    if expected is not None and expected.lower() != "100-continue":
        raise Refused(417, "This server meets no expectation but 100-continue.")
    return expected is not None
