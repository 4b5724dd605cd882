"""Vectorized parsers and formatters of decimal numbers and of JSON arrays of them, equal to float(), repr(), %, and json."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.json_documents import MIN_VALUES, encode_list, strict
from iris_wsgi.codec.model_schema import NUMBERS
from iris_wsgi.errors import BadRequest

Words = NDArray[np.uint64]

# Nine digits identify every float32.
FORMAT = "%.9g"
# The bytes of all groups of four digits, then of all groups without their trailing zeros. NUL fills up the field.
DIGITS = (np.arange(10_000)[:, None] // [1000, 100, 10, 1] % 10 + ord("0")).astype(np.uint8)
NOT_ZERO = np.not_equal(DIGITS, ord("0"))
FOUR = np.concatenate([DIGITS, DIGITS * np.logical_or.accumulate(NOT_ZERO[:, ::-1], axis=1)[:, ::-1]]).view("S4").ravel()
DECADES = np.array([1e12, 1e11, 1e10, 1e9])
# Constants as unsigned words: the same byte eight times, multipliers for groups of digits, and small numbers.
ONES, ZEROS, POINTS, HIGHS, LIMITS = (np.uint64(byte * 0x0101010101010101) for byte in (1, 0x30, 0x1E, 0x80, 0x76))
PAIRS = np.uint64(0x000000FF000000FF)
TENS, MILLIONS = np.uint64((10**4 << 32) + 1), np.uint64((10**6 << 32) + 100)
U1, U8, U10, U16, U32, U100 = map(np.uint64, (1, 8, 10, 16, 32, 100))
POWERS = 10.0 ** np.arange(9)
# By a number of bytes up to 8: this number of the first bytes of a word, of its last bytes, and the first of its last bytes.
FIRST_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
LAST_BYTES = np.array([(1 << 64) - (1 << 64 - 8 * size) for size in range(9)], np.uint64)
FIRST_OF = np.array([0, *(0xFF << 64 - 8 * size for size in range(1, 9))], np.uint64)
E4, E8, E16 = map(np.uint64, (10**4, 10**8, 10**16))
TEXT_TYPE = "S16"
PIECES = np.dtype([("zero", "S4"), ("first", "S4"), ("second", "S4"), ("third", "S4")])
# float_texts() formats values between 1e-7 and 1e4 itself. A power is the number of digits before the point.
MIN_POWER, MAX_POWER = -6, 4
MANTISSA, LEADING_BIT, MANTISSA_BITS = map(np.uint32, (0x7FFFFF, 0x800000, 23))
# Bits of a kind of values: integers of several digits before the point, digits with an exponent, values that are left to repr(),
# and heads that end in a point.
SEVERAL_DIGITS, WITH_EXPONENT, LEFT_OUT, WITH_POINT = 1, 2, 4, 8
# Words of a text: two of its head, four of its digits, its exponent, and one for a separator.
TEXT_WORDS = 8
ZERO = np.frombuffer(b"0\0\0\0", np.uint32)[0]
# A piece fits the cache of a CPU.
PIECE_VALUES, PIECE_BYTES, SAMPLE_VALUES = 4096, 49_152, 64
# With a higher share of numbers that the parsers leave out, json is faster.
MAX_LEFT_SHARE = 1 / 8
WHITESPACE = b" \t\r\n"
# The other bracket is two bytes after this one.
BRACKET, MINUS, POINT, DIGIT_0 = map(np.uint8, b"[-.0")
start_of_rows = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"(data|instances)"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*(?=\[)').match


def format_floats(values: NDArray[Any]) -> NDArray[np.bytes_]:
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
    within = LAST_BYTES.take(sizes, mode="clip")
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
    odd = (sizes > 8) | (sizes < 1) | ((sizes == 1) & dotted) | has_others(words)
    # An integer below 2^53 divided by a power of ten up to 10^22 is rounded once: the result is the double of float().
    values = eight_digits(words).astype(np.float64) / POWERS[decimals]
    return np.where(minus, -values, values), odd


def eight_digits(words: Words) -> Words:
    """Returns the numbers of up to eight digits 0 to 9, the last one in the highest byte.

    It combines pairs of digits, then groups of four, then all eight. Each multiplication combines several groups.
    """
    words = words * U10 + (words >> U8)
    return ((words & PAIRS) * MILLIONS + ((words >> U16) & PAIRS) * TENS) >> U32


def has_others(words: Words) -> NDArray[np.bool_]:
    """Returns which words have a byte that is not a digit 0 to 9."""
    result: NDArray[np.bool_] = ((words + LIMITS) | words) & HIGHS != 0
    return result


def parse_pointed(
    data: bytes, starts: NDArray[np.intp], points: NDArray[np.intp], ends: NDArray[np.intp], dtype: np.dtype[Any]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns the values of fields with a point, and which fields it leaves out.

    It parses numbers of JSON with up to 7 digits before the point and 24 after it, without exponent. A value becomes the same
    number of `dtype` as that of float().
    """
    padded = bytes(8) + data + bytes(24)
    words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    minus = np.frombuffer(data, np.uint8)[starts] == ord("-")
    sizes, decimals = points - starts - minus, ends - points - 1
    # The last eight bytes before the point.
    found = words[points] ^ ZEROS
    before = found & LAST_BYTES.take(sizes, mode="clip")
    # JSON has no zero before other digits.
    leading_zero = (sizes > 1) & (found & FIRST_OF.take(sizes, mode="clip") == 0)
    left = (sizes < 1) | (sizes > 7) | (decimals < 1) | (decimals > 24) | leading_zero | has_others(before)
    after = (words[points + 9] ^ ZEROS) & FIRST_BYTES.take(decimals, mode="clip")
    left |= has_others(after)
    # An integer below 2^53 divided by 10^8 is rounded once.
    values = (eight_digits(before) * E8 + eight_digits(after)).astype(np.float64)
    longest = int(decimals.max())
    if longest > 8:
        values += digits_behind(words, points + 17, decimals - 8, longest > 16, left)
    values /= 1e8
    if longest > 8:
        # The error is less than 8 units of the last place. It is harmless except close to the middle of two float32.
        is_long = decimals > 8
        left |= is_long & is_uncertain(values) if dtype == np.float32 else is_long
    return np.where(minus, -values, values), left


