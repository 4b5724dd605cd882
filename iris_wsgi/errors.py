"""Every failure that a client can see with the document it is told in, and those that stop a start."""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

MOST_FAULTS = 10
JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
# The Open Inference Protocol and its predecessor have a form of their own.
of_protocol = re.compile(r"/v[12](?:/|\Z)").match

# RFC 9110's words; http.HTTPStatus changed some of its own with Python 3.13.
PHRASES = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    206: "Partial Content",
    304: "Not Modified",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    410: "Gone",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    417: "Expectation Failed",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

Headers = Sequence[tuple[str, str]]
NOWHERE = "Nothing is served at this path; GET /openapi.json lists what is."
# A client may ask again so many seconds later.
LATER = ("Retry-After", "1")


class BadModel(Exception):
    """A model folder that must not be served; the message is one line that names the file and what is wrong with it."""


class BadStore(Exception):
    """A store that must not be used; the message is one line that names it and what is wrong with it."""


class JobError(Exception):
    """What a store answers instead of a job; it was asked for nothing that it could do."""


class StoreDown(JobError):
    """The store cannot be used now; whether what was asked for happened is not known. One sentence for the log.

    `remedy` tells clients what a person must change before the store works again. It is empty where a retry may help.
    """

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


class Denied(StoreDown):
    """The store refuses this operation until a person changes something; others may work."""


class Fault(NamedTuple):
    """One place in a body that is wrong: a JSON pointer (RFC 6901, as a fragment) and what is wanted there."""

    pointer: str
    detail: str


class Problem(Exception):
    """A request that cannot be answered: status, one sentence for people, the faults found, extra headers.

    The sentence names the place, the limit and the way out; it never repeats what the client sent.
    """

    status = 500

    def __init__(self, detail: str, faults: Sequence[Fault] = (), headers: Headers = (), status: int | None = None) -> None:
        super().__init__(detail)
        self.detail, self.faults, self.headers = detail, faults[:MOST_FAULTS], headers
        self.status = status or type(self).status


class NotDecodable(Problem):
    """The body cannot be parsed."""

    status = 400


class Unauthorized(Problem):
    """Nobody is answered here without a token."""

    status = 401


class NotFound(Problem):
    status = 404


class MethodNotAllowed(Problem):
    status = 405


class RequestTimeout(Problem):
    status = 408


class Conflict(Problem):
    """What is asked for does not go with the state of what it is asked for."""

    status = 409


class Expired(Problem):
    """There was something here."""

    status = 410


class LengthRequired(Problem):
    status = 411


class BodyTooLarge(Problem):
    status = 413


class UnsupportedMedia(Problem):
    status = 415


class RangeNotSatisfiable(Problem):
    """What is asked for lies behind the end."""

    status = 416


class Misdirected(Problem):
    """This server does not answer for the host of the request (RFC 9110, section 15.5.20)."""

    status = 421


class NotValid(Problem):
    """The body parses and breaks the schema."""

    status = 422


class PredictFailed(Problem):
    """The model ran and gave no usable answer, or did not run."""


class BadOutput(PredictFailed):
    """The model ran, and its output does not have one row for each input row and one column for each label."""


class MethodUnknown(Problem):
    status = 501


class BadGateway(Problem):
    """Another service, which the answer needs, gave one that cannot be used."""

    status = 502


class NotReady(Problem):
    status = 503


class DeadlineExceeded(Problem):
    """The answer came too late, or would have."""

    status = 504


class NotCached(Problem):
    """A request with only-if-cached for which the cache has no response (RFC 9111, section 5.2.1.7)."""

    status = 504


def media_of(path: str) -> str:
    """In which media type failures are told on this path; JSON stands for the error document, exactly as clients look for it."""
    return JSON if of_protocol(path) else PROBLEM_JSON


def error_document(problem: Problem) -> bytes:
    """The body of a failed request under /v2 and /v1 (kserve/open-inference-protocol, inference_rest.md)."""
    return json.dumps({"error": problem.detail}, ensure_ascii=False).encode()


def problem_document(problem: Problem, request_id: str) -> bytes:
    """The body of a failed request, as RFC 9457 words it, with at most ten faults."""
    document: dict[str, object] = {
        "title": PHRASES[problem.status],
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.faults:
        document["errors"] = [fault._asdict() for fault in problem.faults]
    return json.dumps(document, ensure_ascii=False).encode()


class Stopped(Exception):
    """A batch run cannot continue, for the reason in this one line."""
