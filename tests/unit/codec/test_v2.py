"""The codec of the protocol v2: valid requests, the errors of invalid ones, and compatibility with a real client."""

import json
import math
import struct
import tracemalloc

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from iris_data import IRIS_ROWS
from property_tests import examples
from v2_vectors import (
    DEEP,
    HEAD,
    IRIS,
    MALFORMED,
    MALFORMED_WORDS,
    MARKER,
    MAX_ROWS,
    PROBABILITIES,
    ROW,
    ROW_BYTES,
    TWO_WORDS,
    WORDS,
    InferRequest,
    binary_input,
    document,
    infer,
    inline,
    single_tensor_model,
    sized,
    with_output,
    with_tail,
    words_request,
)

from iris_wsgi.codec.v2_request import InferenceRequest, ModelSignature, RequestedOutput, TensorSpec, decode_infer
from iris_wsgi.codec.v2_response import encode_infer
from iris_wsgi.codec.v2_tensors import DTYPES, from_binary, from_json, to_binary, to_json
from iris_wsgi.errors import PredictionFailed, Problem
from iris_wsgi.patterns.synchronous.v1_routes import decode_v1, encode_v1

# Values that are invalid in JSON data of each datatype. The last two datatypes accept no values in JSON.
MISFITS = {
    "BOOL": [0, 1, "true", None, 1.0],
    **{f"INT{bits}": [2 ** (bits - 1), -(2 ** (bits - 1)) - 1, 1.0, True, "1", None] for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": [2**bits, -1, 1.0, False, "1", None, 10**4000] for bits in (8, 16, 32, 64)},
    "FP64": [10**309, -(10**309), True, "1", None],
    "FP16": [1.0],
    "BYTES": [1, None, True, {}, "\ud800"],
}


def refused(sent_request: InferRequest, served: ModelSignature) -> str:
    with pytest.raises(Problem) as problem:
        decode_infer(sent_request.body, sent_request.header, served, MAX_ROWS)
    assert problem.value.status == 400
    assert MARKER not in problem.value.detail
    assert problem.value.detail.endswith(".") and len(problem.value.detail) < 250
    return problem.value.detail


@pytest.mark.parametrize(("sent_request", "word"), MALFORMED.values(), ids=MALFORMED.keys())
def test_an_invalid_request_gets_400_with_the_place_and_the_requirement(sent_request, word):
    assert word in refused(sent_request, IRIS)


@pytest.mark.parametrize(("sent_request", "word"), MALFORMED_WORDS.values(), ids=MALFORMED_WORDS.keys())
def test_an_invalid_request_to_a_model_of_two_inputs_gets_400(sent_request, word):
    assert word in refused(sent_request, WORDS)


@pytest.mark.parametrize(("datatype", "value"), [(name, value) for name, values in MISFITS.items() for value in values])
def test_json_accepts_only_the_values_of_the_datatype(datatype, value):
    tensor = {"name": "x", "datatype": datatype, "shape": [1, 1], "data": [value]}
    sent_request = infer(tensor, outputs=[{"name": "x", "parameters": {"binary_data": True}}])
    assert "#/inputs/0/data" in refused(sent_request, single_tensor_model(datatype, -1, 1))


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_float_that_is_not_finite_is_accepted_in_binary(datatype, value):
    part = np.array([0, 1, 2, value], DTYPES[datatype]).tobytes()
    tensor = {"name": "x", "datatype": datatype, "shape": [4], "parameters": sized(len(part))}
    assert "value 3" in refused(with_tail(tensor, part), single_tensor_model(datatype, -1))


def test_a_binary_bool_is_the_byte_0_or_1():
    tensor = {"name": "x", "datatype": "BOOL", "shape": [3], "parameters": sized(3)}
    assert "value 2" in refused(with_tail(tensor, b"\0\1\2"), single_tensor_model("BOOL", -1))
    assert decoded(with_tail(tensor, b"\0\1\1"), single_tensor_model("BOOL", -1)).inputs["x"].tolist() == [False, True, True]


def test_a_model_with_a_fixed_shape_accepts_this_shape_only_as_a_raw_request():
    fixed = single_tensor_model("INT16", 2, 2)
    assert decoded(InferRequest(struct.pack("<4h", 1, -2, 3, 4), "0"), fixed).inputs["x"].tolist() == [[1, -2], [3, 4]]
    assert "whole rows of 8 bytes" in refused(InferRequest(bytes(16), "0"), fixed)
    assert "cannot take" in refused(InferRequest(bytes(16), "0"), single_tensor_model("FP32", -1, -1))


def decoded(sent_request: InferRequest, served: ModelSignature = IRIS) -> InferenceRequest:
    return decode_infer(sent_request.body, sent_request.header, served, MAX_ROWS)


TAKEN = {
    "flat": infer(inline()),
    "nested": infer(inline(data=[ROW])),
    "binary": with_tail(HEAD),
    "binary, the JSON part padded": with_tail(HEAD + b" " * (-len(HEAD) % 8)),
    "binary, at an odd place": with_tail(HEAD + b" " * (3 - len(HEAD) % 2)),
    "binary, the header with zeros": with_tail(HEAD, header=f"000{len(HEAD)}"),
    "raw": InferRequest(ROW_BYTES, "0"),
    "JSON with a header": InferRequest(document(inline()), str(len(document(inline())))),
    "unknown members and reserved parameters": infer(
        inline(x=[[[]]], parameters={"x": 1}),
        model_name=MARKER,
        x={"data": [1]},
        outputs=[],
        id=None,
        parameters={"priority": 1, "sequence_id": MARKER, "sequence_start": True, "headers": {}, "triton_x": 1, "own": [1.5]},
    ),
    "absent members as null": infer(inline(parameters=None), parameters=None, outputs=None),
    "absent data as null": with_tail(binary_input(data=None)),
}


@pytest.mark.parametrize("sent_request", TAKEN.values(), ids=TAKEN.keys())
def test_the_same_row_in_every_form_gives_the_same_bits(sent_request):
    request = decoded(sent_request)
    rows = request.inputs["features"]
    assert (rows.dtype, rows.shape, rows.tobytes()) == (np.float32, (1, 4), ROW_BYTES)
    assert rows.flags.aligned and rows.flags.c_contiguous
    assert request.raw == (sent_request.header == "0")
    assert [expected.spec.name for expected in request.outputs] == ["label", "probabilities"]
    assert all(expected.binary == request.raw and not expected.classes for expected in request.outputs)
    assert (request.id, request.timeout) == (None, None)


def test_the_maximum_number_of_rows_is_accepted_in_every_form():
    many = [
        infer(inline(shape=[MAX_ROWS, 4], data=ROW * MAX_ROWS)),
        infer(inline(shape=[MAX_ROWS, 4], data=[ROW] * MAX_ROWS)),
        with_tail(binary_input(shape=[MAX_ROWS, 4], parameters=sized(16 * MAX_ROWS)), ROW_BYTES * MAX_ROWS),
        InferRequest(ROW_BYTES * MAX_ROWS, "0"),
    ]
    for one_of_them in many:
        assert decoded(one_of_them).inputs["features"].tobytes() == ROW_BYTES * MAX_ROWS
    assert len(decode_v1(json.dumps({"instances": [ROW] * MAX_ROWS}).encode(), IRIS_ROWS, MAX_ROWS)) == MAX_ROWS


def test_aligned_binary_data_uses_the_memory_of_the_body():
    sent_request = with_tail(HEAD + b" " * (-len(HEAD) % 8))
    rows = decoded(sent_request).inputs["features"]
    assert np.shares_memory(rows, np.frombuffer(sent_request.body, np.uint8))
    assert not rows.flags.writeable


def test_an_id_of_any_characters_and_a_timeout_are_decoded():
    for name in ("7", "", "\u00e9\U0001f33a", MARKER * 1000):
        assert decoded(infer(inline(), id=name)).id == name
    assert decoded(infer(inline(), parameters={"timeout": 1500})).timeout == 1500
    assert decoded(infer(inline(), parameters={"timeout": 2**64 - 1})).timeout == 2**64 - 1
    assert decoded(infer(inline(), parameters={"timeout": 0})).timeout is None


# binary_data_output of the request, binary_data of the output, and whether the response has binary data
CHOICES = [(None, None, False), (True, None, True), (False, None, False), (None, True, True), (None, False, False),
           (True, False, False), (False, True, True), (True, True, True)]  # fmt: skip


@pytest.mark.parametrize(("of_all", "of_one", "expected"), CHOICES)
def test_the_binary_flag_of_an_output_overrides_that_of_the_request(of_all, of_one, expected):
    output = {"name": "probabilities", "parameters": {"binary_data": of_one}}
    request = decoded(infer(inline(), parameters={"binary_data_output": of_all}, outputs=[output]))
    assert request.outputs == (RequestedOutput(PROBABILITIES, expected),)


def test_inputs_in_json_and_in_binary_can_be_combined():
    a, b, c = (TensorSpec(name, "INT32", (-1,)) for name in "abc")
    served = ModelSignature("three", "1", (a, b, c), (a,))
    behind = {"datatype": "INT32", "shape": [2], "parameters": sized(8)}
    head = document(
        {"name": "c", **behind}, {"name": "b", "datatype": "INT32", "shape": [2], "data": [3, 4]}, {"name": "a", **behind}
    )
    request = decoded(with_tail(head, struct.pack("<4i", 5, 6, 1, 2)), served)
    assert {name: tensor.tolist() for name, tensor in request.inputs.items()} == {"a": [1, 2], "b": [3, 4], "c": [5, 6]}


def test_strings_keep_their_bytes():
    request = decoded(words_request(b"\2\0\0\0a\0\1\0\0\0\xff"), WORDS)
    assert request.inputs["words"].tolist() == [b"a\0", b"\xff"]
    assert decoded(words_request(TWO_WORDS), WORDS).inputs["words"].tolist() == [b"ab", b""]


PROBABLE = np.array([[0.98, 0.018, 0.002], [0.25, 0.5, 0.25]], np.float32)
OUTPUTS = {"label": np.array([0, 1]), "probabilities": PROBABLE}


def answered(served: ModelSignature = IRIS, arrays=OUTPUTS, **request_members) -> tuple[dict, bytes, int | None]:
    """Returns the JSON part of a response, the bytes after it, and the header."""
    body, header = encode_infer(decoded(infer(inline(), **request_members)), served, arrays)
    return json.loads(body[:header]), b"" if header is None else body[header:], header


def test_a_response_in_json_has_every_output_and_no_header():
    result, _, header = answered(id="7")
    assert header is None
    assert result == {
        "model_name": "iris",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [0, 1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 3], "data": PROBABLE.ravel().tolist()},
        ],
    }
    assert "id" not in answered()[0]


