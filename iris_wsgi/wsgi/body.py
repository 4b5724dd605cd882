"""Request bodies, and the content codings gzip and deflate (RFC 9110, section 8.4.1) of requests and responses."""

import re
import zlib
from typing import Any

from iris_wsgi.errors import JSON, BadRequest, ContentTooLarge, LengthRequired, Problem, UnsupportedMediaType

Environ = dict[str, Any]

CODINGS = ("gzip", "deflate")
GZIP, ZLIB, RAW = 31, 15, -15  # zlib's wbits for each format
# A shorter response is not worth the additional headers.
MIN_BYTES = 1024
LEVEL = 1

utf8_json = re.compile(r'application/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*)?;?[ \t]*', re.IGNORECASE).fullmatch
is_weight = re.compile(r"[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*").fullmatch


def check_content_type(environ: Environ) -> None:
    """Raises UnsupportedMediaType for a body that is not plain JSON in UTF-8, by its headers."""
    media_type = environ.get("CONTENT_TYPE", "")
    if media_type and media_type != JSON and not utf8_json(media_type):
        raise UnsupportedMediaType(
            "This route takes JSON in UTF-8: send Content-Type: application/json.", headers=(("Accept-Post", JSON),)
        )
    coding = environ.get("HTTP_CONTENT_ENCODING")
    if coding is not None and coding.strip().lower() != "identity":
        raise UnsupportedMediaType(
            "This route does not take compressed bodies: send no Content-Encoding.", headers=(("Accept-Encoding", "identity"),)
        )


def read_body(environ: Environ, limit: int) -> bytes:
    """Returns the body, of up to `limit` bytes. Its end is at Content-Length, or where the server ends wsgi.input."""
    length = environ.get("CONTENT_LENGTH", "")
    if length:
        if not (length.isascii() and length.isdigit()):
            raise BadRequest("Content-Length is not a number.")
        # A length with more digits than the limit is over it. int() rejects thousands of digits.
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


def decompress(body: bytes, coding: str | None, limit: int) -> bytes:
    """Removes the Content-Encoding (None: no header) of a body, without decompressing more than `limit` + 1 bytes.

    Raises UnsupportedMediaType (415) for other codings, ContentTooLarge (413), and BadRequest (400) for data that is damaged,
    truncated, or followed by more bytes. A second member of a gzip file (RFC 1952, section 2.2) counts as more bytes.
    """
    name = "identity" if coding is None else coding.strip(" \t").lower()
    if name == "identity":
        return body
    name = "gzip" if name == "x-gzip" else name
    if name not in CODINGS:
        raise UnsupportedMediaType(
            "This route takes bodies in gzip, in deflate, or uncompressed.", headers=(("Accept-Encoding", ", ".join(CODINGS)),)
        )
    stream = zlib.decompressobj(GZIP if name == "gzip" else deflate_format(body))
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest(f"The body is not {name} data, or is damaged.") from None
    if len(content) > limit:
        raise ContentTooLarge(f"The decompressed body is over the limit of {limit} bytes; send fewer rows in a request.")
    if not stream.eof:
        raise BadRequest(f"The body ends before its {name} data does.")
    if stream.unused_data:
        raise BadRequest(f"The body has more bytes after the end of its {name} data.")
    return content


def deflate_format(body: bytes) -> int:
    """Returns the format of the coding deflate: zlib (RFC 1950), or the bare stream (RFC 1951) that some clients send.

    A zlib header has 8 in its low four bits. A bare stream starts with that only in a stored block with non-zero padding.
    """
    return ZLIB if body[:1] and body[0] & 15 == 8 else RAW


def quality_values(header: str) -> dict[str, float]:
    """Returns the weight (RFC 9110, section 12.4.2) of each member of a header such as Accept, by its text in lower case."""
    weights: dict[str, float] = {}
    for member in header.lower().split(","):
        name, _, parameter = member.rpartition(";")
        found = is_weight(parameter) if name else None
        name, weight = (name, float(found[1])) if found else (member, 1.0)
        name = name.strip(" \t")
        weights[name] = max(weights.get(name, 0.0), weight)
    return weights


def negotiate(accept_encoding: str | None) -> str | None:
    """Returns the content coding that the client prefers (RFC 9110, section 12.5.3), or None for identity.

    It is the coding with the highest weight, and gzip if both are equal. It is identity if its weight is higher, or if the client
    accepts nothing else, even if identity;q=0 forbids it.
    """
    if not accept_encoding:
        return None
    weights = quality_values(accept_encoding)
    if "x-gzip" in weights:
        weights["gzip"] = max(weights.get("gzip", 0.0), weights["x-gzip"])
    rest = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda name: weights.get(name, rest))
    weight = weights.get(best, rest)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def compress(body: bytes | memoryview, accept_encoding: str | None) -> tuple[bytes | memoryview, str | None]:
    """Returns a response body as the client accepts it, and its Content-Encoding. Equal bodies give equal bytes.

    Bodies below MIN_BYTES stay uncompressed. The response needs `Vary: Accept-Encoding` in any case.
    """
    coding = negotiate(accept_encoding) if len(body) >= MIN_BYTES else None
    if coding is None:
        return body, None
    # The gzip header of zlib has no time.
    return zlib.compress(body, LEVEL, GZIP if coding == "gzip" else ZLIB), coding
