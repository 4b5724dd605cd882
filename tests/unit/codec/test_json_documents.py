"""Large JSON documents are decoded in pieces, with the same results and the same errors."""

import json
import random

import pytest

from iris_wsgi.codec import json_documents
from iris_wsgi.codec.json_documents import decode_json, decoded_in_pieces, encode, encode_json, encode_list
from iris_wsgi.errors import BadRequest

ROWS = [[random.Random(7).random(), 2, -3e-5, i] for i in range(3000)]
FLAT = [value for row in ROWS for value in row]


def decode_at_once(text: str) -> object:
    """Returns the document as decoded by one call of the library."""
    try:
        return json_documents.strict.decode(text)
    except (ValueError, RecursionError, BadRequest):
        return None


def with_spaces(document: object) -> str:
    return json.dumps(document, indent=1)


@pytest.mark.parametrize("dumps", [json.dumps, encode, with_spaces])
@pytest.mark.parametrize(
    "document",
    [
        {"data": ROWS},
        {"instances": ROWS},
        {"data": FLAT},
        {"inputs": [{"name": "a", "shape": [3000, 4], "datatype": "FP32", "data": FLAT}], "outputs": [{"name": "b"}]},
        {"inputs": [{"data": ROWS, "name": "a"}], "id": '"data": [1, 2'},
        {"data": [[None, True, *row, False, None] for row in ROWS]},
        {"inputs": [{"name": "a", "datatype": "BOOL", "data": [[True], [False]] * 3000}]},
    ],
)
def test_a_large_document_is_decoded_in_pieces_to_the_same(document, dumps):
    text = dumps(document)
    assert decoded_in_pieces(text) == document == decode_json(text.encode())


def test_numbers_keep_their_types_and_bits():
    values = [1, 1.0, -0.0, 1e-320, 0.1, 12345678901234567890, 1e308] * 2000
    found = decoded_in_pieces(json.dumps({"data": values}))["data"]
    assert list(map(repr, found)) == list(map(repr, values))


LONG = json.dumps(FLAT)[1:-1]
NESTED = json.dumps(ROWS)[1:-1]
CUT = json_documents.PIECE


def with_comma_at_cut(extra: str) -> str:
    """Returns a long list of numbers with `extra` at the end of the first piece."""
    position = LONG.index(",", CUT)
    return LONG[:position] + extra + LONG[position:]


@pytest.mark.parametrize(
    "text",
    [
        f'{{"data": [{LONG},]}}',
        f'{{"data": [{LONG}, ]}}',
        f'{{"data": [{NESTED},]}}',
        f'{{"data": [,{LONG}]}}',
        f'{{"data": [{with_comma_at_cut(",")}]}}',
        f'{{"data": [{with_comma_at_cut(" ,")}]}}',
        f'{{"data": [{with_comma_at_cut("]")}]}}',
        f'{{"data": [{with_comma_at_cut("[")}]}}',
        f'{{"data": [{with_comma_at_cut("e")}]}}',
        f'{{"data": [0.{"1" * 40_000},]}}',
        f'{{"data": [0.{"1" * 40_000}, \n]}}',
        f'{{"data": [{LONG}',
        f'{{"data": [{LONG}]',
        f'{{"data": [{LONG}]]}}',
        f'{{"data": [{LONG}] [1]}}',
        f'{{"data": [{LONG}, NaN]}}',
        f'{{"data": [{with_comma_at_cut(", nul")}]}}',
        f'{{"data": [{LONG}, true false]}}',
        f'{{"data": [nan, {LONG}]}}',
        f'{{"data": [{LONG}], "x": NaN}}',
        f'{{"data": [{LONG}], "data": [1]}}',
        f'{{"data": [{LONG}], "x": {{"a": 1, "a": 2}}}}',
        f'{{"data": [01{LONG}]}}',
        f'{{"data": [{"[" * 20000}{LONG}{"]" * 20000}]}}',
        f'{{"x": "\\"data\\": [{LONG}]", NaN: 1}}',
    ],
    ids=range(25),
)
def test_a_document_that_is_invalid_as_a_whole_is_invalid_in_pieces(text):
    assert decode_at_once(text) is None
    assert decoded_in_pieces(text) is None
    with pytest.raises(BadRequest):
        decode_json(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        f'{{"x": "\\"data\\": [{LONG}]"}}',
        f'{{"data": "[{LONG}]"}}',
        f'{{"data": [[[{LONG}]]]}}',
        f'{{"data": [{LONG}, "a"]}}',
        f'{{"data": [{LONG}, null]}}',
        f'{{"data": [["a", {LONG}], [null, "NaN", true]]}}',
        f'{{"data": [{{"a": null}}, [null, {LONG}], {{"b": false}}]}}',
        f'{{"data": [{LONG}, {{"data": [1]}}]}}',
        f'{{"data": [1], "data2": [{LONG}]}}',
        f'[{{"data": [1, 2]}}, {{"data": [{LONG}]}}]',
        f'{{"x": "NaN", "data": [{LONG}]}}',
    ],
    ids=range(11),
)
def test_a_document_that_is_valid_as_a_whole_is_the_same_in_pieces(text):
    assert decode_json(text.encode()) == decode_at_once(text) is not None


@pytest.mark.long
def test_any_damage_of_a_long_list_is_refused_or_decoded_as_by_one_call():
    chance, text = random.Random(11), f'{{"data": [{LONG}]}}'
    for _ in range(300):
        position = chance.choice([chance.randrange(len(text)), CUT + chance.randrange(-30, 30)])
        damaged = (
            text[:position]
            + chance.choice(["", ",", "]", "[", " ", "-", ".", "e", "0", "}", '"'])
            + text[position + chance.randrange(2) :]
        )
        found = decoded_in_pieces(damaged)
        assert found is None or found == decode_at_once(damaged), position


def test_lists_are_encoded_in_pieces_as_by_one_call():
    for items in ([], [1.5], list(range(500)), list(range(501)), FLAT, ROWS):
        assert encode_list(items) == encode(items)


def test_a_response_is_compact_in_utf8_and_ends_with_one_line_feed():
    document = {"label": "アヤメ", "values": [0.98, 2.15e-07, None, True], "empty": {}}
    assert encode_json(document) == '{"label":"アヤメ","values":[0.98,2.15e-07,null,true],"empty":{}}\n'.encode()
    assert encode_json([]) == b"[]\n"


def test_half_of_a_surrogate_pair_stays_an_escape_because_utf8_cannot_express_it():
    assert encode_json({"id": "a\ud800\n"}) == b'{"id":"a\\ud800\\n"}\n'


def test_a_number_that_json_cannot_express_is_never_sent():
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json({"value": float("nan")})
