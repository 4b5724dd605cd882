"""The server's side of WSGI, with applications other than ours."""

import pytest

from iris_wsgi.gateway import Gateway
from iris_wsgi.http1 import Reader


def ask(
    application, sent: bytes = b"GET /a%20b?c=d HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nX-One: 2\r\n\r\n", close: bool = False
) -> bytes:
    reader = Reader(1000)
    reader.feed(sent)
    gateway = Gateway(application, "127.0.0.1", 8000, False)
    return gateway.answer(gateway.connection(("10.0.0.1", 5)), reader.next(), close)


def test_the_environ_is_that_of_the_request():
    seen = {}

    def application(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    ask(
        application,
        b"POST /a%20b?c=d HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nX-One: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    )
    assert (seen["REQUEST_METHOD"], seen["PATH_INFO"], seen["QUERY_STRING"], seen["HTTP_X_ONE"]) == (
        "POST",
        "/a b",
        "c=d",
        "1, 2",
    )
    assert (seen["REMOTE_ADDR"], seen["SERVER_PORT"], seen["CONTENT_LENGTH"]) == ("10.0.0.1", "8000", "3")
    assert "HTTP_TRANSFER_ENCODING" not in seen


def test_pieces_written_and_returned_are_joined_and_the_iterable_is_closed():
    class Answer:
        closed = False

        def __iter__(self):
            return iter([b"b", b"c"])

        def close(self):
            self.closed = True

    answer = Answer()

    def application(environ, start_response):
        write = start_response("200 OK", [("X-Y", "z")])
        write(b"a")
        return answer

    got = ask(application)
    assert got.endswith(b"\r\nX-Y: z\r\nContent-Length: 3\r\n\r\nabc")
    assert answer.closed


def test_close_is_told_and_an_answer_without_content_has_no_length():
    def application(environ, start_response):
        start_response("204 No Content", [])
        return []

    got = ask(application, close=True)
    assert b"\r\nConnection: close\r\n\r\n" in got
    assert b"Content-Length" not in got


@pytest.mark.parametrize("header", [("X", "a\r\nSet-Cookie: b"), ("X", "a\nb"), ("X", "a\rb"), ("X\r\nY", "a")])
def test_a_line_end_in_a_header_is_refused(header):
    def application(environ, start_response):
        start_response("200 OK", [header])
        return []

    with pytest.raises(ValueError, match="line end"):
        ask(application)
