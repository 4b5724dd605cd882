"""The ensemble: one row, a vote of each member, and one answer that says who is missing in it."""

import json
from collections.abc import Mapping, Sequence
from time import monotonic

from iris_wsgi.codec.rows import decode_rows
from iris_wsgi.errors import RETRY_AFTER, ServiceUnavailable
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.horizontal.voting import Panel, Vote, decide, digest_of
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

INLINE_BYTES, POOL = 4096, -1


def routes(model: Graph, panel: Panel, abstain_below: float, seconds: float, remote: bool) -> list[Route]:
    """`model` tells what a row is; members have `seconds` at most, less if the request is wanted sooner.

    Where they are `remote`, requests that wait for them have threads of their own.
    """

    def predict(request: Request) -> Response:
        rows = decode_rows(request.body, model.width, 1, "send each in a request of its own")
        votes = panel.ask(rows, min(request.deadline, monotonic() + seconds), request.ids.passed_on())
        if sum(vote.probability is not None for vote in votes) < panel.quorum:
            raise ServiceUnavailable(too_few(panel, [vote.error or None for vote in votes]), headers=(RETRY_AFTER,))
        verdict = decide(panel.names, votes, abstain_below)
        document = {
            "prediction": {"label": verdict.label, "probability": verdict.probability},
            "status": "partial" if verdict.missing else "complete",
            "missing": verdict.missing,
            "members": {name: told(vote) for name, vote in zip(panel.names, votes, strict=True)},
        }
        return Response(json.dumps(document).encode(), headers=(("X-Model-Digest", digest_of(votes)),), rows=1)

    def health(_: Request) -> Response:
        found = panel.why_not()
        if why := too_few_of(panel, found):
            raise ServiceUnavailable(why, headers=(RETRY_AFTER,))
        document = {
            "status": "partial" if any(found.values()) else "complete",
            "quorum": panel.quorum,
            "members": {name: {"up": why is None, "why": why} for name, why in found.items()},
        }
        return Response(json.dumps(document).encode())

    return [
        Route(
            "POST",
            "/ensemble/predict",
            predict,
            RouteDoc("Species of one row, by the votes of the members", answer(panel.names), failures=(503,)),
            openapi.rows(model, 1),
            Schedule(POOL if remote else INLINE_BYTES, calls_upstream=remote),
        ),
        Route("GET", "/ensemble/health", health, RouteDoc("Which members can be asked", openapi.OBJECT, failures=(503,))),
    ]


def told(vote: Vote) -> dict[str, object]:
    if vote.probability is None:
        return {"error": vote.error}
    return {"probability": vote.probability, "digest": vote.digest}


def below_quorum(panel: Panel) -> str | None:
    """A sentence where too few members can be asked."""
    return too_few_of(panel, panel.why_not())


def too_few_of(panel: Panel, found: Mapping[str, str | None]) -> str | None:
    reasons = list(found.values())
    return too_few(panel, reasons) if reasons.count(None) < panel.quorum else None


def too_few(panel: Panel, reasons: Sequence[str | None]) -> str:
    missing = [f"{name} ({why})" for name, why in zip(panel.names, reasons, strict=True) if why]
    return (
        f"Of {len(reasons)} members {panel.quorum} must answer, and {reasons.count(None)} did; missing: {', '.join(missing)}."
        " Try again soon."
    )


def answer(names: Sequence[str]) -> openapi.Schema:
    number: openapi.Schema = {"type": "number"}
    name: openapi.Schema = {"type": "string", "enum": list(names)}
    prediction = openapi.closed(label={"enum": [*names, None]}, probability=number)
    return openapi.closed(
        prediction=prediction,
        status={"type": "string", "enum": ["complete", "partial"]},
        missing=openapi.listed(name, 0, len(names)),
        members={"type": "object", "propertyNames": name, "additionalProperties": openapi.OBJECT},
    )
