"""Vectorized parser and formatter of decimal numbers, with the same values and digits as Python's float() and % operator."""

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.rows import Array

# Nine digits identify every float32.
FORMAT = "%.9g"
# All groups of four digits, then all groups without their trailing zeros. NUL fills up the field.
FOUR = np.array([b"%04d" % i for i in range(10_000)] + [(b"%04d" % i).rstrip(b"0") for i in range(10_000)], "S4")
DECADES = np.array([1e12, 1e11, 1e10, 1e9])
# Constants as unsigned words: the same byte eight times, multipliers for groups of digits, and small numbers.
ONES, ZEROS, POINTS, HIGHS, LIMITS = (np.uint64(byte * 0x0101010101010101) for byte in (1, 0x30, 0x1E, 0x80, 0x76))
ALL, PAIRS = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0x000000FF000000FF)
TENS, MILLIONS = np.uint64((10**4 << 32) + 1), np.uint64((10**6 << 32) + 100)
U1, U8, U10, U16, U32 = map(np.uint64, (1, 8, 10, 16, 32))
POWERS = 10.0 ** np.arange(9)
TEXT_TYPE = "S16"
PIECES = np.dtype([("zero", "S4"), ("first", "S4"), ("second", "S4"), ("third", "S4")])


def format_floats(values: Array) -> NDArray[np.bytes_]:
    """Returns each value as FORMAT writes it, interspersed with NUL, in an array of the same shape."""
    doubles = values.astype(np.float64)
    usual = (doubles >= 1e-4) & (doubles < 1)
    if not usual.all():
        doubles = np.where(usual, doubles, 0.5)
    # Values from 0.1 need nine digits after the point, values from 0.01 ten, and values from 0.001 eleven. A float32 times
    # this power of ten (24 and at most 28 bits) is exact in a float64. Like C, rint rounds halves to the even number.
    scale = DECADES[(doubles >= 1e-3).astype(np.intp) + (doubles >= 1e-2) + (doubles >= 1e-1)]
    twelve = (np.rint(doubles * scale) * (1e12 / scale)).astype(np.int64)
    first = twelve // 10**8
    rest = (twelve - first * 10**8).astype(np.int32)
    second = rest // 10**4
    third = rest - second * 10**4
    pieces = np.empty(values.shape, PIECES)
    pieces["zero"] = b"0."
    pieces["first"] = FOUR[first + 10_000 * (rest == 0)]
    pieces["second"] = FOUR[second + 10_000 * (third == 0)]
    pieces["third"] = FOUR[third + 10_000]
    texts = pieces.view(TEXT_TYPE)
    if not usual.all():
        others = values[~usual].tolist()
        texts[~usual] = ("\n".join([FORMAT] * len(others)) % tuple(others)).encode().split(b"\n")
    return texts


def parse_decimals(
    data: bytes, starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns the values of fields of `data`, and which fields it leaves out.

    It parses plain decimals of up to eight characters only.
    """
    # After eight bytes of padding, the last eight bytes of a field begin at the offset of its end.
    padded = bytes(8) + data
    signs = np.frombuffer(data, np.uint8)[starts]
    minus = signs == ord("-")
    sizes = ends - starts - (minus | (signs == ord("+")))
    words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))[ends]
    # One word holds eight bytes, the last character in its highest byte. Digits become 0 to 9, bytes before the field 0.
    within = ALL << (64 - 8 * sizes.clip(1, 8)).astype(np.uint64)
    words = (words ^ ZEROS) & within
    # Removes the first point, if any, and moves the digits before it up by one byte.
    other = words ^ POINTS
    points = (other - ONES) & ~other & HIGHS
    upto = points ^ (points - U1)
    behind = ~upto
    moved = (words & behind) | ((words & (upto >> U8)) << U8)
    dotted = points != 0
    words = moved if dotted.all() else np.where(dotted, moved, words)
    # Without a point, `upto` covers the whole word.
    decimals = np.bitwise_count(behind) >> 3
    odd = (sizes > 8) | (sizes < 1) | ((sizes == 1) & dotted) | (((words + LIMITS) | words) & HIGHS != 0)
    # Combines pairs of digits, then groups of four, then all eight; each multiplication combines several groups.
    words = words * U10 + (words >> U8)
    words = ((words & PAIRS) * MILLIONS + ((words >> U16) & PAIRS) * TENS) >> U32
    # An integer below 2^53 divided by a power of ten up to 10^22 is rounded once: the result is the double of float().
    values = words.astype(np.float64) / POWERS[decimals]
    return np.where(minus, -values, values), odd
