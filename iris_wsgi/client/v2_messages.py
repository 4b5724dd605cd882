"""Messages of an Open Inference Protocol v2 client: model configuration, inference requests and responses, without I/O."""

import json
from collections.abc import Mapping
from math import inf, prod
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.codec.v2_request import HEADER
from iris_wsgi.http.response_parser import InvalidResponse, ParsedResponse
from iris_wsgi.observability.trace_context import Headers

# The limit of the JSON part of a response, before its tensors.
MAX_JSON_BYTES = 65536
FLOAT_BYTES = 4


class RemoteModel(NamedTuple):
    """A model of another server: its FP32 input [rows, width] and FP32 output [rows, classes] by name.

    A request may have `max_rows`. `parameters` are those of its configuration, e.g. its digest and its pair.
    """

    name: str
    input: str
    width: int
    output: str
    classes: int
    max_rows: int
    parameters: Mapping[str, str]

    @property
    def digest(self) -> str:
        return self.parameters["digest"]


def get_request(path: str, authority: str, headers: Headers = ()) -> bytes:
    return request_head("GET", path, authority, headers)


def request_head(method: str, path: str, authority: str, headers: Headers) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {authority}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def parse_model_names(response: ParsedResponse) -> list[str]:
    """Returns the names in the response to GET /v2/models. Raises InvalidResponse."""
    names = successful_document(response).get("models")
    if type(names) is not list or not all(type(name) is str and name.isprintable() and name.isascii() for name in names):
        raise InvalidResponse("its list of models has another form")
    return names


def parse_model_config(response: ParsedResponse, name: str) -> RemoteModel:
    """Returns the model in the response to GET /v2/models/{name}/config. Raises InvalidResponse."""
    config = successful_document(response)
    try:
        (tensor,) = config["input"]
        (output,) = [entry for entry in config["output"] if entry["data_type"] == "TYPE_FP32" and len(entry["dims"]) == 1]
        parameters = {str(key): str(value["string_value"]) for key, value in config["parameters"].items()}
        return RemoteModel(
            name,
            tensor["name"],
            int(tensor["dims"][0]),
            output["name"],
            int(output["dims"][0]),
            int(config["max_batch_size"]),
            parameters,
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise InvalidResponse(f"the configuration of its model {name} has another form than that of iris_wsgi") from None


def successful_document(response: ParsedResponse) -> dict[str, Any]:
    if response.status != 200:
        raise InvalidResponse(f"it answers {response.status}")
    return parse_object(response.body)


def parse_object(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidResponse("its response is not a JSON object")
    return document


def infer_request(model: RemoteModel, authority: str, rows: Array, seconds: float, headers: Headers) -> bytes:
    """Returns POST …/infer with rows [n, width] as a binary tensor, a binary output, and a timeout of `seconds`."""
    tensor = np.ascontiguousarray(rows, "<f4").tobytes()
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": model.input,
                "datatype": "FP32",
                "shape": list(rows.shape),
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": model.output, "parameters": {"binary_data": True}}],
    }
    if seconds != inf:
        # In microseconds. 0 would mean no timeout.
        document["parameters"] = {"timeout": max(1, int(seconds * 1e6))}
    json_part = json.dumps(document, separators=(",", ":")).encode()
    content_headers = (
        ("Content-Type", "application/octet-stream"),
        (HEADER, str(len(json_part))),
        ("Content-Length", str(len(json_part) + len(tensor))),
    )
    path = f"/v2/models/{quote(model.name, safe='')}/infer"
    return request_head("POST", path, authority, (*content_headers, *headers)) + json_part + tensor


def max_response_bytes(model: RemoteModel, rows: int) -> int:
    """Returns the limit of the body of a response for so many rows."""
    return MAX_JSON_BYTES + rows * model.classes * FLOAT_BYTES


def parse_probabilities(response: ParsedResponse, model: RemoteModel, rows: int) -> Array:
    """Returns the output [rows, classes] of a response with status 200.

    Raises InvalidResponse, also if it is from another model or has another shape.
    """
    if (digest := response.headers.get("x-model-digest")) != model.digest:
        raise InvalidResponse(f"its model is {digest or 'unknown'}, not {model.digest}")
    length = response.headers.get(HEADER.lower(), "")
    if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > len(response.body):
        raise InvalidResponse(f"its response has no valid {HEADER}")
    outputs = parse_object(response.body[: int(length)]).get("outputs")
    if type(outputs) is not list or len(outputs) != 1 or type(outputs[0]) is not dict:
        raise InvalidResponse("its response has other outputs than the requested one")
    output, shape = outputs[0], [rows, model.classes]
    if (output.get("name"), output.get("datatype"), output.get("shape")) != (model.output, "FP32", shape):
        raise InvalidResponse(f"its response is not the output {model.output} in FP32 {shape}")
    if len(response.body) - int(length) != prod(shape) * FLOAT_BYTES:
        raise InvalidResponse("the length of its tensor does not match its shape")
    found = np.frombuffer(response.body, "<f4", offset=int(length)).reshape(shape)
    if not np.isfinite(found).all():
        raise InvalidResponse("its tensor has values that are not finite")
    return found.astype(np.float32)
