"""Requests with different rows, the same for every server, so that no cache can serve them."""

import json
import random
import struct

# Training ranges of the four features in cm.
RANGES = ((4.3, 7.9), (2.0, 4.4), (1.0, 6.9), (0.1, 2.5))
SINGLES = 20_000
BATCHES = 40
BATCH_ROWS = 1_000
LARGES = 4
LARGE_ROWS = 10_000
# Input of the inference requests. Binary requests ask for all outputs in binary.
INPUT = {"name": "features", "datatype": "FP32", "shape": [LARGE_ROWS, 4]}


def random_rows(count: int, seed: int) -> list[list[float]]:
    """Returns `count` different rows of four values with four decimals."""
    chance = random.Random(seed)
    rows: dict[tuple[float, ...], None] = {}
    while len(rows) < count:
        rows[tuple(round(chance.uniform(low, high), 4) for low, high in RANGES)] = None
    return [list(row) for row in rows]


def single_row_bodies() -> list[bytes]:
    """Returns the bodies of one row."""
    return [batch_body([row]) for row in random_rows(SINGLES, 1)]


def some_single_row_bodies(count: int) -> list[bytes]:
    """Returns `count` bodies of one row."""
    return [batch_body([row]) for row in random_rows(count, 5)]


def batch_bodies() -> list[bytes]:
    """Returns the bodies of 1,000 rows."""
    rows = random_rows(BATCHES * BATCH_ROWS, 2)
    return [batch_body(rows[i : i + BATCH_ROWS]) for i in range(0, len(rows), BATCH_ROWS)]


def large_row_sets() -> list[list[list[float]]]:
    """Returns the rows of the requests with 10,000 rows."""
    rows = random_rows(LARGES * LARGE_ROWS, 4)
    return [rows[i : i + LARGE_ROWS] for i in range(0, len(rows), LARGE_ROWS)]


def float32_bytes(rows: list[list[float]]) -> bytes:
    """Returns the rows as little-endian FP32."""
    values = [value for row in rows for value in row]
    return struct.pack(f"<{len(values)}f", *values)


def binary_body(rows: list[list[float]]) -> tuple[bytes, int]:
    """Returns the binary body of an inference request, and the length of its JSON part."""
    tensor = float32_bytes(rows)
    document = {
        "inputs": [{**INPUT, "parameters": {"binary_data_size": len(tensor)}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    return head + tensor, len(head)


def v2_body(rows: list[list[float]]) -> bytes:
    """Returns the JSON body of an inference request in the form of tritonclient."""
    return json.dumps({"inputs": [{**INPUT, "data": [value for row in rows for value in row]}]}).encode()


def batch_body(rows: list[list[float]]) -> bytes:
    """Returns the body of a request to a batch route."""
    return json.dumps({"data": rows}).encode()


def request(path: str, body: bytes, json_bytes: int | None = None) -> bytes:
    """Returns an HTTP/1.1 request with the usual headers; `json_bytes` is the length of the JSON part of a binary body."""
    kind = "application/json" if json_bytes is None else "application/octet-stream"
    size = "" if json_bytes is None else f"Inference-Header-Content-Length: {json_bytes}\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
        f"Content-Type: {kind}\r\n{size}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def requests(kind: str, path: str) -> list[bytes]:
    """Returns all requests of a kind: one row, 1,000 rows, or 10,000 rows in one of three formats."""
    if kind == "label":
        return [request(path, body) for body in single_row_bodies()]
    if kind == "batch":
        return [request(path, body) for body in batch_bodies()]
    if kind == "binary":
        return [request(path, *binary_body(rows)) for rows in large_row_sets()]
    return [request(path, (v2_body if kind == "v2" else batch_body)(rows)) for rows in large_row_sets()]
