"""Errors that become problem documents, and errors that stop a start or a store."""

import re
from collections.abc import Sequence
from typing import NamedTuple

MAX_FIELD_ERRORS = 10
JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
# The Open Inference Protocol (v2) and its predecessor (v1) define another error document.
is_protocol_path = re.compile(r"/v[12](?:/|\Z)").match

# The phrases of RFC 9110. Those of http.HTTPStatus differ between versions of Python.
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
NO_ROUTE = "This path is not served{hint}; GET {prefix}/openapi.json lists all paths."
RETRY_AFTER = ("Retry-After", "1")


class BadModel(Exception):
    """Raised for a model folder that cannot be served; the message is one line with the file and the reason."""


class BadStore(Exception):
    """Raised for a store that cannot be used; the message is one line with its name and the reason."""


class BackendUnavailable(Exception):
    """Raised if a database, Redis, or store cannot be used now. Whether the operation was executed is unknown.

    `remedy` states what an operator must change. It is empty if a retry may help.
    """

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


class OperationDenied(BackendUnavailable):
    """Raised if the backend rejects this operation until an operator changes something. Other operations may work."""


class JobError(Exception):
    """Base class of the errors of a job store that works."""


class Stopped(Exception):
    """Raised if a batch run cannot continue; the message is one line with the reason."""


class FieldError(NamedTuple):
    """An invalid place in a body: a JSON pointer (RFC 6901, as a fragment), and the requirement."""

    pointer: str
    detail: str


class Problem(Exception):
    """Base class of errors that become a response.

    `detail` is one sentence with the place, the limit, and the remedy. It never contains data of the client.
    """

    status = 500

    def __init__(self, detail: str, faults: Sequence[FieldError] = (), headers: Headers = (), status: int | None = None) -> None:
        super().__init__(detail)
        self.detail, self.faults, self.headers = detail, faults[:MAX_FIELD_ERRORS], headers
        self.status = status or type(self).status


class BadRequest(Problem):
    status = 400


class Unauthorized(Problem):
    status = 401


class NotFound(Problem):
    status = 404


class MethodNotAllowed(Problem):
    status = 405


class RequestTimeout(Problem):
    status = 408


class Conflict(Problem):
    """The request conflicts with the current state of the resource."""

    status = 409


class Gone(Problem):
    """The resource existed and has expired."""

    status = 410


class LengthRequired(Problem):
    status = 411


class ContentTooLarge(Problem):
    status = 413


class UnsupportedMediaType(Problem):
    status = 415


class RangeNotSatisfiable(Problem):
    status = 416


class MisdirectedRequest(Problem):
    """This server does not serve the host of the request (RFC 9110, section 15.5.20)."""

    status = 421


class UnprocessableContent(Problem):
    """The body can be parsed, and does not conform to the schema."""

    status = 422


class UnknownCategory(BadRequest):
    """A value of a row is not one of the categories that the model learned."""


class PredictionFailed(Problem):
    """The run of the model failed."""


class InvalidOutput(PredictionFailed):
    """The output of the model does not have one row for each input row and one column for each label."""


class MethodNotImplemented(Problem):
    status = 501


class BadGateway(Problem):
    """The response of an upstream server is invalid."""

    status = 502


class ServiceUnavailable(Problem):
    status = 503


WAITED_TOO_LONG = "The deadline passed while the request waited; nothing was computed. Retry with a later deadline."
PARSED_TOO_LATE = "The deadline passed before the model ran. Send fewer rows, or a later deadline."
RAN_TOO_LONG = "The deadline passed while the model ran; the run was stopped. Send fewer rows, or a later deadline."


class DeadlineExceeded(Problem):
    """The response is late, or would be."""

    status = 504


class NotCached(Problem):
    """A request with only-if-cached for which the cache has no response (RFC 9111, section 5.2.1.7)."""

    status = 504


def error_media_type(path: str) -> str:
    """Returns the media type of errors on this path."""
    return JSON if is_protocol_path(path) else PROBLEM_JSON


def error_document(problem: Problem) -> dict[str, object]:
    """Returns the error document under /v2 and /v1 (kserve/open-inference-protocol, inference_rest.md)."""
    return {"error": problem.detail}


def problem_document(problem: Problem, request_id: str) -> dict[str, object]:
    """Returns the problem document (RFC 9457), with at most ten field errors."""
    document: dict[str, object] = {
        "title": PHRASES[problem.status],
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.faults:
        document["errors"] = [fault._asdict() for fault in problem.faults]
    return document
