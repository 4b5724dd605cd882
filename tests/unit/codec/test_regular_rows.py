"""Long bodies of regular rows are decoded by numpy, with the same rows and the same errors as by json."""

import json
import random
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from iris_wsgi.codec import decimals, rows
from iris_wsgi.codec.model_schema import Feature, RowSchema
from iris_wsgi.codec.rows import decode_rows, rows_of_numbers
from iris_wsgi.errors import BadRequest, UnprocessableContent

MAX_ROWS = 50
SCHEMAS = {kind: RowSchema([Feature(name, type=kind) for name in "abc"]) for kind in ("float32", "float64")}
chance = random.Random(3)
SHORT = [[round(chance.uniform(0, 8), 4) for _ in range(3)] for _ in range(MAX_ROWS)]
FORMS = {
    "of decimals": SHORT,
    "of integers and decimals": [[1, 0, 2.5], *SHORT],
    "of a few exponents": [[1.5, 0.25, 1.5], [1.5, 0.25, 1e-7], *SHORT],
    "of negative numbers": [[-value for value in row] for row in [[0.0, 0.5, 3.25], *SHORT]],
    "of large integers": [[2**24 + 1, 2**53 + 1, 10**30], *SHORT],
}
WRITERS = {
    "default": json.dumps,
    "compact": lambda document: json.dumps(document, separators=(",", ":")),
    "indented": lambda document: json.dumps(document, indent=1),
    "spaced": lambda document: f"\r\n {json.dumps(document)}\t".replace("]]", "] ]").replace(", ", " ,\n"),
}


def outcome(body: bytes, schema: RowSchema, min_bytes: int) -> object:
    """Returns the type and the bytes of the rows, or the type and the words of the error."""
    with mock.patch.object(rows, "MIN_BYTES", min_bytes), mock.patch.object(decimals, "PIECE_BYTES", 400):
        try:
            found = decode_rows(body, schema, MAX_ROWS, "send fewer")
        except (BadRequest, UnprocessableContent) as error:
            return type(error), str(error), error.faults
    return found.dtype, found.shape, found.tobytes()


def same_as_by_json(body: bytes) -> None:
    for schema in SCHEMAS.values():
        assert outcome(body, schema, 0) == outcome(body, schema, len(body) + 1)


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("form", FORMS)
def test_regular_rows_are_decoded_by_numpy_to_the_same_numbers(form, write, kind):
    body = WRITERS[write]({"data": FORMS[form][:MAX_ROWS]}).encode()
    assert rows_of_numbers(body, b"data", SCHEMAS[kind], MAX_ROWS) is not None
    same_as_by_json(body)


def test_missing_values_are_decoded_by_json():
    schema = RowSchema([Feature(name, missing=True) for name in "abc"])
    for drawn in (SHORT, [*SHORT[:40], [None, 1.5, 2.5]], [[None, None, None], *SHORT[:40]]):
        body = json.dumps({"data": drawn}).encode()
        assert outcome(body, schema, 0) == outcome(body, schema, len(body) + 1)
        assert (rows_of_numbers(body, b"data", schema, MAX_ROWS) is None) == (b"null" in body)


def test_long_decimals_are_decoded_by_numpy_to_the_same_float32():
    values = np.random.default_rng(1).normal(size=(MAX_ROWS, 3))
    for drawn in (values, values * 1e-9 + 1, values.astype(np.float32)):
        body = json.dumps({"data": drawn.tolist()}).encode()
        assert rows_of_numbers(body, b"data", SCHEMAS["float32"], MAX_ROWS) is not None
        same_as_by_json(body)


def test_more_rows_than_allowed_are_refused_as_by_json():
    body = json.dumps({"data": SHORT + SHORT[:1]}).encode()
    same_as_by_json(body)
    with pytest.raises(UnprocessableContent):
        decode_rows(body, SCHEMAS["float32"], MAX_ROWS, "send fewer")


BODY = json.dumps({"data": SHORT})
LAST = SHORT[-1][-1]


