"""Content codings gzip and deflate (RFC 9110, section 8.4.1): bodies unpacked within a bound, answers packed as wanted."""

import re
import zlib

from iris_wsgi.errors import BadRequest, ContentTooLarge, UnsupportedMediaType

CODINGS = ("gzip", "deflate")
GZIP, ZLIB, RAW = 31, 15, -15  # zlib's wbits for each format
# Below this the head of an answer outweighs what packing saves.
LEAST_BYTES = 1024
LEVEL = 1

# No two runs of blanks meet in it, and so it never takes more than one walk over a member.
wanted = re.compile(r"([!#$%&'*+.^_`|~0-9a-z-]+)(?:[ \t]*;[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?").fullmatch


def decompress(body: bytes, coding: str | None, limit: int) -> bytes:
    """The body without its Content-Encoding (None where the request has none), at most `limit` bytes.

    No more than `limit` + 1 bytes are ever unpacked. Raises UnsupportedMediaType (415) for what is not one of gzip, deflate and
    identity, ContentTooLarge (413), and BadRequest (400) for what is damaged, cut off or followed by other bytes; a second
    member of a gzip file (RFC 1952, section 2.2) is such bytes.
    """
    name = "identity" if coding is None else coding.strip(" \t").lower()
    if name == "identity":
        return body
    # RFC 9110, section 8.4.1.3: x-gzip is gzip.
    name = name.removeprefix("x-") if name == "x-gzip" else name
    if name not in CODINGS:
        raise UnsupportedMediaType(
            "This route takes bodies in one of the codings gzip and deflate, or as they are.",
            headers=(("Accept-Encoding", ", ".join(CODINGS)),),
        )
    stream = zlib.decompressobj(GZIP if name == "gzip" else deflate_format(body))
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest(f"The body is not {name} data, or is damaged.") from None
    if len(content) > limit:
        raise ContentTooLarge(f"The unpacked body is over the limit of {limit} bytes; send fewer rows in a request.")
    if not stream.eof:
        raise BadRequest(f"The body ends before its {name} data does.")
    if stream.unused_data:
        raise BadRequest(f"The body goes on after the end of its {name} data.")
    return content


def deflate_format(body: bytes) -> int:
    """The coding deflate is zlib's format (RFC 1950); some clients send the bare stream (RFC 1951), as RFC 9110 notes.

    A zlib head has 8 in its low four bits. A bare stream would begin so only with a stored block whose padding is not zero.
    """
    return ZLIB if body[:1] and body[0] & 15 == 8 else RAW


def negotiate(accept: str | None) -> str | None:
    """The coding of an answer to a request with this Accept-Encoding (RFC 9110, section 12.5.3); None is identity.

    The one with the highest weight, gzip of equals; identity if it is given a higher weight than both, and if nothing else
    is wanted, even where identity;q=0 forbids it. Members that do not follow the grammar are passed over.
    """
    if not accept:
        return None
    weights: dict[str, float] = {}
    for member in accept.lower().split(","):
        if found := wanted(member.strip(" \t")):
            name = "gzip" if found[1] == "x-gzip" else found[1]
            weights[name] = max(weights.get(name, 0.0), float(found[2] or 1))
    rest = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda name: weights.get(name, rest))
    weight = weights.get(best, rest)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def compress(body: bytes | memoryview, accept: str | None) -> tuple[bytes | memoryview, str | None]:
    """An answer's body as the client accepts it, and its Content-Encoding or None; equal bodies give equal bytes.

    What is under LEAST_BYTES stays as it is. Whoever sends the result sends `Vary: Accept-Encoding` too.
    """
    coding = negotiate(accept) if len(body) >= LEAST_BYTES else None
    if coding is None:
        return body, None
    # zlib's own gzip head carries no time, and so no two equal bodies differ.
    return zlib.compress(body, LEVEL, GZIP if coding == "gzip" else ZLIB), coding