def test_a_response_has_binary_data_after_the_json_in_the_requested_order():
    outputs = [
        {"name": "probabilities", "parameters": {"binary_data": True}},
        {"name": "label", "parameters": {"binary_data": True}},
    ]
    result, tail, header = answered(outputs=outputs)
    assert header is not None
    assert [output["parameters"] for output in result["outputs"]] == [sized(24), sized(16)]
    assert tail == PROBABLE.tobytes() + np.array([0, 1], "<i8").tobytes()
    result, tail, _ = answered(outputs=[{**outputs[0], "parameters": {"binary_data": False}}, outputs[1]])
    assert result["outputs"][0]["data"] == PROBABLE.ravel().tolist()
    assert len(tail) == result["outputs"][1]["parameters"]["binary_data_size"] == 16


def test_json_alone_ends_with_a_line_feed_and_json_before_binary_data_does_not():
    body, header = encode_infer(decoded(infer(inline(), id="é")), IRIS, OUTPUTS)
    assert (
        header is None
        and body.endswith(b"]}]}\n")
        and body.startswith('{"model_name":"iris","model_version":"1","id":"é",'.encode())
    )
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    body, header = encode_infer(decoded(infer(inline(), outputs=outputs)), IRIS, OUTPUTS)
    assert body[:header].endswith(b"}}]}") and body[header:] == PROBABLE.tobytes()


