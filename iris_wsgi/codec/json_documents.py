"""Strict JSON decoder and encoder that process long lists in pieces, so that other threads can run in between."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from json.scanner import make_scanner
from typing import Any, NoReturn

from iris_wsgi.errors import BadRequest

# The schema needs 3 levels. A document that is nested deeper is not a mistyped row but another kind of document.
MAX_LEVELS = 16
# json's decoder and encoder hold the GIL until they return, which also blocks the I/O loop. These limits are half a millisecond.
MAX_UNSPLIT_CHARACTERS = 32_768
PIECE = 16_384
MAX_UNSPLIT_ITEMS = 500
# For bodies and arrays of at least this size, the functions of decimals.py are faster.
MIN_BYTES, MIN_VALUES = 8000, 200

# The value of a member that may be long: brackets, numbers, separators, and the letters of null, true, and false.
long_list = re.compile(r'"(?:data|instances)"[ \t\r\n]*:[ \t\r\n]*(\[[-+0-9.eEnultrfas,\[\] \t\r\n]*)').search


def refuse_constant(_: str) -> NoReturn:
    raise BadRequest("NaN and Infinity are not JSON (RFC 8259, section 6).")


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadRequest("A member name occurs twice in one object.")
    return members


strict = json.JSONDecoder(parse_constant=refuse_constant, object_pairs_hook=unique_members)
# The function behind raw_decode(), without its wrapper. The stub of make_scanner names another class.
scan = make_scanner(strict)  # type: ignore[arg-type]


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
            document, end = scan(text, 0)
        except (StopIteration, json.JSONDecodeError):
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


def levels(document: Any) -> int:
    """Returns how deep arrays and objects are nested, without recursion."""
    depth, layer = 0, [document]
    while layer := [item for item in layer if isinstance(item, (list, dict))]:
        depth += 1
        layer = list(chain.from_iterable(item.values() if isinstance(item, dict) else item for item in layer))
    return depth


# The one style of responses: no whitespace between tokens, and characters instead of their escapes.
encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False, allow_nan=False).encode


def encode_json(document: object) -> bytes:
    """Encodes the body of a JSON response. It ends with a line feed, so that a terminal shows its prompt on the next line."""
    return to_utf8(f"{encode(document)}\n")


def to_utf8(text: str) -> bytes:
    """Encodes JSON text. Half of a surrogate pair, which UTF-8 cannot express, becomes its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


def encode_list(items: Sequence[Any]) -> str:
    """Encodes a list in pieces, so that other threads can run in between."""
    if len(items) <= MAX_UNSPLIT_ITEMS:
        return encode(items)
    pieces = (encode(items[i : i + MAX_UNSPLIT_ITEMS])[1:-1] for i in range(0, len(items), MAX_UNSPLIT_ITEMS))
    return f"[{','.join(pieces)}]"
