"""Infer requests that must be refused, each with words of its refusal, and the small parts that they are made of."""

import json
import math
import struct
from typing import NamedTuple

from iris_wsgi.codec.v2_request import Served, Spec

MARK = "q7marker"
MOST = 100
LABELS = ("setosa", "versicolor", "virginica")
FEATURES, LABEL, PROBABILITIES = (
    Spec("features", "FP32", (-1, 4)),
    Spec("label", "INT64", (-1,)),
    Spec("probabilities", "FP32", (-1, 3)),
)
IRIS = Served("iris", "1", (FEATURES,), (LABEL, PROBABILITIES), LABELS)
WORDS = Served("words", "1", (Spec("numbers", "FP32", (-1, 2)), Spec("words", "BYTES", (-1,))), (Spec("half", "FP16", (-1, 2)),))
ROW = [5.1, 3.5, 1.4, 0.2]
ROW_BYTES = struct.pack("<4f", *ROW)
DEEP = 100_000


def one(datatype: str, *shape: int) -> Served:
    """A model with one input and one output, both alike."""
    return Served("one", "1", (Spec("x", datatype, shape),), (Spec("x", datatype, shape),))


class Sent(NamedTuple):
    """A request: its body and its Inference-Header-Content-Length."""

    body: bytes
    header: str | None = None


def document(*inputs, **members) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def changed(base: dict, changes: dict) -> dict:
    """`base` with members changed, and without those that are changed to `...`."""
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def plain(**changes) -> dict:
    return changed({"name": "features", "datatype": "FP32", "shape": [1, 4], "data": ROW}, changes)


def claim(**changes) -> dict:
    """An input whose 16 bytes stand behind the JSON part."""
    return changed({"name": "features", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}, changes)


def sized(size) -> dict:
    return {"binary_data_size": size}


def sent(*inputs, **members) -> Sent:
    return Sent(document(*inputs, **members))


def binary(head: bytes | dict, tail: bytes = ROW_BYTES, header: str | None = None) -> Sent:
    head = head if isinstance(head, bytes) else document(head)
    return Sent(head + tail, str(len(head)) if header is None else header)


def in_row(value: str, datatype: str = "FP32") -> Sent:
    return Sent(document(plain(datatype=datatype, data=[1, 2, 3, MARK])).replace(f'"{MARK}"'.encode(), value.encode()))


def asked(**parameters) -> Sent:
    return sent(plain(), outputs=[{"name": "probabilities", "parameters": parameters}])


def words(tail: bytes, count: int = 2, size: int | None = None) -> Sent:
    """Strings of the model WORDS in binary beside numbers in JSON."""
    numbers = {"name": "numbers", "datatype": "FP32", "shape": [count, 2], "data": [0.5] * 2 * min(count, MOST)}
    text = {"name": "words", "datatype": "BYTES", "shape": [count], "parameters": sized(len(tail) if size is None else size)}
    return binary(document(numbers, text, outputs=[{"name": "half", "parameters": {"binary_data": True}}]), tail)


NAN, INFINITE = (struct.pack("<4f", 1, 2, value, 4) for value in (math.nan, math.inf))
HEAD = document(claim())

