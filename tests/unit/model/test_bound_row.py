"""Rows in memory that is bound to the session: the predictions of Model.predict, and never those of an earlier row."""

import random
import struct
import threading
import time
from math import inf, isfinite

import graph_texts
import numpy as np
import onnxruntime
import pytest
from graph_texts import graph_bytes, regressor_of
from http_clients import wait_until
from packed_models import KINDS, LIMIT, write_model
from project import MODEL
from sealed_models import seal
from small_models import graph_of, logistic, write_graph

from iris_wsgi.codec.model_schema import FLOAT32_MAX, FLOAT64_MAX
from iris_wsgi.errors import PARSED_TOO_LATE, RAN_TOO_LONG, DeadlineExceeded, InvalidOutput
from iris_wsgi.model import golden, predictor
from iris_wsgi.model.predictor import ModelMetrics, RunWatchdog, bind_row, row_predictor
from iris_wsgi.model.session import load_model
from iris_wsgi.observability.metrics import Registry

# Models with one input of floats, and one output of float32 for each column.
BOUND_KINDS = [
    "float64 input", "missing values", "missing values in float64", "the label of the highest probability", "classes 10, 20, 30",
    "classes -1 and 1", "int32 classes in a column", "bool classes", "string classes", "regressor", "regressor of a column",
    "regressor of three targets", "tree classifier", "weights in a second file", "free widths", "free widths of a regressor",
    "free widths and two probabilities", "free width of missing values",
]  # fmt: skip


class Bound:
    """A model whose rows are bound, with the predictor of one row and its metrics."""

    def __init__(self, model, sample, watchdog=None) -> None:
        self.model, self.row = model, bind_row(model, np.array(sample, model.schema.dtype))
        assert self.row is not None
        self.metrics = ModelMetrics(Registry(), model, model.outputs)
        self.predict = row_predictor(self.row, watchdog, self.metrics)

    def expected(self, row) -> np.ndarray:
        """Returns the prediction of Model.predict, as the handler of many rows gets it."""
        return self.model.predict(self.model.schema.floats(list(row)))

    def check(self, row) -> None:
        """Compares the bits of both predictions. The predictor leaves those that are not finite to the handler."""
        given, expected = self.predict(row, inf), self.expected(row)
        if not np.isfinite(expected).all():
            assert given is None, row
        else:
            assert given is not None and np.array([given], np.float32).tobytes() == expected.tobytes(), row


def loaded(folder):
    """Returns the model of a folder after its self-test, and the rows of the test."""
    model, pinned, _ = golden.load_verified_model(folder, "")
    return model, golden.golden_array(model, pinned.cases)


def random_values(drawn: random.Random, largest: float):
    """Yields numbers as JSON has them: usual, whole, tiny, negative zero, next to halfway between floats, and huge."""
    while True:
        kind = drawn.randrange(9)
        if kind == 0:
            yield drawn.choice([0.0, -0.0, 0, -1, 1e-45, -1e-45, 5e-324, 1.17549435e-38, largest, -largest, int(largest) // 3])
        elif kind == 1:
            yield drawn.randint(-10, 10)
        elif kind == 2:
            yield drawn.randint(-(2**70), 2**70)
        elif kind == 3:
            # Halfway between two float32, and one float64 next to it.
            (low,) = struct.unpack("f", struct.pack("I", drawn.randrange(0x00000001, 0x7F000000)))
            (high,) = struct.unpack("f", struct.pack("I", struct.unpack("I", struct.pack("f", low))[0] + 1))
            yield drawn.choice([(low + high) / 2, np.nextafter((low + high) / 2, 0.0).item()])
        elif kind == 4:
            yield drawn.choice([-1, 1]) * 2.0 ** drawn.uniform(-149, 126)
        else:
            yield round(drawn.uniform(-1, 8), drawn.randrange(18))


def random_rows(model, count: int, seed: int = 0):
    values = random_values(random.Random(seed), FLOAT32_MAX if model.schema.dtype == np.float32 else FLOAT64_MAX)
    for _ in range(count):
        yield [next(values) for _ in range(model.width)]


def test_every_row_of_the_iris_model_gets_the_bits_of_the_usual_prediction():
    bound, finite = Bound(*loaded(MODEL)), 0
    for row in random_rows(bound.model, 5000):
        bound.check(row)
        finite += bool(np.isfinite(bound.expected(row)).all())
    bound.metrics.flush()
    assert bound.metrics.cells[bound.metrics.runs.first[()]] == finite > 4000


@pytest.mark.parametrize("kind", BOUND_KINDS)
def test_every_row_of_a_small_model_gets_the_bits_of_the_usual_prediction(tmp_path, kind):
    bound = Bound(*loaded(write_model(tmp_path, kind)))
    for row in random_rows(bound.model, 500):
        bound.check(row)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - set(BOUND_KINDS)))
