"""What a server of v2 says of the model that it has, and infer requests to it, as pure functions of bytes."""

import json
from collections.abc import Mapping
from math import inf, prod
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.codec.v2_request import HEADER
from iris_wsgi.http.response_parser import BadReply, Reply
from iris_wsgi.observability.trace_context import Fields

# What describes the tensors of an answer, before the tensors.
MOST_JSON = 65536
FLOAT_BYTES = 4


class Peer(NamedTuple):
    """A model by its name: one FP32 input [rows, width], the FP32 output [rows, classes] that is asked for, how many rows a
    request may have, and what else its configuration tells by name, as its digest and its pair."""

    model: str
    input: str
    width: int
    output: str
    classes: int
    most: int
    told: Mapping[str, str]

    @property
    def digest(self) -> str:
        return self.told["digest"]


def ask_for(path: str, authority: str, fields: Fields = ()) -> bytes:
    return head_of("GET", path, authority, fields)


def head_of(method: str, path: str, authority: str, fields: Fields) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {authority}", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def names_of(reply: Reply) -> list[str]:
    """The models that GET /v2/models lists. Raises BadReply."""
    names = document_of(reply).get("models")
    if type(names) is not list or not all(type(name) is str and name.isprintable() and name.isascii() for name in names):
        raise BadReply("its list of models has another form")
    return names


def peer_of(reply: Reply, model: str) -> Peer:
    """From GET /v2/models/{model}/config. Raises BadReply."""
    told = document_of(reply)
    try:
        (taken,) = told["input"]
        (given,) = [one for one in told["output"] if one["data_type"] == "TYPE_FP32" and len(one["dims"]) == 1]
        parameters = {str(name): str(value["string_value"]) for name, value in told["parameters"].items()}
        return Peer(
            model,
            taken["name"],
            int(taken["dims"][0]),
            given["name"],
            int(given["dims"][0]),
            int(told["max_batch_size"]),
            parameters,
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise BadReply(f"it tells of its model {model} in another form than iris_wsgi's") from None


def document_of(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        raise BadReply(f"it answers {reply.status}")
    return parsed(reply.body)


def parsed(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadReply("its answer is no JSON object")
    return document


def infer_request(peer: Peer, authority: str, rows: Array, seconds: float, fields: Fields) -> bytes:
    """POST …/infer with these rows [n, width] as a binary tensor; the answer is wanted within `seconds`, likewise."""
    tensor = np.ascontiguousarray(rows, "<f4").tobytes()
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": peer.input,
                "datatype": "FP32",
                "shape": list(rows.shape),
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": peer.output, "parameters": {"binary_data": True}}],
    }
    if seconds != inf:
        # Microseconds, and 0 would be none.
        document["parameters"] = {"timeout": max(1, int(seconds * 1e6))}
    told = json.dumps(document, separators=(",", ":")).encode()
    about = (
        ("Content-Type", "application/octet-stream"),
        (HEADER, str(len(told))),
        ("Content-Length", str(len(told) + len(tensor))),
    )
    return head_of("POST", f"/v2/models/{quote(peer.model, safe='')}/infer", authority, (*about, *fields)) + told + tensor


def most_bytes(peer: Peer, rows: int) -> int:
    """How long the body of an answer about so many rows may be."""
    return MOST_JSON + rows * peer.classes * FLOAT_BYTES


def probabilities_of(reply: Reply, peer: Peer, rows: int) -> Array:
    """The output [rows, classes] of an answer with status 200, if that is of this model and in this shape. Raises BadReply."""
    if (digest := reply.fields.get("x-model-digest")) != peer.digest:
        raise BadReply(f"its model is {digest or 'not told'}, not {peer.digest}")
    length = reply.fields.get(HEADER.lower(), "")
    if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > len(reply.body):
        raise BadReply("its answer does not tell where the tensor begins")
    outputs = parsed(reply.body[: int(length)]).get("outputs")
    if type(outputs) is not list or len(outputs) != 1 or type(outputs[0]) is not dict:
        raise BadReply("its answer has other outputs than the one that was asked for")
    told, shape = outputs[0], [rows, peer.classes]
    if (told.get("name"), told.get("datatype"), told.get("shape")) != (peer.output, "FP32", shape):
        raise BadReply(f"its answer is not the output {peer.output} in FP32 {shape}")
    if len(reply.body) - int(length) != prod(shape) * FLOAT_BYTES:
        raise BadReply("its tensor is longer or shorter than its shape tells")
    found = np.frombuffer(reply.body, "<f4", offset=int(length)).reshape(shape)
    if not np.isfinite(found).all():
        raise BadReply("its tensor has values that are not finite")
    return found.astype(np.float32)
