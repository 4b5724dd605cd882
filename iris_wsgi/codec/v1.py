"""Codec of KServe's protocol v1: `{"instances": [[…], …]}` to rows, predictions to `{"predictions": [[…], …]}`."""

from iris_wsgi.codec.json_documents import MAX_LEVELS, MIN_BYTES, decode_json, levels, too_deep
from iris_wsgi.codec.model_schema import RowSchema
from iris_wsgi.codec.rows import Array, data_faults, encode_rows, rows_of, rows_of_numbers
from iris_wsgi.errors import BadRequest


def decode_v1(body: bytes, schema: RowSchema, max_rows: int) -> Array:
    """Decodes the body of `POST /v1/models/M:predict` to an array [rows, features], with 1 to `max_rows` rows.

    An instance is a row: a list of values, or an object of values by feature. Other members are ignored. Raises BadRequest (400).
    """
    if len(body) >= MIN_BYTES and (matrix := rows_of_numbers(body, b"instances", schema, max_rows)) is not None:
        return matrix
    document = decode_json(body)
    if type(document) is not dict or "instances" not in document:
        raise BadRequest('# must be an object with the member "instances": {"instances": [[…], …]}.')
    data = document.pop("instances")
    rows = rows_of(data, schema, max_rows)
    if rows is None:
        fault = next(data_faults("#/instances", data, schema, max_rows, "send them in several requests"))
        raise BadRequest(f"{fault.pointer} {fault.detail}.")
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    return rows


def encode_v1(predictions: Array) -> bytes:
    """Encodes predictions [rows, columns], one list per row. Raises PredictionFailed (500) for non-finite values."""
    return b'{"predictions":%b}' % encode_rows(predictions)
