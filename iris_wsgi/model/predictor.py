"""The predictor interface, its wrappers for deadlines and metrics, and the latency of a model."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from struct import Struct
from threading import get_ident
from time import monotonic, perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from iris_wsgi.codec.model_schema import Array, Feature, OutputSchema
from iris_wsgi.codec.rows import best
from iris_wsgi.errors import PARSED_TOO_LATE, RAN_TOO_LONG, DeadlineExceeded
from iris_wsgi.http.cache_headers import DEFAULT, CacheDirectives
from iris_wsgi.model.session import FLOAT32, Graph, Model, RunOptions
from iris_wsgi.observability.metrics import Counter, Histogram, Info, Registry
from iris_wsgi.observability.trace_context import RequestIds

# The time that one request may take in the I/O loop, where it blocks all other connections.
LOOP_SECONDS = 0.001
ROWS, TIMES = 64, 5
NEVER = -1
# The number of runs that are collected at most. The event loop counts them at each turn.
MAX_COLLECTED = 64


class LatencyProfile(NamedTuple):
    """Seconds of a run on one row, and of each row in a run on many."""

    single_row: float
    per_row: float

    def inline_bytes(self, max_bytes: int, row_bytes: int, other_bytes: int = 0) -> int:
        """Returns the largest body that the I/O loop may process, up to `max_bytes`, or NEVER if even one row takes too long.

        A row has at least `row_bytes`, and the rest of the body has `other_bytes`.
        """
        if self.single_row > LOOP_SECONDS:
            return NEVER
        return min(max_bytes, other_bytes + max(1, int(LOOP_SECONDS / self.per_row)) * row_bytes)

    def chunk_rows(self, max_rows: int) -> int:
        """Returns the number of rows, up to `max_rows`, whose run takes no longer than the I/O loop may be blocked.

        A model that the loop does not run itself has `max_rows`.
        """
        if self.single_row > LOOP_SECONDS:
            return max_rows
        return max(1, min(max_rows, int(LOOP_SECONDS / self.per_row)))


# For predictors that wait for other requests or servers: the I/O loop never runs them.
BLOCKING = LatencyProfile(inf, inf)


def measure(model: Model, row: Array) -> LatencyProfile:
    """Measures the medians of runs on `row` [1, features] after a warm-up.

    It takes milliseconds, or one second for a very slow model.
    """
    single_row = timed(model, row)
    if single_row > LOOP_SECONDS:
        return LatencyProfile(single_row, single_row)
    return LatencyProfile(single_row, max(timed(model, np.repeat(row, ROWS, axis=0)) / ROWS, 1e-9))


def timed(model: Model, rows: Array) -> float:
    model.predict(rows)
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        model.predict(rows)
        taken.append(time.perf_counter() - began)
        if sum(taken) > 0.2:
            break
    return sorted(taken)[len(taken) // 2]


# A classifier may be one node of the graph, and onnxruntime checks for termination between nodes only. This number of rows takes
# half a millisecond of an SVM, and one run per piece adds 1 % to its time.
PIECE_ROWS = 1024

T = TypeVar("T")


# Slotted dataclasses: a request creates one of each, and in CPython they cost less than named tuples.
@dataclass(slots=True)
class PredictContext:
    """Properties of the request that a predictor and its wrappers use; they do not modify it."""

    # Monotonic time, after which a predictor raises DeadlineExceeded (504).
    deadline: float = inf
    cache: CacheDirectives = DEFAULT
    # Upstream calls send the request id and the trace context.
    ids: RequestIds | None = None


@dataclass(slots=True)
class Prediction:
    """Predictions [n, columns], and the response headers that describe how the predictor obtained them.

    The columns are those of the model's OutputSchema.
    """

    outputs: Array
    headers: tuple[tuple[str, str], ...] = ()


# From rows [n, features].
Predict = Callable[[Array, PredictContext], Prediction]
# From the numbers of one row and a deadline (monotonic) to the columns of its prediction. It returns None, and counts nothing,
# for a prediction that Predict must judge. Only the I/O loop calls it.
PredictRow = Callable[[list[float], float], list[float] | None]


class RunWatchdog:
    """Terminates runs of the model at their deadlines, from one thread that sleeps until the next deadline."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[int, tuple[float, RunOptions]] = {}
        # Creating options takes longer than using them again.
        self.unused: list[RunOptions] = []
        self.wakes_at = inf
        self.sooner = threading.Event()
        self.thread: threading.Thread | None = None

    def run(self, action: Callable[[RunOptions], T], deadline: float) -> T:
        """Calls `action` with run options that terminate its run at `deadline` (monotonic). Raises DeadlineExceeded."""
        key = get_ident()
        try:
            options = self.unused.pop()
        except IndexError:
            options = RunOptions()
        # The thread either finds this run, or has set `wakes_at` to infinity before.
        self.runs[key] = deadline, options
        try:
            if deadline < self.wakes_at:
                self.wake(deadline)
            return action(options)
        except Exception:
            if options.terminate:
                raise DeadlineExceeded(RAN_TOO_LONG) from None
            raise
        finally:
            with self.lock:
                del self.runs[key]
            if not options.terminate:
                self.unused.append(options)

    def wake(self, at: float) -> None:
        """Makes the thread look at `at` (monotonic). The thread is started when it is first needed."""
        with self.lock:
            if self.thread is None:
                thread = threading.Thread(target=self.watch, daemon=True, name="deadlines")
                # The system may have no thread left, and have one for a later run.
                thread.start()
                self.thread = thread
            self.wakes_at = min(at, self.wakes_at)
            self.sooner.set()

    def watch(self) -> None:
        while True:
            with self.lock:
                self.sooner.clear()
                now = monotonic()
                self.wakes_at = inf
                runs = list(self.runs.values())
                for at, options in runs:
                    if at <= now:
                        options.terminate = True
                self.wakes_at = min((at for at, _ in runs if at > now), default=inf)
                # A client can send any deadline, and wait() takes 292 years at most.
                seconds = None if self.wakes_at == inf else min(self.wakes_at - now, threading.TIMEOUT_MAX)
            self.sooner.wait(seconds)


