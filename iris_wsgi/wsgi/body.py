"""How a request's body is taken: what it must claim to be, and all of its bytes within the limit."""

import re
from typing import Any

from iris_wsgi.errors import JSON, BadRequest, ContentTooLarge, LengthRequired, Problem, UnsupportedMediaType

Environ = dict[str, Any]

utf8_json = re.compile(r'application/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*)?;?[ \t]*', re.IGNORECASE).fullmatch


def check_content_type(environ: Environ) -> None:
    """Raises UnsupportedMediaType for a body that does not claim to be plain JSON in UTF-8."""
    media = environ.get("CONTENT_TYPE", "")
    if media and media != JSON and not utf8_json(media):
        raise UnsupportedMediaType(
            "This route takes JSON in UTF-8: send Content-Type: application/json.", headers=(("Accept-Post", JSON),)
        )
    coding = environ.get("HTTP_CONTENT_ENCODING")
    if coding is not None and coding.strip().lower() != "identity":
        raise UnsupportedMediaType(
            "This route takes bodies as they are: send no Content-Encoding.", headers=(("Accept-Encoding", "identity"),)
        )


def read_body(environ: Environ, limit: int) -> bytes:
    """The body, `limit` bytes at most, whether its length is given or its end is marked by the server (wsgi.input_terminated)."""
    length = environ.get("CONTENT_LENGTH", "")
    if length:
        if not (length.isascii() and length.isdigit()):
            raise BadRequest("Content-Length is not a number.")
        # A length of more digits than the limit has is over it, and int() refuses thousands of them.
        if len(length.lstrip("0")) > len(str(limit)) or int(length) > limit:
            raise too_large(limit)
        body: bytes = environ["wsgi.input"].read(int(length))
        if len(body) != int(length):
            raise BadRequest("The body ended before its Content-Length.")
        return body
    if environ.get("wsgi.input_terminated"):
        body = environ["wsgi.input"].read(limit + 1)
        if len(body) > limit:
            raise too_large(limit)
        return body
    if "HTTP_TRANSFER_ENCODING" in environ:
        raise LengthRequired("Send the body with a Content-Length.")
    return b""


def too_large(limit: int) -> Problem:
    return ContentTooLarge(f"The body is over the limit of {limit} bytes; send fewer rows in a request.")
