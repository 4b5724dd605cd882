"""Codec of Open Inference Protocol v2 tensors: JSON or binary to arrays and back, with every value validated."""

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import prod
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.rows import FLOAT32_MAX, NUMBERS
from iris_wsgi.errors import BadRequest

Tensor = NDArray[Any]
Shape = tuple[int, ...]

# Little-endian, as the protocol requires. The elements of a BYTES tensor are bytes, or strings that are sent as UTF-8.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
length_of: Callable[[int], bytes] = struct.Struct("<I").pack


class ValueRange(NamedTuple):
    """The numbers that a datatype takes in JSON: their Python types, the bounds, and the range in words."""

    types: set[type]
    min: float
    max: float
    words: str


def integer_range(datatype: str) -> ValueRange:
    limits = np.iinfo(DTYPES[datatype])
    return ValueRange({int}, int(limits.min), int(limits.max), f"a whole number from {limits.min} to {limits.max}")


# FP16 is missing: the protocol has it in binary only.
RANGES = {
    "BOOL": ValueRange({bool}, False, True, "true or false"),
    **{name: integer_range(name) for name in DTYPES if "INT" in name},
    "FP32": ValueRange(
        NUMBERS, -FLOAT32_MAX, FLOAT32_MAX, "a number that is finite as a 32-bit float: at most 3.4028235e38 in size"
    ),
    "FP64": ValueRange(
        NUMBERS, -1.7976931348623157e308, 1.7976931348623157e308, "a number of at most 1.7976931348623157e308 in size"
    ),
}


def from_json(data: Any, datatype: str, shape: Shape, place: str, missing: bool = False) -> Tensor:
    """Decodes JSON `data`, flat or nested like `shape`, row-major, to an array of this shape. No dimension may be 0.

    Integers must be within the range of the datatype. BOOL takes true and false only, and BYTES strings only. Floats must be
    finite after rounding; with `missing`, null becomes NaN. Raises BadRequest, whose message begins with `place`, for
    everything else.
    """
    flat = flattened(data, shape, place)
    if datatype == "BYTES":
        return strings_of(flat, shape, place)
    if datatype not in RANGES:
        raise BadRequest(f"{place} cannot have {datatype} in JSON; send the tensor as binary data.")
    types, low, high, words = RANGES[datatype]
    if missing and None in flat:
        return with_missing(flat, datatype, shape, place)
    if not (set(map(type, flat)) <= types and low <= min(flat) and max(flat) <= high):
        refuse(place, shape, (type(v) in types and low <= v <= high for v in flat), f"must be {words}")
    return np.array(flat, DTYPES[datatype]).reshape(shape)


def with_missing(flat: list[Any], datatype: str, shape: Shape, place: str) -> Tensor:
    """Decodes floats of which some are null, which becomes NaN."""
    types, low, high, words = RANGES[datatype]
    valid = [v is None or (type(v) in types and low <= v <= high) for v in flat]
    if not all(valid):
        refuse(place, shape, valid, f"must be {words}, or null")
    return np.array([np.nan if v is None else v for v in flat], DTYPES[datatype]).reshape(shape)


def flattened(data: Any, shape: Shape, place: str) -> list[Any]:
    """Returns the values of `data` in one list of the length that `shape` requires. The values are not validated."""
    if type(data) is not list:
        raise BadRequest(f"{place} must be a list of values, flat or nested like the shape.")
    level = data
    if len(shape) > 1 and data and type(data[0]) is list:
        level = [data]
        for size in shape:
            if not all([type(part) is list and len(part) == size for part in level]):
                raise BadRequest(f"{place} is nested differently from its shape; send a flat list, or lists of that shape.")
            level = list(chain.from_iterable(level))
    if len(level) != prod(shape):
        raise BadRequest(f"{place} has {len(level)} values; its shape requires {prod(shape)}.")
    return level


def strings_of(flat: list[Any], shape: Shape, place: str) -> Tensor:
    if set(map(type, flat)) != {str}:
        refuse(place, shape, (type(v) is str for v in flat), "must be a string")
    try:
        return objects([text.encode() for text in flat], shape)
    except UnicodeEncodeError:
        raise BadRequest(f"{place} has half of a surrogate pair, which is not text; send such bytes as binary data.") from None


