"""Parts of an answer: Range and If-Range (RFC 9110, section 14)."""

import re
from collections.abc import Mapping
from typing import Any

from iris_wsgi.errors import RangeNotSatisfiable

# A number of more digits than any length has lies behind every end, and int() refuses thousands of them.
one_range = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE).fullmatch


def requested_range(environ: Mapping[str, Any], size: int, tag: str) -> slice | None:
    """Which of the `size` bytes of an answer with this strong ETag a GET with these fields wants; None for all of them.

    All are sent as well for several ranges at once, for what is no range of bytes, and where If-Range names another answer than
    this one, or a date. Raises RangeNotSatisfiable (416) for a range that begins behind the end.
    """
    told = environ.get("HTTP_RANGE")
    found = None if told is None else one_range(told.strip(" \t"))
    if found is None or environ.get("HTTP_IF_RANGE", tag).strip(" \t") != tag:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < begin:
            return None
    if begin >= size:
        raise RangeNotSatisfiable(
            f"There are {size} bytes, and this range begins behind them.", headers=(("Content-Range", f"bytes */{size}"),)
        )
    return slice(begin, end)
