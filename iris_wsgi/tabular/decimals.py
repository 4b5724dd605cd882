"""Decimal numbers of a whole chunk at once, with numpy: the same digits and the same values as from Python, one by one."""

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.rows import Array

# Nine digits are every float32 exactly.
NUMBER = "%.9g"
# Four digits at a time, then the same without the zeros at their end; a field is filled up with NUL.
FOUR = np.array([b"%04d" % i for i in range(10_000)] + [(b"%04d" % i).rstrip(b"0") for i in range(10_000)], "S4")
DECADES = np.array([1e12, 1e11, 1e10, 1e9])
# The same byte eight times, what is done to eight digits in three multiplications, and small numbers, all as unsigned words.
ONES, ZEROS, POINTS, HIGHS, LIMITS = (np.uint64(byte * 0x0101010101010101) for byte in (1, 0x30, 0x1E, 0x80, 0x76))
ALL, PAIRS = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0x000000FF000000FF)
TENS, MILLIONS = np.uint64((10**4 << 32) + 1), np.uint64((10**6 << 32) + 100)
U1, U8, U10, U16, U32 = map(np.uint64, (1, 8, 10, 16, 32))
POWERS = 10.0 ** np.arange(9)
WRITTEN = "S16"
PIECES = np.dtype([("zero", "S4"), ("first", "S4"), ("second", "S4"), ("third", "S4")])


def written(values: Array) -> NDArray[np.bytes_]:
    """Each value as NUMBER writes it, with NUL in between and behind, in an array of the same shape."""
    doubles = values.astype(np.float64)
    usual = (doubles >= 1e-4) & (doubles < 1)
    if not usual.all():
        doubles = np.where(usual, doubles, 0.5)
    # From 0.1 on nine digits behind the point are wanted, from 0.01 on ten, and so on. A float32 times that is exact in a
    # float64, 24 bits and 28 at most, and rint takes the even one of two that are equally near, as C does.
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
    texts = pieces.view(WRITTEN)
    if not usual.all():
        others = values[~usual].tolist()
        texts[~usual] = ("\n".join([NUMBER] * len(others)) % tuple(others)).encode().split(b"\n")
    return texts


def numbers(data: bytes, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The values of fields of `data`, and which of them are not read here: all but plain decimals of up to eight characters."""
    # Behind eight bytes more, the eight bytes before the end of a field begin at its end.
    padded = bytes(8) + data
    signs = np.frombuffer(data, np.uint8)[starts]
    minus = signs == ord("-")
    sizes = ends - starts - (minus | (signs == ord("+")))
    words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))[ends]
    # Eight bytes are handled in one word, the last character in its highest byte: digits become 0 to 9, all before the field 0.
    within = ALL << (64 - 8 * sizes.clip(1, 8)).astype(np.uint64)
    words = (words ^ ZEROS) & within
    # The first byte that is a point, if there is one, is taken out, and what is before it moves up.
    other = words ^ POINTS
    points = (other - ONES) & ~other & HIGHS
    upto = points ^ (points - U1)
    behind = ~upto
    moved = (words & behind) | ((words & (upto >> U8)) << U8)
    dotted = points != 0
    words = moved if dotted.all() else np.where(dotted, moved, words)
    # Without a point `upto` is all of the word.
    decimals = np.bitwise_count(behind) >> 3
    odd = (sizes > 8) | (sizes < 1) | ((sizes == 1) & dotted) | (((words + LIMITS) | words) & HIGHS != 0)
    # Pairs of digits, then fours, then all eight: each step is one multiplication for several.
    words = words * U10 + (words >> U8)
    words = ((words & PAIRS) * MILLIONS + ((words >> U16) & PAIRS) * TENS) >> U32
    # A whole number below 2^53 over a power of ten up to 10^22 is rounded once, so it is the double that Python reads.
    values = words.astype(np.float64) / POWERS[decimals]
    return np.where(minus, -values, values), odd