CLASSES = {
    1: [f"{PROBABLE[0, 0].item()!r}:0:setosa", "0.5:1:versicolor"],
    2: [f"{PROBABLE[0, 0].item()!r}:0:setosa", f"{PROBABLE[0, 1].item()!r}:1:versicolor", "0.5:1:versicolor", "0.25:0:setosa"],
}
CLASSES[3] = [*CLASSES[2][:2], f"{PROBABLE[0, 2].item()!r}:2:virginica", *CLASSES[2][2:], "0.25:2:virginica"]


@pytest.mark.parametrize(("expected", "columns"), [(1, 1), (2, 2), (3, 3), (4, 3), (2**64 - 1, 3)])
def test_classes_are_ordered_by_value_and_equal_ones_by_index(expected, columns):
    parameters = {"classification": expected}
    result, _, _ = answered(outputs=[{"name": "probabilities", "parameters": parameters}])
    (response,) = result["outputs"]
    assert response == {"name": "probabilities", "datatype": "BYTES", "shape": [2, columns], "data": CLASSES[columns]}
    result, tail, _ = answered(outputs=[{"name": "probabilities", "parameters": {**parameters, "binary_data": True}}])
    part = b"".join(struct.pack("<I", len(text)) + text.encode() for text in CLASSES[columns])
    assert (tail, result["outputs"][0]["parameters"]) == (part, sized(len(part)))