def from_binary(part: memoryview, datatype: str, shape: Shape, place: str, missing: bool = False) -> Tensor:
    """Decodes a binary tensor to a read-only array of `shape`, without a copy if possible. No dimension may be 0.

    Floats must be finite, or NaN with `missing`. BOOL must be 0 or 1. BYTES has a little-endian uint32 length before each
    element. Raises BadRequest, whose message begins with `place`, for other values and if `part` has another length.
    """
    if datatype == "BYTES":
        return objects(list(elements(part, prod(shape), place)), shape)
    dtype = DTYPES[datatype]
    if len(part) != prod(shape) * dtype.itemsize:
        raise BadRequest(f"{place} has {len(part)} bytes of binary data; its shape requires {prod(shape) * dtype.itemsize}.")
    if datatype == "BOOL":
        numbers = np.frombuffer(part, np.uint8)
        if numbers.max() > 1:
            refuse(place, shape, (numbers <= 1).tolist(), "must be the byte 0 or 1")
        return numbers.view(dtype).reshape(shape)
    tensor = np.frombuffer(part, dtype)
    # The JSON part before it can have any length. A copy costs less than one pass over unaligned values.
    tensor = (tensor if tensor.flags.aligned else tensor.copy()).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(tensor).all():
        valid = np.isfinite(tensor) | (np.isnan(tensor) if missing else False)
        if not valid.all():
            refuse(place, shape, valid.ravel().tolist(), f"must be finite, no {'' if missing else 'NaN and no '}infinity")
    return tensor


def elements(part: memoryview, count: int, place: str) -> Iterator[bytes]:
    """Yields the elements of a binary BYTES tensor. Raises BadRequest unless `count` of them fill `part` to its end."""
    # Each element takes at least four bytes, so a claimed count cannot cost more time or memory than the body itself.
    if count * 4 > len(part):
        raise BadRequest(
            f"{place} has {len(part)} bytes of binary data; the lengths of its {count} elements alone require 4 bytes each."
        )
    offset = 0
    for _ in range(count):
        start = offset + 4
        offset = start + int.from_bytes(part[offset:start], "little")
        if offset > len(part):
            raise BadRequest(f"{place} has an element that goes beyond the end of its binary data.")
        yield bytes(part[start:offset])
    if offset != len(part):
        raise BadRequest(f"{place} has bytes of binary data after its last element.")


def objects(values: list[bytes], shape: Shape) -> Tensor:
    tensor = np.empty(len(values), object)
    tensor[:] = values
    return tensor.reshape(shape)


def refuse(place: str, shape: Shape, valid: Iterable[bool], must: str) -> NoReturn:
    """Raises BadRequest for the first value, in row-major order, that is not valid."""
    index = next(i for i, is_valid in enumerate(valid) if not is_valid)
    if len(shape) == 2:
        raise BadRequest(f"{place}, row {index // shape[1]}, column {index % shape[1]} (counted from 0), {must}.")
    raise BadRequest(f"{place}, value {index} (counted from 0, row-major), {must}.")


def to_json(tensor: Tensor, datatype: str) -> list[Any]:
    """Returns the values of an array in a flat, row-major list for JSON. Floats become equal doubles."""
    flat: list[Any] = tensor.ravel().tolist()
    return [v if isinstance(v, str) else v.decode() for v in flat] if datatype == "BYTES" else flat


def to_binary(tensor: Tensor, datatype: str) -> bytes | memoryview:
    """Encodes an array as a binary tensor: its own memory if that is little-endian and contiguous, otherwise a copy."""
    if datatype == "BYTES":
        encoded = [v.encode() if isinstance(v, str) else v for v in tensor.ravel().tolist()]
        return b"".join(chain.from_iterable((length_of(len(v)), v) for v in encoded))
    return np.ascontiguousarray(tensor, DTYPES[datatype]).reshape(-1).view(np.uint8).data
