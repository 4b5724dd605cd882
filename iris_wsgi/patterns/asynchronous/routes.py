"""The routes of jobs: handed in now, answered later, lost never."""

import json
import re
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from iris_wsgi import errors
from iris_wsgi.codec.rows import Array, decode_rows
from iris_wsgi.errors import RETRY_AFTER, BackendUnavailable, JobError
from iris_wsgi.model.latency import NEVER
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.asynchronous.job import DONE, ID_PATTERN, STATES, Job, JobExpired, JobStore, KeyConflict, QueueFull, Stop
from iris_wsgi.patterns.asynchronous.job_codec import accepted, href, pack_rows, record
from iris_wsgi.patterns.asynchronous.metrics import JobMetrics
from iris_wsgi.resilience import deadline
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import FRESH, Request, Response, Route

DOWN = (
    "Jobs cannot be taken or told of now; those that were acknowledged are not lost. Try again, and hand in again with the same"
    " Idempotency-Key."
)
# Followed by what a person must change.
REFUSED = "The store of jobs refuses this, and a retry does not help; jobs that were acknowledged are not lost. "
FULL = "As many jobs wait as there may be; try again when some are done."
CONFLICT = "This Idempotency-Key was used for other rows. Send the same rows, or another key."
BAD_KEY = "Idempotency-Key must be 1 to 255 printable ASCII characters."
UNKNOWN = "There is no such job."
GONE = "This job was done, and is kept no longer."

P = ParamSpec("P")
T = TypeVar("T")
is_id = re.compile(ID_PATTERN).fullmatch
is_key = re.compile(r"[ -~]{1,255}").fullmatch
STATUS: dict[str, object] = {"type": "string", "enum": list(STATES)}
ACCEPTED = openapi.closed(id=openapi.TEXT, status=STATUS, href=openapi.TEXT)
RECORD: dict[str, object] = {
    "type": "object",
    "required": ["id", "status", "href", "attempts", "created", "started", "finished"],
    "properties": {"status": STATUS},
}


class JobQueue(NamedTuple):
    """The store behind a breaker, what counts its use, who is told of new jobs, and until when answers may be held back."""

    store: JobStore
    breaker: CircuitBreaker
    metrics: JobMetrics
    tell: Callable[[], None]
    stopping: Stop

    def submit(self, route: str, request: Request, rows: Array, note: bytes | None = None) -> Job:
        """A durable job. A key is one of this route's; raises Problem where there can be none."""
        key = idempotency_key(request)
        try:
            job = self.breaker.call(self.store.submit, pack_rows(rows), key and f"{route} {key}", note)
        except (JobError, BackendUnavailable) as error:
            outcome = "full" if isinstance(error, QueueFull) else "conflict" if isinstance(error, KeyConflict) else "unavailable"
            self.metrics.submissions.add((outcome,))
            raise problem(error) from None
        self.metrics.submissions.add(("accepted",))
        self.tell()
        return job

    def ask(self, ask: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What the store tells. Raises Problem."""
        try:
            return self.breaker.call(ask, *given, **named)
        except (JobError, BackendUnavailable) as error:
            raise problem(error) from None


def routes(model: Graph, queue: JobQueue, max_rows: int, wait_seconds: float) -> list[Route]:
    """All of them; an answer about a job is held back for `wait_seconds` at most."""

    def post(request: Request) -> Response:
        rows = decode_rows(request.body, model.width, max_rows, f"hand them in as several jobs of up to {max_rows} rows")
        job = queue.submit("POST /jobs", request, rows)
        headers = (("Location", href(job.id, request.prefix)), FRESH)
        return Response(
            json.dumps(accepted(job, request.prefix)).encode(), status=202, headers=headers, rows=len(rows), job=job.id
        )

    def get(request: Request) -> Response:
        wished = deadline.wait_told(request.variables.get("HTTP_PREFER"))
        if not wished:
            return told(request, queue.ask(queue.store.get, id_of(request)))
        seconds = min(float(wished), wait_seconds)
        job = queue.ask(queue.store.wait, id_of(request), seconds, lambda: queue.stopping() or request.hurry())
        return told(request, job, ("Preference-Applied", f"wait={seconds:g}"))

    def delete(request: Request) -> Response:
        job = queue.ask(queue.store.cancel, id_of(request))
        if job.state != "cancelled":
            raise errors.Conflict("The job was done before, and what is done cannot be cancelled; GET tells how it ended.")
        return told(request, job)

    def overview(_: Request) -> Response:
        counts = queue.ask(queue.store.counts)
        jobs = {state: counts.by_state[state] for state in STATES}
        return Response(json.dumps({"jobs": jobs, "oldest_queued_seconds": counts.oldest_seconds}).encode(), headers=(FRESH,))

    rows, one = openapi.rows(model, max_rows), "/jobs/{id}"
    return [
        Route("POST", "/jobs", post, "Hands in rows to be predicted later", ACCEPTED, rows,
              failures=(503,), inline_bytes=NEVER, success=(202,)),
        Route("GET", "/jobs", overview, "How many jobs there are in each state", openapi.OBJECT,
              failures=(503,), inline_bytes=NEVER),
        Route("GET", one, get, "A job, with its result once it is done; Prefer: wait=N holds the answer back until then", RECORD,
              failures=(404, 410, 503), inline_bytes=NEVER, holds=wait_seconds),
        Route("DELETE", one, delete, "Cancels a job that is not done", RECORD,
              failures=(404, 409, 410, 503), inline_bytes=NEVER),
    ]  # fmt: skip


def id_of(request: Request) -> str:
    job_id = request.parameters["id"]
    if not is_id(job_id):
        raise errors.NotFound(UNKNOWN)
    return job_id


def told(request: Request, job: Job, *headers: tuple[str, str]) -> Response:
    """The record of a job. One that is done carries what every prediction does."""
    body, digest = record(job, request.prefix)
    if digest is not None:
        headers = (*headers, ("X-Model-Digest", digest))
    elif job.state not in DONE:
        headers = (*headers, RETRY_AFTER)
    return Response(body, headers=(*headers, FRESH), job=job.id)


def idempotency_key(request: Request) -> str | None:
    """The key of draft-ietf-httpapi-idempotency-key-header, in quotes or, as most clients send it, without."""
    given: str | None = request.variables.get("HTTP_IDEMPOTENCY_KEY")
    if given is None:
        return None
    key = given.strip(" \t")
    key = key[1:-1] if key[:1] == key[-1:] == '"' else key
    if not is_key(key):
        raise errors.BadRequest(BAD_KEY)
    return key


def problem(error: JobError | BackendUnavailable) -> errors.Problem:
    """What a client is told instead of a job."""
    match error:
        case BackendUnavailable(remedy=remedy) if remedy:
            return errors.ServiceUnavailable(REFUSED + remedy)
        case BackendUnavailable():
            return errors.ServiceUnavailable(DOWN, headers=(RETRY_AFTER,))
        case QueueFull():
            return errors.ServiceUnavailable(FULL, headers=(RETRY_AFTER,))
        case KeyConflict():
            return errors.UnprocessableContent(CONFLICT)
        case JobExpired():
            return errors.Gone(GONE)
        case _:
            return errors.NotFound(UNKNOWN)
