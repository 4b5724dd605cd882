"""Conditional requests and range requests (RFC 9110, sections 13 and 14)."""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from iris_wsgi.errors import RangeNotSatisfiable
from iris_wsgi.wsgi.application import Request, Response, Route

# Caches must revalidate: the model can change at any time.
NO_CACHE = ("Cache-Control", "no-cache")

tags_in = re.compile('(?:W/)?("[!#-~\x80-\xff]*")').findall
# A number with more digits is beyond the end of every response. int() rejects thousands of digits.
single_range = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE).fullmatch


def conditional(route: Route) -> Route:
    """Adds a strong ETag, the hash of the body, to a GET route, and 304 for requests with this tag in If-None-Match."""

    def handler(request: Request) -> Response:
        response = route.handler(request)
        tag = f'"{sha256(response.body).hexdigest()[:32]}"'
        response = response._replace(headers=(*response.headers, ("ETag", tag), NO_CACHE))
        if_none_match = request.environ.get("HTTP_IF_NONE_MATCH")
        if if_none_match is None or not matches(if_none_match, tag):
            return response
        return response._replace(body=b"", status=304)

    doc = route.doc
    described = doc._replace(
        success=(*doc.success, 304), accepts=(*doc.accepts, "If-None-Match"), returns=(*doc.returns, "ETag", "Cache-Control")
    )
    return route._replace(handler=handler, doc=described)


def matches(if_none_match: str, tag: str) -> bool:
    """Returns whether If-None-Match has the tag. The weak comparison (RFC 9110, section 8.8.3.2) ignores W/."""
    return if_none_match.strip() == "*" or tag in tags_in(if_none_match)


def requested_range(environ: Mapping[str, Any], size: int, tag: str) -> slice | None:
    """Returns the range that a GET requests of a body of `size` bytes with this strong ETag, or None for the whole body.

    It is None for several ranges, for other units, and if If-Range has another tag or a date. Raises RangeNotSatisfiable
    (416) if the range starts beyond the end.
    """
    header = environ.get("HTTP_RANGE")
    found = None if header is None else single_range(header.strip(" \t"))
    if found is None or environ.get("HTTP_IF_RANGE", tag).strip(" \t") != tag:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiable(
            f"The range starts beyond the end: the response has {size} bytes.", headers=(("Content-Range", f"bytes */{size}"),)
        )
    return slice(start, stop)