def test_classes_have_no_label_if_the_model_has_other_labels():
    other = IRIS._replace(labels=("a",))
    result, _, _ = answered(other, outputs=[{"name": "probabilities", "parameters": {"classification": 1}}])
    assert result["outputs"][0]["data"] == [text.rpartition(":")[0] for text in CLASSES[1]]


@pytest.mark.parametrize("parameters", [{}, {"binary_data": True}, {"classification": 1}])
def test_a_response_that_is_not_finite_is_not_sent_in_any_form(parameters):
    broken = {"probabilities": np.array([[1, np.nan, 0]], np.float32)}
    with pytest.raises(PredictionFailed):
        answered(arrays=broken, outputs=[{"name": "probabilities", "parameters": parameters}])


V1_REFUSED = {
    b"[]": "instances",
    b"{}": "instances",
    b'{"instances": []}': "#/instances must be a list",
    b'{"instances": {"a": 1}}': "#/instances must be a list",
    b'{"instances": [1, 2, 3, 4]}': "brackets of its own",
    b'{"instances": [[1, 2, 3]]}': "#/instances/0 has 3 values",
    b'{"instances": [[1, 2, 3, 4], {"features": [1, 2, 3, 4]}]}': "#/instances/1 has an unknown feature",
    b'{"instances": [[1, 2, 3, "q7marker"]]}': "#/instances/0/3 must be a number",
    b'{"instances": [[1, 2, 3, 1e39]]}': "#/instances/0/3 must be finite",
    b'{"instances": [[1, 2, 3, true]]}': "#/instances/0/3 must be a number",
    b'{"instances": [[1, 2, 3, NaN]]}': "NaN",
    b'{"instances": [' + b"[1, 2, 3, 4]," * 100 + b"[1, 2, 3, 4]]}": "100 at most",
    b'{"instances": [[1, 2, 3, 4]], "x": ' + b"[" * 20 + b"]" * 20 + b"}": "nested deeper",
    b'{"instances": ' + b"[" * DEEP + b"]" * DEEP + b"}": "nested deeper",
}


@pytest.mark.parametrize(("body", "word"), V1_REFUSED.items(), ids=[body[:50].decode() for body in V1_REFUSED])
def test_an_invalid_request_of_the_protocol_v1_gets_400(body, word):
    with pytest.raises(Problem, match=word) as problem:
        decode_v1(body, IRIS_ROWS, MAX_ROWS)
    assert problem.value.status == 400 and MARKER not in problem.value.detail


def test_the_protocol_v1_has_instances_and_predictions():
    rows = decode_v1(json.dumps({"instances": [ROW, ROW], "signature_name": "x"}).encode(), IRIS_ROWS, MAX_ROWS)
    assert rows.tobytes() == ROW_BYTES * 2
    assert json.loads(encode_v1(PROBABLE)) == {"predictions": PROBABLE.tolist()}


# Round trips, and damaged requests

NUMERIC = [name for name in DTYPES if name != "BYTES"]
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))
shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)


@st.composite
def tensors(draw) -> tuple[str, np.ndarray]:
    datatype, shape = draw(st.sampled_from(list(DTYPES))), draw(shapes)
    if datatype == "BYTES":
        texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(str.encode)
        return datatype, draw(of_numpy.arrays(object, shape, elements=texts))
    dtype = DTYPES[datatype]
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return datatype, draw(of_numpy.arrays(dtype, shape, elements=of_numpy.from_dtype(dtype, **finite)))


@relaxed
@given(tensors())
def test_every_tensor_survives_binary_and_json(tensor):
    datatype, array = tensor
    part = memoryview(to_binary(array, datatype))
    backs = [
        from_binary(part, datatype, array.shape, "here"),
        from_binary(memoryview(b"x" + part)[1:], datatype, array.shape, "here"),
    ]
    if datatype != "FP16":
        flat = json.loads(json.dumps(to_json(array, datatype)))
        backs.append(from_json(flat, datatype, array.shape, "here"))
        if array.shape:
            nested = np.array(flat, object).reshape(array.shape).tolist()
            backs.append(from_json(nested, datatype, array.shape, "here"))
    for back in backs:
        assert back.dtype == array.dtype and back.shape == array.shape
        assert back.tolist() == array.tolist() if datatype == "BYTES" else back.tobytes() == array.tobytes()


