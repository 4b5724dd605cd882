"""Routes of jobs, and the queue that they submit to."""

import re
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from iris_wsgi import errors
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.model_schema import Array, OutputSchema, RowSchema
from iris_wsgi.codec.rows import decode_rows
from iris_wsgi.errors import RETRY_AFTER, BackendUnavailable, JobError
from iris_wsgi.model.predictor import NEVER
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.asynchronous.job import DONE, ID_PATTERN, STATES, Job, JobExpired, JobStore, KeyConflict, QueueFull, Stop
from iris_wsgi.patterns.asynchronous.job_codec import accepted, href, model_identity, pack_rows, record
from iris_wsgi.patterns.asynchronous.metrics import JobMetrics
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import NO_STORE, Request, Response, Route, RouteDoc, Schedule, preferred_wait

DOWN = "The job store is unavailable; acknowledged jobs are not lost. Retry, and submit with the same Idempotency-Key."
# Followed by the remedy.
REFUSED = "The job store rejects this operation, and a retry does not help; acknowledged jobs are not lost. "
FULL = "The job queue is full; retry later."
CONFLICT = "The Idempotency-Key was used for other rows. Send the same rows, or another key."
GET_SUMMARY = "Returns a job with its result; Prefer: wait=N delays the response until the job is done"
BAD_KEY = "Idempotency-Key must be 1 to 255 printable ASCII characters."
NOT_FOUND = "Job not found."
EXPIRED = "The job has expired."

P = ParamSpec("P")
T = TypeVar("T")
is_id = re.compile(ID_PATTERN).fullmatch
is_key = re.compile(r"[ -~]{1,255}").fullmatch
STATUS: dict[str, object] = {"type": "string", "enum": list(STATES)}
ACCEPTED = openapi.Component("AcceptedJob", openapi.closed(id=openapi.TEXT, status=STATUS, href=openapi.TEXT))
IDENTITY = openapi.Component("ModelIdentity", openapi.closed(name=openapi.TEXT, version=openapi.TEXT, digest=openapi.TEXT))
OVERVIEW = openapi.Component(
    "JobCounts",
    openapi.closed(
        jobs=openapi.closed(**dict.fromkeys(STATES, openapi.COUNT)), oldest_queued_seconds={"type": ["number", "null"]}
    ),
)
TAG = "asynchronous", "Jobs: rows are submitted now, and a worker predicts them later."
# Of the jobs in examples.
EXAMPLE_ID = "j0123456789abcdefABCDEF"
EXAMPLE = {"id": EXAMPLE_ID, "status": "queued", "href": href(EXAMPLE_ID)}
JOB_ID = {"id": {"type": "string", "pattern": f"^{ID_PATTERN}$", "examples": [EXAMPLE_ID]}}


