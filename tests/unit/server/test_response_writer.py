"""Responses as bytes."""

import pytest

from iris_wsgi.errors import ServiceUnavailable
from iris_wsgi.server.connection import MAX_JOINED, ResponseWriter
from iris_wsgi.wsgi.application import Response


def parts(pieces: tuple[bytes, ...]) -> tuple[bytes, list[bytes], bytes]:
    head, _, content = b"".join(pieces).partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    return first, fields, content


def test_a_response_has_date_id_type_length_and_its_own_headers():
    first, fields, content = parts(ResponseWriter().message(Response(b"{}", headers=(("X-Y", "z"),)), "id", "GET", None))
    assert (first, content) == (b"HTTP/1.1 200 OK", b"{}")
    assert fields[0].startswith(b"Date: ") and fields[0].endswith(b" GMT")
    assert fields[1:] == [b"X-Request-ID: id", b"X-Y: z", b"Content-Type: application/json", b"Content-Length: 2"]


def test_head_has_the_length_without_the_content_and_204_has_neither():
    _, fields, content = parts(ResponseWriter().message(Response(b"{}"), "id", "HEAD", "close"))
    assert b"Content-Length: 2" in fields and b"Connection: close" in fields
    assert content == b""
    _, fields, content = parts(ResponseWriter().message(Response(b"", status=204), "id", "OPTIONS", None))
    assert not any(field.startswith(b"Content-") for field in fields)


def test_a_long_body_is_not_copied_after_its_head():
    body = bytes(MAX_JOINED + 1)
    head, kept = ResponseWriter().message(Response(body), "id", "GET", None)
    assert kept is body and head.endswith(b"\r\n\r\n")
    assert len(ResponseWriter().message(Response(body[1:]), "id", "GET", None)) == 1
    assert ResponseWriter().message(Response(body), "id", "HEAD", None) == (head,)


def test_a_refusal_is_a_problem_document_with_its_id():
    data = ResponseWriter().error(
        ServiceUnavailable("Not now.", headers=(("Retry-After", "1"),)), "GET", "/x", "close", "its-own"
    )
    first, fields, content = parts(data)
    assert first == b"HTTP/1.1 503 Service Unavailable"
    assert {b"Retry-After: 1", b"Content-Type: application/problem+json", b"X-Request-ID: its-own"} <= set(fields)
    assert content == b'{"title":"Service Unavailable","status":503,"detail":"Not now.","request_id":"its-own"}\n'


def test_a_refusal_under_v2_is_the_error_document_of_that_protocol():
    data = ResponseWriter().error(
        ServiceUnavailable("Not now.", headers=(("Retry-After", "1"),)), "POST", "/v2/models/m/infer", "close", "a"
    )
    _, fields, content = parts(data)
    assert {b"Retry-After: 1", b"Content-Type: application/json"} <= set(fields)
    assert content == b'{"error":"Not now."}\n'


@pytest.mark.parametrize("field", [("X", "a\r\nSet-Cookie: b"), ("X", "a\nb"), ("X\r\nY", "a")])
def test_a_line_end_in_a_header_is_refused(field):
    with pytest.raises(ValueError, match="line end"):
        ResponseWriter().message(Response(b"", headers=(field,)), "id", "GET", None)
