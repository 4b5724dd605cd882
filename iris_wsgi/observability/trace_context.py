"""Request ids and W3C Trace Context, for log lines and for calls to other servers."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
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


class TraceContext(NamedTuple):
    """The ids of a trace, of the span of this server, and of the parent span of the client, and its flags and state."""

    trace: str
    span: str
    parent: str
    flags: int
    state: str


# A slotted dataclass, because each request creates one.
@dataclass(slots=True)
class RequestIds:
    """The id of a request, from the client or generated, and the trace of the client, if it sent one."""

    request: str
    context: TraceContext | None = None

    def log_fields(self) -> dict[str, str]:
        """Returns the fields of a log line."""
        context = self.context
        traced = {"trace_id": context.trace, "span_id": context.span, "parent_id": context.parent} if context else {}
        return {"request_id": self.request, **traced}

    def upstream_headers(self) -> Headers:
        """Returns the headers of calls to other servers, in which the span of this server is the parent."""
        headers, context = [("X-Request-ID", self.request)], self.context
        if context is not None:
            headers.append(("traceparent", f"00-{context.trace}-{context.span}-{context.flags:02x}"))
            headers += [("tracestate", context.state)] if context.state else []
        return headers


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
    context = TraceContext(found[1], span, found[2], int(found[3], 16) & FLAGS, state if valid else "")
    return RequestIds(request_id, context)


class RequestIdSequence:
    """Request ids of 32 hexadecimal digits: a random prefix of the process, and a counter. Any thread may call it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Takes a new prefix."""
        self.prefix, self.numbers = os.urandom(10).hex(), count(1)

    def __call__(self) -> str:
        return f"{self.prefix}{next(self.numbers):012x}"


new_request_id = RequestIdSequence()
# A forked process would repeat the ids of its parent.
os.register_at_fork(after_in_child=new_request_id.restart)
