"""Encoding of job bodies, notes, and results, and the JSON record of a job."""

import json
from struct import Struct
from typing import Any, NamedTuple

from iris_wsgi.codec.json_documents import encode, encode_json, to_utf8
from iris_wsgi.codec.model_schema import Array, RowSchema
from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.session import Graph
from iris_wsgi.observability.log import rfc3339
from iris_wsgi.patterns.asynchronous.job import Job

WIDTH = Struct("<I")


def pack_rows(schema: RowSchema, rows: Array) -> bytes:
    """Encodes rows [n, features]: the number of features, little-endian, then the rows as in RowSchema.pack()."""
    return WIDTH.pack(schema.width) + schema.pack(rows)


def unpack_rows(schema: RowSchema, body: bytes) -> Array | None:
    """Decodes the body of a job. Returns None if it is malformed, or if the rows are those of another model."""
    if len(body) <= WIDTH.size or WIDTH.unpack_from(body) != (schema.width,):
        return None
    try:
        return schema.unpack(body[WIDTH.size :])
    except ValueError:
        return None


class Provisional(NamedTuple):
    """Prediction of the fast model for one row, which a client got at once.

    `fields` are the label with the probabilities or scores, or the values of a regressor.
    """

    model: dict[str, str]
    fields: dict[str, Any]

    def document(self) -> dict[str, Any]:
        return {"model": self.model, **self.fields}


def provisional(model: Graph, encoder: Encoder, outputs: Array) -> Provisional:
    fields = encoder.fields(outputs)
    # The labels of a class are in the response of the job.
    fields.pop("classes", None)
    return Provisional(model_identity(model), fields)


def model_identity(model: Graph) -> dict[str, str]:
    return {"name": model.name, "version": model.version, "digest": model.digest}


def pack_note(first: Provisional | None) -> bytes:
    """Encodes the note of a sync-async job: the provisional prediction, or its absence."""
    return json.dumps({"provisional": first and first.document(), "degraded": first is None}).encode()


def unpack_note(note: bytes) -> Provisional | None:
    fields = json.loads(note)["provisional"]
    return Provisional(fields.pop("model"), fields) if fields else None


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

    The result is inserted without decoding it. Results of older versions have no line feed at the end.
    """
    line, _, result = (job.result or b"{}").partition(b"\n")
    metadata: dict[str, Any] = json.loads(line)
    times = {"created": job.created, "started": job.started, "finished": job.finished}
    document = {
        **accepted(job, prefix),
        "attempts": job.attempts,
        **{name: None if seconds is None else rfc3339(seconds) for name, seconds in times.items()},
        **json.loads(job.note or b"{}"),
        **({} if job.error is None else {"error": job.error}),
        **metadata,
    }
    if not result:
        return encode_json(document), None
    start = to_utf8(encode(document)[:-1])
    return b'%b,"result":%b}\n' % (start, result.rstrip(b"\n")), metadata["model"]["digest"]
