"""What of a request goes on to the servers that it makes us ask, so that one id finds all of them in the logs."""

import re
from collections.abc import Sequence

from iris_wsgi.wsgi import Request

Fields = Sequence[tuple[str, str]]


def nothing() -> Fields:
    return ()


# W3C Trace Context, section 3.2; what is none is not passed on.
is_trace = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


def passed_on(request: Request) -> Fields:
    """Its id, as it came or as it was given here, and its traceparent and tracestate."""
    fields = [("X-Request-ID", request.id)]
    trace, state = (request.variables.get(name) for name in ("HTTP_TRACEPARENT", "HTTP_TRACESTATE"))
    if trace and is_trace(trace):
        fields += [("traceparent", trace), *([("tracestate", state)] if state else [])]
    return fields
