"""The sync-async route: a fast model's answer at once, the full one's as a job."""

import json
from time import monotonic

from iris_wsgi import errors
from iris_wsgi.codec.rows import Array, decode_rows, finite
from iris_wsgi.errors import RETRY_AFTER
from iris_wsgi.model.latency import NEVER
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.patterns.asynchronous.job_codec import Provisional, accepted, pack_note, provisional, unpack_note
from iris_wsgi.patterns.asynchronous.routes import DOWN, JobQueue
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import FRESH, Request, Response, Route

ALL_FAILED = "The fast model gave no answer, and no job could be taken for the full one. " + DOWN
SUMMARY = "A fast model's answer to one row at once, and the job of the full model"


def routes(model: Graph, predict: Predict, queue: JobQueue, log: Log, below: float) -> list[Route]:
    """The one route, over the fast `model`; a job is made where its probability is `below` that, 1 being always."""

    def hybrid(request: Request) -> Response:
        rows = decode_rows(request.body, model.width, 1, "hand them in as a job, by POST /jobs")
        first = provisional_answer(rows, request)
        if first is not None and max(first.probabilities) >= below < 1:
            return answer("confident", first, {"status": "confident"})
        try:
            job = queue.submit("POST /predict/hybrid", request, rows, pack_note(first))
        except errors.ServiceUnavailable:
            if first is None:
                raise errors.ServiceUnavailable(ALL_FAILED, headers=(RETRY_AFTER,)) from None
            return answer("unavailable", first, {"status": "unavailable"})
        if job.note is not None:
            # By an Idempotency-Key it may be an earlier job, with the answer that was given then.
            first = unpack_note(job.note)
        return answer("queued" if first else "degraded", first, accepted(job, request.prefix))

    def provisional_answer(rows: Array, request: Request) -> Provisional | None:
        """None if the fast model fails, or takes more than half of the time: the rest is for the job."""
        now = monotonic()
        try:
            probabilities = predict(rows, PredictContext(now + (request.until - now) / 2)).probabilities
            finite(probabilities)
        except Exception:
            log.failure("the fast model failed", **request.ids.told())
            return None
        return provisional(model, probabilities)

    def answer(outcome: str, first: Provisional | None, final: dict[str, str]) -> Response:
        queue.metrics.hybrid.add((outcome,))
        told = {"provisional": first and first._asdict(), "final": final, "degraded": first is None}
        headers = [FRESH]
        if "href" in final:
            headers.append(("Location", final["href"]))
        if first is not None:
            headers.append(("X-Model-Digest", first.model["digest"]))
        return Response(
            json.dumps(told).encode(), status=200 if first else 202, headers=tuple(headers), rows=1, job=final.get("id", "")
        )

    return [
        Route(
            "POST",
            "/predict/hybrid",
            hybrid,
            SUMMARY,
            openapi.OBJECT,
            openapi.rows(model, 1),
            failures=(503,),
            inline_bytes=NEVER,
            success=(200, 202),
        )
    ]