@pytest.mark.parametrize(
    "body",
    [
        BODY[:-1],
        BODY[:-2],
        BODY + "}",
        BODY + "\0",
        "\ufeff" + BODY,
        BODY.replace("data", "dat"),
        BODY.replace("data", "instances"),
        BODY.replace("]]}", "],]}"),
        BODY.replace("]]}", '], "a"]}'),
        BODY.replace("]]}", ']], "data": [[1, 2, 3]]}'),
        BODY.replace("]]}", ']], "other": [[1.5, 2.5, 3.5]]}'),
        BODY.replace("[[", "[[["),
        BODY.replace("[[", "[1.5, ["),
        BODY.replace("[[", "[[1.5, "),
        BODY.replace("[[", "[[1.5, 2.5, 3.5, "),
        BODY.replace(f"[{SHORT[0][0]}, ", "["),
        BODY.replace(str(SHORT[0])[1:-1], "1.5"),
        "],7 [".join(BODY.rsplit("], [", 1)),
        ",7 ".join(BODY.rsplit(", ", 1)),
        BODY.replace("], [", "] [", 1),
        BODY.replace("], [", "],, [", 1),
        BODY.replace(", ", " ", 1),
        *(
            BODY.replace(f"{LAST}]]", f"{text}]]")
            for text in [
                *("", "1.", ".5", "01", "-01", "01.5", "-00.5", "+1", "+1.5", "-", "--1.5", "1.5.5", "1.5e", "1e5", "1.5E-3"),
                *("-0", "-0.0", "null", "true", "NaN", "Infinity", "1e999", "-1e999", "1e39", "9" * 40, "9" * 5000, '"1.5"'),
                *(
                    "[1.5]",
                    "{}",
                    "1 5",
                    "1.5 .5",
                    "1/2",
                    "1:5",
                    "1\x005",
                    "0x10",
                    "1_5",
                    "١.٥",
                    "1.5]",
                    "[1.5",
                    "1.5, 2.5",
                    "1e-400",
                ),
                *("3.4028235677973366e38", "3.4028235677973362e38", "16777217.5", "1.000000059604644775390625", "0." + "1" * 40),
                *(f"0.{'1' * count}{end}" for count in (7, 8, 15, 16, 23, 24) for end in ("x", "e5", "-", ".", "e", "5")),
            ]
        ),
    ],
    ids=lambda body: f"{len(body)} {body[-20:]!a}",
)
def test_every_other_body_is_accepted_or_refused_as_by_json(body):
    same_as_by_json(body.encode())


NUMBERS = (
    st.floats(-10, 10).map(repr)
    | st.floats(-10, 10, width=32).map(repr)
    | st.decimals(-100, 100, places=3).map(str)
    | st.integers(-(10**9), 10**9).map(str)
    | st.from_regex(r"-?[0-9]{1,3}\.[0-9]{0,12}", fullmatch=True)
    | st.sampled_from(["0.0", "-0.0", "-0", "5", "1.5e-3", "1e400", "null", "true", "[1]", "1.", "01.5", "", "."])
)
SPACES = st.sampled_from(["", " ", "\n  ", "\t"])


@settings(deadline=None, max_examples=examples(400))
@given(
    st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=2, max_size=12),
    st.tuples(*[SPACES] * 6),
    st.none() | st.tuples(st.integers(0, 10**6), st.sampled_from(["", *',][ -.e0}"{\n/+1a\\']), st.booleans()),
)
def test_random_rows_with_any_damage_are_decoded_or_refused_as_by_json(drawn, spaces, damage):
    a, b, c, d, e, f = spaces
    middle = SHORT[:40]
    lists = [*drawn, *([str(value) for value in row] for row in middle[: MAX_ROWS - len(drawn)])]
    text = f"{d},{e}".join(f"[{f}{f'{c},{e}'.join(row)}{b}]" for row in lists)
    body = f'{a}{{"data"{b}:{c}[{d}{text}{e}]{f}}}{a}'
    if damage is not None:
        place, put, removed = damage
        place %= len(body)
        body = body[:place] + put + body[place + removed :]
    same_as_by_json(body.encode())


def test_a_model_with_one_feature_and_a_model_with_many_have_their_rows():
    for width in (1, 700):
        schema = RowSchema([Feature(str(i)) for i in range(width)])
        drawn = np.random.default_rng(2).uniform(0, 9, (MAX_ROWS, width)).round(2).tolist()
        body = json.dumps({"data": drawn}).encode()
        found = rows_of_numbers(body, b"data", schema, MAX_ROWS)
        assert found is not None
        assert found.tolist() == np.array(drawn, np.float32).tolist()