def status_of(sent_request: InferRequest, served: ModelSignature = IRIS, max_rows: int = MAX_ROWS) -> int:
    try:
        decode_infer(sent_request.body, sent_request.header, served, max_rows)
    except Problem as problem:
        return problem.status
    return 200


GOOD = [
    (with_tail(HEAD), IRIS),
    (with_tail(binary_input(shape=[3, 4], parameters=sized(48)), ROW_BYTES * 3), IRIS),
    (words_request(TWO_WORDS), WORDS),
    (with_output(classification=2, binary_data=True), IRIS),
]


@pytest.mark.long
@settings(relaxed, max_examples=examples(500))
@given(st.sampled_from(GOOD), st.data())
def test_no_damage_to_a_valid_request_causes_more_than_a_refusal(good, data):
    sent_request, served = good
    body = bytearray(sent_request.body)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(body)))
        body[position : position + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"9" * 20, b"-", b"[", b'"', b"null"])
        )
    header = sent_request.header and str(
        max(0, int(sent_request.header) + data.draw(st.sampled_from([0, len(body) - len(sent_request.body), -1, 1, 2])))
    )
    assert status_of(InferRequest(bytes(body), header), served) in (200, 400)


@pytest.mark.long
@relaxed
@given(st.binary(max_size=300), st.none() | st.integers(0, 300).map(str) | st.text(max_size=5))
def test_no_bytes_cause_more_than_a_refusal(body, header):
    assert status_of(InferRequest(body, header)) in (200, 400)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**31 - 2, 2**65)
    | st.floats()
    | st.sampled_from(["features", "FP32", "x"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["name", "data", "x"]), inner),
    max_leaves=8,
)
almost_inputs = st.fixed_dictionaries({"name": values | st.just("features"), "datatype": values | st.just("FP32")}, optional={
    "shape": values | st.lists(st.integers(-1, 5) | values, max_size=3) | st.just([1, 4]),
    "data": values | st.lists(values, max_size=4) | st.just(ROW),
    "parameters": values | st.fixed_dictionaries({"binary_data_size": values | st.just(16)}),
})  # fmt: skip
almost_outputs = st.fixed_dictionaries({"name": values | st.just("probabilities")}, optional={
    "parameters": values | st.dictionaries(st.sampled_from(["binary_data", "classification"]), values),
})  # fmt: skip
almost_requests = st.fixed_dictionaries({"inputs": values | st.lists(almost_inputs, max_size=2)}, optional={
    "id": values,
    "outputs": values | st.lists(almost_outputs, max_size=2),
    "parameters": values | st.dictionaries(st.sampled_from(["timeout", "binary_data_output"]), values),
})  # fmt: skip


@pytest.mark.long
@settings(relaxed, max_examples=examples(300))
@given(almost_requests, st.binary(max_size=20) | st.just(ROW_BYTES), st.booleans())
def test_no_document_of_any_shape_causes_more_than_a_refusal(request, tail, behind):
    head = json.dumps(request).encode()
    assert status_of(InferRequest(head + tail, str(len(head))) if behind else InferRequest(head)) in (200, 400)


