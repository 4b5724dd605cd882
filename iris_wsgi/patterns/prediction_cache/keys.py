"""Keys and values of the cache: rows and probabilities as bytes."""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from iris_wsgi.codec.rows import Array

# The last byte of -0.0, the only float32 that is equal to one with other bits.
SIGN = b"\x80"
ZERO = np.float32(0.0)

Values = dict[bytes, bytes]


def canonical(rows: Array) -> tuple[Array, list[bytes]]:
    """Returns the rows without negative zeros, and the bytes of each row."""
    raw = rows.tobytes()
    if SIGN in raw:
        rows = rows + ZERO
        raw = rows.tobytes()
    if len(rows) == 1:
        return rows, [raw]
    size = 4 * rows.shape[1]
    return rows, [raw[i : i + size] for i in range(0, len(raw), size)]


def array(values: Sequence[bytes], width: int) -> Array:
    """Returns float32 [n, width]."""
    return np.frombuffer(values[0] if len(values) == 1 else b"".join(values), np.float32).reshape(len(values), width)


def values_of(keys: Sequence[bytes], probabilities: Array) -> tuple[Values, Values]:
    """Returns the probabilities of each key, and those of the keys whose probabilities are finite."""
    if len(keys) == 1:
        value = {keys[0]: probabilities.tobytes()}
        return value, value if all(map(isfinite, probabilities[0].tolist())) else {}
    raw, size = probabilities.tobytes(), probabilities.itemsize * probabilities.shape[1]
    values = {key: raw[i * size : (i + 1) * size] for i, key in enumerate(keys)}
    if np.isfinite(probabilities).all():
        return values, values
    return values, {key: values[key] for key, row in zip(keys, probabilities, strict=True) if np.isfinite(row).all()}
