"""Invalid inference requests of the protocol v2 with a part of their error message, and functions that build requests."""

import json
import math
import struct
from typing import NamedTuple

from iris_wsgi.codec.v2_request import ModelSignature, TensorSpec

MARKER = "q7marker"
MAX_ROWS = 100
LABELS = ("setosa", "versicolor", "virginica")
FEATURES, LABEL, PROBABILITIES = (
    TensorSpec("features", "FP32", (-1, 4)),
    TensorSpec("label", "INT64", (-1,)),
    TensorSpec("probabilities", "FP32", (-1, 3)),
)
IRIS = ModelSignature("iris", "1", (FEATURES,), (LABEL, PROBABILITIES), LABELS)
WORDS = ModelSignature(
    "words",
    "1",
    (TensorSpec("numbers", "FP32", (-1, 2)), TensorSpec("words", "BYTES", (-1,))),
    (TensorSpec("half", "FP16", (-1, 2)),),
)
ROW = [5.1, 3.5, 1.4, 0.2]
ROW_BYTES = struct.pack("<4f", *ROW)
DEEP = 100_000


def single_tensor_model(datatype: str, *shape: int) -> ModelSignature:
    """Returns a model whose only input and only output have the same type and shape."""
    return ModelSignature("one", "1", (TensorSpec("x", datatype, shape),), (TensorSpec("x", datatype, shape),))


class InferRequest(NamedTuple):
    """Request body, and the value of its header Inference-Header-Content-Length."""

    body: bytes
    header: str | None = None


def document(*inputs, **members) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def changed(base: dict, changes: dict) -> dict:
    """Returns `base` with changed members. A member that is changed to `...` is removed."""
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def inline(**changes) -> dict:
    return changed({"name": "features", "datatype": "FP32", "shape": [1, 4], "data": ROW}, changes)


def binary_input(**changes) -> dict:
    """Returns an input whose 16 bytes follow the JSON part."""
    return changed({"name": "features", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}, changes)


def sized(size) -> dict:
    return {"binary_data_size": size}


def infer(*inputs, **members) -> InferRequest:
    return InferRequest(document(*inputs, **members))


def with_tail(head: bytes | dict, tail: bytes = ROW_BYTES, header: str | None = None) -> InferRequest:
    head = head if isinstance(head, bytes) else document(head)
    return InferRequest(head + tail, str(len(head)) if header is None else header)


def with_value(value: str, datatype: str = "FP32") -> InferRequest:
    return InferRequest(
        document(inline(datatype=datatype, data=[1, 2, 3, MARKER])).replace(f'"{MARKER}"'.encode(), value.encode())
    )


def with_output(**parameters) -> InferRequest:
    return infer(inline(), outputs=[{"name": "probabilities", "parameters": parameters}])


def words_request(tail: bytes, count: int = 2, size: int | None = None) -> InferRequest:
    """Returns a request to the model WORDS, with strings in binary and numbers in JSON."""
    numbers = {"name": "numbers", "datatype": "FP32", "shape": [count, 2], "data": [0.5] * 2 * min(count, MAX_ROWS)}
    text = {"name": "words", "datatype": "BYTES", "shape": [count], "parameters": sized(len(tail) if size is None else size)}
    return with_tail(document(numbers, text, outputs=[{"name": "half", "parameters": {"binary_data": True}}]), tail)


NAN, INFINITE = (struct.pack("<4f", 1, 2, value, 4) for value in (math.nan, math.inf))
HEAD = document(binary_input())

