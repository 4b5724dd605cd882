"""Strict JSON decoder and encoder that process long lists in pieces, so that other threads can run in between."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.decimals import TEXT_WORDS, float_texts, parse_decimals, parse_pointed
from iris_wsgi.errors import BadRequest

# The schema needs 3 levels. A document that is nested deeper is not a mistyped row but another kind of document.
MAX_LEVELS = 16
# json's decoder and encoder hold the GIL until they return, which also blocks the I/O loop. These limits are half a millisecond.
MAX_UNSPLIT_CHARACTERS = 32_768
PIECE = 16_384
MAX_UNSPLIT_ITEMS = 500
# With fewer values or bytes, json is faster than the calls of numpy. A piece fits the cache of a CPU.
MIN_VALUES, PIECE_VALUES, SAMPLE_VALUES = 200, 4096, 64
MIN_BYTES, PIECE_BYTES = 8000, 49_152
# With a higher share of numbers that parse_decimals() leaves out, json is faster.
MAX_LEFT_SHARE = 1 / 8
WHITESPACE = b" \t\r\n"
# The other bracket is two bytes after this one.
BRACKET, MINUS, POINT, DIGIT_0 = map(np.uint8, b"[-.0")
NUMBERS = {int, float}

# The value of a member that may be long: brackets, numbers, separators, and the letters of null, true, and false.
long_list = re.compile(r'"(?:data|instances)"[ \t\r\n]*:[ \t\r\n]*(\[[-+0-9.eEnultrfas,\[\] \t\r\n]*)').search
start_of_rows = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"(data|instances)"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*(?=\[)').match


def refuse_constant(_: str) -> NoReturn:
    raise BadRequest("NaN and Infinity are not JSON (RFC 8259, section 6).")


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadRequest("A member name occurs twice in one object.")
    return members


strict = json.JSONDecoder(parse_constant=refuse_constant, object_pairs_hook=unique_members)


def decode_json(body: bytes) -> Any:
    """Decodes one JSON document in UTF-8 (RFC 8259).

    Raises BadRequest, also for NaN, Infinity, a byte order mark, and repeated member names.
    """
    if not body:
        raise BadRequest("The body is empty; it must be a JSON document.")
    try:
        text = body.decode("utf-8")
        if len(text) > MAX_UNSPLIT_CHARACTERS and (document := decoded_in_pieces(text)) is not None:
            return document
        # Most documents have no whitespace around them. decode() skips whitespace first, which costs 50 % more.
        try:
            document, end = strict.raw_decode(text)
        except json.JSONDecodeError:
            end = -1
        if end == len(text):
            return document
        return strict.decode(text)
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        # json's own message can quote the body. The response has the position only.
        raise BadRequest(f"The body is not JSON: line {error.lineno}, column {error.colno}.") from None
    except ValueError:
        raise BadRequest("A number in the body has too many digits.") from None
    except RecursionError:
        raise too_deep() from None


def too_deep() -> BadRequest:
    return BadRequest(f"The body is nested deeper than {MAX_LEVELS} levels.")


def decoded_in_pieces(text: str) -> Any:
    """Decodes a text with one long list of numbers, null, and booleans. Returns None for every other text, valid or not.

    The list is decoded in pieces. The rest is decoded with the constant NaN in place of the list: NaN is not JSON, so the
    text cannot contain it elsewhere.
    """
    found = long_list(text)
    if found is None or "NaN" in text or "Infinity" in text:
        return None
    numbers = found[1].rstrip(", \t\r\n")
    rest = f"{text[: found.start(1)]}NaN{text[found.start(1) + len(numbers) :]}"
    if not numbers.endswith("]") or len(rest) > MAX_UNSPLIT_CHARACTERS:
        return None
    put: list[list[Any]] = []

    def put_back(_: str) -> list[Any]:
        put.append([item for piece in pieces(numbers[1:-1]) for item in items_of(piece)])
        return put[0]

    try:
        document = json.JSONDecoder(parse_constant=put_back, object_pairs_hook=unique_members).decode(rest)
    except (ValueError, RecursionError, BadRequest):
        return None
    return document if len(put) == 1 else None


def items_of(piece: str) -> list[Any]:
    """Decodes the items of one piece. Raises ValueError for an empty piece, which a superfluous comma leaves."""
    items: list[Any] = strict.decode(f"[{piece}]")
    if not items:
        raise ValueError
    return items


def pieces(inner: str) -> Iterator[str]:
    """Splits the inside of a list at commas between its items. A list of lists is split at commas after brackets."""
    comma = "]," if inner.lstrip().startswith("[") else ","
    start = 0
    while len(inner) - start > PIECE and (end := inner.find(comma, start + PIECE)) >= 0:
        yield inner[start : end + len(comma) - 1]
        start = end + len(comma)
    yield inner[start:]


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
    layouts = layouts_of(body[start:second], width) if second > 0 else []
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


def levels(document: Any) -> int:
    """Returns how deep arrays and objects are nested, without recursion."""
    depth, layer = 0, [document]
    while layer := [item for item in layer if isinstance(item, (list, dict))]:
        depth += 1
        layer = list(chain.from_iterable(item.values() if isinstance(item, dict) else item for item in layer))
    return depth


encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False).encode


def encode_list(items: Sequence[Any]) -> str:
    """Encodes a list in pieces, so that other threads can run in between."""
    if len(items) <= MAX_UNSPLIT_ITEMS:
        return encode(items)
    pieces = (encode(items[i : i + MAX_UNSPLIT_ITEMS])[1:-1] for i in range(0, len(items), MAX_UNSPLIT_ITEMS))
    return f"[{','.join(pieces)}]"


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
