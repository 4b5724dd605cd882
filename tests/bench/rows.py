"""The requests: many rows that all differ, the same for every server, so that no cache can answer any of them."""

import json
import random
import struct

# The training ranges of the four features, in cm.
RANGES = ((4.3, 7.9), (2.0, 4.4), (1.0, 6.9), (0.1, 2.5))
SINGLES = 20_000
BATCHES = 40
BATCH_ROWS = 1_000
LARGES = 4
LARGE_ROWS = 10_000
# What is asked with rows in binary: for answers in binary, all that the model gives.
INPUT = {"name": "features", "datatype": "FP32", "shape": [LARGE_ROWS, 4]}


def drawn(count: int, seed: int) -> list[list[float]]:
    """`count` rows of four values with four decimals, no two alike."""
    chance = random.Random(seed)
    rows: dict[tuple[float, ...], None] = {}
    while len(rows) < count:
        rows[tuple(round(chance.uniform(low, high), 4) for low, high in RANGES)] = None
    return [list(row) for row in rows]


def singles() -> list[bytes]:
    """Bodies of one row."""
    return [nested([row]) for row in drawn(SINGLES, 1)]


def singles_of(count: int) -> list[bytes]:
    """Some bodies of one row."""
    return [nested([row]) for row in drawn(count, 5)]


def batches() -> list[bytes]:
    """Bodies of 1,000 rows."""
    rows = drawn(BATCHES * BATCH_ROWS, 2)
    return [nested(rows[i : i + BATCH_ROWS]) for i in range(0, len(rows), BATCH_ROWS)]


def larges() -> list[list[list[float]]]:
    """Rows of requests of 10,000."""
    rows = drawn(LARGES * LARGE_ROWS, 4)
    return [rows[i : i + LARGE_ROWS] for i in range(0, len(rows), LARGE_ROWS)]


def packed(rows: list[list[float]]) -> bytes:
    """Little-endian FP32, row after row."""
    values = [value for row in rows for value in row]
    return struct.pack(f"<{len(values)}f", *values)


def binary(rows: list[list[float]]) -> tuple[bytes, int]:
    """The protocol's body in binary, and how much of it is JSON."""
    tensor = packed(rows)
    told = {"inputs": [{**INPUT, "parameters": {"binary_data_size": len(tensor)}}], "parameters": {"binary_data_output": True}}
    head = json.dumps(told).encode()
    return head + tensor, len(head)


def flat(rows: list[list[float]]) -> bytes:
    """The protocol's body in JSON, as tritonclient writes it."""
    return json.dumps({"inputs": [{**INPUT, "data": [value for row in rows for value in row]}]}).encode()


def nested(rows: list[list[float]]) -> bytes:
    """A body for a batch route."""
    return json.dumps({"data": rows}).encode()


def request(path: str, body: bytes, json_bytes: int | None = None) -> bytes:
    """A whole HTTP/1.1 request with the headers that an ordinary client sends; `json_bytes` of a binary one are JSON."""
    kind = "application/json" if json_bytes is None else "application/octet-stream"
    size = "" if json_bytes is None else f"Inference-Header-Content-Length: {json_bytes}\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
        f"Content-Type: {kind}\r\n{size}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def requests(kind: str, path: str) -> list[bytes]:
    """All requests of a kind: one row, 1,000 rows, or 10,000 rows in binary, as JSON of the protocol or of /predict/batch."""
    if kind == "label":
        return [request(path, body) for body in singles()]
    if kind == "batch":
        return [request(path, body) for body in batches()]
    if kind == "binary":
        return [request(path, *binary(rows)) for rows in larges()]
    return [request(path, (flat if kind == "v2" else nested)(rows)) for rows in larges()]