def bounds_of(feature: Feature, kind: type[np.floating[Any]]) -> tuple[float, float]:
    """Returns the range of a feature for rows of `kind`. Float64 rows have float32 values as clients send them, or rounded."""
    low, high = float(kind(feature.min or 0.0)), float(kind(feature.max or 0.0))
    if feature.type != "float32":
        return low, high
    return min(low, float(np.float32(low))), max(high, float(np.float32(high)))


class ModelMetrics:
    """Metrics of the model. Runs on one row are collected, and counted together."""

    def __init__(self, registry: Registry, model: Graph, outputs: OutputSchema) -> None:
        # A regressor has no labels, and an empty label is none for Prometheus.
        self.labels = model.labels or ("",)
        # As the type of the rows: otherwise the maximum of the training rows would be out of range.
        self.kind = np.float32 if model.schema.dtype == np.float32 else np.float64
        has_range = [j for j, f in enumerate(model.features) if f.min is not None and f.max is not None]
        self.ranged = [(j, model.features[j].name, *bounds_of(model.features[j], self.kind)) for j in has_range]
        self.columns = has_range
        self.low: Array = np.array([low for _, _, low, _ in self.ranged], self.kind)
        self.high: Array = np.array([high for _, _, _, high in self.ranged], self.kind)
        self.is_object, self.outputs = model.schema.has_strings, outputs
        self.best_of = outputs.best_of if outputs.has_label_column else best if model.labels else lambda _: 0
        self.cells, self.lock = registry.cells, registry.lock
        self.runs = Counter(registry, "model_runs_total", "Model runs.")
        self.seconds = Histogram(registry, "model_run_duration_seconds", "Duration of model runs in seconds.")
        self.rows = registry.counter("model_rows_total", "Rows predicted, by predicted label.", "label", self.labels)
        names = [name for _, name, _, _ in self.ranged]
        self.out_of_range = registry.counter(
            "model_input_out_of_range_total", "Input values outside the training range of their feature.", "feature", names
        )
        info = (model.name, model.version, model.digest)
        Info(
            registry, "model_info", "Name, version, and digest of the model.", ("name", "version", "digest"), [[v] for v in info]
        )
        self.collected: deque[tuple[list[Any], list[float], float]] = deque()
        registry.collectors.append(self.flush)

    def add_one(self, row: list[Any], output: list[float], seconds: float) -> None:
        """Collects a run on one row."""
        self.collected.append((row, output, seconds))
        if len(self.collected) > MAX_COLLECTED:
            self.flush()

    def flush(self) -> None:
        """Counts the collected runs, under one lock. For one row, plain Python is several times faster than numpy."""
        if not self.collected:
            return
        cells, runs, seconds_first = self.cells, self.runs.first[()], self.seconds.first[()]
        with self.lock:
            for _ in range(len(self.collected)):
                row, output, seconds = self.collected.popleft()
                cells[runs] += 1
                cells[self.rows.first[self.labels[self.best_of(output)],]] += 1
                self.seconds.record(seconds, seconds_first)
                for j, name, low, high in self.ranged:
                    if not low <= row[j] <= high and row[j] == row[j]:
                        cells[self.out_of_range.first[name,]] += 1

    def add_many(self, rows: Array, output: Array, seconds: float) -> None:
        """Counts a run on several rows."""
        self.seconds.observe(seconds)
        self.runs.add()
        numbers = self.outputs.best(output) if self.labels != ("",) else np.zeros(len(output), np.intp)
        counts = np.bincount(numbers, minlength=len(self.labels))
        for label, count in zip(self.labels, counts.tolist(), strict=True):
            self.rows.add((label,), count)
        within = rows[:, self.columns].astype(self.kind) if self.is_object else rows[:, self.columns]
        outside = ((within < self.low) | (within > self.high)).sum(axis=0)
        for (_, name, _, _), count in zip(self.ranged, outside.tolist(), strict=True):
            self.out_of_range.add((name,), count)


