"""Models from graphs in the text syntax of ONNX, with float32 rows of three features and predictions of three columns."""

from collections.abc import Sequence

import onnx.parser

from iris_wsgi.model.artifact import ModelDescription
from iris_wsgi.model.session import Model, ModelFiles

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'
# The width of the output depends on the sign of the smallest value.
IF = """g (float[N, 3] x) => (float[N, M] y) {
    low = ReduceMin<keepdims=0>(x)
    zero = Constant<value = float {0.0}>()
    is_over = Greater(low, zero)
    y = If (is_over) <
        then_branch = a () => (float[N, 3] same) { same = Neg(x) },
        else_branch = b () => (float[N, M] wide) { wide = Concat<axis=1>(x, x) }
    >
}"""
# Doubles the row as often as its highest value says. Millions of times take seconds.
LOOP = """g (float[N, 3] x) => (float[N, 3] y) {
    high = ReduceMax<keepdims=0>(x)
    times = Cast<to=7>(high)
    yes = Constant<value = bool {1}>()
    y = Loop (times, yes, x) <
        body = b (int64 i, bool c, float[N, 3] s) => (bool c2, float[N, 3] s2) { c2 = Identity(c) s2 = Add(s, s) }
    >
}"""
SCAN = """g (float[N, 3] x) => (float[N, 3] y) {
    zero = Constant<value = float[1] {0.0}>()
    last, y = Scan <
        num_scan_inputs=1,
        body = b (float[1] s, float[3] row) => (float[1] s2, float[3] out) { s2 = Identity(s) out = Add(row, s) }
    > (zero, x)
}"""
# The number of rows of the output depends on the highest value.
RESHAPE = """g (float[N, 3] x) => (float[N, M] y) {
    high = ReduceMax(x)
    width = Cast<to=7>(high)
    rest = Constant<value = int64[1] {-1}>()
    flat = Reshape(width, rest)
    shape = Concat<axis=0>(rest, flat)
    y = Reshape(x, shape)
}"""
# Sums the whole numbers below the highest value.
RANGE = """g (float[N, 3] x) => (float[N, 3] y) {
    high = ReduceMax<keepdims=0>(x)
    zero = Constant<value = float {0.0}>()
    one = Constant<value = float {1.0}>()
    numbers = Range(zero, high, one)
    sum = ReduceSum<keepdims=0>(numbers)
    y = Add(x, sum)
}"""
# The loop is in a function of the file.
FUNCTION = """<ir_version: 8, opset_import: ["": 18, "own": 1]>
g (float[N, 3] x) => (float[N, 3] y) { y = own.repeat(x) }
<domain: "own", opset_import: ["": 18]>
repeat (x) => (y) """ + LOOP[LOOP.index("{") :]
PLAIN = "g (float[N, 3] x) => (float[N, 3] y) { y = Neg(x) }"


def graph_bytes(text: str) -> bytes:
    return onnx.parser.parse_model(text if text.startswith("<") else HEAD + text).SerializeToString()


def regressor_of(content: bytes, columns: Sequence[str] = ("a", "b", "c")) -> Model:
    return Model(ModelFiles(content, "model.onnx"), ModelDescription(kind="regressor", columns=tuple(columns)))