def test_a_model_of_other_inputs_or_outputs_has_no_bound_row(tmp_path, kind):
    assert bind_row(*loaded(write_model(tmp_path, kind))) is None


@pytest.mark.parametrize("has_map", [False, True])
def test_a_classifier_of_a_converter_is_bound_unless_its_output_is_a_map(tmp_path, has_map):
    write_graph(tmp_path, graph_of(logistic(), zipmap=has_map), {"0": "low", "1": "mid", "2": "high"})
    seal(tmp_path)
    model, sample = loaded(tmp_path)
    if has_map:
        assert bind_row(model, sample) is None
        return
    bound = Bound(model, sample)
    for row in random_rows(model, 500):
        bound.check(row)


def test_a_model_that_gives_another_prediction_for_the_same_row_has_no_bound_row():
    model = regressor_of(graph_bytes("g (float[N, 3] x) => (float[N, 3] y) { y = RandomNormalLike(x) }"))
    assert bind_row(model, np.ones((1, 3), np.float32)) is None


def test_a_model_of_one_column_of_rank_one_has_no_bound_row():
    model = regressor_of(graph_bytes("g (float[N] x) => (float[N] y) { y = Neg(x) }"), ["a"])
    assert model.predict(np.array([[2.0]], np.float32)).tolist() == [[-2.0]]
    assert bind_row(model, np.array([[2.0]], np.float32)) is None


def test_each_row_of_the_sample_is_compared():
    model = regressor_of(graph_bytes(graph_texts.PLAIN))
    sample, predict = np.array([[1, 2, 3], [4, 5, 6]], np.float32), model.predict
    assert bind_row(model, sample) is not None
    model.predict = lambda rows: predict(rows) + (rows[0, 0] == 4)
    assert bind_row(model, sample) is None


@pytest.mark.parametrize("kind", ["fewer rows", "another width"])
def test_an_output_of_another_shape_is_left_to_the_handler_and_never_replaced_by_an_earlier_one(tmp_path, kind):
    bound = Bound(*loaded(write_model(tmp_path, kind)))
    for i in range(20):
        good, wrong = [i / 8, 1.0, -2.0, 0.5], [LIMIT + 1, 1.0, -2.0, 0.5]
        bound.check(good)
        assert bound.predict(wrong, inf) is None
        with pytest.raises(InvalidOutput):
            bound.expected(wrong)
    assert len(bound.metrics.collected) == 20


def test_an_output_that_is_not_a_number_is_left_to_the_handler_and_not_counted(tmp_path):
    bound = Bound(*loaded(write_model(tmp_path, "not a number")))
    for i in range(20):
        bound.check([i / 8, 1.0, -2.0, 0.5])
        assert bound.predict([LIMIT + 1, 1.0, -2.0, 0.5], inf) is None
    assert len(bound.metrics.collected) == 20


def test_an_infinite_output_is_left_to_the_handler_and_not_counted():
    bound = Bound(regressor_of(graph_bytes("g (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }")), [[1, 2, 3]])
    for row in ([1, 2, 3e38], [-3e38, 2, 3]):
        assert not isfinite(sum(bound.expected(row)[0])) and bound.predict(row, inf) is None
    assert bound.predict([1, 2, 1e38], inf) is not None and len(bound.metrics.collected) == 1


@pytest.mark.parametrize(
    ("text", "good", "wrong"),
    [(graph_texts.IF, [1.0, 2.0, 3.0], [-1.0, 2.0, 3.0]), (graph_texts.RESHAPE, [3.0, 2.0, 1.0], [1.0, 0.5, 0.25])],
)
@pytest.mark.parametrize("is_watched", [False, True])
def test_after_an_output_of_another_shape_the_next_row_gets_its_own_prediction(text, good, wrong, is_watched):
    bound = Bound(regressor_of(graph_bytes(text)), [good], RunWatchdog() if is_watched else None)
    deadline = time.monotonic() + 3600
    for i in range(5):
        row = [good[0], good[1] + i / 8, good[2]]
        assert bound.predict(row, deadline) == bound.expected(row)[0].tolist()
        assert bound.predict(wrong, deadline) is None
    assert [run[0][1] for run in bound.metrics.collected] == [good[1] + i / 8 for i in range(5)]