# The server refuses each request with 400 and a message that contains this text.
MALFORMED = {
    # The header with the length of the JSON part.
    "header: no number": (with_tail(HEAD, header=MARKER), "digits"),
    "header: empty": (with_tail(HEAD, header=""), "digits"),
    "header: negative": (with_tail(HEAD, header="-1"), "digits"),
    "header: plus sign": (with_tail(HEAD, header=f"+{len(HEAD)}"), "digits"),
    "header: underscore": (with_tail(HEAD, header="1_0"), "digits"),
    "header: blank before": (with_tail(HEAD, header=f" {len(HEAD)}"), "digits"),
    "header: blank behind": (with_tail(HEAD, header=f"{len(HEAD)} "), "digits"),
    "header: a fraction": (with_tail(HEAD, header=f"{len(HEAD)}.0"), "digits"),
    "header: hexadecimal": (with_tail(HEAD, header="0x10"), "digits"),
    "header: exponent": (with_tail(HEAD, header="1e2"), "digits"),
    "header: Arabic digits": (with_tail(HEAD, header="\u0661\u0662"), "digits"),
    "header: a superscript": (with_tail(HEAD, header="\u00b2"), "digits"),
    "header: fullwidth digits": (with_tail(HEAD, header="\uff11"), "digits"),
    "header: two of them": (with_tail(HEAD, header=f"{len(HEAD)}, {len(HEAD)}"), "digits"),
    "header: one over the body": (with_tail(HEAD, header=str(len(HEAD) + 17)), "over the length"),
    "header: 2 GiB": (with_tail(HEAD, header=str(2**31)), "over the length"),
    "header: 2**63": (with_tail(HEAD, header=str(2**63)), "over the length"),
    "header: 5000 digits": (with_tail(HEAD, header="9" * 5000), "over the length"),
    "header: one short": (with_tail(HEAD, header=str(len(HEAD) - 1)), "not JSON"),
    "header: one long": (with_tail(HEAD, header=str(len(HEAD) + 1)), "not"),
    "header: the whole body": (with_tail(HEAD, header=str(len(HEAD) + 16)), "not"),
    "header: missing, binary behind": (InferRequest(HEAD + ROW_BYTES), "not"),
    "header: missing, binary claimed": (InferRequest(HEAD), "Inference-Header-Content-Length"),
    # The JSON part.
    "JSON: empty body": (InferRequest(b""), "empty"),
    "JSON: blank body": (InferRequest(b" \n"), "not JSON"),
    "JSON: truncated": (InferRequest(document(inline())[:-1]), "not JSON"),
    "JSON: two documents": (InferRequest(document(inline()) * 2), "not JSON"),
    "JSON: not UTF-8": (InferRequest(document(inline()) + b"\xff"), "not UTF-8"),
    "JSON: UTF-16": (InferRequest(document(inline()).decode().encode("utf-16")), "not UTF-8"),
    "JSON: byte order mark": (InferRequest(b"\xef\xbb\xbf" + document(inline())), "not JSON"),
    "JSON: an array": (InferRequest(b"[" + document(inline()) + b"]"), "must be an object"),
    "JSON: a number": (InferRequest(b"1"), "must be an object"),
    "JSON: null": (InferRequest(b"null"), "must be an object"),
    "JSON: null before the binary data": (with_tail(b"null"), "must be an object"),
    "JSON: a name twice": (InferRequest(document(inline())[:-1] + b',"inputs":[]}'), "twice"),
    "JSON: 100,000 levels": (InferRequest(b'{"inputs":' + b"[" * DEEP + b"]" * DEEP + b"}"), "nested deeper"),
    "JSON: 100,000 opening brackets": (InferRequest(b"[" * DEEP), "nested deeper"),
    "JSON: 20 levels in an unknown member": (
        InferRequest(document(inline())[:-1] + b',"x":' + b"[" * 20 + b"]" * 20 + b"}"),
        "nested deeper",
    ),
    "JSON: 900 levels in an unknown parameter": (
        InferRequest(document(inline(), parameters={"x": 0}).replace(b'"x": 0', b'"x": ' + b"[" * 900 + b"]" * 900)),
        "nested deeper",
    ),
    "JSON: NaN": (with_value("NaN"), "NaN"),
    "JSON: Infinity": (with_value("Infinity"), "Infinity"),
    "JSON: -Infinity": (with_value("-Infinity"), "Infinity"),
    "JSON: NaN in an unknown member": (InferRequest(document(inline())[:-1] + b',"x":NaN}'), "NaN"),
    "JSON: 5000 digits": (with_value("1" * 5000), "too many digits"),
    # Members of the request.
    "id: a number": (infer(inline(), id=1), "#/id"),
    "id: an object": (infer(inline(), id={MARKER: 1}), "#/id"),
    "id: half of a surrogate pair": (infer(inline(), id="\ud800"), "#/id"),
    "parameters: a list": (infer(inline(), parameters=[MARKER]), "#/parameters must be an object"),
    "timeout: negative": (infer(inline(), parameters={"timeout": -1}), "#/parameters/timeout"),
    "timeout: true": (infer(inline(), parameters={"timeout": True}), "#/parameters/timeout"),
    "timeout: a float": (infer(inline(), parameters={"timeout": 1e3}), "#/parameters/timeout"),
    "timeout: a string": (infer(inline(), parameters={"timeout": "1000"}), "#/parameters/timeout"),
    "timeout: 2**64": (infer(inline(), parameters={"timeout": 2**64}), "#/parameters/timeout"),
    "binary_data_output: 1": (infer(inline(), parameters={"binary_data_output": 1}), "true or false"),
    "binary_data_output: a string": (infer(inline(), parameters={"binary_data_output": "true"}), "true or false"),
    # The list of inputs.
    "inputs: missing": (InferRequest(b"{}"), "#/inputs must be a list"),
    "inputs: null": (InferRequest(b'{"inputs": null}'), "#/inputs must be a list"),
    "inputs: an object": (InferRequest(json.dumps({"inputs": inline()}).encode()), "#/inputs must be a list"),
    "inputs: none": (infer(), 'lacks "features"'),
    "input: null": (infer(None), "#/inputs/0"),
    "input: a list": (infer([inline()]), "#/inputs/0"),
    "input: without a name": (infer(inline(name=...)), "#/inputs/0"),
    "input: a name that is a number": (infer(inline(name=5)), "#/inputs/0"),
    "input: a name that is a list": (infer(inline(name=[])), "#/inputs/0"),
    "input: an unknown name": (infer(inline(name=MARKER)), 'which has "features"'),
    "input: the name in capitals": (infer(inline(name="FEATURES")), 'which has "features"'),
    "input: an unknown one behind the known": (infer(inline(), inline(name=MARKER)), "#/inputs/1/name"),
    "input: twice": (infer(inline(), inline()), "twice"),
    "input: parameters that are a list": (infer(inline(parameters=[])), "#/inputs/0/parameters"),
    "input: shared memory": (infer(inline(data=..., parameters={"shared_memory_region": MARKER})), "shared memory"),
    # Datatypes and shapes.
    "datatype: missing": (infer(inline(datatype=...)), "must be FP32"),
    "datatype: FP64": (infer(inline(datatype="FP64")), "must be FP32"),
    "datatype: INT32": (infer(inline(datatype="INT32", data=[1, 2, 3, 4])), "must be FP32"),
    "datatype: FP16 in binary": (with_tail(binary_input(datatype="FP16", parameters=sized(8)), ROW_BYTES[:8]), "must be FP32"),
    "datatype: lower case": (infer(inline(datatype="fp32")), "must be FP32"),
    "datatype: numpy's name": (infer(inline(datatype="float32")), "must be FP32"),
    "datatype: unknown": (infer(inline(datatype=MARKER)), "must be FP32"),
    "datatype: a number": (infer(inline(datatype=32)), "must be FP32"),
    "datatype: a list": (infer(inline(datatype=["FP32"])), "must be FP32"),
    "shape: missing": (infer(inline(shape=...)), "[n, 4]"),
    "shape: a number": (infer(inline(shape=4)), "[n, 4]"),
    "shape: a string": (infer(inline(shape="14")), "[n, 4]"),
    "shape: empty": (infer(inline(shape=[])), "[n, 4]"),
    "shape: one dimension": (infer(inline(shape=[4])), "[n, 4]"),
    "shape: three dimensions": (infer(inline(shape=[1, 1, 4])), "[n, 4]"),
    "shape: another width": (infer(inline(shape=[1, 3], data=[1, 2, 3])), "[n, 4]"),
    "shape: turned": (infer(inline(shape=[4, 1])), "[n, 4]"),
    "shape: no rows": (infer(inline(shape=[0, 4], data=[])), "at least 1"),
    "shape: no rows in binary": (with_tail(binary_input(shape=[0, 4], parameters=sized(0)), b""), "at least 1"),
    "shape: -1 rows": (infer(inline(shape=[-1, 4])), "at least 1"),
    "shape: both negative": (with_tail(binary_input(shape=[-1, -4])), "[n, 4]"),
    "shape: true": (infer(inline(shape=[True, 4])), "whole numbers"),
    "shape: a float": (infer(inline(shape=[1.0, 4])), "whole numbers"),
    "shape: floats alone": (infer(inline(shape=[1.0, 4.0])), "whole numbers"),
    "shape: strings alone": (infer(inline(shape=["1", "4"])), "whole numbers"),
    "shape: lists alone": (infer(inline(shape=[[1], [4]])), "whole numbers"),
    "shape: nulls alone": (infer(inline(shape=[None, None])), "whole numbers"),
    "shape: true alone": (infer(inline(shape=[True, True])), "whole numbers"),
    "shape: a string inside": (infer(inline(shape=["1", 4])), "whole numbers"),
    "shape: null inside": (infer(inline(shape=[None, 4])), "whole numbers"),
    "shape: a list inside": (infer(inline(shape=[[1], 4])), "whole numbers"),
    "shape: too many rows": (infer(inline(shape=[101, 4], data=ROW * 101)), "limit of 100"),
    "shape: too many rows in binary": (
        with_tail(binary_input(shape=[101, 4], parameters=sized(1616)), ROW_BYTES * 101),
        "limit of 100",
    ),
    "shape: 2**31 rows": (with_tail(binary_input(shape=[2**31, 4])), "limit of 100"),
    "shape: 2**60 rows, 2**64 bytes": (with_tail(binary_input(shape=[2**60, 4], parameters=sized(0)), b""), "limit of 100"),
    "shape: 2**63 rows": (infer(inline(shape=[2**63, 4])), "limit of 100"),
    "shape: 4000 digits": (infer(inline(shape=[10**4000, 4])), "limit of 100"),
    # Data in JSON.
    "data: missing": (infer(inline(data=...)), '"data"'),
    "data: null": (infer(inline(data=None)), '"data"'),
    "data: a number": (infer(inline(data=5)), "#/inputs/0/data must be a list"),
    "data: an object": (infer(inline(data={"0": ROW})), "#/inputs/0/data must be a list"),
    "data: a string": (infer(inline(data="5.1,3.5")), "#/inputs/0/data must be a list"),
    "data: empty": (infer(inline(data=[])), "has 0 values"),
    "data: three values": (infer(inline(data=[1, 2, 3])), "has 3 values"),
    "data: five values": (infer(inline(data=[1, 2, 3, 4, 5])), "has 5 values"),
    "data: more rows than the shape": (infer(inline(data=[ROW, ROW])), "nested differently"),
    "data: fewer rows than the shape": (infer(inline(shape=[2, 4], data=[ROW])), "nested differently"),
    "data: ragged": (infer(inline(shape=[2, 4], data=[[1, 2, 3], [1, 2, 3, 4, 5]])), "nested differently"),
    "data: nested in part": (infer(inline(shape=[2, 4], data=[ROW, *ROW])), "nested differently"),
    "data: nested behind flat values": (infer(inline(data=[1, 2, 3, [4]])), "row 0, column 3"),
    "data: nested too deep": (infer(inline(data=[[ROW]])), "nested differently"),
    "data: a string for a row": (infer(inline(shape=[2, 4], data=[ROW, "5134"])), "nested differently"),
    "data: true": (with_value("true"), "row 0, column 3"),
    "data: null inside": (with_value("null"), "row 0, column 3"),
    "data: a string inside": (with_value(f'"{MARKER}"'), "row 0, column 3"),
    "data: an object inside": (with_value("{}"), "row 0, column 3"),
    "data: 1e400": (with_value("1e400"), "finite as a 32-bit float"),
    "data: -1e400": (with_value("-1e400"), "finite as a 32-bit float"),
    "data: 3.5e38": (with_value("3.5e38"), "finite as a 32-bit float"),
    "data: the smallest double that rounds to infinity": (with_value("3.4028235677973366e38"), "finite as a 32-bit float"),
    "data: an integer that rounds to infinity": (with_value(str(int(3.4028235677973366e38) - 1)), "finite as a 32-bit float"),
    "data: an integer over every float": (with_value("1" * 4300), "finite as a 32-bit float"),
    "data: in a nested row": (infer(inline(shape=[2, 4], data=[ROW, [1, None, 3, 4]])), "row 1, column 1"),
    "data: with binary data": (with_tail(inline(parameters=sized(16))), "not both"),
    # Binary data.
    "binary: NaN": (with_tail(HEAD, NAN), "row 0, column 2"),
    "binary: infinity": (with_tail(HEAD, INFINITE), "row 0, column 2"),
    "binary: NaN in the second row": (
        with_tail(binary_input(shape=[2, 4], parameters=sized(32)), ROW_BYTES + NAN),
        "row 1, column 2",
    ),
    "binary: nothing behind": (with_tail(HEAD, b""), "over the rest"),
    "binary: truncated by one": (with_tail(HEAD, ROW_BYTES[:-1]), "over the rest"),
    "binary: one byte more": (with_tail(HEAD, ROW_BYTES + b"\0"), "the sizes must add up"),
    "binary: bytes behind an input in JSON": (with_tail(inline()), "the sizes must add up"),
    "binary: one byte behind an input in JSON": (with_tail(inline(), b"x"), "the sizes must add up"),
    "binary: size less than the shape": (with_tail(binary_input(parameters=sized(12)), ROW_BYTES[:12]), "12 bytes"),
    "binary: size more than the shape": (with_tail(binary_input(parameters=sized(20)), ROW_BYTES + b"\0" * 4), "20 bytes"),
    "binary: size of doubles": (with_tail(binary_input(parameters=sized(32)), ROW_BYTES * 2), "32 bytes"),
    "binary: size 0": (with_tail(binary_input(parameters=sized(0)), b""), "0 bytes"),
    "binary: size 0 without a header": (
        InferRequest(document(binary_input(parameters=sized(0)))),
        "Inference-Header-Content-Length",
    ),
    "binary: size -1": (with_tail(binary_input(parameters=sized(-1))), "whole number"),
    "binary: size true": (with_tail(binary_input(parameters=sized(True))), "whole number"),
    "binary: size a float": (with_tail(binary_input(parameters=sized(16.0))), "whole number"),
    "binary: size a string": (with_tail(binary_input(parameters=sized("16"))), "whole number"),
    "binary: size a list": (with_tail(binary_input(parameters=sized([16]))), "whole number"),
    "binary: size null": (with_tail(binary_input(parameters=sized(None))), '"data"'),
    "binary: size 2 GiB": (with_tail(binary_input(parameters=sized(2**31))), "over the rest"),
    "binary: size 2**63": (with_tail(binary_input(parameters=sized(2**63))), "over the rest"),
    "binary: size 2**64": (with_tail(binary_input(parameters=sized(2**64))), "whole number"),
    "binary: size and shape of 2 GiB": (with_tail(binary_input(shape=[2**27, 4], parameters=sized(2**31))), "limit of 100"),
    # A raw request.
    "raw: empty": (InferRequest(b"", "0"), "whole rows of 16 bytes"),
    "raw: truncated": (InferRequest(ROW_BYTES[:-1], "0"), "whole rows of 16 bytes"),
    "raw: a byte more": (InferRequest(ROW_BYTES + b"\0", "0"), "whole rows of 16 bytes"),
    "raw: NaN": (InferRequest(ROW_BYTES + NAN, "00"), "row 1, column 2"),
    "raw: too many rows": (InferRequest(ROW_BYTES * 101, "0"), "limit of 100"),
    # The requested outputs.
    "outputs: an object": (infer(inline(), outputs={"name": "label"}), "#/outputs must be a list"),
    "outputs: an empty object": (infer(inline(), outputs={}), "#/outputs must be a list"),
    "outputs: a string": (infer(inline(), outputs="label"), "#/outputs must be a list"),
    "output: a string": (infer(inline(), outputs=["label"]), "#/outputs/0"),
    "output: without a name": (infer(inline(), outputs=[{}]), "#/outputs/0"),
    "output: an unknown name": (infer(inline(), outputs=[{"name": MARKER}]), 'which has "label", "probabilities"'),
    "output: an input's name": (infer(inline(), outputs=[{"name": "features"}]), "#/outputs/0/name"),
    "output: twice": (infer(inline(), outputs=[{"name": "label"}, {"name": "label"}]), "#/outputs/1/name"),
    "output: parameters that are a string": (
        infer(inline(), outputs=[{"name": "label", "parameters": MARKER}]),
        "#/outputs/0/parameters",
    ),
    "output: shared memory": (with_output(shared_memory_region=MARKER), "shared memory"),
    "output: binary_data 1": (with_output(binary_data=1), "true or false"),
    "output: binary_data a string": (with_output(binary_data="no"), "true or false"),
    "output: classification -1": (with_output(classification=-1), "classification"),
    "output: classification true": (with_output(classification=True), "classification"),
    "output: classification 1.0": (with_output(classification=1.0), "classification"),
    "output: classification 2**64": (with_output(classification=2**64), "classification"),
    "output: classes of labels": (
        infer(inline(), outputs=[{"name": "label", "parameters": {"classification": 1}}]),
        "shape [rows, classes]",
    ),
}  # fmt: skip