def within_deadline(model: Model, watchdog: RunWatchdog) -> Predict:
    """Returns the predictor of a model in this process. It starts no run after the deadline, and terminates a run then."""

    def predict(rows: Array, context: PredictContext) -> Prediction:
        deadline = context.deadline
        if deadline == inf:
            return Prediction(model.predict(rows))
        if monotonic() >= deadline:
            raise DeadlineExceeded(PARSED_TOO_LATE)
        if len(rows) <= PIECE_ROWS:
            return Prediction(watchdog.run(lambda options: model.predict(rows, options), deadline))
        pieces = [piece(rows[i : i + PIECE_ROWS], deadline) for i in range(0, len(rows), PIECE_ROWS)]
        return Prediction(np.concatenate(pieces))

    def piece(rows: Array, deadline: float) -> Array:
        if monotonic() >= deadline:
            raise DeadlineExceeded(RAN_TOO_LONG)
        return watchdog.run(lambda options: model.predict(rows, options), deadline)

    return predict


def measured(predict: Predict, metrics: ModelMetrics) -> Predict:
    """Adds the metrics of the model to a predictor."""

    def predict_and_count(rows: Array, context: PredictContext) -> Prediction:
        started = perf_counter()
        prediction = predict(rows, context)
        seconds = perf_counter() - started
        output = prediction.outputs
        if len(rows) == 1:
            metrics.add_one(rows[0].tolist(), output[0].tolist(), seconds)
        else:
            metrics.add_many(rows, output, seconds)
        return prediction

    return predict_and_count


class BoundRow:
    """Memory for one row and its prediction that is bound to the session, so that a run converts nothing.

    Only one thread may use it. `take` gets the numbers of the row before each run.
    """

    def __init__(self, model: Model, sample: Array) -> None:
        row: Array = np.array(sample, model.schema.dtype, order="C")
        result: Array = np.zeros(np.shape(model.run((model.output,), model.feeds(row), None)[0]), np.float32)
        memory = memoryview(row.data).cast("B")
        self.row: memoryview[float] = memory.cast("f") if row.dtype == FLOAT32 else memory.cast("d")
        self.result: memoryview[float] = memoryview(result.data).cast("B").cast("f")
        self.take = partial(Struct(f"{model.width}{self.row.format}").pack_into, memory, 0)
        # The binding does not keep the arrays alive.
        self.arrays = row, result
        binding = model.session.io_binding()
        binding.bind_input(model.inputs[0].name, "cpu", 0, row.dtype, row.shape, row.ctypes.data)
        binding.bind_output(model.output, "cpu", 0, np.float32, result.shape, result.ctypes.data)
        # As for Graph.run.
        self.run = partial(getattr(model.session, "_sess", model.session).run_with_iobinding, binding._iobinding)


def bind_row(model: Model, sample: Array) -> BoundRow | None:
    """Returns a bound row, or None if this model has other inputs or outputs than one of floats each.

    The rows of `sample` [n, features] must get the same predictions as from Model.predict.
    """
    is_one = len(model.inputs) == 1 and model.inputs[0].rank == 2 and model.schema.is_float
    if not is_one or model.is_map or model.gives_second or len(model.output_names) > 1:
        return None
    (answer,) = model.run(model.output_names, model.feeds(sample[:1]), None)
    if answer.dtype is not FLOAT32 or answer.size != len(model.outputs.columns):
        return None
    try:
        bound, options = BoundRow(model, sample[:1]), RunOptions()
        for row in sample:
            bound.take(*row.tolist())
            bound.run(options)
            if not np.array_equal(np.array([bound.result.tolist()], np.float32), model.predict(row[np.newaxis])):
                return None
    except Exception:
        # Such as a graph that gives other columns than it declares.
        return None
    return bound


def row_predictor(bound: BoundRow, watchdog: RunWatchdog | None, metrics: ModelMetrics) -> PredictRow:
    """Returns the predictor of one row for the I/O loop, with the deadlines and the metrics of the others.

    Without a watchdog, it starts no run after the deadline. That is enough for a model whose time does not depend on the row.
    """
    take, result, row, add_one, options = bound.take, bound.result, bound.row, metrics.add_one, RunOptions()

    def predict_row(values: list[float], deadline: float) -> list[float] | None:
        began = monotonic()
        if began >= deadline:
            raise DeadlineExceeded(PARSED_TOO_LATE)
        take(*values)
        try:
            if watchdog is None:
                bound.run(options)
            else:
                watchdog.run(bound.run, deadline)
        except DeadlineExceeded:
            raise
        except Exception:
            # For example an output of another shape than the bound one. The memory may have the prediction of an earlier row.
            return None
        output: list[Any] = result.tolist()
        if not all(map(isfinite, output)):
            return None
        add_one(row.tolist(), output, monotonic() - began)
        return output

    return predict_row