def test_a_session_that_fails_leaves_the_row_to_the_handler():
    bound = Bound(regressor_of(graph_bytes(graph_texts.PLAIN)), [[1, 2, 3]])
    run, failing = bound.row.run, True

    def fail_or_run(options):
        if failing:
            raise RuntimeError("no memory")
        return run(options)

    bound.row.run = fail_or_run
    assert bound.predict([4.0, 5.0, 6.0], inf) is None
    failing = False
    assert bound.predict([7.0, 8.0, 9.0], inf) == [-7.0, -8.0, -9.0]
    assert [row for row, _, _ in bound.metrics.collected] == [[7.0, 8.0, 9.0]]


@pytest.mark.parametrize("is_watched", [False, True])
def test_nothing_runs_and_nothing_is_counted_after_the_deadline(is_watched, monkeypatch):
    monkeypatch.setattr(predictor, "monotonic", lambda: 1000.0)
    bound = Bound(regressor_of(graph_bytes(graph_texts.PLAIN)), [[1, 2, 3]], RunWatchdog() if is_watched else None)
    runs, run = [], bound.row.run
    bound.row.run = lambda options: (runs.append(1), run(options))
    for deadline in (1000.0, 999.0, -inf):
        with pytest.raises(DeadlineExceeded, match=PARSED_TOO_LATE):
            bound.predict([1.0, 2.0, 3.0], deadline)
    assert not runs and not bound.metrics.collected
    assert bound.predict([1.0, 2.0, 3.0], 1000.1) == [-1.0, -2.0, -3.0] and runs == [1]


def test_the_collected_run_has_the_row_in_its_type_and_keeps_its_values():
    bound = Bound(*loaded(MODEL))
    first = bound.predict([0.1, 3.5, 1.4, 0.2], inf)
    kept = list(first)
    bound.predict([7.0, 3.0, 6.0, 2.5], inf)
    (row, output, seconds), (other, _, _) = bound.metrics.collected
    assert row == np.float32([0.1, 3.5, 1.4, 0.2]).tolist() and other[0] == 7.0
    assert output == first == kept and seconds > 0


VARYING = {
    "If": graph_texts.IF, "Loop": graph_texts.LOOP, "Scan": graph_texts.SCAN, "Range": graph_texts.RANGE,
    "Loop in a function": graph_texts.FUNCTION,
}  # fmt: skip


@pytest.mark.parametrize("name", VARYING)
def test_a_graph_whose_time_depends_on_the_row_is_recognized(name):
    assert regressor_of(graph_bytes(VARYING[name])).has_control_flow is True


def test_a_graph_in_the_runtimes_own_format_is_treated_like_one_whose_time_depends_on_the_row(tmp_path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(graph_bytes(graph_texts.LOOP), options, providers=["CPUExecutionProvider"])
    assert regressor_of((tmp_path / "model.ort").read_bytes()).has_control_flow is True


def test_a_graph_of_plain_operators_has_a_constant_time(slow_model):
    assert load_model(MODEL)[0].has_control_flow is False
    assert load_model(slow_model)[0].has_control_flow is False
    assert regressor_of(graph_bytes(graph_texts.PLAIN)).has_control_flow is False
    # The name of an operator in other parts of the file.
    text = graph_texts.PLAIN.replace("x", "Loop").replace("y", "If")
    assert regressor_of(graph_bytes(text)).has_control_flow is False


def test_a_long_loop_is_ended_at_its_deadline_and_the_next_row_gets_its_own_prediction(monkeypatch):
    now, watchdog = [time.monotonic()], RunWatchdog()
    bound = Bound(regressor_of(graph_bytes(graph_texts.LOOP)), [[1, 2, 3]], watchdog)
    monkeypatch.setattr(predictor, "monotonic", lambda: now[0])
    # The deadline is far in the future of the real clock, so only the watchdog's clock can end the run.
    deadline, results = now[0] + 3600, []
    assert bound.predict([2.0, 1.0, 0.5], deadline) == [8.0, 4.0, 2.0]

    def run_long():
        try:
            results.append(bound.predict([2e7, 1.0, 1.0], deadline))
        except DeadlineExceeded as error:
            results.append(error.detail)

    thread = threading.Thread(target=run_long)
    thread.start()
    wait_until(lambda: results or watchdog.runs, "the run has begun")
    now[0] = deadline
    watchdog.sooner.set()
    thread.join()
    assert results == [RAN_TOO_LONG]
    for row in ([3.0, 1.0, 0.25], [0.0, -1.0, -2.0]):
        assert bound.predict(row, now[0] + 3600) == bound.expected(row)[0].tolist()
    assert len(bound.metrics.collected) == 3 and watchdog.runs == {}