# Each is refused with 400 and a sentence that has this word in it.
MALFORMED = {
    # The field that tells how long the JSON part is.
    "header: no number": (binary(HEAD, header=MARK), "digits"),
    "header: empty": (binary(HEAD, header=""), "digits"),
    "header: negative": (binary(HEAD, header="-1"), "digits"),
    "header: plus sign": (binary(HEAD, header=f"+{len(HEAD)}"), "digits"),
    "header: underscore": (binary(HEAD, header="1_0"), "digits"),
    "header: blank before": (binary(HEAD, header=f" {len(HEAD)}"), "digits"),
    "header: blank behind": (binary(HEAD, header=f"{len(HEAD)} "), "digits"),
    "header: a fraction": (binary(HEAD, header=f"{len(HEAD)}.0"), "digits"),
    "header: hexadecimal": (binary(HEAD, header="0x10"), "digits"),
    "header: exponent": (binary(HEAD, header="1e2"), "digits"),
    "header: Arabic digits": (binary(HEAD, header="\u0661\u0662"), "digits"),
    "header: a superscript": (binary(HEAD, header="\u00b2"), "digits"),
    "header: fullwidth digits": (binary(HEAD, header="\uff11"), "digits"),
    "header: two of them": (binary(HEAD, header=f"{len(HEAD)}, {len(HEAD)}"), "digits"),
    "header: one over the body": (binary(HEAD, header=str(len(HEAD) + 17)), "over the length"),
    "header: 2 GiB": (binary(HEAD, header=str(2**31)), "over the length"),
    "header: 2**63": (binary(HEAD, header=str(2**63)), "over the length"),
    "header: 5000 digits": (binary(HEAD, header="9" * 5000), "over the length"),
    "header: one short": (binary(HEAD, header=str(len(HEAD) - 1)), "not JSON"),
    "header: one long": (binary(HEAD, header=str(len(HEAD) + 1)), "not"),
    "header: the whole body": (binary(HEAD, header=str(len(HEAD) + 16)), "not"),
    "header: missing, binary behind": (Sent(HEAD + ROW_BYTES), "not"),
    "header: missing, binary claimed": (Sent(HEAD), "Inference-Header-Content-Length"),
    # The JSON part.
    "JSON: empty body": (Sent(b""), "empty"),
    "JSON: blank body": (Sent(b" \n"), "not JSON"),
    "JSON: truncated": (Sent(document(plain())[:-1]), "not JSON"),
    "JSON: two documents": (Sent(document(plain()) * 2), "not JSON"),
    "JSON: not UTF-8": (Sent(document(plain()) + b"\xff"), "not UTF-8"),
    "JSON: UTF-16": (Sent(document(plain()).decode().encode("utf-16")), "not UTF-8"),
    "JSON: byte order mark": (Sent(b"\xef\xbb\xbf" + document(plain())), "not JSON"),
    "JSON: an array": (Sent(b"[" + document(plain()) + b"]"), "must be an object"),
    "JSON: a number": (Sent(b"1"), "must be an object"),
    "JSON: null": (Sent(b"null"), "must be an object"),
    "JSON: null before the binary data": (binary(b"null"), "must be an object"),
    "JSON: a name twice": (Sent(document(plain())[:-1] + b',"inputs":[]}'), "twice"),
    "JSON: 100,000 levels": (Sent(b'{"inputs":' + b"[" * DEEP + b"]" * DEEP + b"}"), "nested deeper"),
    "JSON: 100,000 opening brackets": (Sent(b"[" * DEEP), "nested deeper"),
    "JSON: 20 levels in an unknown member": (
        Sent(document(plain())[:-1] + b',"x":' + b"[" * 20 + b"]" * 20 + b"}"),
        "nested deeper",
    ),
    "JSON: 900 levels in an unknown parameter": (
        Sent(document(plain(), parameters={"x": 0}).replace(b'"x": 0', b'"x": ' + b"[" * 900 + b"]" * 900)),
        "nested deeper",
    ),
    "JSON: NaN": (in_row("NaN"), "NaN"),
    "JSON: Infinity": (in_row("Infinity"), "Infinity"),
    "JSON: -Infinity": (in_row("-Infinity"), "Infinity"),
    "JSON: NaN in an unknown member": (Sent(document(plain())[:-1] + b',"x":NaN}'), "NaN"),
    "JSON: 5000 digits": (in_row("1" * 5000), "too many digits"),
    # Members of the request.
    "id: a number": (sent(plain(), id=1), "#/id"),
    "id: an object": (sent(plain(), id={MARK: 1}), "#/id"),
    "id: half of a surrogate pair": (sent(plain(), id="\ud800"), "#/id"),
    "parameters: a list": (sent(plain(), parameters=[MARK]), "#/parameters must be an object"),
    "timeout: negative": (sent(plain(), parameters={"timeout": -1}), "#/parameters/timeout"),
    "timeout: true": (sent(plain(), parameters={"timeout": True}), "#/parameters/timeout"),
    "timeout: a float": (sent(plain(), parameters={"timeout": 1e3}), "#/parameters/timeout"),
    "timeout: a string": (sent(plain(), parameters={"timeout": "1000"}), "#/parameters/timeout"),
    "timeout: 2**64": (sent(plain(), parameters={"timeout": 2**64}), "#/parameters/timeout"),
    "binary_data_output: 1": (sent(plain(), parameters={"binary_data_output": 1}), "true or false"),
    "binary_data_output: a string": (sent(plain(), parameters={"binary_data_output": "true"}), "true or false"),
    # Which inputs there are.
    "inputs: missing": (Sent(b"{}"), "#/inputs must be a list"),
    "inputs: null": (Sent(b'{"inputs": null}'), "#/inputs must be a list"),
    "inputs: an object": (Sent(json.dumps({"inputs": plain()}).encode()), "#/inputs must be a list"),
    "inputs: none": (sent(), 'lacks "features"'),
    "input: null": (sent(None), "#/inputs/0"),
    "input: a list": (sent([plain()]), "#/inputs/0"),
    "input: without a name": (sent(plain(name=...)), "#/inputs/0"),
    "input: a name that is a number": (sent(plain(name=5)), "#/inputs/0"),
    "input: a name that is a list": (sent(plain(name=[])), "#/inputs/0"),
    "input: an unknown name": (sent(plain(name=MARK)), 'which has "features"'),
    "input: the name in capitals": (sent(plain(name="FEATURES")), 'which has "features"'),
    "input: an unknown one behind the known": (sent(plain(), plain(name=MARK)), "#/inputs/1/name"),
    "input: twice": (sent(plain(), plain()), "twice"),
    "input: parameters that are a list": (sent(plain(parameters=[])), "#/inputs/0/parameters"),
    "input: shared memory": (sent(plain(data=..., parameters={"shared_memory_region": MARK})), "shared memory"),
    # Datatypes and shapes.
    "datatype: missing": (sent(plain(datatype=...)), "must be FP32"),
    "datatype: FP64": (sent(plain(datatype="FP64")), "must be FP32"),
    "datatype: INT32": (sent(plain(datatype="INT32", data=[1, 2, 3, 4])), "must be FP32"),
    "datatype: FP16 in binary": (binary(claim(datatype="FP16", parameters=sized(8)), ROW_BYTES[:8]), "must be FP32"),
    "datatype: lower case": (sent(plain(datatype="fp32")), "must be FP32"),
    "datatype: numpy's name": (sent(plain(datatype="float32")), "must be FP32"),
    "datatype: unknown": (sent(plain(datatype=MARK)), "must be FP32"),
    "datatype: a number": (sent(plain(datatype=32)), "must be FP32"),
    "datatype: a list": (sent(plain(datatype=["FP32"])), "must be FP32"),
    "shape: missing": (sent(plain(shape=...)), "[n, 4]"),
    "shape: a number": (sent(plain(shape=4)), "[n, 4]"),
    "shape: a string": (sent(plain(shape="14")), "[n, 4]"),
    "shape: empty": (sent(plain(shape=[])), "[n, 4]"),
    "shape: one dimension": (sent(plain(shape=[4])), "[n, 4]"),
    "shape: three dimensions": (sent(plain(shape=[1, 1, 4])), "[n, 4]"),
    "shape: another width": (sent(plain(shape=[1, 3], data=[1, 2, 3])), "[n, 4]"),
    "shape: turned": (sent(plain(shape=[4, 1])), "[n, 4]"),
    "shape: no rows": (sent(plain(shape=[0, 4], data=[])), "at least 1"),
    "shape: no rows in binary": (binary(claim(shape=[0, 4], parameters=sized(0)), b""), "at least 1"),
    "shape: -1 rows": (sent(plain(shape=[-1, 4])), "at least 1"),
    "shape: both negative": (binary(claim(shape=[-1, -4])), "[n, 4]"),
    "shape: true": (sent(plain(shape=[True, 4])), "whole numbers"),
    "shape: a float": (sent(plain(shape=[1.0, 4])), "whole numbers"),
    "shape: floats alone": (sent(plain(shape=[1.0, 4.0])), "whole numbers"),
    "shape: strings alone": (sent(plain(shape=["1", "4"])), "whole numbers"),
    "shape: lists alone": (sent(plain(shape=[[1], [4]])), "whole numbers"),
    "shape: nulls alone": (sent(plain(shape=[None, None])), "whole numbers"),
    "shape: true alone": (sent(plain(shape=[True, True])), "whole numbers"),
    "shape: a string inside": (sent(plain(shape=["1", 4])), "whole numbers"),
    "shape: null inside": (sent(plain(shape=[None, 4])), "whole numbers"),
    "shape: a list inside": (sent(plain(shape=[[1], 4])), "whole numbers"),
    "shape: too many rows": (sent(plain(shape=[101, 4], data=ROW * 101)), "limit of 100"),
    "shape: too many rows in binary": (binary(claim(shape=[101, 4], parameters=sized(1616)), ROW_BYTES * 101), "limit of 100"),
    "shape: 2**31 rows": (binary(claim(shape=[2**31, 4])), "limit of 100"),
    "shape: 2**60 rows, 2**64 bytes": (binary(claim(shape=[2**60, 4], parameters=sized(0)), b""), "limit of 100"),
    "shape: 2**63 rows": (sent(plain(shape=[2**63, 4])), "limit of 100"),
    "shape: 4000 digits": (sent(plain(shape=[10**4000, 4])), "limit of 100"),
    # Data in JSON.
    "data: missing": (sent(plain(data=...)), '"data"'),
    "data: null": (sent(plain(data=None)), '"data"'),
    "data: a number": (sent(plain(data=5)), "#/inputs/0/data must be a list"),
    "data: an object": (sent(plain(data={"0": ROW})), "#/inputs/0/data must be a list"),
    "data: a string": (sent(plain(data="5.1,3.5")), "#/inputs/0/data must be a list"),
    "data: empty": (sent(plain(data=[])), "has 0 values"),
    "data: three values": (sent(plain(data=[1, 2, 3])), "has 3 values"),
    "data: five values": (sent(plain(data=[1, 2, 3, 4, 5])), "has 5 values"),
    "data: more rows than the shape": (sent(plain(data=[ROW, ROW])), "nested otherwise"),
    "data: fewer rows than the shape": (sent(plain(shape=[2, 4], data=[ROW])), "nested otherwise"),
    "data: ragged": (sent(plain(shape=[2, 4], data=[[1, 2, 3], [1, 2, 3, 4, 5]])), "nested otherwise"),
    "data: nested in part": (sent(plain(shape=[2, 4], data=[ROW, *ROW])), "nested otherwise"),
    "data: nested behind flat values": (sent(plain(data=[1, 2, 3, [4]])), "row 0, column 3"),
    "data: nested too deep": (sent(plain(data=[[ROW]])), "nested otherwise"),
    "data: a string for a row": (sent(plain(shape=[2, 4], data=[ROW, "5134"])), "nested otherwise"),
    "data: true": (in_row("true"), "row 0, column 3"),
    "data: null inside": (in_row("null"), "row 0, column 3"),
    "data: a string inside": (in_row(f'"{MARK}"'), "row 0, column 3"),
    "data: an object inside": (in_row("{}"), "row 0, column 3"),
    "data: 1e400": (in_row("1e400"), "finite as a 32-bit float"),
    "data: -1e400": (in_row("-1e400"), "finite as a 32-bit float"),
    "data: 3.5e38": (in_row("3.5e38"), "finite as a 32-bit float"),
    "data: the smallest double that rounds to infinity": (in_row("3.4028235677973366e38"), "finite as a 32-bit float"),
    "data: an integer that rounds to infinity": (in_row(str(int(3.4028235677973366e38) - 1)), "finite as a 32-bit float"),
    "data: an integer over every float": (in_row("1" * 4300), "finite as a 32-bit float"),
    "data: in a nested row": (sent(plain(shape=[2, 4], data=[ROW, [1, None, 3, 4]])), "row 1, column 1"),
    "data: with binary data": (binary(plain(parameters=sized(16))), "not both"),
    # Binary data.
    "binary: NaN": (binary(HEAD, NAN), "row 0, column 2"),
    "binary: infinity": (binary(HEAD, INFINITE), "row 0, column 2"),
    "binary: NaN in the second row": (binary(claim(shape=[2, 4], parameters=sized(32)), ROW_BYTES + NAN), "row 1, column 2"),
    "binary: nothing behind": (binary(HEAD, b""), "over what is left"),
    "binary: truncated by one": (binary(HEAD, ROW_BYTES[:-1]), "over what is left"),
    "binary: one byte more": (binary(HEAD, ROW_BYTES + b"\0"), "no binary_data_size counts"),
    "binary: bytes behind an input in JSON": (binary(plain()), "no binary_data_size counts"),
    "binary: one byte behind an input in JSON": (binary(plain(), b"x"), "no binary_data_size counts"),
    "binary: size less than the shape": (binary(claim(parameters=sized(12)), ROW_BYTES[:12]), "12 bytes"),
    "binary: size more than the shape": (binary(claim(parameters=sized(20)), ROW_BYTES + b"\0" * 4), "20 bytes"),
    "binary: size of doubles": (binary(claim(parameters=sized(32)), ROW_BYTES * 2), "32 bytes"),
    "binary: size 0": (binary(claim(parameters=sized(0)), b""), "0 bytes"),
    "binary: size 0 without a header": (Sent(document(claim(parameters=sized(0)))), "Inference-Header-Content-Length"),
    "binary: size -1": (binary(claim(parameters=sized(-1))), "whole number"),
    "binary: size true": (binary(claim(parameters=sized(True))), "whole number"),
    "binary: size a float": (binary(claim(parameters=sized(16.0))), "whole number"),
    "binary: size a string": (binary(claim(parameters=sized("16"))), "whole number"),
    "binary: size a list": (binary(claim(parameters=sized([16]))), "whole number"),
    "binary: size null": (binary(claim(parameters=sized(None))), '"data"'),
    "binary: size 2 GiB": (binary(claim(parameters=sized(2**31))), "over what is left"),
    "binary: size 2**63": (binary(claim(parameters=sized(2**63))), "over what is left"),
    "binary: size 2**64": (binary(claim(parameters=sized(2**64))), "whole number"),
    "binary: size and shape of 2 GiB": (binary(claim(shape=[2**27, 4], parameters=sized(2**31))), "limit of 100"),
    # A raw request.
    "raw: empty": (Sent(b"", "0"), "whole rows of 16 bytes"),
    "raw: truncated": (Sent(ROW_BYTES[:-1], "0"), "whole rows of 16 bytes"),
    "raw: a byte more": (Sent(ROW_BYTES + b"\0", "0"), "whole rows of 16 bytes"),
    "raw: NaN": (Sent(ROW_BYTES + NAN, "00"), "row 1, column 2"),
    "raw: too many rows": (Sent(ROW_BYTES * 101, "0"), "limit of 100"),
    # What is wanted back.
    "outputs: an object": (sent(plain(), outputs={"name": "label"}), "#/outputs must be a list"),
    "outputs: an empty object": (sent(plain(), outputs={}), "#/outputs must be a list"),
    "outputs: a string": (sent(plain(), outputs="label"), "#/outputs must be a list"),
    "output: a string": (sent(plain(), outputs=["label"]), "#/outputs/0"),
    "output: without a name": (sent(plain(), outputs=[{}]), "#/outputs/0"),
    "output: an unknown name": (sent(plain(), outputs=[{"name": MARK}]), 'which has "label", "probabilities"'),
    "output: an input's name": (sent(plain(), outputs=[{"name": "features"}]), "#/outputs/0/name"),
    "output: twice": (sent(plain(), outputs=[{"name": "label"}, {"name": "label"}]), "#/outputs/1/name"),
    "output: parameters that are a string": (
        sent(plain(), outputs=[{"name": "label", "parameters": MARK}]),
        "#/outputs/0/parameters",
    ),
    "output: shared memory": (asked(shared_memory_region=MARK), "shared memory"),
    "output: binary_data 1": (asked(binary_data=1), "true or false"),
    "output: binary_data a string": (asked(binary_data="no"), "true or false"),
    "output: classification -1": (asked(classification=-1), "classification"),
    "output: classification true": (asked(classification=True), "classification"),
    "output: classification 1.0": (asked(classification=1.0), "classification"),
    "output: classification 2**64": (asked(classification=2**64), "classification"),
    "output: classes of labels": (
        sent(plain(), outputs=[{"name": "label", "parameters": {"classification": 1}}]),
        "shape [rows, classes]",
    ),
}  # fmt: skip

