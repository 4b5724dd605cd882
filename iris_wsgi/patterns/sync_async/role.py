"""Role sync_async: the fast model responds at once, and the full model by a job."""

from pathlib import Path
from time import monotonic

from iris_wsgi import errors
from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.model_schema import CLASSIFIER, Array, OutputSchema
from iris_wsgi.codec.rows import Encoder, decode_rows
from iris_wsgi.errors import RETRY_AFTER
from iris_wsgi.model.companions import load_fast
from iris_wsgi.model.predictor import NEVER, Predict, PredictContext, RunWatchdog, within_deadline
from iris_wsgi.model.session import Model
from iris_wsgi.observability.log import Log
from iris_wsgi.patterns.asynchronous.job import STATES
from iris_wsgi.patterns.asynchronous.job_codec import Provisional, accepted, pack_note, provisional, unpack_note
from iris_wsgi.patterns.asynchronous.role import create_queue, job_routes
from iris_wsgi.patterns.asynchronous.routes import DOWN, JobQueue, provisional_schema
from iris_wsgi.services import RoleContext
from iris_wsgi.settings import BadSetting
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import NO_STORE, Request, Response, Route, RouteDoc, Schedule

BOTH_FAILED = "The fast model failed, and no job was submitted for the full model. " + DOWN
TAG = "sync-async", "A provisional prediction of the fast model now, and a job of the full model."
SUMMARY = "Predicts a row with the fast model at once, and submits a job for the full model"


def routes(context: RoleContext) -> list[Route]:
    """Returns the sync-async route, and the routes of the jobs of the full model."""
    queue = create_queue(context)
    return [*predict_routes(context, queue), *job_routes(context, queue)]


def predict_routes(context: RoleContext, queue: JobQueue) -> list[Route]:
    """Returns the sync-async route. Raises BadModel if the fast model is invalid, or differs in features or labels."""
    settings = context.settings
    fast = load_fast(Path(settings.model_dir), context.model, context.outputs)
    if settings.escalate_below < 1 and fast.outputs.kind != CLASSIFIER:
        raise BadSetting(f"IRIS_ESCALATE_BELOW: a model of {fast.outputs.name} has no probability to compare; leave it at 1")
    return [hybrid_route(fast, within_deadline(fast, RunWatchdog()), queue, context.log, settings.escalate_below)]


def hybrid_route(model: Model, predict: Predict, queue: JobQueue, log: Log, escalate_below: float) -> Route:
    """Returns the route over the fast `model`. It submits a job if the probability is below `escalate_below`; 1 means always."""
    encoder = Encoder(model.outputs)

    def post(request: Request) -> Response:
        rows = decode_rows(request.body, model.schema, 1, "submit them as a job, by POST /jobs")
        first = predict_fast(rows, request)
        if first is not None and escalate_below < 1 and max(first.fields["probabilities"]) >= escalate_below:
            return respond("confident", first, {"status": "confident"})
        try:
            job = queue.submit("POST /predict/hybrid", request, rows, pack_note(first))
        except errors.ServiceUnavailable:
            if first is None:
                raise errors.ServiceUnavailable(BOTH_FAILED, headers=(RETRY_AFTER,)) from None
            return respond("unavailable", first, {"status": "unavailable"})
        if job.note is not None:
            # The idempotency key may belong to an earlier job. Its note has the prediction of that time.
            first = unpack_note(job.note)
        return respond("queued" if first else "degraded", first, accepted(job, request.prefix))

    def predict_fast(rows: Array, request: Request) -> Provisional | None:
        """Returns None if the fast model fails, or takes more than half of the time; the rest is for the job."""
        now = monotonic()
        try:
            outputs = predict(rows, PredictContext(now + (request.deadline - now) / 2)).outputs
            return provisional(model, encoder, outputs)
        except errors.UnknownCategory:
            raise
        except Exception:
            log.failure("the fast model failed", **request.ids.log_fields())
            return None

    def respond(outcome: str, first: Provisional | None, final: dict[str, str]) -> Response:
        queue.metrics.sync_async.add((outcome,))
        document = {"provisional": first and first.document(), "final": final, "degraded": first is None}
        headers = [NO_STORE]
        if "href" in final:
            headers.append(("Location", final["href"]))
        if first is not None:
            headers.append(("X-Model-Digest", first.model["digest"]))
        status, job_id = 200 if first else 202, final.get("id", "")
        return Response(encode_json(document), status=status, headers=tuple(headers), rows=1, job=job_id)

    doc = RouteDoc(
        SUMMARY,
        hybrid_schema(model.outputs),
        success=(200, 202),
        failures=(503,),
        accepts=("Idempotency-Key", "Prefer"),
        returns=("Location", "X-Model-Digest", "Cache-Control"),
        tag=TAG,
    )
    return Route("POST", "/predict/hybrid", post, doc, openapi.rows(model, 1), Schedule(NEVER))


def hybrid_schema(outputs: OutputSchema) -> openapi.Schema:
    """Returns the schema of a response. `final` has the job of the full model, unless there is none."""
    status: openapi.Schema = {"type": "string", "enum": [*STATES, "confident", "unavailable"]}
    final = openapi.with_optional(openapi.required(status=status), id=openapi.TEXT, href=openapi.TEXT)
    fields = {"provisional": provisional_schema(outputs), "final": openapi.Component("FinalPrediction", final)}
    return openapi.Component("HybridPrediction", openapi.closed(**fields, degraded=openapi.FLAG))
