"""The requests: many rows that all differ, the same for every server, so that no cache can answer any of them."""

import json
import random

# The training ranges of the four features, in cm.
RANGES = ((4.3, 7.9), (2.0, 4.4), (1.0, 6.9), (0.1, 2.5))
SINGLES = 20_000
BATCHES = 40
BATCH_ROWS = 1_000


def drawn(count: int, seed: int) -> list[list[float]]:
    """`count` rows of four values with four decimals, no two alike."""
    chance = random.Random(seed)
    rows: dict[tuple[float, ...], None] = {}
    while len(rows) < count:
        rows[tuple(round(chance.uniform(low, high), 4) for low, high in RANGES)] = None
    return [list(row) for row in rows]


def singles() -> list[bytes]:
    """Bodies of one row."""
    return [json.dumps({"data": [row]}).encode() for row in drawn(SINGLES, 1)]


def batches() -> list[bytes]:
    """Bodies of 1,000 rows."""
    rows = drawn(BATCHES * BATCH_ROWS, 2)
    return [json.dumps({"data": rows[i : i + BATCH_ROWS]}).encode() for i in range(0, len(rows), BATCH_ROWS)]


def request(path: str, body: bytes) -> bytes:
    """A whole HTTP/1.1 request with the headers that an ordinary client sends."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