TWO_WORDS = b"\2\0\0\0ab\0\0\0\0"
MALFORMED_WORDS = {
    "words: a length over the end": (words(b"\2\0\0\0ab\1\0\0\0"), "beyond the end"),
    "words: a length of 2**32 - 1": (words(b"\xff\xff\xff\xff\0\0\0\0"), "beyond the end"),
    "words: a length of 2 GiB": (words(b"\0\0\0\x80\0\0\0\0"), "beyond the end"),
    "words: half a length": (words(b"\3\0\0\0abc\0\0\0"), "beyond the end"),
    "words: one missing": (words(b"\2\0\0\0ab"), "lengths of its elements alone"),
    "words: one more": (words(TWO_WORDS + b"\0\0\0\0"), "more bytes"),
    "words: a byte more": (words(TWO_WORDS + b"\0"), "more bytes"),
    "words: none": (words(b""), "lengths of its elements alone"),
    "words: big-endian lengths": (words(b"\0\0\0\2ab\0\0\0\0"), "beyond the end"),
    "words: 2**40 claimed": (words(TWO_WORDS, count=2**40), "limit of 100"),
    "words: without the numbers": (
        binary(document(json.loads(words(TWO_WORDS).body[:-10])["inputs"][1]), TWO_WORDS),
        'lacks "numbers"',
    ),
    "words: more of them than numbers": (
        sent(
            {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
            {"name": "words", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
            parameters={"binary_data_output": True},
        ),
        "different numbers of rows",
    ),
    "words: FP16 asked for in JSON": (
        sent(
            {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
            {"name": "words", "datatype": "BYTES", "shape": [1], "data": ["a"]},
        ),
        "FP16",
    ),
    "words: a raw request": (Sent(b"\0" * 8, "0"), "cannot take"),
}
