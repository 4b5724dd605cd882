"""Encoding of job bodies, notes, and results, and the JSON record of a job."""

import json
import time
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.rows import Array, best
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.asynchronous.job import Job

WIDTH = Struct("<I")


def pack_rows(rows: Array) -> bytes:
    """Encodes rows [n, features]: the number of features, then float32, all little-endian."""
    return WIDTH.pack(rows.shape[1]) + rows.astype("<f4", copy=False).tobytes()


def unpack_rows(body: bytes) -> Array:
    """Decodes the body of a job. Raises ValueError if it is malformed."""
    if len(body) <= WIDTH.size:
        raise ValueError("the body has no rows")
    return np.frombuffer(body, "<f4", offset=WIDTH.size).reshape(-1, *WIDTH.unpack_from(body))


class Provisional(NamedTuple):
    """Prediction of the fast model for one row, which a client got at once."""

    model: dict[str, str]
    label: str
    probabilities: list[float]


def provisional(model: Graph, probabilities: Array) -> Provisional:
    row: list[float] = probabilities[0].tolist()
    return Provisional(model_identity(model), model.labels[best(row)], row)


def model_identity(model: Graph) -> dict[str, str]:
    return {"name": model.name, "version": model.version, "digest": model.digest}


def pack_note(first: Provisional | None) -> bytes:
    """Encodes the note of a sync-async job: the provisional prediction, or its absence."""
    return json.dumps({"provisional": first and first._asdict(), "degraded": first is None}).encode()


def unpack_note(note: bytes) -> Provisional | None:
    fields = json.loads(note)["provisional"]
    return Provisional(**fields) if fields else None


def pack_result(model: Graph, predictions: bytes, agrees: bool | None) -> bytes:
    """Encodes a result: a line of JSON, and the body of /predict/batch. `agrees` is None without a provisional prediction."""
    metadata: dict[str, object] = {"model": model_identity(model)}
    if agrees is not None:
        metadata["agrees"] = agrees
    return json.dumps(metadata).encode() + b"\n" + predictions


def href(job_id: str, prefix: str = "") -> str:
    return f"{prefix}/jobs/{job_id}"


def accepted(job: Job, prefix: str = "") -> dict[str, str]:
    """Returns the response document of a new job. `prefix` is the URL prefix of the request."""
    return {"id": job.id, "status": job.state, "href": href(job.id, prefix)}


def record(job: Job, prefix: str = "") -> tuple[bytes, str | None]:
    """Returns the JSON record of a job, and the digest of the model that computed its result, if any.

    The result is inserted without decoding it.
    """
    line, _, result = (job.result or b"{}").partition(b"\n")
    metadata: dict[str, Any] = json.loads(line)
    document = {
        **accepted(job, prefix),
        "attempts": job.attempts,
        "created": rfc3339(job.created),
        "started": rfc3339(job.started),
        "finished": rfc3339(job.finished),
        **json.loads(job.note or b"{}"),
        **({} if job.error is None else {"error": job.error}),
        **metadata,
    }
    start = json.dumps(document).encode()
    return (start[:-1] + b', "result": ' + result + b"}", metadata["model"]["digest"]) if result else (start, None)


def rfc3339(seconds: float | None) -> str | None:
    """Formats seconds since the epoch in UTC, with milliseconds."""
    if seconds is None:
        return None
    thousandths = int(seconds * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(thousandths // 1000))}.{thousandths % 1000:03d}Z"