TWO_WORDS = b"\2\0\0\0ab\0\0\0\0"
MALFORMED_WORDS = {
    "words: a length over the end": (words_request(b"\2\0\0\0ab\1\0\0\0"), "beyond the end"),
    "words: a length of 2**32 - 1": (words_request(b"\xff\xff\xff\xff\0\0\0\0"), "beyond the end"),
    "words: a length of 2 GiB": (words_request(b"\0\0\0\x80\0\0\0\0"), "beyond the end"),
    "words: half a length": (words_request(b"\3\0\0\0abc\0\0\0"), "beyond the end"),
    "words: one missing": (words_request(b"\2\0\0\0ab"), "elements alone require"),
    "words: one more": (words_request(TWO_WORDS + b"\0\0\0\0"), "after its last element"),
    "words: a byte more": (words_request(TWO_WORDS + b"\0"), "after its last element"),
    "words: none": (words_request(b""), "elements alone require"),
    "words: big-endian lengths": (words_request(b"\0\0\0\2ab\0\0\0\0"), "beyond the end"),
    "words: 2**40 claimed": (words_request(TWO_WORDS, count=2**40), "limit of 100"),
    "words: without the numbers": (
        with_tail(document(json.loads(words_request(TWO_WORDS).body[:-10])["inputs"][1]), TWO_WORDS),
        'lacks "numbers"',
    ),
    "words: more of them than numbers": (
        infer(
            {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
            {"name": "words", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
            parameters={"binary_data_output": True},
        ),
        "different numbers of rows",
    ),
    "words: FP16 asked for in JSON": (
        infer(
            {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
            {"name": "words", "datatype": "BYTES", "shape": [1], "data": ["a"]},
        ),
        "FP16",
    ),
    "words: a raw request": (InferRequest(b"\0" * 8, "0"), "cannot take"),
}
