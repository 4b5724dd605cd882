"""Raw requests with their expected responses: the MUSTs of RFC 9110 and RFC 9112, and the limits of this server."""

import string
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Part of refused or unknown input. No response may repeat it.
MARKER = b"q7marker"
CRLF = b"\r\n"
HOST = b"Host: a"
JSON = b"Content-Type: application/json"
CHUNKED = b"Transfer-Encoding: chunked"
DOCUMENT = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
LENGTH = b"Content-Length: %d" % len(DOCUMENT)
MAX_BODY, MAX_TARGET, MAX_HEAD, MAX_FIELDS = 1_048_576, 8192, 16_384, 100
MAX_CHUNK_LINE, MAX_CHUNK_DIGITS = 256, 16

TCHAR = b"!#$%&'*+-.^_`|~" + (string.digits + string.ascii_letters).encode()
DELIMITERS = b'"(),/:;<=>?@[\\]{}'
CONTROLS = bytes(code for code in range(32) if code != 9) + b"\x7f"
PCHAR_MARKS = b"-._~!$&'()*+,;=:@"
NO_PCHAR = b'"<>[\\]^`{|}'


class Vector(NamedTuple):
    """Request bytes, the expected statuses in order, and whether the server then closes the connection.

    `continues` is the number of `100 Continue` responses if each body arrives after its head. `head_indexes` are the positions
    of the responses to HEAD, which have no content.
    """

    name: str
    request: bytes
    statuses: tuple[int, ...]
    closes: bool
    reason: str
    continues: int = 0
    head_indexes: tuple[int, ...] = ()