def is_uncertain(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which values are within 16 units of the last place of the middle of two float32."""
    result: NDArray[np.bool_] = np.abs((values.view(np.int64) & 0x1FFFFFFF) - 0x10000000) < 16
    return result


def digits_behind(
    words: Words, starts: NDArray[np.intp], sizes: NDArray[np.intp], with_last: bool, left: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns the fraction of up to 16 digits, and marks others in `left`."""
    high = (words[starts] ^ ZEROS) & FIRST_BYTES.take(sizes, mode="clip")
    left |= has_others(high)
    fraction = eight_digits(high).astype(np.float64)
    if with_last:
        low = (words[starts + 8] ^ ZEROS) & FIRST_BYTES.take(sizes - 8, mode="clip")
        left |= has_others(low)
        fraction += eight_digits(low).astype(np.float64) / 1e8
    return fraction / 1e8


def make_heads() -> Words:
    """Returns the starts of texts, in eight bytes each, which contain the first digit that is not zero.

    They are the integers from 0 to 9999 with a point, and then 0.0 to 0.9, 0.00 to 0.09, 0.000 to 0.009, and 0.0000 to 0.0009.
    The same starts with a minus sign follow.
    """
    heads = np.zeros((2, 10_040, 8), np.uint8)
    heads[1, :, 0] = ord("-")
    heads[:, :10_000, 1:5] = DIGITS * np.logical_or.accumulate(NOT_ZERO, axis=1)
    heads[:, 0, 4] = ord("0")
    heads[:, :10_000, 5] = ord(".")
    for zeros in range(4):
        rows = heads[:, 10_000 + 10 * zeros : 10_010 + 10 * zeros]
        rows[:, :, 1 : 4 + zeros] = np.frombuffer(b"0." + b"0" * zeros + b"0", np.uint8)[: 3 + zeros]
        rows[:, :, 3 + zeros] = DIGITS[:10, 3]
    return heads.reshape(-1, 8).view(np.uint64).ravel()


class PowerTables:
    """Constants of float32 values by key: the sign and the exponent, plus 512 from the power of ten on that has this exponent.

    The power is 0 from 0.1 to 1, and -1 from 0.01 to 0.1.
    """

    def __init__(self) -> None:
        self.thresholds = np.full(512, 0xFFFFFFFF, np.uint32)
        self.kinds = np.full(1024, LEFT_OUT, np.uint8)
        self.factors, self.shifts, self.scales, self.half_gaps, self.heads = np.zeros((5, 1024), np.uint64)
        self.units, self.fills = np.ones((2, 1024), np.uint64)
        self.exponents = np.zeros(1024, "S4")
        for negative in (0, 1):
            # Zero, but no smaller number than the first normal one.
            self.kinds[256 * negative], self.heads[256 * negative] = WITH_POINT, 10_040 * negative
            self.thresholds[256 * negative] = (negative << 31) + 1
            for exponent in range(103, 141):
                self.add_exponent(256 * negative + exponent, 2.0 ** (exponent - 127), 10_040 * negative)
        self.exponent_words = self.exponents.view(np.uint32)

    def add_exponent(self, key: int, start: float, heads: int) -> None:
        """Adds the values from `start`, a power of two, to the next power of two."""
        power = next(power for power in range(MIN_POWER - 2, MAX_POWER + 2) if start < 10.0**power)
        self.add_power(key, start, power, heads)
        if 10.0**power < 2 * start:
            threshold = np.float32(10.0**power)
            threshold = threshold if float(threshold) >= 10.0**power else np.nextafter(threshold, np.float32(np.inf))
            self.thresholds[key] = threshold.view(np.uint32) | (key >> 8 << 31)
            self.add_power(key + 512, start, power + 1, heads)

    def add_power(self, key: int, start: float, power: int, heads: int) -> None:
        """Adds the values of one power from `start` on, which have one exponent."""
        if not MIN_POWER <= power <= MAX_POWER:
            return
        exponent = round(np.log2(start)) - 23
        # These bits make the shift positive for the largest value of this power.
        spare = max(0, int(np.log2(10.0**power)) - 23 + 17 - power)
        self.factors[key] = 5 ** (17 - max(0, power)) << spare
        self.shifts[key] = max(0, power) - exponent - 17 + spare
        self.scales[key] = 10 ** max(0, -power)
        # Half of the distance to the next double, which has 29 bits more, in units of the shifted bits.
        self.half_gaps[key] = int(self.factors[key]) * int(self.scales[key]) >> 30
        self.units[key], self.fills[key] = 10 ** (17 - max(1, power)), 10 ** max(0, power - 1)
        self.heads[key] = heads + (10_000 - 10 * power if -3 <= power <= 0 else 0)
        self.kinds[key] = (
            (SEVERAL_DIGITS if power > 1 else 0) | (WITH_EXPONENT if power < -3 else 0) | (WITH_POINT if power > 0 else 0)
        )
        if power < -3:
            self.exponents[key] = b"e-%02d" % (1 - power)


HEADS, TABLES = make_heads(), PowerTables()
FOUR_WORDS = FOUR.view(np.uint32)
WHOLE_FOUR, SHORT_FOUR = FOUR_WORDS[:10_000], FOUR_WORDS[10_000:]


def shortest_digits(bits: NDArray[np.uint32], keys: NDArray[np.intp]) -> Words:
    """Returns the 17 digits of repr() of each float32; they end in zeros if fewer identify the double.

    The mantissa times a power of five is an integer of one word. Shifted right it has 17 digits, so all digits are exact.
    """
    shift = TABLES.shifts[keys]
    product = ((bits & MANTISSA) | LEADING_BIT) * TABLES.factors[keys]
    scale = TABLES.scales[keys]
    high = product >> shift
    low = (product - (high << shift)) * scale
    carry = low >> shift
    # The value is `digits` and `low` shifted bits.
    digits = high * scale + carry
    low -= carry << shift
    half_gap = TABLES.half_gaps[keys]
    one = U1 << shift
    # 17 digits, rounded half to even, identify every double.
    found = digits + ((low << U1) + (digits & U1) > one)
    # The nearest 16 digits, if they are close enough.
    tens, ten = digits // U10, one * U10
    behind = ((digits - tens * U10) << shift) + low
    up = (behind << U1) + (tens & U1) > ten
    found = np.where(np.where(up, ten - behind, behind) <= half_gap, (tens + up) * U10, found)
    # The only 15 digits that can be close enough. With even fewer digits they end in zeros.
    hundreds = (digits + ((low + half_gap) >> shift)) // U100 * U100
    behind = ((digits - hundreds) << shift) + low
    return np.where(behind.view(np.int64) <= half_gap.view(np.int64), hundreds, found)


def float_texts(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Returns what repr() writes for each of the values [n], interspersed with NUL, in words [n, TEXT_WORDS].

    The last word of each text is left for a separator. Values that are not between MIN_POWER and MAX_POWER take longer.
    """
    bits = values.view(np.uint32)
    tops = (bits >> MANTISSA_BITS).astype(np.intp)
    keys = (bits >= TABLES.thresholds[tops]).astype(np.intp) * 512 + tops
    kinds = TABLES.kinds[keys]
    digits = shortest_digits(bits, keys)
    all_kinds = np.bitwise_or.reduce(kinds)
    if all_kinds & SEVERAL_DIGITS:
        units = TABLES.units[keys]
        first = digits // units
        rest = (digits - first * units) * TABLES.fills[keys]
    else:
        first = digits // E16
        rest = digits - first * E16
    texts = np.empty((len(values), TEXT_WORDS), np.uint32)
    texts.view(np.uint64)[:, 0] = HEADS[(TABLES.heads[keys] + first).view(np.intp)]
    without_digits = write_groups(rest, texts)
    texts[:, 6] = TABLES.exponent_words[keys] if all_kinds & WITH_EXPONENT else 0
    if len(without_digits):
        texts[without_digits[kinds[without_digits] & WITH_POINT != 0], 2] = ZERO
        # One digit with an exponent has no point, unlike its head.
        kinds[without_digits[kinds[without_digits] & WITH_EXPONENT != 0]] = LEFT_OUT
    left = np.flatnonzero(kinds & LEFT_OUT)
    if len(left):
        texts[left, :7] = np.array(list(map(repr, values[left].tolist())), "S28").view(np.uint32).reshape(-1, 7)
    return texts


def write_groups(rest: Words, texts: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Writes 16 digits without the zeros at their end. Returns the numbers of the texts that have none."""
    high = rest // E8
    low = rest - high * E8
    first, third = high // E4, low // E4
    groups = [group.view(np.intp) for group in (first, high - first * E4, third, low - third * E4)]
    for i, group in enumerate(groups[:3]):
        texts[:, 2 + i] = WHOLE_FOUR[group]
    texts[:, 5] = SHORT_FOUR[groups[3]]
    ends = np.flatnonzero(groups[3] == 0)
    for i in (2, 1, 0):
        group = groups[i][ends]
        texts[ends, 2 + i] = SHORT_FOUR[group]
        ends = ends[group == 0]
    return ends


class RowLayout(NamedTuple):
    """The bytes of a row and of the separator behind it that are not in numbers, and where among them the numbers are.

    `edges` are the indices of the bytes before the numbers and behind them. If all numbers have a point, which is one of the
    bytes, the indices of the points are between the two.
    """

    structure: bytes
    edges: tuple[NDArray[np.intp], ...]

    @property
    def has_points(self) -> bool:
        return len(self.edges) == 3


def decode_matrix(body: bytes, member: bytes, width: int, dtype: np.dtype[Any], largest: float) -> NDArray[Any] | None:
    """Decodes `{member: [[…], …]}` with finite numbers only, up to `largest` in size, and whitespace that is equal in all rows.

    The numbers are those of decode_json(), as `dtype`. Returns None for every other body, valid or not.
    """
    found = start_of_rows(body)
    start, end_of_list = found.end() if found else 0, body.rfind(b"]")
    end = body.rfind(b"]", 0, end_of_list) + 1
    if not (found and found[1] == member and is_only(body[end_of_list + 1 :], b"}") and is_only(body[end:end_of_list], b"")):
        return None
    end_of_row = body.find(b"]", start, end) + 1
    second = body.find(b"[", end_of_row, end)
    # A row with exponents is rarely the only one, and json decodes many of them faster.
    layouts = layouts_of(body[start:second], width) if second > 0 and b"e" not in body[start:second].lower() else []
    # Pieces of equal size, because a short one takes nearly the same time.
    step, arrays = (end - start) // ((end - start) // PIECE_BYTES + 1) + 1, []
    while start < end:
        next_start = next_row(body, start + step, end)
        # The last row has no separator.
        separator = body[end_of_row:second] if next_start == end else b""
        numbers = numbers_of(body[start:next_start] + separator, layouts, dtype, largest)
        if numbers is None:
            return None
        arrays.append(numbers)
        start = next_start
    return np.concatenate(arrays).reshape(-1, width) if arrays else None


def is_only(text: bytes, mark: bytes) -> bool:
    """Returns whether a text is this mark, with any whitespace."""
    return text.translate(None, WHITESPACE) == mark


def next_row(body: bytes, start: int, end: int) -> int:
    """Returns the position of the first row that begins after a row that ends at `start` or later, or `end`."""
    end_of_row = body.find(b"]", start, end)
    following = body.find(b"[", end_of_row, end) if end_of_row >= 0 else -1
    return following if following >= 0 else end


def layouts_of(row: bytes, width: int) -> list[RowLayout]:
    """Returns the layouts of a list of `width` numbers with the separator behind it: with points, and with any numbers."""
    found, data = [], np.frombuffer(row, np.uint8)
    for pointed in (True, False):
        places = structural(data, pointed)
        structure = data[places].tobytes()
        before = np.flatnonzero(np.diff(places) > 1)
        between = [b".", b","] * (width - 1) + [b"."] if pointed else [b","] * (width - 1)
        if len(before) != len(between) + 1:
            continue
        cuts = [0, *(before + 1).tolist(), len(structure)]
        marks = [structure[start:end].translate(None, WHITESPACE) for start, end in pairwise(cuts)]
        if marks == [b"[", *between, b"],"]:
            edges = (before[::2], before[::2] + 1, before[1::2] + 1) if pointed else (before, before + 1)
            found.append(RowLayout(structure, edges))
    return found


def structural(data: NDArray[np.uint8], pointed: bool) -> NDArray[np.intp]:
    """Returns the positions of whitespace, commas, and brackets, and if `pointed`, of points.

    Of the bytes that rows do not have, it returns some, and leaves the others, as if they were in a number.
    """
    is_low = (data < DIGIT_0) & (data != MINUS) if pointed else data < MINUS
    return np.flatnonzero(is_low | (data - BRACKET < 3))


def numbers_of(piece: bytes, layouts: Sequence[RowLayout], dtype: np.dtype[Any], largest: float) -> NDArray[Any] | None:
    """Returns the numbers of rows that have one of these layouts. Returns None for other rows and for invalid numbers."""
    data = np.frombuffer(piece, np.uint8)
    edges = next((edges for layout in layouts if (edges := edges_of(data, layout)) is not None), None)
    if edges is None:
        return None
    starts, ends = edges[0], edges[-1]
    if len(edges) == 3:
        values, left = parse_pointed(piece, starts, edges[1], ends, dtype)
    else:
        values, left = parse_decimals(piece, starts, ends)
        left |= is_not_json(data, starts, ends)
    others = np.flatnonzero(left)
    if len(others) > MAX_LEFT_SHARE * len(left):
        return None
    if len(others):
        items = numbers_in([piece[starts[i] : ends[i]] for i in others.tolist()], largest)
        if items is None:
            return None
        values[others] = items
    return values.astype(dtype)


def edges_of(data: NDArray[np.uint8], layout: RowLayout) -> list[NDArray[np.intp]] | None:
    """Returns the starts, the points if the layout has them, and the ends of all numbers, or None for another layout."""
    places = structural(data, layout.has_points)
    rows, rest = divmod(len(places), len(layout.structure))
    if rest or data[places].tobytes() != layout.structure * rows:
        return None
    table = places.reshape(rows, -1)
    edges = [table.take(indices, axis=1).ravel() for indices in layout.edges]
    edges[0] += 1
    # All bytes that are not structural are in the numbers.
    size = int((edges[-1] - edges[0]).sum()) - (len(edges[0]) if layout.has_points else 0)
    return edges if size == len(data) - len(places) else None


def is_not_json(data: NDArray[np.uint8], starts: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Returns which plain decimals are not JSON, or are the integer -0, which has no sign in Python."""
    digits = starts + (data[starts] == MINUS)
    first, second = data[digits], data[digits + 1]
    result: NDArray[np.bool_] = (first == DIGIT_0) & (second != POINT) & (ends - starts > 1)
    result |= (first == POINT) | (data[ends - 1] == POINT)
    return result


def numbers_in(fields: Sequence[bytes], largest: float) -> list[float] | None:
    """Decodes fields without commas and brackets. Returns None unless each is a number of up to `largest` in size."""
    try:
        items: list[Any] = strict.decode(f"[{b','.join(fields).decode()}]")
    except (ValueError, RecursionError, BadRequest):
        return None
    is_valid = items and set(map(type, items)) <= NUMBERS and -largest <= min(items) and max(items) <= largest
    return items if is_valid else None


def encode_floats(values: NDArray[Any]) -> bytes:
    """Encodes finite values [n] or [rows, columns], to the same text as that of encode_list(values.tolist())."""
    flat = values.reshape(-1)
    if len(flat) < MIN_VALUES or flat.dtype != np.float32 or not has_usual(flat[:SAMPLE_VALUES]):
        return encode_list(values.tolist()).encode()
    is_flat = values.ndim == 1
    columns, between = (1, b",") if is_flat else (values.shape[1], b"],[")
    separators = np.array([b","] * (columns - 1) + [between], "S4").view(np.uint32)
    pieces, step = [b"[" if is_flat else b"[["], -(-PIECE_VALUES // columns) * columns
    for i in range(0, len(flat), step):
        texts = float_texts(flat[i : i + step])
        texts.reshape(-1, columns, TEXT_WORDS)[:, :, -1] = separators
        pieces.append(texts.tobytes().translate(None, b"\0"))
    # The last separator is superfluous, except for the bracket that ends a row.
    pieces[-1] = pieces[-1][: -1 if is_flat else -2] + b"]"
    return b"".join(pieces)


def has_usual(values: NDArray[np.float32]) -> bool:
    """Returns whether float_texts() formats many of these values itself. Otherwise json is faster."""
    sizes = np.abs(values)
    return int(np.count_nonzero((sizes >= 1e-7) & (sizes < 1e4) | (sizes == 0))) > len(sizes) // 4
