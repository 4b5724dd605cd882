"""What the bytes of a job hold, and how a job is told to its client."""

import json
import time
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.rows import Array, best
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.asynchronous.job import Job

width_of = Struct("<I")


def pack_rows(rows: Array) -> bytes:
    """Rows [n, features] as a job's body: the number of features, then float32, all little-endian."""
    return width_of.pack(rows.shape[1]) + rows.astype("<f4", copy=False).tobytes()


def unpack_rows(body: bytes) -> Array:
    """Raises ValueError for what no `pack_rows` made."""
    if len(body) <= width_of.size:
        raise ValueError("a body without rows")
    return np.frombuffer(body, "<f4", offset=width_of.size).reshape(-1, *width_of.unpack_from(body))


class Provisional(NamedTuple):
    """The answer that a client got at once, to one row."""

    model: dict[str, str]
    label: str
    probabilities: list[float]


def provisional(model: Graph, probabilities: Array) -> Provisional:
    row: list[float] = probabilities[0].tolist()
    return Provisional(named(model), model.labels[best(row)], row)


def named(model: Graph) -> dict[str, str]:
    return {"name": model.name, "version": model.version, "digest": model.digest}


def pack_note(first: Provisional | None) -> bytes:
    """What a job is handed in with where a provisional answer was wanted: that, or that there was none."""
    return json.dumps({"provisional": first and first._asdict(), "degraded": first is None}).encode()


def unpack_note(note: bytes) -> Provisional | None:
    told = json.loads(note)["provisional"]
    return Provisional(**told) if told else None


def pack_result(model: Graph, answer: bytes, agrees: bool | None) -> bytes:
    """A line about the answer, and the answer as /predict/batch gives it; `agrees` is None if there is nothing to agree with."""
    about: dict[str, object] = {"model": named(model)}
    if agrees is not None:
        about["agrees"] = agrees
    return json.dumps(about).encode() + b"\n" + answer


def href(job_id: str, prefix: str = "") -> str:
    return f"{prefix}/jobs/{job_id}"


def accepted(job: Job, prefix: str = "") -> dict[str, str]:
    """What is told of a job that was just handed in; `prefix` is that of the request."""
    return {"id": job.id, "status": job.state, "href": href(job.id, prefix)}


def record(job: Job, prefix: str = "") -> tuple[bytes, str | None]:
    """All that a client may know of a job, as JSON, and the digest of the model that gave its answer, where there is one; the
    answer in it is not decoded on its way."""
    line, _, answer = (job.result or b"{}").partition(b"\n")
    about: dict[str, Any] = json.loads(line)
    told = {
        **accepted(job, prefix),
        "attempts": job.attempts,
        "created": rfc3339(job.created),
        "started": rfc3339(job.started),
        "finished": rfc3339(job.finished),
        **json.loads(job.note or b"{}"),
        **({} if job.error is None else {"error": job.error}),
        **about,
    }
    start = json.dumps(told).encode()
    return (start[:-1] + b', "result": ' + answer + b"}", about["model"]["digest"]) if answer else (start, None)


def rfc3339(seconds: float | None) -> str | None:
    """A time since the epoch in UTC, with milliseconds."""
    if seconds is None:
        return None
    thousandths = int(seconds * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(thousandths // 1000))}.{thousandths % 1000:03d}Z"
