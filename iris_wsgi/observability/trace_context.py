"""The ids of a request: its log lines have them, and the requests that it makes us send to other servers."""

import re
from collections.abc import Mapping, Sequence
from random import getrandbits
from typing import Any, NamedTuple

Fields = Sequence[tuple[str, str]]

request_id_of_caller = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
# W3C Trace Context: section 3.2, where later versions may have more behind what version 00 has; and a member of section 3.3.
traceparent_of = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
).fullmatch
is_member = re.compile(r"(?:[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~])?").fullmatch
MOST_MEMBERS = 32
# Sampled, and of level 2 random; what else there may be once is not passed on.
FLAGS = 0b11


def nothing() -> Fields:
    return ()


class Ids(NamedTuple):
    """That of the request, its client's or one that was given here; and where a trace came with it those of the trace, of our
    part in it, and of the client's, with its flags and state."""

    request: str
    trace: str = ""
    span: str = ""
    parent: str = ""
    flags: int = 0
    state: str = ""

    def told(self) -> dict[str, str]:
        """As log lines have them."""
        traced = {"trace_id": self.trace, "span_id": self.span, "parent_id": self.parent} if self.trace else {}
        return {"request_id": self.request, **traced}

    def passed_on(self) -> Fields:
        """As the servers that we ask get them: our part in the trace is the parent of theirs."""
        traced = [("traceparent", f"00-{self.trace}-{self.span}-{self.flags:02x}")] if self.trace else []
        return [("X-Request-ID", self.request), *traced, *([("tracestate", self.state)] if self.state else [])]


def ids_of(variables: Mapping[str, Any]) -> Ids:
    """Those of a request with these CGI variables. What is malformed is as if it had not come."""
    offered = variables.get("HTTP_X_REQUEST_ID")
    request_id = offered if offered and request_id_of_caller(offered) else new_request_id()
    found = traceparent_of(variables["HTTP_TRACEPARENT"]) if "HTTP_TRACEPARENT" in variables else None
    if found is None:
        return Ids(request_id)
    state = variables.get("HTTP_TRACESTATE", "")
    members = state.split(",")
    valid = len(members) <= MOST_MEMBERS and all(is_member(member.strip(" \t")) for member in members)
    span = f"{getrandbits(64) or 1:016x}"
    return Ids(request_id, found[1], span, found[2], int(found[3], 16) & FLAGS, state if valid else "")


def new_request_id() -> str:
    # The module's generator is seeded anew in each forked process.
    return f"{getrandbits(128):032x}"
