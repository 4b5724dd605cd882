"""Request ids and W3C Trace Context, for log lines and for calls to other servers."""

import re
from collections.abc import Mapping, Sequence
from random import getrandbits
from typing import Any, NamedTuple

Headers = Sequence[tuple[str, str]]

request_id_of_caller = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
# W3C Trace Context, sections 3.2 and 3.3. Later versions may append to the format of version 00.
traceparent_of = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
).fullmatch
is_member = re.compile(r"(?:[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~])?").fullmatch
MAX_STATE_MEMBERS = 32
# The flags sampled and random. Other flags are not propagated.
FLAGS = 0b11


def no_headers() -> Headers:
    return ()


class RequestIds(NamedTuple):
    """The id of a request, from the client or generated. The other fields are empty if the client sent no trace.

    They are the ids of the trace, of the span of this server, and of the parent span of the client, and its flags and state.
    """

    request: str
    trace: str = ""
    span: str = ""
    parent: str = ""
    flags: int = 0
    state: str = ""

    def log_fields(self) -> dict[str, str]:
        """Returns the fields of a log line."""
        traced = {"trace_id": self.trace, "span_id": self.span, "parent_id": self.parent} if self.trace else {}
        return {"request_id": self.request, **traced}

    def upstream_headers(self) -> Headers:
        """Returns the headers of calls to other servers, in which the span of this server is the parent."""
        traced = [("traceparent", f"00-{self.trace}-{self.span}-{self.flags:02x}")] if self.trace else []
        return [("X-Request-ID", self.request), *traced, *([("tracestate", self.state)] if self.state else [])]


def request_ids(environ: Mapping[str, Any]) -> RequestIds:
    """Returns the ids of a request. Malformed headers are ignored."""
    offered = environ.get("HTTP_X_REQUEST_ID")
    request_id = offered if offered and request_id_of_caller(offered) else new_request_id()
    found = traceparent_of(environ["HTTP_TRACEPARENT"]) if "HTTP_TRACEPARENT" in environ else None
    if found is None:
        return RequestIds(request_id)
    state = environ.get("HTTP_TRACESTATE", "")
    members = state.split(",")
    valid = len(members) <= MAX_STATE_MEMBERS and all(is_member(member.strip(" \t")) for member in members)
    span = f"{getrandbits(64) or 1:016x}"
    return RequestIds(request_id, found[1], span, found[2], int(found[3], 16) & FLAGS, state if valid else "")


def new_request_id() -> str:
    # Python seeds the generator of the module again in each forked process.
    return f"{getrandbits(128):032x}"
