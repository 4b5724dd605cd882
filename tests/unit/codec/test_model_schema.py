"""Rows of every schema: values to arrays, keys, and bytes, and back without a change; and invalid values with their pointers."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from property_tests import examples

from iris_wsgi.codec.model_schema import (
    FLOAT32_MAX,
    INTEGER_TYPES,
    TYPES,
    AmbiguousName,
    Feature,
    FeatureNames,
    OutputSchema,
    RowSchema,
    classifier_outputs,
    packed_values,
)
from iris_wsgi.codec.rows import Encoder, decode_rows
from iris_wsgi.errors import BadRequest, UnprocessableContent

EXACT = 2**53
relaxed = settings(max_examples=examples(600), deadline=None, suppress_health_check=list(HealthCheck))


def schema_of(*kinds: str, missing: tuple[int, ...] = ()) -> RowSchema:
    return RowSchema([Feature(f"x{j}", type=kind, missing=j in missing) for j, kind in enumerate(kinds)])


def decoded(schema: RowSchema, *rows, max_rows: int = 100):
    return decode_rows(json.dumps({"data": rows}).encode(), schema, max_rows, "send fewer")


def faults_of(schema: RowSchema, *rows) -> list[tuple[str, str]]:
    """Returns the pointers and the reasons for which the rows are refused."""
    with pytest.raises(UnprocessableContent) as caught:
        decoded(schema, *rows)
    assert caught.value.faults
    return [(fault.pointer, fault.detail) for fault in caught.value.faults]


def fault_of(schema: RowSchema, *rows) -> tuple[str, str]:
    (found,) = faults_of(schema, *rows)
    return found


def pointers_of(schema: RowSchema, *rows) -> list[str]:
    return [pointer for pointer, _ in faults_of(schema, *rows)]


SPELLED_NAMES = [
    "sepal_length",
    "Sepal.Length",
    "SEPAL_LENGTH",
    "sepal length",
    "sepal length (cm)",
    "sepal length [mm]",
    "sepallength",
    "  sepal  length ",
]


@pytest.mark.parametrize("own", ["sepal length (cm)", "Sepal.Length", "sepal_length"])
@pytest.mark.parametrize("sent", SPELLED_NAMES)
def test_a_feature_is_found_in_every_spelling(own, sent):
    assert FeatureNames(["other", own]).find(sent) == 1


def test_an_exact_name_wins_over_a_similar_one():
    names = FeatureNames(["a_b", "A.B", "a b (cm)"])
    assert [names.find(name) for name in ("a_b", "A.B", "a b (cm)")] == [0, 1, 2]
    for name in ("a b", "AB", "a_b (mm)"):
        with pytest.raises(AmbiguousName):
            names.find(name)


@pytest.mark.parametrize("name", ["", "sepal", "sepal_length_2", "x" * 100_000, "\ud800", "(cm)", "_"])
def test_another_name_is_not_found(name):
    assert FeatureNames(["sepal length (cm)", "sepal width (cm)"]).find(name) is None


def test_a_name_of_separators_only_is_found_as_it_is():
    names = FeatureNames(["(a)", "(b)", "_", "."])
    assert [names.find(name) for name in ("(a)", "(b)", "_", ".", "(A)")] == [0, 1, 2, 3, 0]


# Values of one feature in a row of its type.
VALID = {
    "float32": [0, -0.0, 1.5, 3.4028235e38, FLOAT32_MAX, 1e-46, 10**38, 2**53 + 1],
    "float64": [0, -0.0, 1e39, 1.7976931348623157e308, 5e-324, 2**53 + 1, 10**308],
    "int64": [0, -(2**63), 2**63 - 1, 2**53 + 1, 5.0, -0.0, 1e15],
    "int32": [-(2**31), 2**31 - 1, 7.0],
    "int8": [-128, 127],
    "uint8": [0, 255],
    "uint64": [0, 2**64 - 1],
    "bool": [True, False, 0, 1, 1.0, 0.0],
    "string": ["", "a", "é \U0001f600", "a\0b", "[1,2]", "null", "NaN", "x" * 200_000, "\\", '"', "\u2028", "5"],
}
NOT_NUMBERS = ["5", "", True, False, [], [1], {}, None]
INVALID = {
    "float32": [3.5e38, -1e39, 10**39, 10**400, *NOT_NUMBERS],
    "float64": [10**309, -(10**400), *NOT_NUMBERS],
    "int64": [2**63, -(2**63) - 1, 3.5, 1e300, 9.223372036854775807e18, 10**400, *NOT_NUMBERS],
    "int32": [2**31, -(2**31) - 1, 0.1, *NOT_NUMBERS],
    "int8": [128, -129, *NOT_NUMBERS],
    "uint8": [256, -1, *NOT_NUMBERS],
    "uint64": [2**64, -1, *NOT_NUMBERS],
    "bool": [2, -1, 0.5, "true", "", None, [], {}],
    "string": [0, 1.5, True, None, [], {}, "\ud800", "a\udfffb"],
}
# In rows of several types, the numbers are float64.
INVALID_WITH_OTHERS = {"int64": [EXACT + 1, -EXACT - 1, 2**63 - 1], "uint64": [EXACT + 1, 2**64 - 1], "float32": [1e39]}
CASES = [(kind, value) for kind, values in VALID.items() for value in values]


@pytest.mark.parametrize(("kind", "value"), CASES, ids=[f"{kind} {str(value)[:20]!a}" for kind, value in CASES])
def test_a_valid_value_has_the_type_of_its_feature(kind, value):
    schema = schema_of(kind)
    rows = decoded(schema, [value])
    assert rows.shape == (1, 1)
    if kind == "string":
        assert rows[0, 0] == value and schema.to_values(rows) == [[value]]
        return
    assert rows.dtype == np.dtype(kind)
    (found,) = schema.to_values(rows)[0]
    assert type(found) is {"bool": bool, "float32": float, "float64": float}.get(kind, int)
    if kind.startswith("float"):
        assert np.array(found, kind).tobytes() == np.array(value, kind).tobytes()
    else:
        assert found == value


@pytest.mark.parametrize("kind", VALID)
def test_an_invalid_value_is_refused_at_its_place_with_the_reason(kind):
    good = VALID[kind][0]
    for value in INVALID[kind]:
        pointer, detail = fault_of(schema_of(kind, kind), [good, good], [good, value])
        assert pointer == "#/data/1/1" and detail.startswith("must be ")


@pytest.mark.parametrize("kind", VALID)
@pytest.mark.parametrize(("other_kind", "other"), [("string", "a"), ("bool", True)])
def test_an_invalid_value_is_refused_at_its_place_in_a_row_of_several_types(kind, other_kind, other):
    for value in INVALID[kind] + INVALID_WITH_OTHERS.get(kind, []) * (kind != other_kind):
        pointer, detail = fault_of(schema_of(kind, other_kind), [value, other])
        assert pointer == "#/data/0/0" and detail.startswith("must be ")


def test_integers_in_rows_of_several_types_are_exact_up_to_the_limit_of_float64():
    schema = schema_of("int64", "float32")
    assert schema.to_values(decoded(schema, [EXACT, 0.5], [-EXACT, 0.5])) == [[EXACT, 0.5], [-EXACT, 0.5]]
    assert fault_of(schema, [EXACT + 1, 0.5]) == ("#/data/0/0", f"must be a whole number from -{EXACT} to {EXACT}")


def test_only_a_feature_that_may_be_missing_takes_null():
    schema = schema_of("float32", "float32", missing=(0,))
    assert schema.to_values(decoded(schema, [None, 1.0], [2.0, 1.0])) == [[None, 1.0], [2.0, 1.0]]
    assert fault_of(schema, [None, None]) == ("#/data/0/1", "must be a number")
    assert fault_of(schema, ["", 1.0]) == ("#/data/0/0", "must be a number or null")
    assert pointers_of(schema, [1e39, None]) == ["#/data/0/0", "#/data/0/1"]


def test_every_value_of_a_row_may_be_missing():
    for kinds in (("float32", "float64"), ("float32", "float32"), ("float64",)):
        schema = schema_of(*kinds, missing=tuple(range(len(kinds))))
        rows = decoded(schema, [None] * len(kinds), {})
        assert np.isnan(rows).all() and schema.to_values(rows) == [[None] * len(kinds)] * 2


NAMED = RowSchema(
    [Feature("age"), Feature("City", type="string"), Feature("a/b~c", missing=True), Feature("x_1"), Feature("X.1")]
)
NAMED_ROW = {"age": 1.5, "city": "Kyoto", "x_1": 2, "X.1": 3}


def test_a_row_by_name_has_the_order_of_the_features_and_nan_for_absent_values_that_may_be_missing():
    rows = decoded(NAMED, NAMED_ROW, dict(reversed(NAMED_ROW.items())), {**NAMED_ROW, "a/b~c": None}, [1.5, "Kyoto", None, 2, 3])
    assert NAMED.to_values(rows) == [[1.5, "Kyoto", None, 2.0, 3.0]] * 4


LISTED = "age, City, a/b~c, x_1, X.1"
BY_NAME = {
    "unknown": ({**NAMED_ROW, "country": "Japan"}, "#/data/0", f"has an unknown feature; the features are {LISTED}"),
    "ambiguous": (
        {"age": 1, "city": "a", "x_1": 1, "x 1": 2},
        "#/data/0",
        f"has a name that fits several features; use their exact names: {LISTED}",
    ),
    "twice": ({**NAMED_ROW, "AGE": 1.5}, "#/data/0/age", "occurs twice in this row, in two spellings"),
    "absent": ({"age": 1, "city": "a", "x_1": 1}, "#/data/0", "lacks the feature X.1"),
    "all absent": ({}, "#/data/0", "lacks the feature age and 3 more"),
    "a pointer with escapes": ({**NAMED_ROW, "a/b~c": "x"}, "#/data/0/a~1b~0c", "must be a number or null"),
    "a string for a number": ({**NAMED_ROW, "age": "31"}, "#/data/0/age", "must be a number"),
    "null": ({**NAMED_ROW, "city": None}, "#/data/0/City", "must be a string"),
    "half a surrogate pair in a name": (
        {**NAMED_ROW, "\ud800": 1},
        "#/data/0",
        f"has an unknown feature; the features are {LISTED}",
    ),
}


@pytest.mark.parametrize(("row", "pointer", "detail"), BY_NAME.values(), ids=BY_NAME)
def test_a_row_by_name_is_refused_with_the_name_of_the_feature(row, pointer, detail):
    assert (pointer, detail) in faults_of(NAMED, row)


def test_a_name_of_a_client_is_not_repeated():
    assert "secret" not in json.dumps(faults_of(NAMED, {**NAMED_ROW, "secret": 1}))


def test_the_same_member_twice_is_refused_as_json():
    with pytest.raises(BadRequest):
        decode_rows(b'{"data": [{"age": 1, "age": 2}]}', NAMED, 1, "")


@pytest.mark.parametrize(
    ("schema", "row"),
    [
        (NAMED, [1.5, "Kyoto", None, 2, 3]),
        (NAMED, [None, "a", 1, 1, 1]),
        (schema_of("bool", "bool"), [True, False]),
        (schema_of("int64", "int64"), [1, 2]),
        (schema_of("float32", "float32"), [1.5, 2]),
    ],
)
def test_a_row_without_brackets_of_its_own_is_recognized(schema, row):
    pointer, detail = fault_of(schema, *row)
    assert pointer == "#/data" and "put the row in brackets" in detail


def test_rows_as_lists_and_as_objects_can_be_mixed_and_their_faults_are_those_of_each_row():
    bad = pointers_of(NAMED, NAMED_ROW, [1], {}, [1.5, 5, None, 2, 3], "x", None)
    assert bad == ["#/data/1", "#/data/2", "#/data/3/1", "#/data/4", "#/data/5"]


def test_nested_values_are_refused_at_their_place_and_deep_ones_as_a_body():
    nested = [[[[[[1]]]]]]
    for kind in ("float32", "string", "int64", "bool"):
        assert fault_of(schema_of(kind), [nested])[0] == "#/data/0/0"
        assert fault_of(schema_of(kind), {"x0": {"a": nested}})[0] == "#/data/0/x0"
        deep = b'{"data": [[' + b"[" * 100_000 + b"]" * 100_000 + b"]]}"
        with pytest.raises(BadRequest):
            decode_rows(deep, schema_of(kind), 1, "")


def test_a_small_body_of_empty_objects_does_not_take_much_memory():
    schema = schema_of(*["float32"] * 1000, missing=tuple(range(1000)))
    assert decoded(schema, *[{}] * 1000, max_rows=10_000).shape == (1000, 1000)
    with pytest.raises(UnprocessableContent) as caught:
        decoded(schema, *[{}] * 1001, max_rows=10_000)
    (fault,) = caught.value.faults
    assert fault == ("#/data", "lacks more than 1000000 values in all; send several requests")


def test_rows_after_the_maximum_number_are_not_checked():
    with pytest.raises(UnprocessableContent) as caught:
        decoded(schema_of("float32"), *[[1.0]] * 5, ["x"], max_rows=5)
    assert [fault.pointer for fault in caught.value.faults] == ["#/data"]


# The keys of caches.


def test_payloads_of_nan_and_the_signs_of_zero_have_one_key():
    for kind, code, payloads in (
        ("float32", "<I", (0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF)),
        ("float64", "<Q", (0x7FF8 << 48, 0xFFF8 << 48, (0x7FF0 << 48) + 1, 2**63 - 1)),
    ):
        schema = schema_of(kind, kind, missing=(0,))
        nans = np.frombuffer(b"".join(struct.pack(code, payload) for payload in payloads), kind)
        rows = np.stack([nans, np.array([0.0, -0.0, 0.0, -0.0], kind)], axis=1)
        canonical, keys = schema.canonical(rows)
        assert len(set(keys)) == 1 and not np.signbit(canonical[:, 1]).any()
        assert schema.canonical(rows[1:2])[1] == keys[:1]
        assert schema.from_keys(keys).tobytes() == canonical.tobytes()


def test_missing_values_and_zeros_have_one_key_in_rows_with_strings():
    schema = schema_of("float64", "string", missing=(0,))
    rows = np.array([[math.nan, "a"], [-math.nan, "a"], [0.0, "a"], [-0.0, "a"]], object)
    keys = schema.canonical(rows)[1]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_strings_with_separators_do_not_collide():
    schema = schema_of("string", "string")
    rows = [["a", "b"], ['a","b', ""], ["a,", "b"], ["a", ",b"], ["", "ab"], ["ab", ""], ["a\0", "b"], ["a", "\0b"], ["[", "]"]]
    keys = schema.canonical(decoded(schema, *rows))[1]
    assert len(set(keys)) == len(rows)
    assert schema.to_values(schema.from_keys(keys)) == rows


def test_rows_that_differ_only_in_type_have_different_bytes():
    packed = {
        name: schema.pack(decoded(schema, row))
        for name, schema, row in (
            ("float32", schema_of("float32"), [1]),
            ("float64", schema_of("float64"), [1]),
            ("int64", schema_of("int64"), [1]),
            ("bool", schema_of("bool"), [True]),
            ("string", schema_of("string"), ["1"]),
        )
    }
    assert len(set(packed.values())) == len(packed)
    text, number = schema_of("string", "float64"), schema_of("string", "string")
    assert text.canonical(decoded(text, ["a", 1]))[1] != number.canonical(decoded(number, ["a", "1.0"]))[1]


# The rows of stores.


@pytest.mark.parametrize("kind", VALID)
def test_rows_of_another_schema_are_not_unpacked(kind):
    rows = {name: schema_of(name).pack(decoded(schema_of(name), [values[1]])) for name, values in VALID.items()}
    schema = schema_of(kind)
    for name, content in rows.items():
        try:
            found = schema.unpack(content)
        except ValueError:
            assert name != kind
            continue
        # Another type can be accepted only with the same value.
        assert found.tolist() == [[np.array(value, schema.dtype).tolist() for value in packed_values(content)]]
    wide = schema_of(kind, kind)
    for content in (*rows.values(), b"", b" ", b"5 ", b"{} ", b"[1] ", b"[] ", b'"x" ', b"null ", b"nope ", b"\xff\xfe\xfd"):
        with pytest.raises(ValueError):
            wide.unpack(content)


def test_a_stored_missing_value_is_not_unpacked_by_a_model_that_needs_it():
    for kind in ("float32", "float64"):
        optional, needed = schema_of(kind, kind, missing=(0, 1)), schema_of(kind, kind, missing=(0,))
        content = optional.pack(decoded(optional, [1.0, None]))
        assert optional.to_values(optional.unpack(content)) == [[1.0, None]] and packed_values(content) == [1.0, None]
        for schema in (needed, schema_of(kind, kind)):
            with pytest.raises(ValueError):
                schema.unpack(content)


def test_rows_of_float32_are_stored_as_before():
    schema = schema_of("float32", "float32")
    assert schema.pack(decoded(schema, [0.1, -2])) == struct.pack("<2f", 0.1, -2)
    assert schema.to_values(schema.unpack(struct.pack("<4f", 0.1, -2, 3, 4))) == [[0.1, -2.0], [3.0, 4.0]]


def test_nan_is_not_a_value_of_python_lists_either():
    for kind in ("float32", "float64"):
        for row in ([math.nan, 1.0], [1.0, math.nan]):
            assert schema_of(kind, kind).from_values([row]) is None
            assert schema_of(kind, kind, missing=(0, 1)).from_values([row]) is None


# Any schema with any rows.


def values_of(kind: str, mixed: bool, missing: bool) -> st.SearchStrategy:
    """Returns the valid JSON values of a feature."""
    if kind == "string":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    if kind == "bool":
        return st.booleans()
    if kind in INTEGER_TYPES:
        limits = np.iinfo(kind)
        low, high = (max(limits.min, -EXACT), min(limits.max, EXACT)) if mixed else (limits.min, limits.max)
        return st.integers(int(low), int(high))
    numbers = st.floats(width=int(kind[5:]), allow_nan=False, allow_infinity=False) | st.integers(-(10**38), 10**38)
    return numbers | st.none() if missing else numbers


@st.composite
def schemas(draw) -> RowSchema:
    kinds = draw(
        st.lists(st.sampled_from(TYPES), min_size=1, max_size=5)
        | st.builds(lambda kind, width: [kind] * width, st.sampled_from(TYPES), st.integers(1, 5))
    )
    optional = [draw(st.booleans()) and kind.startswith("float") for kind in kinds]
    return schema_of(*kinds, missing=tuple(j for j, is_optional in enumerate(optional) if is_optional))


@st.composite
def schemas_with_rows(draw) -> tuple[RowSchema, list[list]]:
    schema = draw(schemas())
    row = st.tuples(*(values_of(f.type, schema.is_mixed, f.missing) for f in schema.features)).map(list)
    return schema, draw(st.lists(row, min_size=1, max_size=4))


def typed_rows(schema: RowSchema, rows: list[list]) -> list[list]:
    """Returns valid JSON values in the types of their features, with the precision of these."""
    return [[typed_value(feature.type, value) for feature, value in zip(schema.features, row, strict=True)] for row in rows]


def typed_value(kind: str, value: object) -> tuple[type, object]:
    """Returns a value with its type in Python, because True is equal to 1."""
    if value is None or kind == "string":
        return type(value), value
    if kind == "float32":
        return float, np.float32(value).tobytes()
    return (float, np.float64(value).tobytes()) if kind == "float64" else (type(value), value)


def without_signs(expected: list[list]) -> list[list]:
    zeros = {np.float32(-0.0).tobytes(): np.float32(0).tobytes(), np.float64(-0.0).tobytes(): np.float64(0).tobytes()}
    return [[(kind, zeros.get(value, value) if kind is float else value) for kind, value in row] for row in expected]


@relaxed
@given(schemas_with_rows())
def test_valid_rows_of_any_schema_keep_their_values_through_arrays_keys_and_stores(case):
    schema, rows = case
    expected = typed_rows(schema, rows)

    def values(array) -> list[list]:
        assert array.dtype == schema.dtype
        return typed_rows(schema, schema.to_values(array))

    array = decoded(schema, *rows)
    assert array.shape == (len(rows), schema.width) and values(array) == expected
    assert values(decoded(schema, *({schema.features[j].name: v for j, v in enumerate(row)} for row in rows))) == expected
    canonical, keys = schema.canonical(array)
    assert values(canonical) == values(schema.from_keys(keys)) == without_signs(expected)
    assert schema.canonical(schema.from_keys(keys))[1] == keys
    assert [schema.canonical(array[i : i + 1])[1][0] for i in range(len(rows))] == keys
    content = schema.pack(array)
    assert values(schema.unpack(content)) == expected and schema.pack(schema.unpack(content)) == content
    assert typed_rows(schema, [packed_values(schema.pack(array[i : i + 1])) for i in range(len(rows))]) == expected


@relaxed
@given(schemas_with_rows(), st.data())
def test_a_single_invalid_value_in_any_schema_is_refused_with_its_pointer(case, data):
    schema, rows = case
    i, j = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, schema.width - 1))
    feature = schema.features[j]
    bad = [value for value in INVALID.get(feature.type, [0.5, "5", None]) if not (value is None and feature.missing)]
    if schema.is_mixed:
        bad = bad + INVALID_WITH_OTHERS.get(feature.type, [])
    value = data.draw(st.sampled_from(bad))
    rows = [list(row) for row in rows]
    rows[i][j] = value
    assert pointers_of(schema, *rows) == [f"#/data/{i}/{j}"]
    named = [{f"X{j}": value for j, value in enumerate(row)} for row in rows]
    assert pointers_of(schema, *named) == [f"#/data/{i}/x{j}"]
    assert schema.from_values(rows) is None


@relaxed
@given(schemas(), st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), min_size=1, max_size=5))
def test_the_check_of_one_value_and_that_of_a_row_agree(schema, row):
    row = (row * schema.width)[: schema.width]
    is_valid = all(schema.value_error(value, j) is None for j, value in enumerate(row))
    assert (schema.from_values([row]) is not None) == is_valid


@relaxed
@given(schemas(), st.binary(max_size=40))
def test_any_bytes_are_rows_or_a_value_error(schema, content):
    try:
        rows = schema.unpack(content)
    except ValueError:
        return
    assert rows.dtype == schema.dtype and rows.shape[1] == schema.width


# Outputs.


def test_the_label_of_the_graph_is_served_from_the_last_column():
    outputs = OutputSchema("classifier", ("no", "yes"), ("no", "yes"), (0, 1), "graph")
    predictions = np.array([[0.75, 0.25, 1], [0.25, 0.75, 0]], np.float32)
    assert (outputs.width, outputs.best(predictions).tolist()) == (3, [1, 0])
    encoder = Encoder(outputs)
    assert json.loads(encoder.label(predictions[0].tolist())) == {"prediction": "yes"}
    assert json.loads(encoder.row(predictions[0].tolist())) == {"prediction": [0.75, 0.25]}
    assert json.loads(encoder.batch(predictions))["labels"] == ["yes", "no"]
    assert encoder.fields(predictions[1:]) == {"classes": ("no", "yes"), "label": "no", "probabilities": [0.25, 0.75]}


def test_of_equal_probabilities_the_first_class_is_the_label():
    outputs = classifier_outputs(["a", "b", "c"])
    predictions = np.array([[0.25, 0.375, 0.375]], np.float32)
    assert outputs.best(predictions).tolist() == [1] and outputs.best_of(predictions[0].tolist()) == 1