def message(line: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return CRLF.join((line, *lines)) + CRLF + CRLF + body


def get(target: bytes = b"/livez", *fields: bytes, body: bytes = b"") -> bytes:
    return message(b"GET " + target + b" HTTP/1.1", HOST, *fields, body=body)


def post(*fields: bytes, body: bytes = DOCUMENT, version: bytes = b"HTTP/1.1") -> bytes:
    return message(b"POST /predict/label " + version, HOST, JSON, *fields, body=body)


def chunk(data: bytes) -> bytes:
    return b"%x" % len(data) + CRLF + data + CRLF


def chunked(coded: bytes) -> bytes:
    return post(CHUNKED, body=coded)


LAST = b"0\r\n\r\n"
CODED = chunk(DOCUMENT) + LAST
NEXT = get()


def accepted(name: str, sent: bytes, why: str, **more) -> Vector:
    return Vector(name, sent, (200,), False, why, **more)


def stays_open(name: str, sent: bytes, status: int, why: str, **more) -> Vector:
    """Returns a vector of a valid request that the application rejects. The connection stays open."""
    return Vector(name, sent, (status,), False, why, **more)


def final(name: str, sent: bytes, status: int, why: str, **more) -> Vector:
    """Returns a vector whose connection closes after the response. The server ignores the next request."""
    return Vector(name, sent + NEXT, (status,), True, why, **more)


def refused(name: str, sent: bytes, why: str, status: int = 400, **more) -> Vector:
    return final(name, sent, status, why, **more)


def incomplete(name: str, sent: bytes, why: str, status: int = 400) -> Vector:
    """Returns a vector of an incomplete request that the server refuses before its end."""
    return Vector(name, sent, (status,), True, why)


def printable(value: bytes) -> str:
    """Returns the bytes as printable ASCII without spaces, for a name."""
    return "".join(chr(code) if 33 <= code <= 126 else f"\\x{code:02x}" for code in value) or "nothing"


# --- The request line -------------------------------------------------------------------------------------------------


def request_line(line: bytes) -> bytes:
    return message(line, HOST)


def methods() -> Iterator[Vector]:
    token, unknown = "RFC 9110 9.1, 5.6.2: a method is a token", "RFC 9110 9.1, 15.6.2: unknown methods are 501"
    for code in DELIMITERS + b"\t" + CONTROLS + b"\x80\xff":
        yield refused(f"method-with-{code:02x}", request_line(MARKER + bytes([code]) + b"T /livez HTTP/1.1"), token)
    for start in (b"\t", b'"', b"\x16\x03\x01", b"\xef\xbb\xbf"):
        yield refused(f"method-starts-with-{start.hex()}", request_line(start + b"GET /livez HTTP/1.1"), token)
    yield refused("method-is-missing", request_line(b" /livez HTTP/1.1"), token)
    yield refused("method-is-missing-with-its-blank", request_line(b"/livez HTTP/1.1"), token)
    for name in (b"get", b"Get", b"GETT", b"GE", b"X", b"QUERY", b"PROPFIND", b"M-SEARCH", b"1", b"G" * 40, TCHAR):
        yield stays_open(f"method-unknown-{printable(name)[:20]}", request_line(name + b" /livez HTTP/1.1"), 501, unknown)
    yield stays_open("method-unknown-on-an-unknown-path", request_line(b"BREW /" + MARKER + b" HTTP/1.1"), 501, unknown)
    for name in (b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE"):
        sent = request_line(name + b" /livez HTTP/1.1")
        yield stays_open(f"method-not-allowed-{name.decode()}", sent, 405, "RFC 9110 15.5.6: a known method elsewhere is 405")
    for name in (b"GET", b"PUT", b"DELETE"):
        sent = message(name + b" /predict HTTP/1.1", HOST, LENGTH, body=DOCUMENT)
        yield stays_open(f"method-not-allowed-with-a-body-{name.decode()}", sent, 405, "RFC 9112 9.3: a body is read to its end")
    yield stays_open("options-of-a-path", request_line(b"OPTIONS /livez HTTP/1.1"), 204, "RFC 9110 9.3.7, 15.3.5")
    yield stays_open(
        "options-of-a-path-with-a-body", message(b"OPTIONS /predict HTTP/1.1", HOST, LENGTH, body=DOCUMENT), 204, "9.3.7"
    )
    yield stays_open(
        "options-of-the-server", message(b"OPTIONS * HTTP/1.1", HOST), 204, "RFC 9112 3.2.4, RFC 9110 9.3.7: a no-op"
    )
    yield refused("connect", request_line(b"CONNECT a:80 HTTP/1.1"), "RFC 9110 9.3.6: no tunnels here", status=501)
    for target in (b"/livez", b"a", b"a:", b"a:x", b":80", b"http://a:80/", b"*", b"a:80/", b"u@a:80", b"a:80:80", b"a:65536"):
        sent = request_line(b"CONNECT " + target + b" HTTP/1.1")
        yield refused(f"connect-to-{printable(target)}", sent, "RFC 9112 3.2.3: CONNECT takes host:port and nothing else")


def separators() -> Iterator[Vector]:
    why = "RFC 9112 3: exactly one SP between the three parts, and CRLF"
    for name, line in {
        "two-blanks-after-the-method": b"GET  /livez HTTP/1.1",
        "two-blanks-before-the-version": b"GET /livez  HTTP/1.1",
        "a-blank-first": b" GET /livez HTTP/1.1",
        "a-blank-last": b"GET /livez HTTP/1.1 ",
        "a-tab-last": b"GET /livez HTTP/1.1\t",
        "a-tab-after-the-method": b"GET\t/livez HTTP/1.1",
        "a-tab-before-the-version": b"GET /livez\tHTTP/1.1",
        "vertical-tabs": b"GET\x0b/livez\x0bHTTP/1.1",
        "form-feeds": b"GET\x0c/livez\x0cHTTP/1.1",
        "no-break-spaces": b"GET\xa0/livez\xa0HTTP/1.1",
        "nuls": b"GET\x00/livez\x00HTTP/1.1",
        "a-blank-in-the-method": b"GE T /livez HTTP/1.1",
        "a-blank-in-the-target": b"GET /li vez HTTP/1.1",
        "a-fourth-part": b"GET /livez HTTP/1.1 " + MARKER,
        "only-a-method": b"GET",
        "a-method-and-a-blank": b"GET ",
        "only-two-blanks": b"  ",
        "no-target": b"GET HTTP/1.1",
        "an-empty-target": b"GET  HTTP/1.1",
        "the-answer-of-another": b"HTTP/1.1 200 OK",
        "a-field": b"X: " + MARKER,
        "a-bare-cr-inside": b"GET /livez\rHTTP/1.1",
        "a-bare-cr-last": b"GET /livez HTTP/1.1\r",
        "a-bare-lf-inside": b"GET /livez\nHTTP/1.1",
        "a-bare-lf-last": b"GET /livez HTTP/1.1\n",
    }.items():
        yield refused(f"request-line-{name}", request_line(line), why)
    ends = "RFC 9112 2.2: a bare LF or CR ends no line here"
    yield refused("lines-end-with-lf", b"GET /livez HTTP/1.1\nHost: a\n\n", ends)
    yield incomplete("lines-end-with-lf-and-nothing-follows", b"GET /livez HTTP/1.1\nHost: a\n\n", ends)
    yield incomplete("lines-end-with-cr-and-nothing-follows", b"GET /livez HTTP/1.1\rHost: a\r\r", ends)
    yield refused("first-line-ends-with-lf", b"GET /livez HTTP/1.1\nHost: a\r\n\r\n", ends)
    yield refused("field-ends-with-lf", b"GET /livez HTTP/1.1\r\nHost: a\n\r\n", ends)
    yield refused("head-ends-with-lf", b"GET /livez HTTP/1.1\r\nHost: a\r\n\n", ends)
    yield refused("head-ends-with-cr", b"GET /livez HTTP/1.1\r\nHost: a\r\n\r", ends)
    yield refused("head-ends-with-cr-cr-lf", b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\r\n", ends)
    yield refused("lines-end-with-lf-cr", b"GET /livez HTTP/1.1\n\rHost: a\n\r\n\r", ends)
    empty = "RFC 9112 2.2: one empty line (CRLF) before a request line is ignored, and no more"
    yield accepted("before-the-request-0d0a", CRLF + NEXT, empty)
    yield Vector("before-each-request-0d0a", CRLF + NEXT + CRLF + NEXT, (200, 200), False, empty)
    yield accepted("before-a-post-0d0a", CRLF + post(LENGTH), empty)
    for start in (b"\n", b"\r", b"\r\n\r\n", b" \r\n", b"\x00", b"\r\n\n", b"\r\n\r", b"\r\r\n", b"\n\r\n", b"\r\n "):
        yield refused(f"before-the-request-{start.hex()}", start + NEXT, empty)
    tls = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(range(32)) + CRLF + CRLF
    yield refused("a-tls-hello", tls, "RFC 9112 3: no request line")
    yield refused("the-http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "RFC 9112 2.3: no HTTP/2 here")
    yield refused("json-in-place-of-a-request", DOCUMENT + CRLF + CRLF, "RFC 9112 3: no request line")


def versions() -> Iterator[Vector]:
    why = "RFC 9112 2.3: HTTP/1.1 and HTTP/1.0 in these letters"
    wrong = rb"""
        HTTP/0.9 HTTP/1.2 HTTP/1.9 HTTP/2.0 HTTP/2 HTTP/3.0 HTTP/9.9 HTTP/0.0 HTTP/1 HTTP/1. HTTP/.1 HTTP/ HTTP HTTP1.1 http/1.1
        Http/1.1 HTTP/01.1 HTTP/1.01 HTTP/1.10 HTTP/11.1 HTTP/+1.1 HTTP/1.+1 HTTP/-1.1 HTTP/1,1 HTTP/1:1 HTTP/1.1.1 HTTP/1.1;
        HTTP/1.1,HTTP/1.1 HTTP/1.x HTTP//1.1 /1.1 HTTPS/1.1 ICY/1.1 XHTTP/1.1 HTTP\1.1 HTTP/0x1.1 HTTP/1_1 1.1 HTTP/1.1#
    """
    for version in wrong.split():
        yield refused(f"version-{printable(version)}", request_line(b"GET /livez " + version), why)
    for version in (b"HTTP/1.1\x00", b"HTTP/\xb9.\xb9", b"HTTP/\xd9\xa1.\xd9\xa1", b"HTTP/1.\xc2\xb9", b"\xff"):
        yield refused(f"version-{printable(version)}", request_line(b"GET /livez " + version), why)
    yield refused("no-version", b"GET /livez\r\n\r\n", why)
    yield refused("no-version-with-fields", request_line(b"GET /livez"), why)
    early = "spec: refused as soon as it is certain, as the client may wait for an answer"
    for line in (b"GET /livez", b"GET  /livez HTTP/1.1", b"GET /livez HTTP/1.2", b"PRI * HTTP/2.0", b"SSH-2.0-x", b"EHLO a"):
        yield incomplete(f"first-line-alone-{printable(line)}", line + CRLF, early)
    for start in (b"\r\n\r\n", b"\r\n\r", b"\r\n ", b"\rG", b"\r\r", b"\r\n\x00"):
        yield incomplete(f"start-alone-{start.hex()}", start, early)
    for start in (b"\x16\x03\x01", b" ", b"\x00", b"\n", b"GET /livez HTTP/1.1\n", b"GET /livez HTTP/1.1\r\nHost: a\n"):
        yield incomplete(f"start-alone-{start.hex()[-20:]}", start, early)
    yield refused("no-version-but-a-blank", request_line(b"GET /livez "), why)


def targets() -> Iterator[Vector]:
    form, pchar = "RFC 9112 3.2: one of the four forms", "RFC 3986 3.3: pchar and / only"
    for target in (
        b"livez",
        b"livez/",
        b"*",
        b"**",
        b"*/livez",
        b"?x",
        b"./livez",
        b"../livez",
        b"\\livez",
        b"a:80",
        b"a",
        b"@",
        b":",
    ):
        yield refused(f"target-{printable(target)}", get(target), form)
    for target in (
        b"http:", b"http:/livez", b"http:livez", b"http://", b"http:///livez", b"http://?x", b"://a/livez", b"ftp://a/livez",
        b"file:///livez", b"ws://a/livez", b"httpx://a/livez", b"http//a/livez", b"mailto:a@a", b"urn:a", b"1http://a/",
        b"http:\\\\a\\livez", b"javascript:x", b"http://u@a/livez", b"http://u:p@a/livez", b"http://@a/livez",
        b"http://a:x/livez", b"http://a:65536/livez", b"http://a:-1/livez", b"http://a:80:80/livez", b"http://:80/livez",
        b"http://[::1/livez", b"http://::1/livez", b"http://[]/livez", b"http://[z]/livez", b"http://a,b/livez",
        b"http://a\\b/livez", b"http://a%/livez", b"http://a/livez#x", b"http://a#/livez", b"http://a/%", b"http://a/%2f",
        b"http://a/li\x7fvez", b"http://\xff/livez", b"http://a/\xff",
    ):  # fmt: skip
        yield refused(f"target-{printable(target)}", get(target), "RFC 9112 3.2.2, RFC 9110 4.2: a whole http URI, without user")
    for target in (
        b"http://a/livez", b"HTTP://A/livez", b"Http://b.example:80/livez", b"http://a:/livez", b"http://[::1]:80/livez",
        b"http://1.2.3.4/livez", b"http://a/livez?x=http://b/", b"http://a/%6civez",
    ):  # fmt: skip
        yield accepted(f"target-{printable(target)}", get(target), "RFC 9112 3.2.2: a server MUST accept the absolute form")
    yield refused("target-https", get(b"https://a/livez"), "RFC 9110 7.4: an https target needs a connection that is secured")
    sent = message(b"GET http://b.example/livez HTTP/1.1", b"Host: a.example")
    yield accepted("target-absolute-with-another-host", sent, "RFC 9112 3.2.2: the target's host wins and Host is ignored")
    yield refused("target-absolute-without-host", message(b"GET http://a/livez HTTP/1.1"), "RFC 9112 3.2: Host is still needed")
    yield refused("target-absolute-with-a-bad-host", message(b"GET http://a/livez HTTP/1.1", b"Host: a b"), "RFC 9112 3.2")
    yield refused("target-absolute-with-two-hosts", message(b"GET http://a/livez HTTP/1.1", HOST, HOST), "RFC 9112 3.2")
    yield final("target-absolute-in-1.0", message(b"GET http://a/livez HTTP/1.0"), 200, "RFC 9112 3.2.2")
    yield stays_open("target-absolute-without-path", get(b"http://a"), 200, "RFC 9110 4.2.3: an empty path is /")
    yield stays_open("target-absolute-without-path-with-query", get(b"http://a?x"), 200, "RFC 9110 4.2.3: an empty path is /")
    sent = message(b"POST http://a/predict/label HTTP/1.1", HOST, JSON, LENGTH, body=DOCUMENT)
    yield accepted("target-absolute-with-a-body", sent, "RFC 9112 3.2.2")
    for code in NO_PCHAR + b"\t\x00\x01\x0b\x1b\x7f\x80\xa0\xff":
        yield refused(f"path-with-{code:02x}", get(b"/" + MARKER + bytes([code]) + b"x"), pchar)
    for code in b"\t\x00\x01\x0b\x1b\x7f\x80\xa0\xff#":
        yield refused(f"query-with-{code:02x}", get(b"/livez?" + MARKER + bytes([code]) + b"x"), "RFC 3986 3.4: visible ASCII")
    yield refused("fragment", get(b"/livez#" + MARKER), "RFC 9110 7.1: no fragment in a target")
    yield refused("fragment-empty", get(b"/livez#"), "RFC 9110 7.1: no fragment in a target")
    yield stays_open("path-of-every-pchar", get(b"/" + PCHAR_MARKS + string.ascii_letters.encode()), 404, pchar)
    yield accepted(
        "query-of-every-visible", get(b"/livez?" + bytes(range(33, 127)).replace(b"#", b"")), "spec: any visible ASCII"
    )
    for query in (b"?", b"??", b"?%", b"?%zz", b"?%00", b"?a=b&c=d", b"?/../%2f", b"?http://a/"):
        yield accepted(f"query-{printable(query)}", get(b"/livez" + query), "spec: a query is not looked into")
    percent = "RFC 3986 2.1: % and two hexadecimal digits"
    for bad in (b"%", b"%2", b"%zz", b"%g0", b"%0g", b"%-1", b"%+1", b"%%", b"%u0041", b"%x41", b"%\xff1"):
        yield refused(f"percent-{printable(bad)}", get(b"/" + MARKER + bad), percent)
    for code in (*range(32), 127, ord("/")):
        yield refused(f"percent-encoded-{code:02x}", get(b"/" + MARKER + b"%%%02x" % code), "spec: no encoded slash or control")
    yield refused("percent-encoded-2F-in-capitals", get(b"/" + MARKER + b"%2F"), "spec: no encoded slash or control")
    yield refused("percent-encoded-0A-in-capitals", get(b"/" + MARKER + b"%0A"), "spec: no encoded slash or control")
    for path in (b"/%6cabel", b"/%6Cabel", b"/%6c%61%62%65%6c", b"/labe%6c?x"):
        yield accepted(f"path-{printable(path)}", get(path), "RFC 9110 4.2.3: encoded unreserved characters are the same URI")
    for path in (
        b"//", b"//livez", b"/livez/", b"/livez//", b"/./livez", b"/../livez", b"/a/../livez", b"/%2e%2e/livez",
        b"/%2e/livez", b"/..", b"/LIVEZ", b"/livez;x", b"/livez%3f", b"/livez%23", b"/%256civez", b"/livez%20", b"/%20livez",
        b"/%ff", b"/%c3%28", b"/%80livez", b"/%c0%afetc/passwd", b"/..%5c", b"/livez.", b"/a:80", b"/*", b"//a/livez",
        b"/http://a/livez", b"/%25", b"/etc/passwd", b"/" + MARKER,
    ):  # fmt: skip
        yield stays_open(f"path-{printable(path)}", get(path), 404, "input table: exact match only")
    for path in (
        b"/livez",
        b"/readyz",
        b"/health",
        b"/metrics",
        b"/metadata",
        b"/label",
        b"/predict/test",
        b"/predict/test/label",
    ):
        yield accepted(f"get-{printable(path)}", get(path), "RFC 9110 9.3.1")
        yield accepted(
            f"head-{printable(path)}", message(b"HEAD " + path + b" HTTP/1.1", HOST), "RFC 9110 9.3.2", head_indexes=(0,)
        )
    for path in (b"/predict", b"/predict/label", b"/predict/proba", b"/predict/batch"):
        sent = message(b"POST " + path + b" HTTP/1.1", HOST, JSON, LENGTH, body=DOCUMENT)
        yield accepted(f"post-{printable(path)}", sent, "RFC 9110 9.3.3")
    for name, sent, status in (
        ("an-unknown-path", message(b"HEAD /" + MARKER + b" HTTP/1.1", HOST), 404),
        ("a-path-for-post", message(b"HEAD /predict HTTP/1.1", HOST), 405),
    ):
        yield stays_open(f"head-of-{name}", sent, status, "RFC 9110 9.3.2: no content for HEAD", head_indexes=(0,))
    for name, sent, status in (
        ("without-host", message(b"HEAD /livez HTTP/1.1"), 400),
        ("with-a-bad-length", message(b"HEAD /livez HTTP/1.1", HOST, b"Content-Length: x"), 400),
        ("with-too-large-a-body", message(b"HEAD /livez HTTP/1.1", HOST, b"Content-Length: 9999999"), 413),
        ("with-another-expectation", message(b"HEAD /livez HTTP/1.1", HOST, b"Expect: x"), 417),
        ("with-another-coding", message(b"HEAD /livez HTTP/1.1", HOST, b"Transfer-Encoding: gzip, chunked"), 501),
    ):
        yield Vector(
            f"head-{name}", sent, (status,), True, "RFC 9110 9.3.2: no content for HEAD, refused or not", head_indexes=(0,)
        )


# --- Host -------------------------------------------------------------------------------------------------------------


def hosts() -> Iterator[Vector]:
    why = "RFC 9112 3.2, RFC 9110 7.2: Host is uri-host [ : port ]"
    for (
        value
    ) in b"""A localhost example.com EXAMPLE.Com a. a-b.c-d 1.2.3.4 1.2.3.4:80 256.256.256.256 0 a:80 a: a:0 a:65535 a:00080
        a_b a~b a!b a$b xn--nxasmq6b [::1] [::1]:8000 [::1]: [::] [2001:db8::1] [2001:DB8::A] [::ffff:1.2.3.4]
        [1:2:3:4:5:6:7:8] -a""".split():
        yield accepted(f"host-{printable(value)}", message(b"GET /livez HTTP/1.1", b"Host: " + value), why)
    yield accepted("host-of-253-bytes", message(b"GET /livez HTTP/1.1", b"Host: " + b"a." * 126 + b"a"), why)
    for name, line in {
        "no-blank": b"Host:a",
        "two-blanks": b"Host:  a",
        "a-tab": b"Host:\ta",
        "blanks-and-tabs-around": b"Host: \t a \t ",
        "small-letters": b"host: a",
        "capitals": b"HOST: a",
        "mixed-case": b"hOsT: a",
        "no-value": b"Host:",
        "no-value-but-a-blank": b"Host: ",
        "no-value-but-a-tab": b"Host:\t",
    }.items():
        yield accepted(f"host-line-with-{name}", message(b"GET /livez HTTP/1.1", line), "RFC 9112 5, 5.1: OWS and any case")
    for value in (
        b"a b", b"a\tb", b"a,b", b"a, a", b"a/", b"a/b", b"/a", b"http://a", b"u@a", b"u:p@a", b"@a",
        b"a?b", b"a#b", b"a:b", b"a:80:80", b"a:-1", b"a:+80", b"a: 80", b"a :80", b"a:8_0", b"a:0x50", b"a:80a", b":80",
        b":", b"a:65536", b"a:99999", b"a:4294967376", b"a:" + b"9" * 400, b"a:\xb2", b"a:\xef\xbc\x98", b"[::1", b"::1",
        b"::1]", b"[::1]a", b"[::1]a:80", b"[::1]:x", b"[::1]:65536", b"[::1].a", b"a[::1]", b"[]", b"[]:80", b"[a]",
        b"[1.2.3.4]", b"[::g]", b"[:::]", b"[::1::2]", b"[1:2:3]", b"[1:2:3:4:5:6:7:8:9]", b"[12345::]", b"[::1.2.3]",
        b"[::256.1.1.1]", b"[::1%25lo]", b"[::1%lo]", b"[[::1]]", b"[::1] ]", b"a]", b"[a", b"a\\b", b'a"b', b"<a>", b"a^b",
        b"a`b", b"{a}", b"a|b", b"a%", b"a%4", b"a%zz", b"\x80a", b"a\xff", b"\xc3\xa9.example", b"a\x00", b"a\x01b",
        b"a\x7f",
    ):  # fmt: skip
        yield refused(f"host-{printable(value)[:30]}", message(b"GET /livez HTTP/1.1", b"Host: " + value), why)
    missing, twice = "RFC 9112 3.2: no Host is 400", "RFC 9112 3.2: more than one Host line is 400"
    yield refused("host-missing", message(b"GET /livez HTTP/1.1"), missing)
    yield refused("host-missing-in-a-post", message(b"POST /predict/label HTTP/1.1", JSON, LENGTH, body=DOCUMENT), missing)
    yield refused("host-missing-for-options", message(b"OPTIONS * HTTP/1.1"), missing)
    yield refused("host-missing-for-an-unknown-path", message(b"GET /" + MARKER + b" HTTP/1.1"), missing)
    for line in (
        b"Host_: a",
        b"_Host: a",
        b"X-Host: a",
        b"Hos: a",
        b"Hostt: a",
        b":authority: a",
        b"Forwarded: host=a",
        b"X-Forwarded-Host: a",
    ):
        yield refused(f"host-missing-but-{printable(line)}", message(b"GET /livez HTTP/1.1", line), missing)
    for name, first, second in (
        ("equal", HOST, HOST),
        ("different", HOST, b"Host: b"),
        ("one-empty", HOST, b"Host:"),
        ("in-two-cases", HOST, b"host: a"),
        ("apart", HOST + CRLF + b"Accept: */*", b"HOST: a"),
    ):
        yield refused(f"host-twice-{name}", message(b"GET /livez HTTP/1.1", first, second), twice)
        yield refused(f"host-twice-{name}-in-1.0", message(b"GET /livez HTTP/1.0", first, second), twice)
    yield refused("host-with-a-blank-before-the-colon", message(b"GET /livez HTTP/1.1", b"Host : a"), "RFC 9112 5.1")
    yield refused("host-folded", message(b"GET /livez HTTP/1.1", b"Host:", b" a"), "RFC 9112 5.2")
    yield refused("host-bad-in-1.0", message(b"GET /livez HTTP/1.0", b"Host: a b"), "RFC 9112 3.2: in any request")
    yield final("host-in-1.0", message(b"GET /livez HTTP/1.0", HOST), 200, why)
    yield final(
        "host-missing-in-1.0", message(b"GET /livez HTTP/1.0", b"Accept: */*"), 200, "RFC 9112 3.2: Host is needed from 1.1 on"
    )
    yield accepted(
        "host-last-of-the-fields", message(b"GET /livez HTTP/1.1", b"Accept: */*", b"X: y", HOST), "RFC 9110 5.3: any order"
    )


# --- Fields -----------------------------------------------------------------------------------------------------------


def fields() -> Iterator[Vector]:
    value, name, fold = (
        "RFC 9110 5.5: no controls in a value",
        "RFC 9110 5.1: a name is a token",
        "RFC 9112 5.2: obs-fold is refused",
    )
    for code in CONTROLS:
        yield refused(f"value-with-{code:02x}", get(b"/livez", b"X-A: " + MARKER + bytes([code]) + b"b"), value)
    for code in b"\x00\x0b\x0c\x1b\x7f":
        yield refused(f"value-starts-with-{code:02x}", get(b"/livez", b"X-A:" + bytes([code]) + MARKER), value)
        yield refused(f"value-ends-with-{code:02x}", get(b"/livez", b"X-A: " + MARKER + bytes([code])), value)
    for code in DELIMITERS.replace(b":", b"") + b" \t\x80\xff" + CONTROLS:
        yield refused(f"name-with-{code:02x}", get(b"/livez", MARKER + bytes([code]) + b"b: c"), name)
    for tail in (b" ", b"\t", b"  ", b"\x0b", b"\x00", b"\xa0"):
        sent = get(b"/livez", b"X-A" + tail + b": " + MARKER)
        yield refused(f"name-ends-with-{tail.hex()}", sent, "RFC 9112 5.1: no blank between name and colon")
    for line in (
        b": " + MARKER,
        b":",
        b"::",
        b" : a",
        MARKER,
        b"X-A " + MARKER,
        b"=a",
        b'"X-A": a',
        b"\x00",
        b"\xef\xbb\xbfX-A: b",
    ):
        yield refused(f"field-line-{printable(line)}", get(b"/livez", line), name)
    for blank in (b" ", b"\t", b"  ", b" \t "):
        yield refused(f"fold-{blank.hex()}", get(b"/livez", b"X-A: b", blank + MARKER), fold)
        yield refused(f"fold-of-nothing-{blank.hex()}", get(b"/livez", b"X-A: b", blank), fold)
        before = message(b"GET /livez HTTP/1.1", blank + b"X-A: b", HOST)
        yield refused(f"blank-before-the-first-field-{blank.hex()}", before, "RFC 9112 2.2: refused, not skipped")
    yield refused("fold-of-a-length", post(b"Content-Length:", b" 32"), fold)
    yield refused("fold-of-a-coding", post(b"Transfer-Encoding:", b" chunked", body=CODED), fold)
    yield refused("value-with-cr-and-a-second-field", get(b"/livez", b"X-A: b\rContent-Length: 5"), value)
    yield refused("value-with-lf-and-a-second-field", get(b"/livez", b"X-A: b\nContent-Length: 5"), value)
    for case, line in {
        "no-value": b"X-A:",
        "only-blanks": b"X-A: \t ",
        "no-blank": b"X-A:b",
        "many-blanks": b"X-A:" + b" " * 50 + b"b" + b"\t" * 50,
        "tabs-inside": b"X-A: b\tc\t\td",
        "blanks-inside": b"X-A: b  c",
        "a-colon-inside": b"X-A: b:c: d",
        "every-visible": b"X-A: " + bytes(range(33, 127)),
        "every-obs-text": b"X-A: " + bytes(range(128, 256)),
        "utf-8": "X-A: Größe ☃".encode(),
        "no-break-spaces-around": b"X-A: \xa0b\xa0",
        "a-name-of-every-tchar": TCHAR + b": b",
        "a-name-of-digits": b"123: b",
        "a-name-of-marks": b"!#$%&'*+-.^`|~: b",
        "a-long-name": b"X-" + b"a" * 1000 + b": b",
        "a-long-value": b"X-A: " + b"b" * 8000,
        "quotes": b'X-A: "b',
        "a-bare-comma-list": b"X-A: , ,b,,",
        "an-accept": b"Accept: text/html;q=0.9, */*;q=0.1",
        "a-cookie": b"Cookie: a=b; c=d",
        "an-upgrade": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "a-websocket-upgrade": b"Connection: Upgrade\r\nUpgrade: websocket",
        "a-te": b"TE: trailers, deflate;q=0.5\r\nConnection: TE",
        "a-trailer": b"Trailer: Expires",
        "a-max-forwards": b"Max-Forwards: 0",
        "a-range": b"Range: bytes=0-1",
        "a-condition": b"If-Match: *",
        "a-proxy-connection": b"Proxy-Connection: close",
        "a-bad-request-id": b"X-Request-ID: " + MARKER + b" <script>",
        "the-same-name-twice": b"X-A: b\r\nx-a: c",
        "a-second-name-of-the-path": b"X-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics",
        "a-second-method": b"X-HTTP-Method-Override: DELETE",
    }.items():
        yield accepted(f"field-with-{case}", get(b"/livez", line), "RFC 9110 5.5, 5.6: legal")
    drop = "spec: a name with an underscore is dropped"
    yield accepted("underscore-length", get(b"/livez", b"Content_Length: 500"), drop)
    yield accepted("underscore-coding", get(b"/livez", b"Transfer_Encoding: chunked"), drop)
    yield accepted("underscore-coding-beside-a-length", post(LENGTH, b"Transfer_Encoding: chunked"), drop)
    yield accepted("underscore-length-beside-a-length", post(LENGTH, b"Content_Length: 5"), drop)
    yield accepted("underscore-expect", get(b"/livez", b"_Expect: x", b"Expect_: x"), drop)
    yield accepted("underscore-request-id", get(b"/livez", b"X_Request_ID: " + MARKER), drop)
    yield accepted("underscore-media-type", post(LENGTH, b"Content_Type: text/" + MARKER), drop)
    yield accepted("underscore-content-coding", post(LENGTH, b"Content_Encoding: gzip"), drop)
    yield accepted("underscore-connection", get(b"/livez", b"Connection_: close", b"_Connection: close"), drop)
    yield accepted("underscore-host", get(b"/livez", b"Host_: b", b"Ho_st: b"), drop)
    yield refused("underscore-name-with-a-control", get(b"/livez", b"X_A: " + MARKER + b"\x01"), value)
    sent = message(b"POST /predict HTTP/1.1", HOST, b"Content-Type: text/plain", LENGTH, body=DOCUMENT)
    yield stays_open("media-type-of-another-kind", sent, 415, "RFC 9110 15.5.16")
    yield stays_open("content-coding", post(LENGTH, b"Content-Encoding: gzip"), 415, "RFC 9110 8.4")
    sent = message(b"POST /predict/label HTTP/1.1", HOST, JSON.upper(), LENGTH, body=DOCUMENT)
    yield accepted("media-type-in-capitals", sent, "RFC 9110 8.3.1: types in any case")


# --- Framing ----------------------------------------------------------------------------------------------------------


def lengths() -> Iterator[Vector]:
    why = "RFC 9110 8.6, RFC 9112 6.3: Content-Length is 1*DIGIT, else 400 and close"
    for value in (
        b"+32", b"-32", b"-0", b"+0", b"32.0", b"32.", b".32", b"3e1", b"0x20", b"0o40", b"20h", b"3_2", b"3 2", b"3\t2",
        b"32a", b"a32", b"32,", b",32", b"32, 32", b"32,32", b"32, 33", b"32;", b'"32"', b"'32'", b"(32)", b"", b" ", b"\t",
        b"x", b"NaN", b"Infinity", b"-1", b"-9223372036854775808", b"3\xb2", b"\xb3\xb2", b"\xd9\xa3\xd9\xa2",
        b"\xef\xbc\x93\xef\xbc\x92", b"32\x00", b"\x0032", b"32\x0b", b"\x0c32", b"32\xa0", b"32\r", b"32\n",
        b"0" * 19 + b"32", b"9" * 21, b"9" * 4301, b"=32", b"32%", b"1e2", b"0b100000", b"\xc2\xa032",
    ):  # fmt: skip
        yield refused(f"length-{printable(value)[:30]}", post(b"Content-Length: " + value), why)
    for name, first, second in (
        ("equal", b"32", b"32"),
        ("different", b"32", b"5"),
        ("one-zero", b"0", b"32"),
        ("one-empty", b"32", b""),
        ("one-with-zeros", b"32", b"032"),
    ):
        yield refused(
            f"length-twice-{name}", post(b"Content-Length: " + first, b"Content-Length: " + second), "RFC 9112 6.3: 400"
        )
    yield refused("length-twice-in-two-cases", post(LENGTH, LENGTH.lower()), "RFC 9112 6.3: 400")
    yield refused("length-twice-in-a-get", get(b"/livez", b"Content-Length: 0", b"Content-Length: 0"), "RFC 9112 6.3: 400")
    yield refused("length-twice-in-1.0", post(LENGTH, LENGTH, version=b"HTTP/1.0"), "RFC 9112 6.3: 400")
    yield refused("length-with-a-blank-before-the-colon", post(b"Content-Length : 32"), "RFC 9112 5.1")
    for value in (b"032", b"0032", b"0" * 18 + b"32"):
        yield accepted(f"length-{printable(value)}", post(b"Content-Length: " + value), "RFC 9110 8.6")
    for line in (b"content-length: 32", b"CONTENT-LENGTH:32", b"Content-Length:\t 32 \t"):
        yield accepted(f"length-line-{printable(line)}", post(line), "RFC 9112 5: any case, optional blanks")
    for value in (b"0", b"00", b"0" * 20):
        yield accepted(f"length-of-nothing-{printable(value)}", get(b"/livez", b"Content-Length: " + value), "RFC 9110 8.6")
    over = "RFC 9110 15.5.14: a body over the limit is 413 before it is read"
    for value in (
        b"1048577",
        b"0001048577",
        b"2147483648",
        b"4294967328",
        b"9223372036854775807",
        b"18446744073709551648",
        b"9" * 20,
    ):
        yield incomplete(f"length-over-the-limit-{printable(value)}", post(b"Content-Length: " + value, body=b""), over, 413)
    yield incomplete("length-over-the-limit-of-a-get", get(b"/livez", b"Content-Length: 1048577"), over, 413)
    yield incomplete("length-over-the-limit-of-an-unknown-path", get(b"/" + MARKER, b"Content-Length: 1048577"), over, 413)
    full = DOCUMENT + b" " * (MAX_BODY - len(DOCUMENT))
    yield accepted("length-at-the-limit", post(b"Content-Length: 1048576", body=full), "limit")
    yield refused("length-one-over-the-limit", post(b"Content-Length: 1048577", body=full + b" "), over, 413)
    yield accepted("get-with-a-body", get(b"/livez", LENGTH, body=DOCUMENT), "RFC 9110 9.3.1: content of GET has no meaning")
    yield accepted("get-with-a-request-as-its-body", get(b"/livez", b"Content-Length: %d" % len(NEXT), body=NEXT), "RFC 9112 6.3")
    yield accepted(
        "head-with-a-body", message(b"HEAD /livez HTTP/1.1", HOST, LENGTH, body=DOCUMENT), "RFC 9110 9.3.2", head_indexes=(0,)
    )
    yield accepted(
        "get-with-a-binary-body", get(b"/livez", b"Content-Length: 256", body=bytes(range(256))), "RFC 9110 6.4: any bytes"
    )
    yield stays_open(
        "unknown-path-with-a-body", message(b"POST /" + MARKER + b" HTTP/1.1", HOST, LENGTH, body=DOCUMENT), 404, "RFC 9112 9.3"
    )
    yield stays_open(
        "unknown-method-with-a-body", message(b"BREW /livez HTTP/1.1", HOST, LENGTH, body=DOCUMENT), 501, "RFC 9112 9.3"
    )
    yield stays_open(
        "post-without-a-length", post(body=b""), 400, "RFC 9112 6.3: no framing is no content; the application wants JSON"
    )
    yield stays_open("post-of-length-0", post(b"Content-Length: 0", body=b""), 400, "RFC 9112 6.3; the application wants JSON")
    yield stays_open(
        "post-of-no-json", post(b"Content-Length: 8", body=MARKER), 400, "RFC 9112 9.3: a failure of content keeps the connection"
    )
    yield stays_open(
        "post-of-no-row", post(b"Content-Length: 2", body=b"{}"), 422, "RFC 9112 9.3: a failure of content keeps the connection"
    )
    yield accepted("post-with-a-line-end-in-its-length", post(b"Content-Length: 34", body=DOCUMENT + CRLF), "RFC 9112 6.3")
    beyond = "RFC 9112 6.3: what is beyond the length is the next request"
    yield Vector("length-shorter-than-the-body", post(b"Content-Length: 31") + NEXT, (400, 400), True, beyond)
    yield Vector("length-0-before-a-body", post(b"Content-Length: 0") + NEXT, (400, 400), True, beyond)
    yield Vector("no-length-before-a-body", post() + NEXT, (400, 400), True, beyond)
    yield Vector("line-end-beyond-the-length", post(LENGTH, body=DOCUMENT + CRLF) + NEXT, (200, 200), False, beyond)
    yield Vector("two-line-ends-beyond-the-length", post(LENGTH, body=DOCUMENT + CRLF * 2) + NEXT, (200, 400), True, beyond)
    yield Vector("request-beyond-the-length", get(b"/livez", b"Content-Length: 0", body=NEXT), (200, 200), False, beyond)


def codings() -> Iterator[Vector]:
    faulty, unknown = "RFC 9112 6.1, 6.3: faulty framing is 400 and close", "RFC 9112 6.1: an unknown coding is 501"
    for value in (
        b"", b" ", b",", b"chunked,", b",chunked", b"chunked, chunked", b"chunked,chunked", b"Chunked, CHUNKED",
        b"chunked\x00", b"chunked\x0b", b"\x0cchunked", b"\x00chunked", b"chunked\r", b"chunked\n", b"\nchunked",
    ):  # fmt: skip
        yield refused(f"coding-{printable(value)}", post(b"Transfer-Encoding: " + value, body=CODED), faulty)
    for value in (
        b"gzip", b"deflate", b"compress", b"br", b"identity", b"x-" + MARKER, b"chunked, gzip", b"chunked, identity", b"xchunked",
        b"chunkedx", b"chunked;q=1", b"chunked;a", b"chunked\xa0", b"\xa0chunked", b"chunked\x85", b"chun\xe7ked",
        b"chunked, gzip, chunked",
    ):  # fmt: skip
        yield refused(
            f"coding-{printable(value)}", post(b"Transfer-Encoding: " + value, body=CODED), "RFC 9112 6.3: no chunked last"
        )
    for value in (b"gzip, chunked", b"gzip,chunked", b"identity, chunked", b"gzip, gzip, chunked", b"x-" + MARKER + b", chunked"):
        yield refused(f"coding-{printable(value)}", post(b"Transfer-Encoding: " + value, body=CODED), unknown, 501)
    for name, lines in {
        "twice": (CHUNKED, CHUNKED),
        "twice-in-two-cases": (CHUNKED, CHUNKED.upper()),
        "twice-apart": (CHUNKED, b"Accept: */*", CHUNKED),
        "twice-one-empty": (CHUNKED, b"Transfer-Encoding:"),
        "twice-gzip-first": (b"Transfer-Encoding: gzip", CHUNKED),
        "twice-gzip-last": (CHUNKED, b"Transfer-Encoding: gzip"),
        "before-a-length": (CHUNKED, LENGTH),
        "after-a-length": (LENGTH, CHUNKED),
        "before-a-length-of-0": (CHUNKED, b"Content-Length: 0"),
        "after-a-length-of-the-coded": (b"Content-Length: %d" % len(CODED), CHUNKED),
        "with-two-lengths": (LENGTH, LENGTH, CHUNKED),
        "with-a-bad-length": (CHUNKED, b"Content-Length: x"),
        "with-a-blank-before-the-colon": (b"Transfer-Encoding : chunked",),
        "with-a-tab-before-the-colon": (b"Transfer-Encoding\t: chunked",),
        "with-a-control-in-the-name": (b"Transfer-\x01Encoding: chunked",),
        "with-a-blank-before-the-name": (b" Transfer-Encoding: chunked",),
        "with-a-length-before-and-a-blank": (LENGTH, b"Transfer-Encoding : chunked"),
        "after-a-bare-lf": (b"X: y\nTransfer-Encoding: chunked",),
        "after-a-bare-cr": (b"X: y\rTransfer-Encoding: chunked",),
    }.items():
        yield refused(f"coding-{name}", post(*lines, body=CODED), faulty)
    for value in (b"chunked", b"gzip", b"gzip, chunked"):
        sent = post(b"Transfer-Encoding: " + value, body=CODED, version=b"HTTP/1.0")
        yield refused(f"coding-{printable(value)}-in-1.0", sent, faulty)
    for name, lines in {"before-a-length": (CHUNKED, LENGTH), "with-keep-alive": (CHUNKED, b"Connection: keep-alive")}.items():
        yield refused(f"coding-{name}-in-1.0", post(*lines, body=CODED, version=b"HTTP/1.0"), faulty)
    yield refused("coding-with-a-length-in-a-get", get(b"/livez", b"Content-Length: 5", CHUNKED, body=LAST), faulty)
    for line in (CHUNKED, b"transfer-encoding:chunked", b"TRANSFER-ENCODING: CHUNKED", b"Transfer-Encoding:\t Chunked \t"):
        yield accepted(f"coding-line-{printable(line)}", post(line, body=CODED), "RFC 9112 6.1, 7: any case, optional blanks")


def chunks() -> Iterator[Vector]:
    size = "RFC 9112 7.1: a chunk's size is hexadecimal digits and nothing else"
    for value in (
        b"", b"+20", b"-20", b"0x20", b"0X20", b"x20", b"20h", b"20x", b"2_0", b"20.", b"20.0", b"2 0", b"2\t0", b"g", b"G",
        b"20g", b'"20"', b"'20'", b"(20)", b"20,", b"20, 20", b"20:", b"20=1", b"20\x00", b"\x0020", b"20\x0b", b"\x0b20",
        b"20\x0c", b"20\x7f", b"20\xa0", b"\xa020", b"\xef\xbb\xbf20", b"\xb2\xb0", b"\xd9\xa2\xd9\xa0",
        b"\xef\xbc\x92\xef\xbc\x90", b" 20", b"\t20", b"  20", b"20 ", b"20\t", b"20  ", b"20\r", b"\r20", b"20\n", b"\n20",
        b"0" * 15 + b"20", b"0" * 300 + b"20", b"-0", b"+0", b"0x0", b"0x", b"-1", b"z", b"20\\", b"%20", b"#20",
    ):  # fmt: skip
        yield refused(f"chunk-size-{printable(value)[:30]}", chunked(value + CRLF + DOCUMENT + CRLF + LAST), size)
    # RFC 9112 7.1.1 allows white space before the semicolon. This server refuses it, like every space after a size.
    for value in (b" ;a", b"\t;a", b" ;a=b", b"  ; a"):
        yield refused(
            f"chunk-blank-{printable(value)}", chunked(b"20" + value + CRLF + DOCUMENT + CRLF + LAST), "spec: no blank there"
        )
    extension = "RFC 9112 7.1.1: extensions are *( BWS ; BWS token [ BWS = BWS ( token / quoted-string ) ] ), and passed over"
    for value in (
        b";\x00", b";a\x01b", b";a=\x0b", b";a\x7f", b";a\x1b", b";a\rb", b";a\r", b";a\nb", b";a\n", b";\n", b";a\n\r",
        b",a", b":a", b"a=b ;", b";", b"; ", b";;", b";;a", b";a;", b";a; ", b";=", b";=b", b";a=", b";a= ", b";a=;b", b";a==b",
        b";a=b=c", b";a b", b";a=b c", b";a ", b";a=b ", b";a,b", b";a=b,c", b';"a"', b';"a"=b', b';a="', b';a="b', b';a=b"',
        b';a="b"c', b';a="b" ', b';a="\\"', b';a="\\', b";a='b c'", b";a\x80", b";a=\xff", b';a="\x01"', b';a="\x7f"',
        b';a="\\\x01"', b";a=" + bytes(range(33, 127)), b";a/b", b";a=b/c", b";a=(b)", b";[a]",
    ):  # fmt: skip
        yield refused(f"chunk-extension-{printable(value)}", chunked(b"20" + value + CRLF + DOCUMENT + CRLF + LAST), extension)
    for value in (
        b";a",
        b";a=b",
        b';a="b c"',
        b';a="b;c"',
        b";a;b;c=d",
        b"; a",
        b";\ta",
        b"; a = b",
        b";a ;b\t;\tc",
        b';a="b" ;c',
        b';a="\xff"',
        b';a=""',
        b';a="\\"\\\\\\ \\\xff"',
        b';a="\t !#[]~"',
        b";" + TCHAR + b"=" + TCHAR,
    ):
        yield accepted(
            f"chunk-extension-{printable(value)[:20]}", chunked(b"20" + value + CRLF + DOCUMENT + CRLF + LAST), extension
        )
        yield accepted(
            f"chunk-extension-of-the-last-{printable(value)[:20]}",
            chunked(chunk(DOCUMENT) + b"0" + value + CRLF + CRLF),
            extension,
        )
    most = MAX_CHUNK_LINE - len(b"20;\r\n")
    yield accepted("chunk-line-at-the-limit", chunked(b"20;" + b"a" * most + CRLF + DOCUMENT + CRLF + LAST), "limit")
    yield refused("chunk-line-over-the-limit", chunked(b"20;" + b"a" * (most + 1) + CRLF + DOCUMENT + CRLF + LAST), "limit")
    early = "spec: refused as soon as it is certain, as the client may wait for an answer"
    for value in (
        b"z",
        b"2z",
        b"-",
        b"0x",
        b" ",
        b"20 ",
        b"\r",
        b"\n",
        b";",
        b"20\rx",
        b"20\n",
        b"20;a\x01",
        b"20;a\n",
        b"20;\r",
        b"20;;",
        b"20;=",
        b"20;a=;",
        b"20;a b",
        b"20;a=b=",
        b"20;a=b c",
        b'20;a="b"c',
        b'20;a="\x01',
        b'20;a="\\\x01',
        b'20;a="b\r',
        b"20;a \r",
        b"f" * 17,
    ):
        yield incomplete(f"chunk-alone-{printable(value)}", chunked(value), early)
    for value in (b"x", b"\n", b"\rx", b"\r\r"):
        yield incomplete(f"chunk-data-alone-{value.hex()}", chunked(b"20\r\n" + DOCUMENT + value), early)
    for value in (b"\n", b"X: y\n", b"X: y\rz", b"X: y\r\nZ\n"):
        yield incomplete(f"chunk-end-alone-{value.hex()}", chunked(chunk(DOCUMENT) + b"0\r\n" + value), early)
    yield incomplete("chunk-line-without-an-end", chunked(b"20;" + b"a" * 400), "limit")
    yield incomplete("chunk-size-without-an-end", chunked(b"0" * 400), "limit")
    for value in (b"020", b"0" * 14 + b"20"):
        yield accepted(f"chunk-size-{printable(value)}", chunked(value + CRLF + DOCUMENT + CRLF + LAST), size)
    for value in (b"00", b"0" * MAX_CHUNK_DIGITS):
        yield accepted(
            f"chunk-last-{printable(value)}", chunked(chunk(DOCUMENT) + value + CRLF + CRLF), "RFC 9112 7.1: the last is 1*0"
        )
    padded = DOCUMENT + b" " * 10
    yield accepted("chunk-size-in-small-letters", chunked(b"2a" + CRLF + padded + CRLF + LAST), size)
    yield accepted("chunk-size-in-capitals", chunked(b"2A" + CRLF + padded + CRLF + LAST), size)
    for count in (2, 3, 7, 32):
        cuts = [DOCUMENT[at : at + -(-32 // count)] for at in range(0, 32, -(-32 // count))]
        yield accepted(f"chunks-{count}", chunked(b"".join(map(chunk, cuts)) + LAST), "RFC 9112 7.1: decoded and joined")
    ends = chunk(CRLF + CRLF) + chunk(DOCUMENT) + chunk(b"\r\n \r\n\r\n ") + LAST
    yield accepted("chunks-with-line-ends-inside", chunked(ends), "RFC 9112 7.1: data is counted, not searched")
    yield stays_open("chunks-none", chunked(LAST), 400, "RFC 9112 7.1: an empty body; the application wants JSON")
    yield accepted("chunks-of-a-get", get(b"/livez", CHUNKED, body=CODED), "RFC 9110 9.3.1: content of GET has no meaning")
    yield accepted("chunks-none-of-a-get", get(b"/livez", CHUNKED, body=LAST), "RFC 9110 9.3.1: content of GET has no meaning")
    yield accepted(
        "chunks-of-a-head", message(b"HEAD /livez HTTP/1.1", HOST, CHUNKED, body=CODED), "RFC 9110 9.3.2", head_indexes=(0,)
    )
    inside = chunk(get(b"/" + MARKER)) + LAST
    yield accepted(
        "chunks-with-a-request-inside", get(b"/livez", CHUNKED, body=inside), "RFC 9112 7.1: data is counted, not searched"
    )
    end = "RFC 9112 7.1: CRLF and nothing else follows a chunk's data"
    for value in (b"", b"\n", b"\r", b"\n\n", b"\r\r\n", b"\n\r", b" \r\n", b"x\r\n", b"\x00\r\n", b"xx", b"\r\n\r\n", b"\rx\n"):
        yield refused(f"chunk-data-ends-with-{value.hex() or 'nothing'}", chunked(b"20\r\n" + DOCUMENT + value + LAST), end)
    yield refused("chunk-data-too-short", chunked(b"21\r\n" + DOCUMENT + CRLF + LAST), end)
    yield refused("chunk-data-too-long", chunked(b"1f\r\n" + DOCUMENT + CRLF + LAST), end)
    for value in (b"20\n", b"20\r"):
        yield refused(f"chunk-line-ends-with-{value[2:].hex()}", chunked(value + DOCUMENT + CRLF + LAST), "RFC 9112 2.2, 7.1")
    for value in (b"0\n\n", b"0\r\n\n", b"0\n\r\n", b"0\r\r", b"0\r\n\r\r\n", b"0\r\n \r\n", b"0\r\nx\r\n\r\n"):
        yield refused(f"chunk-end-{value.hex()}", chunked(chunk(DOCUMENT) + value), "RFC 9112 7.1")
    over = "RFC 9110 15.5.14: decoded size over the limit is 413, as soon as a size says so"
    for value in (
        b"100001",
        b"0000000000100001",
        b"7fffffff",
        b"80000000",
        b"ffffffff",
        b"100000020",
        b"7" + b"f" * 15,
        b"f" * 16,
    ):
        yield incomplete(f"chunk-over-the-limit-{printable(value)}", chunked(value + CRLF), over, 413)
    yield incomplete("chunk-over-the-limit-after-another", chunked(chunk(DOCUMENT) + b"fffff" + CRLF), over, 413)
    full = DOCUMENT + b" " * (MAX_BODY - len(DOCUMENT))
    yield accepted("chunk-at-the-limit", chunked(chunk(full) + LAST), "limit")
    parts = b"".join(chunk(full[at : at + 65_536]) for at in range(0, MAX_BODY, 65_536))
    yield accepted("chunks-at-the-limit", chunked(parts + LAST), "limit")
    yield refused("chunks-over-the-limit", chunked(parts + chunk(b" ") + LAST), over, 413)


def trailers() -> Iterator[Vector]:
    def with_trailer(*lines: bytes) -> bytes:
        return chunked(chunk(DOCUMENT) + b"0\r\n" + b"".join(line + CRLF for line in lines) + CRLF)

    legal, wrong = "RFC 9112 7.1.2: trailer fields may be dropped", "RFC 9112 7.1.2: trailer fields have the syntax of fields"
    for name, lines in {
        "one": (b"X-A: b",),
        "two": (b"X-A: b", b"X-B: c"),
        "without-a-blank": (b"X-A:b",),
        "without-a-value": (b"X-A:",),
        "with-obs-text": (b"X-A: \xff",),
        "with-an-underscore": (b"X_A: b",),
        "with-a-digest": (b"Content-MD5: Q2hlY2sgSW50ZWdyaXR5IQ==",),
        "with-a-request-id": (b"X-Request-ID: " + MARKER,),
        "at-the-limit": tuple(b"X-%d: b" % number for number in range(MAX_FIELDS)),
    }.items():
        yield accepted(f"trailer-{name}", with_trailer(*lines), legal)
    for name, line in {
        "without-a-colon": MARKER,
        "without-a-name": b": " + MARKER,
        "with-a-blank-before-the-colon": b"X-A : b",
        "with-a-delimiter-in-the-name": b"X(A: b",
        "folded": b"X-A: b\r\n c",
        "starts-with-a-blank": b" X-A: b",
        "with-a-nul": b"X-A: b\x00",
        "with-a-control": b"X-A: " + MARKER + b"\x01",
        "with-a-bare-cr": b"X-A: b\rc",
        "with-a-bare-lf": b"X-A: b\nc",
        "with-a-del": b"X-A: b\x7f",
        "ends-with-lf": b"X-A: b\n",
        "ends-with-cr": b"X-A: b\r",
        "of-a-request-line": b"GET /livez HTTP/1.1",
    }.items():
        yield refused(f"trailer-{name}", with_trailer(line), wrong)
    for line in (LENGTH, LENGTH.lower(), CHUNKED, CHUNKED.upper(), HOST, b"Content-Length: x"):
        yield refused(
            f"trailer-{printable(line)}", with_trailer(line), "RFC 9110 6.5.1: framing and routing are not for a trailer"
        )
    yield refused(
        "trailers-over-the-limit", with_trailer(*(b"X-%d: b" % number for number in range(MAX_FIELDS + 1))), "limit", 431
    )
    yield refused("trailer-over-the-limit", with_trailer(b"X-A: " + b"b" * MAX_HEAD), "limit", 431)
    yield incomplete("trailer-without-an-end", chunked(chunk(DOCUMENT) + b"0\r\nX-A: " + b"b" * (MAX_HEAD + 100)), "limit", 431)


# --- Expect, connections, pipelines -----------------------------------------------------------------------------------


def expectations() -> Iterator[Vector]:
    expect, why = b"Expect: 100-continue", "RFC 9110 10.1.1"
    yield accepted("expect", post(LENGTH, expect), why, continues=1)
    yield accepted(
        "expect-first-of-the-fields",
        message(b"POST /predict/label HTTP/1.1", expect, HOST, LENGTH, body=DOCUMENT),
        why,
        continues=1,
    )
    for line in (b"expect: 100-continue", b"EXPECT: 100-CONTINUE", b"Expect:100-Continue", b"Expect:\t 100-continue \t"):
        yield accepted(f"expect-line-{printable(line)}", post(LENGTH, line), why, continues=1)
    yield accepted("expect-with-chunks", post(CHUNKED, expect, body=CODED), why, continues=1)
    yield accepted("expect-of-a-get-with-a-body", get(b"/livez", LENGTH, expect, body=DOCUMENT), why, continues=1)
    yield accepted("expect-without-a-body", get(b"/livez", expect), "RFC 9110 10.1.1: no content, no 100")
    yield accepted("expect-with-length-0", get(b"/livez", b"Content-Length: 0", expect), "RFC 9110 10.1.1: no content, no 100")
    yield final("expect-in-1.0", post(LENGTH, expect, version=b"HTTP/1.0"), 200, "RFC 9110 10.1.1: MUST be ignored in 1.0")
    yield final("expect-then-close", post(LENGTH, expect, b"Connection: close"), 200, why, continues=1)
    sent = NEXT + post(LENGTH, expect) + NEXT + post(CHUNKED, expect, body=CODED)
    yield Vector("expect-in-a-pipeline", sent, (200, 200, 200, 200), False, why, continues=2)
    head = "RFC 9110 10.1.1: a final status, and no 100, for what is refused by its head"
    yield incomplete("expect-over-the-limit", post(b"Content-Length: 1048577", expect, body=b""), head, 413)
    yield refused("expect-without-host", message(b"POST /predict/label HTTP/1.1", LENGTH, expect, body=DOCUMENT), head)
    yield refused("expect-with-a-bad-length", post(b"Content-Length: +32", expect), head)
    yield refused("expect-with-a-length-and-chunks", post(LENGTH, CHUNKED, expect, body=CODED), head)
    yield refused("expect-with-an-unknown-coding", post(b"Transfer-Encoding: gzip, chunked", expect, body=CODED), head, 501)
    for value in (b"x", b"100", b"100-continued", b"100-continue;q=1", b"200-ok", b"x=" + MARKER, b"100 continue"):
        yield refused(f"expect-{printable(value)}", post(LENGTH, b"Expect: " + value), "RFC 9110 10.1.1, 15.5.18", 417)
    yield refused("expect-another-without-a-body", get(b"/livez", b"Expect: x"), "RFC 9110 10.1.1, 15.5.18", 417)


def connections() -> Iterator[Vector]:
    closes = "RFC 9112 9.6: nothing after close is answered, and the server closes"
    for line in (
        b"Connection: close", b"connection:close", b"CONNECTION: CLOSE", b"Connection: Close",
        b"Connection: keep-alive, close", b"Connection: close, keep-alive", b"Connection: x,close", b"Connection: , close ,",
        b"Connection: x\r\nConnection: close", b"Connection: close\r\nConnection: keep-alive", b"Connection:\tclose\t",
    ):  # fmt: skip
        yield final(f"closing-{printable(line)}", get(b"/livez", line), 200, closes)
    yield final("closing-after-a-body", post(LENGTH, b"Connection: close"), 200, closes)
    yield final("closing-after-chunks", post(CHUNKED, b"Connection: close", body=CODED), 200, closes)
    yield final("closing-after-404", get(b"/" + MARKER, b"Connection: close"), 404, closes)
    yield final("closing-after-204", message(b"OPTIONS /livez HTTP/1.1", HOST, b"Connection: close"), 204, closes)
    yield final("closing-after-501", message(b"BREW /livez HTTP/1.1", HOST, b"Connection: close"), 501, closes)
    yield final(
        "closing-after-head", message(b"HEAD /livez HTTP/1.1", HOST, b"Connection: close"), 200, closes, head_indexes=(0,)
    )
    for line in (
        b"Connection: keep-alive", b"Connection: x", b"Connection:", b"Connection: closed", b"Connection: xclose",
        b"Keep-Alive: 5", b"Connection: close-not", b'Connection: "close"',
        b"Connection: keep-alive\r\nKeep-Alive: timeout=5", b"Close: close",
    ):  # fmt: skip
        yield accepted(f"staying-{printable(line)}", get(b"/livez", line), "RFC 9112 9.3: 1.1 stays open")
    old = "RFC 9112 9.3: 1.0 closes"
    yield final("1.0", message(b"GET /livez HTTP/1.0"), 200, old)
    yield final("1.0-close", message(b"GET /livez HTTP/1.0", b"Connection: close"), 200, old)
    yield final("1.0-another-option", message(b"GET /livez HTTP/1.0", b"Connection: x"), 200, old)
    yield final("1.0-keep-alive-and-close", message(b"GET /livez HTTP/1.0", b"Connection: keep-alive, close"), 200, old)
    yield final("1.0-head", message(b"HEAD /livez HTTP/1.0"), 200, old, head_indexes=(0,))
    yield final("1.0-post", post(LENGTH, version=b"HTTP/1.0"), 200, old)
    yield final(
        "1.0-post-without-a-length",
        post(body=b"", version=b"HTTP/1.0"),
        400,
        "RFC 9112 6.3: a request never ends with its connection",
    )
    yield final("1.0-unknown-path", message(b"GET /" + MARKER + b" HTTP/1.0"), 404, old)
    yield final("1.0-unknown-method", message(b"BREW /livez HTTP/1.0"), 501, old)
    yield final("1.0-not-allowed", message(b"PUT /livez HTTP/1.0"), 405, old)
    kept = "RFC 9112 9.3, C.2.2: 1.0 stays open for who asks for it"
    for line in (b"Connection: keep-alive", b"connection: Keep-Alive", b"Connection: x, keep-alive"):
        yield accepted(f"1.0-{printable(line)}", message(b"GET /livez HTTP/1.0", line), kept)
    yield accepted("1.0-post-keep-alive", post(LENGTH, b"Connection: keep-alive", version=b"HTTP/1.0"), kept)
    yield accepted("1.0-head-keep-alive", message(b"HEAD /livez HTTP/1.0", b"Connection: keep-alive"), kept, head_indexes=(0,))


def numbered(requests: Iterable[bytes]) -> bytes:
    """Returns pipelined requests. The request id of each is its number, and its response must have the same id."""
    parts = (request.replace(CRLF, CRLF + b"X-Request-ID: p%d" % number + CRLF, 1) for number, request in enumerate(requests))
    return b"".join(parts)


def pipelines() -> Iterator[Vector]:
    why = "RFC 9112 9.3.2: one answer each, in order"
    predict, coded = post(LENGTH), post(CHUNKED, body=CODED)
    head, options = message(b"HEAD /livez HTTP/1.1", HOST), message(b"OPTIONS /livez HTTP/1.1", HOST)
    unknown, brew = get(b"/" + MARKER), message(b"BREW /livez HTTP/1.1", HOST)
    for count in range(2, 21):
        yield Vector(f"pipeline-of-{count}-gets", numbered([NEXT] * count), (200,) * count, False, why)
    for count in (2, 3, 5, 10, 20):
        yield Vector(f"pipeline-of-{count}-posts", numbered([predict] * count), (200,) * count, False, why)
        yield Vector(f"pipeline-of-{count}-chunked", numbered([coded] * count), (200,) * count, False, why)
        mixed = [(NEXT, predict, unknown, coded)[number % 4] for number in range(count)]
        statuses = tuple((200, 200, 404, 200)[number % 4] for number in range(count))
        yield Vector(f"pipeline-of-{count}-mixed", numbered(mixed), statuses, False, why)
        yield Vector(
            f"pipeline-of-{count}-heads", numbered([head] * count), (200,) * count, False, why, head_indexes=tuple(range(count))
        )
    trailing = chunked(chunk(DOCUMENT) + b"0\r\nX-A: b\r\n\r\n")
    yield Vector("pipeline-after-a-trailer", numbered([trailing, NEXT]), (200, 200), False, why)
    yield Vector(
        "pipeline-after-204", numbered([options, NEXT, options]), (204, 200, 204), False, "RFC 9110 15.3.5: 204 has no content"
    )
    yield Vector("pipeline-after-head", numbered([NEXT, head, NEXT]), (200, 200, 200), False, "RFC 9110 9.3.2", head_indexes=(1,))
    yield Vector("pipeline-after-501", numbered([brew, NEXT]), (501, 200), False, why)
    yield Vector("pipeline-after-405", numbered([message(b"PUT /livez HTTP/1.1", HOST), NEXT]), (405, 200), False, why)
    yield Vector("pipeline-after-422", numbered([post(b"Content-Length: 2", body=b"{}"), NEXT]), (422, 200), False, why)
    yield Vector(
        "pipeline-after-a-get-with-a-body", numbered([get(b"/livez", LENGTH, body=DOCUMENT), NEXT]), (200, 200), False, why
    )
    batch = message(b"POST /predict/batch HTTP/1.1", HOST, JSON, LENGTH, body=DOCUMENT)
    slow = numbered([batch, NEXT, get(b"/openapi.json"), predict, get(b"/readyz"), NEXT])
    yield Vector("pipeline-of-slow-and-fast", slow, (200,) * 6, False, why)
    old = message(b"GET /livez HTTP/1.0", b"Connection: keep-alive")
    yield Vector("pipeline-with-1.0-kept", numbered([NEXT, old, NEXT]), (200, 200, 200), False, why)
    ends = "RFC 9112 9.3.2, 9.6: what comes after the last is not answered"
    yield Vector(
        "pipeline-ends-with-close",
        numbered([NEXT, get(b"/livez", b"Connection: close")]) + predict + NEXT,
        (200, 200),
        True,
        ends,
    )
    yield Vector("pipeline-ends-with-1.0", numbered([NEXT, message(b"GET /livez HTTP/1.0")]) + NEXT, (200, 200), True, ends)
    for name, bad, status in (
        ("a-bad-line", b"GET  /" + MARKER + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("a-bad-version", b"GET /livez HTTP/1.2\r\nHost: a\r\n\r\n", 400),
        ("no-host", b"GET /livez HTTP/1.1\r\n\r\n", 400),
        ("two-empty-lines", b"\r\n\r\n", 400),
        ("a-bad-field", get(b"/livez", b"X : " + MARKER), 400),
        ("a-bad-length", post(b"Content-Length: x"), 400),
        ("two-framings", post(LENGTH, CHUNKED, body=CODED), 400),
        ("a-bad-chunk", chunked(b"z\r\n"), 400),
        ("an-unknown-coding", post(b"Transfer-Encoding: gzip, chunked", body=CODED), 501),
        ("too-large-a-body", post(b"Content-Length: 1048577"), 413),
        ("another-expectation", get(b"/livez", b"Expect: x"), 417),
        ("too-long-a-target", get(b"/" + b"a" * MAX_TARGET), 414),
        ("too-many-fields", get(b"/livez", *[b"X: y"] * MAX_FIELDS), 431),
    ):
        yield Vector(f"pipeline-ends-with-{name}", numbered([NEXT, predict]) + bad + NEXT, (200, 200, status), True, ends)
    smuggled = b"0\r\n\r\n" + get(b"/" + MARKER)
    sent = post(b"Content-Length: %d" % len(smuggled), CHUNKED, body=smuggled)
    yield refused("smuggling-by-length-and-coding", sent, "RFC 9112 6.1, 11.2")
    sent = post(b"Content-Length: 4", CHUNKED, body=b"5c\r\n" + get(b"/" + MARKER) + LAST)
    yield refused("smuggling-by-coding-and-length", sent, "RFC 9112 6.1, 11.2")
    sent = post(CHUNKED, b"Transfer-Encoding: cow", body=smuggled)
    yield refused("smuggling-by-two-codings", sent, "RFC 9112 11.2")
    sent = chunked(b"20;a\n" + b"x" * 30 + b"\r\n20\r\n" + DOCUMENT + CRLF + LAST)
    yield refused("smuggling-by-a-bare-lf-in-an-extension", sent, "RFC 9112 7.1.1, 11.2")
    sent = get(b"/livez", b"X: y\r\n\rGET /" + MARKER + b" HTTP/1.1")
    yield refused("smuggling-by-a-bare-cr", sent, "RFC 9112 2.2, 11.2")


# --- Limits -----------------------------------------------------------------------------------------------------------


def padded_head(size: int) -> bytes:
    """Returns GET /livez with a head of exactly `size` bytes, including the empty line."""
    bare = len(get(b"/livez", b"X-Pad: "))
    return get(b"/livez", b"X-Pad: " + b"x" * (size - bare))


def limits() -> Iterator[Vector]:
    target, head, count = "RFC 9112 3, RFC 9110 15.5.15", "RFC 9110 5.4, RFC 6585 5", "RFC 9110 5.4, RFC 6585 5"
    query = b"/livez?"
    yield accepted("target-at-the-limit", get(query + b"a" * (MAX_TARGET - len(query))), target)
    yield stays_open("path-at-the-limit", get(b"/" + b"a" * (MAX_TARGET - 1)), 404, target)
    yield accepted("target-of-8000", get(query + b"a" * 7980), "RFC 9112 3: 8000 bytes at least")
    yield refused("target-one-over-the-limit", get(query + b"a" * (MAX_TARGET - len(query) + 1)), target, 414)
    yield refused("path-one-over-the-limit", get(b"/" + b"a" * MAX_TARGET), target, 414)
    yield refused("target-far-over-the-limit", get(b"/" + b"a" * 15_000), target, 414)
    yield refused("absolute-target-over-the-limit", get(b"http://a/" + b"a" * MAX_TARGET), target, 414)
    yield incomplete("request-line-without-an-end", b"GET /" + b"a" * 9000, target, 414)
    yield incomplete("request-line-without-an-end-and-long", b"GET /" + b"a" * 100_000, target, 414)
    yield accepted("head-at-the-limit", padded_head(MAX_HEAD), head)
    yield refused("head-one-over-the-limit", padded_head(MAX_HEAD + 1), head, 431)
    yield refused("head-far-over-the-limit", padded_head(100_000), head, 431)
    yield incomplete("head-without-an-end", get(b"/livez", b"X: " + b"y" * MAX_HEAD)[:-4], head, 431)
    yield incomplete("head-of-many-fields-without-an-end", get(b"/livez", *[b"X: " + b"y" * 500] * 50)[:-2], head, 431)
    yield accepted("fields-at-the-limit", get(b"/livez", *[b"X-%d: y" % number for number in range(MAX_FIELDS - 1)]), count)
    yield accepted("fields-at-the-limit-all-the-same", get(b"/livez", *[b"X: y"] * (MAX_FIELDS - 1)), count)
    yield refused("fields-one-over-the-limit", get(b"/livez", *[b"X-%d: y" % number for number in range(MAX_FIELDS)]), count, 431)
    yield refused("fields-far-over-the-limit", get(b"/livez", *[b"X:"] * 1000), count, 431)
    yield refused("fields-with-underscores-count", get(b"/livez", *[b"X_Y: z"] * MAX_FIELDS), count, 431)
    yield accepted("fields-99-with-a-post", post(LENGTH, *[b"X: y"] * 97), count)
    yield stays_open("method-of-200", message(b"A" * 200 + b" /livez HTTP/1.1", HOST), 501, "RFC 9112 3: a long method is 501")


FAMILIES = (
    methods,
    separators,
    versions,
    targets,
    hosts,
    fields,
    lengths,
    codings,
    chunks,
    trailers,
    expectations,
    connections,
    pipelines,
    limits,
)
VECTORS: list[Vector] = [vector for family in FAMILIES for vector in family()]
