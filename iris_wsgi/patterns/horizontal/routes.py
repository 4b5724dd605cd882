"""Routes of the ensemble: the species of one row by the votes of the members, and the health of the members."""

from collections.abc import Mapping, Sequence
from time import monotonic

from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.rows import decode_rows
from iris_wsgi.errors import RETRY_AFTER, ServiceUnavailable
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.horizontal.voting import EnsembleMembers, Vote, decide, digest_of
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Request, Response, Route, RouteDoc, Schedule

INLINE_BYTES, POOL = 4096, -1
TAG = "horizontal", "An ensemble of members that know one species each."
STATUS: openapi.Schema = {"type": "string", "enum": ["complete", "partial"]}


def routes(model: Graph, members: EnsembleMembers, abstain_below: float, seconds: float, remote: bool) -> list[Route]:
    """Members have `seconds` to vote, or less if the deadline of the request is earlier.

    Requests to `remote` members are executed by the threads for upstream calls.
    """

    def predict(request: Request) -> Response:
        rows = decode_rows(request.body, model.schema, 1, "send each row in a separate request")
        votes = members.vote(rows, min(request.deadline, monotonic() + seconds), request.ids.upstream_headers())
        if sum(vote.probability is not None for vote in votes) < members.quorum:
            raise ServiceUnavailable(too_few(members, [vote.error or None for vote in votes]), headers=(RETRY_AFTER,))
        verdict = decide(members.names, votes, abstain_below)
        document = {
            "prediction": {"label": verdict.label, "probability": verdict.probability},
            "status": "partial" if verdict.missing else "complete",
            "missing": verdict.missing,
            "members": {name: vote_document(vote) for name, vote in zip(members.names, votes, strict=True)},
        }
        return Response(encode_json(document), headers=(("X-Model-Digest", digest_of(votes)),), rows=1)

    def health(_: Request) -> Response:
        reasons = members.why_not()
        if why := why_below(members, reasons):
            raise ServiceUnavailable(why, headers=(RETRY_AFTER,))
        document = {
            "status": "partial" if any(reasons.values()) else "complete",
            "quorum": members.quorum,
            "members": {name: {"up": why is None, "why": why} for name, why in reasons.items()},
        }
        return Response(encode_json(document))

    health_doc = RouteDoc(
        "Which members are available",
        health_schema(members.names),
        failures=(503,),
        example=lambda: health_example(members.names, members.quorum),
    )
    table = [
        Route(
            "POST",
            "/ensemble/predict",
            predict,
            RouteDoc(
                "Species of one row, by the votes of the members",
                response_schema(members.names),
                failures=(503,),
                example=lambda: response_example(members.names, model.digest),
                accepts=("Prefer",),
                returns=("X-Model-Digest",),
            ),
            openapi.rows(model, 1),
            Schedule(POOL if remote else INLINE_BYTES, calls_upstream=remote),
        ),
        Route("GET", "/ensemble/health", health, health_doc),
    ]
    return openapi.tagged(*TAG, table)


def vote_document(vote: Vote) -> dict[str, object]:
    if vote.probability is None:
        return {"error": vote.error}
    return {"probability": vote.probability, "digest": vote.digest}


def below_quorum(members: EnsembleMembers) -> str | None:
    """Returns a sentence if fewer members than the quorum are available, and otherwise None."""
    return why_below(members, members.why_not())


def why_below(members: EnsembleMembers, reasons: Mapping[str, str | None]) -> str | None:
    found = list(reasons.values())
    return too_few(members, found) if found.count(None) < members.quorum else None


def too_few(members: EnsembleMembers, reasons: Sequence[str | None]) -> str:
    missing = [f"{name} ({why})" for name, why in zip(members.names, reasons, strict=True) if why]
    return (
        f"Of {len(reasons)} members {members.quorum} must answer, and {reasons.count(None)} did; missing: {', '.join(missing)}."
        " Try again soon."
    )


def response_schema(names: Sequence[str]) -> openapi.Schema:
    number: openapi.Schema = {"type": "number"}
    name: openapi.Schema = {"type": "string", "enum": list(names)}
    prediction = openapi.closed(label=openapi.nullable(openapi.Component("Species", name)), probability=number)
    vote = {
        "type": "object",
        "properties": {"probability": number, "digest": openapi.TEXT, "error": openapi.TEXT},
        "additionalProperties": False,
    }
    members = openapi.closed(**dict.fromkeys(names, openapi.Component("Vote", vote)))
    return openapi.Component(
        "EnsemblePrediction",
        openapi.closed(
            prediction=prediction, status=STATUS, missing=openapi.listed(openapi.TEXT, 0, len(names)), members=members
        ),
    )


def response_example(names: Sequence[str], digest: str) -> dict[str, object]:
    votes = [{"probability": 0.98 if i == 0 else 0.01, "digest": digest} for i in range(len(names))]
    prediction = {"label": names[0], "probability": 0.98}
    return {
        "prediction": prediction,
        "status": "complete",
        "missing": [],
        "members": dict(zip(names, votes, strict=True)),
    }


def health_schema(names: Sequence[str]) -> openapi.Schema:
    state = openapi.Component("MemberState", openapi.closed(up=openapi.FLAG, why={"type": ["string", "null"]}))
    members = openapi.closed(**dict.fromkeys(names, state))
    return openapi.Component("EnsembleHealth", openapi.closed(status=STATUS, quorum=openapi.COUNT, members=members))


def health_example(names: Sequence[str], quorum: int) -> dict[str, object]:
    return {"status": "complete", "quorum": quorum, "members": {name: {"up": True, "why": None} for name in names}}