class JobQueue(NamedTuple):
    """Job store behind a circuit breaker. `wake_worker` announces a new job. Long polls end once `stopping` returns True."""

    store: JobStore
    breaker: CircuitBreaker
    metrics: JobMetrics
    wake_worker: Callable[[], None]
    stopping: Stop
    schema: RowSchema

    def submit(self, route: str, request: Request, rows: Array, note: bytes | None = None) -> Job:
        """Returns a durable job. Idempotency keys are separate for each route. Raises Problem."""
        key = idempotency_key(request)
        try:
            job = self.breaker.call(self.store.submit, pack_rows(self.schema, rows), key and f"{route} {key}", note)
        except (JobError, BackendUnavailable) as error:
            outcome = "full" if isinstance(error, QueueFull) else "conflict" if isinstance(error, KeyConflict) else "unavailable"
            self.metrics.submissions.add((outcome,))
            raise problem(error) from None
        self.metrics.submissions.add(("accepted",))
        self.wake_worker()
        return job

    def call(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns the result of an operation of the store. Raises Problem."""
        try:
            return self.breaker.call(operation, *args, **kwargs)
        except (JobError, BackendUnavailable) as error:
            raise problem(error) from None


def provisional_schema(outputs: OutputSchema) -> openapi.Schema:
    """Returns the schema of the provisional prediction of the fast model, which may be missing."""
    fields = openapi.prediction(outputs)
    fields.pop("classes", None)
    return openapi.nullable(openapi.Component("Provisional", openapi.closed(model=IDENTITY, **fields)))


def record_schema(outputs: OutputSchema) -> openapi.Schema:
    """Returns the schema of a job. A job of the pattern sync-async has a provisional prediction too."""
    known = openapi.required(
        id=openapi.TEXT,
        status=STATUS,
        href=openapi.TEXT,
        attempts=openapi.COUNT,
        created=openapi.TIME,
        started=openapi.TIME,
        finished=openapi.TIME,
    )
    more = {"provisional": provisional_schema(outputs), "degraded": openapi.FLAG, "agrees": openapi.FLAG}
    result = {"error": openapi.TEXT, "model": IDENTITY, "result": openapi.batch(outputs)}
    return openapi.Component("Job", openapi.with_optional(known, **more, **result))


def record_example(model: Graph, predictions: Callable[[], object], status: str = "succeeded") -> dict[str, object]:
    """Returns an example of a job that is done."""
    times = dict.fromkeys(("created", "started", "finished"), openapi.EXAMPLE_TIME)
    job = {**EXAMPLE, "status": status, "attempts": 1, **times}
    return job if status != "succeeded" else {**job, "model": model_identity(model), "result": predictions()}


def routes(
    model: Graph, outputs: OutputSchema, queue: JobQueue, max_rows: int, wait_seconds: float, predictions: Callable[[], object]
) -> list[Route]:
    """Returns the routes of jobs. A long poll lasts at most `wait_seconds`. `predictions` returns a result as an example."""

    def post(request: Request) -> Response:
        rows = decode_rows(request.body, model.schema, max_rows, f"submit several jobs of up to {max_rows} rows")
        job = queue.submit("POST /jobs", request, rows)
        headers = (("Location", href(job.id, request.prefix)), NO_STORE)
        return Response(encode_json(accepted(job, request.prefix)), status=202, headers=headers, rows=len(rows), job=job.id)

    def get(request: Request) -> Response:
        preferred = preferred_wait(request.environ.get("HTTP_PREFER"))
        if not preferred:
            return job_response(request, queue.call(queue.store.get, id_of(request)))
        seconds = min(float(preferred), wait_seconds)
        job = queue.call(queue.store.wait, id_of(request), seconds, lambda: queue.stopping() or request.client_gone())
        return job_response(request, job, ("Preference-Applied", f"wait={seconds:g}"))

    def delete(request: Request) -> Response:
        job = queue.call(queue.store.cancel, id_of(request))
        if job.state != "cancelled":
            raise errors.Conflict("The job is done, and cannot be cancelled; its state is in the response to GET.")
        return job_response(request, job)

    def overview(_: Request) -> Response:
        counts = queue.call(queue.store.counts)
        jobs = {state: counts.by_state[state] for state in STATES}
        return Response(encode_json({"jobs": jobs, "oldest_queued_seconds": counts.oldest_seconds}), headers=(NO_STORE,))

    job, pooled = "/jobs/{id}", Schedule(NEVER)
    submit_doc = RouteDoc(
        "Submits rows for a later prediction",
        ACCEPTED,
        success=(202,),
        failures=(503,),
        example=lambda: EXAMPLE,
        accepts=("Idempotency-Key", "Prefer"),
        returns=("Location", "Cache-Control"),
    )
    overview_doc = RouteDoc("Returns the number of jobs in each state", OVERVIEW, failures=(503,), returns=("Cache-Control",))
    found = ("X-Model-Digest", "Retry-After", "Preference-Applied", "Cache-Control")
    get_doc = RouteDoc(
        GET_SUMMARY,
        record_schema(outputs),
        failures=(404, 410, 503),
        example=lambda: record_example(model, predictions),
        accepts=("Prefer",),
        returns=found,
        parameters=JOB_ID,
    )
    delete_doc = get_doc._replace(
        summary="Cancels a job that is not done",
        failures=(404, 409, 410, 503),
        example=lambda: record_example(model, predictions, "cancelled"),
        accepts=(),
        returns=("Retry-After", "Cache-Control"),
    )
    table = [
        Route("POST", "/jobs", post, submit_doc, openapi.rows(model, max_rows), pooled),
        Route("GET", "/jobs", overview, overview_doc, schedule=pooled),
        Route("GET", job, get, get_doc, schedule=Schedule(NEVER, max_wait_seconds=wait_seconds)),
        Route("DELETE", job, delete, delete_doc, schedule=pooled),
    ]
    return openapi.tagged(*TAG, table)


def id_of(request: Request) -> str:
    job_id = request.parameters["id"]
    if not is_id(job_id):
        raise errors.NotFound(NOT_FOUND)
    return job_id


def job_response(request: Request, job: Job, *headers: tuple[str, str]) -> Response:
    """Returns the record of a job, with the headers of a prediction if the job has a result."""
    body, digest = record(job, request.prefix)
    if digest is not None:
        headers = (*headers, ("X-Model-Digest", digest))
    elif job.state not in DONE:
        headers = (*headers, RETRY_AFTER)
    return Response(body, headers=(*headers, NO_STORE), job=job.id)


def idempotency_key(request: Request) -> str | None:
    """Returns the key of draft-ietf-httpapi-idempotency-key-header. Most clients omit the quotes."""
    value: str | None = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if value is None:
        return None
    key = value.strip(" \t")
    key = key[1:-1] if key[:1] == key[-1:] == '"' else key
    if not is_key(key):
        raise errors.BadRequest(BAD_KEY)
    return key


def problem(error: JobError | BackendUnavailable) -> errors.Problem:
    """Returns the problem document for an error of the store."""
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
            return errors.Gone(EXPIRED)
        case _:
            return errors.NotFound(NOT_FOUND)