def positions(value, path: tuple = ()) -> list[tuple]:
    """Yields every position in a document, as a list of keys and indices."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [position for key, item in inner for position in ((*path, key), *positions(item, (*path, key)))]


BOTH = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "probabilities", "parameters": {"classification": 2}}]
FULL = json.loads(document(inline(), id="7", parameters={"timeout": 5, "binary_data_output": False}, outputs=BOTH))
BEHIND = json.loads(document(binary_input()))


@pytest.mark.long
@settings(relaxed, max_examples=examples(500))
@given(st.sampled_from([FULL, BEHIND]), st.data())
def test_no_value_at_any_position_of_a_valid_request_causes_more_than_a_refusal(good, data):
    request = json.loads(json.dumps(good))
    *path, last = data.draw(st.sampled_from(positions(request)))
    part = request
    for key in path:
        part = part[key]
    size = len(part[last]) if isinstance(part[last], list) else 1
    part[last] = data.draw(values | st.lists(values, min_size=size, max_size=size))
    assert status_of(InferRequest(json.dumps(request).encode()) if good is FULL else with_tail(json.dumps(request).encode())) in (
        200,
        400,
    )


MEBI = 1 << 20
LARGE = {
    "objects": InferRequest(b'{"inputs":[' + b"{}," * (MEBI // 3) + b"{}]}"),
    "empty lists as data": InferRequest(
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[' + b"[]," * (MEBI // 3) + b"[]]}]}"
    ),
    "small numbers": InferRequest(
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[524289],"data":[' + b"1," * (MEBI // 2) + b"1]}]}"
    ),
    "small nested": InferRequest(
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[262145,1],"data":[' + b"[1]," * (MEBI // 4) + b"[1]]}]}"
    ),
    "deep": InferRequest(b"[" * MEBI),
    "raw": InferRequest(bytes(MEBI), "0"),
    "a claim of 2 GiB": with_tail({"name": "x", "datatype": "FP32", "shape": [2**29], "parameters": sized(2**31)}, bytes(MEBI)),
    "a claim of 2**63 strings": with_tail(
        {"name": "x", "datatype": "BYTES", "shape": [2**63], "parameters": sized(MEBI)}, bytes(MEBI)
    ),
    "empty strings": with_tail({"name": "x", "datatype": "BYTES", "shape": [MEBI // 4], "parameters": sized(MEBI)}, bytes(MEBI)),
    "short strings": with_tail(
        {"name": "x", "datatype": "BYTES", "shape": [MEBI // 6], "parameters": sized(MEBI // 6 * 6)}, b"\2\0\0\0ab" * (MEBI // 6)
    ),
    "strings in JSON": InferRequest(
        b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[262145],"data":[' + b'"",' * (MEBI // 4) + b'""]}]}'
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("sent_request", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_memory_is_a_small_multiple_of_the_body(sent_request, datatype):
    served = single_tensor_model(datatype, *((-1, 1) if b",1]" in sent_request.body[:80] else (-1,)))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert status_of(sent_request, served, max_rows=2**70) in (200, 400)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    binary_only = sent_request.header is not None and datatype == "FP32"
    assert peak < (2 if binary_only else 40) * len(sent_request.body) + 100_000


# Requests and responses of tritonclient, the official client library


def triton_input(array: np.ndarray, datatype: str, binary_data: bool) -> triton.InferInput:
    tensor = triton.InferInput("x", list(array.shape), datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary_data)


@pytest.mark.parametrize("binary_data", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", list(DTYPES))
def test_tritonclient_and_the_codec_understand_each_other(datatype, binary_data):
    if datatype == "FP16" and not binary_data:
        pytest.skip("the protocol has FP16 in binary only")
    values = [b"a", "\u00e9".encode(), b"", b"ab:c"] if datatype == "BYTES" else [0, 1, 1, 0]
    array = np.array(values, DTYPES[datatype]).reshape(2, 2)
    body, length = triton.InferenceServerClient.generate_request_body(
        [triton_input(array, datatype, binary_data)],
        outputs=[triton.InferRequestedOutput("x", binary_data=binary_data)],
        request_id="7",
        priority=1,
        sequence_id=5,
        timeout=2500,
        parameters={"own": "x"},
    )
    served = single_tensor_model(datatype, -1, 2)
    request = decode_infer(body, None if length is None else str(length), served, MAX_ROWS)
    assert (request.id, request.timeout, request.outputs) == ("7", 2500, (RequestedOutput(served.outputs[0], binary_data),))
    assert request.inputs["x"].tolist() == array.tolist()
    response, header = encode_infer(request, served, request.inputs)
    result = triton.InferResult.from_response_body(response, header_length=header)
    output = result.as_numpy("x").tolist()
    assert (
        output if binary_data or datatype != "BYTES" else [[text.encode() for text in row] for row in output]
    ) == array.tolist()
    assert result.get_response()["id"] == "7"


def test_tritonclient_requests_binary_by_default_and_for_classes():
    rows = np.array([ROW], np.float32)
    tensor = triton.InferInput("features", [1, 4], "FP32").set_data_from_numpy(rows)
    body, length = triton.InferenceServerClient.generate_request_body([tensor])
    assert all(expected.binary for expected in decoded(InferRequest(body, str(length))).outputs)
    classes = triton.InferRequestedOutput("probabilities", class_count=2)
    body, length = triton.InferenceServerClient.generate_request_body([tensor], outputs=[classes])
    response, header = encode_infer(decoded(InferRequest(body, str(length))), IRIS, OUTPUTS)
    result = triton.InferResult.from_response_body(response, header_length=header)
    assert [text.decode() for text in result.as_numpy("probabilities").ravel()] == CLASSES[2]
