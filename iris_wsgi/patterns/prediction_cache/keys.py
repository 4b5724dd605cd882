"""Values of the cache: predictions as bytes, by the bytes of their rows."""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from iris_wsgi.codec.model_schema import Array

Values = dict[bytes, bytes]


def array(values: Sequence[bytes], width: int) -> Array:
    """Returns float32 [n, width]."""
    return np.frombuffer(values[0] if len(values) == 1 else b"".join(values), np.float32).reshape(len(values), width)


def values_of(keys: Sequence[bytes], outputs: Array) -> tuple[Values, Values]:
    """Returns the predictions of each key, and those of the keys whose predictions are finite."""
    if len(keys) == 1:
        value = {keys[0]: outputs.tobytes()}
        return value, value if all(map(isfinite, outputs[0].tolist())) else {}
    raw, size = outputs.tobytes(), outputs.itemsize * outputs.shape[1]
    values = {key: raw[i * size : (i + 1) * size] for i, key in enumerate(keys)}
    if np.isfinite(outputs).all():
        return values, values
    return values, {key: values[key] for key, row in zip(keys, outputs, strict=True) if np.isfinite(row).all()}
