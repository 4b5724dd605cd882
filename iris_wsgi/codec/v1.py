"""Codec of KServe's protocol v1: `{"instances": [[…], …]}` to rows, probabilities to `{"predictions": [[…], …]}`."""

from iris_wsgi.codec.json_documents import MAX_LEVELS, decode_json, encode_list, levels, too_deep
from iris_wsgi.codec.rows import Array, data_faults, finite, rows_of
from iris_wsgi.errors import BadRequest


def decode_v1(body: bytes, width: int, max_rows: int) -> Array:
    """Decodes the body of `POST /v1/models/M:predict` to float32 [rows, width], with 1 to `max_rows` rows of finite numbers.

    An instance is a row: a list of numbers. Other members are ignored. Raises BadRequest (400).
    """
    document = decode_json(body)
    if type(document) is not dict or "instances" not in document:
        raise BadRequest('# must be an object with the member "instances": {"instances": [[…], …]}.')
    data = document.pop("instances")
    rows = rows_of(data, width, max_rows)
    if rows is None:
        fault = next(data_faults("#/instances", data, width, max_rows, "send them in several requests"))
        raise BadRequest(f"{fault.pointer} {fault.detail}.")
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    return rows


def encode_v1(probabilities: Array) -> bytes:
    """Encodes the probabilities [rows, classes], one list per row. Raises PredictionFailed (500) for non-finite values."""
    return f'{{"predictions":{encode_list(finite(probabilities))}}}'.encode()
