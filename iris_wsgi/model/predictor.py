"""The predictor interface, its wrappers for deadlines and metrics, and the latency of a model."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic, perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from iris_wsgi.codec.model_schema import Array, Feature, OutputSchema
from iris_wsgi.codec.rows import best
from iris_wsgi.errors import PARSED_TOO_LATE, RAN_TOO_LONG, DeadlineExceeded
from iris_wsgi.http.cache_headers import DEFAULT, CacheDirectives
from iris_wsgi.model.session import Graph, Model, RunOptions
from iris_wsgi.observability.metrics import Counter, Histogram, Info, Registry
from iris_wsgi.observability.trace_context import RequestIds

# The time that one request may take in the I/O loop, where it blocks all other connections.
LOOP_SECONDS = 0.001
ROWS, TIMES = 64, 5
NEVER = -1


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


class RunWatchdog:
    """Terminates runs of the model at their deadlines, from one thread that sleeps until the next deadline."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[int, tuple[float, RunOptions]] = {}
        self.wakes_at = inf
        self.sooner = threading.Event()
        self.thread: threading.Thread | None = None

    def run(self, action: Callable[[RunOptions], T], deadline: float) -> T:
        """Calls `action` with run options that terminate its run at `deadline` (monotonic). Raises DeadlineExceeded."""
        options, key = RunOptions(), threading.get_ident()
        with self.lock:
            self.runs[key] = deadline, options
            if deadline < self.wakes_at:
                self.wake(deadline)
        try:
            return action(options)
        except Exception:
            if options.terminate:
                raise DeadlineExceeded(RAN_TOO_LONG) from None
            raise
        finally:
            with self.lock:
                del self.runs[key]

    def wake(self, at: float) -> None:
        """Makes the thread look at `at` (monotonic). The thread is started when it is first needed."""
        self.wakes_at = at
        if self.thread is None:
            self.thread = threading.Thread(target=self.watch, daemon=True, name="deadlines")
            self.thread.start()
        else:
            self.sooner.set()

    def watch(self) -> None:
        while True:
            now = monotonic()
            with self.lock:
                self.sooner.clear()
                for at, options in self.runs.values():
                    if at <= now:
                        options.terminate = True
                self.wakes_at = min((at for at, _ in self.runs.values() if at > now), default=inf)
                seconds = None if self.wakes_at == inf else self.wakes_at - now
            self.sooner.wait(seconds)


class ModelMetrics:
    """Metrics of the model."""

    def __init__(self, registry: Registry, model: Graph) -> None:
        # A regressor has no labels, and an empty label is none for Prometheus.
        self.labels = model.labels or ("",)
        ranged = [f.name for f in model.features if f.min is not None and f.max is not None]
        self.registry = registry
        self.runs = Counter(registry, "model_runs_total", "Model runs.")
        self.seconds = Histogram(registry, "model_run_duration_seconds", "Duration of model runs in seconds.")
        self.rows = registry.counter("model_rows_total", "Rows predicted, by predicted label.", "label", self.labels)
        self.out_of_range = registry.counter(
            "model_input_out_of_range_total", "Input values outside the training range of their feature.", "feature", ranged
        )
        info = (model.name, model.version, model.digest)
        Info(
            registry, "model_info", "Name, version, and digest of the model.", ("name", "version", "digest"), [[v] for v in info]
        )


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


def bounds_of(feature: Feature, kind: type[np.floating[Any]]) -> tuple[float, float]:
    """Returns the range of a feature for rows of `kind`. Float64 rows have float32 values as clients send them, or rounded."""
    low, high = float(kind(feature.min or 0.0)), float(kind(feature.max or 0.0))
    if feature.type != "float32":
        return low, high
    return min(low, float(np.float32(low))), max(high, float(np.float32(high)))


def measured(predict: Predict, model: Graph, outputs: OutputSchema, metrics: ModelMetrics) -> Predict:
    """Adds the metrics of the model to a predictor."""
    # As the type of the rows: otherwise the maximum of the training rows would be out of range.
    kind = np.float32 if model.schema.dtype == np.float32 else np.float64
    ranged = [(j, f.name, *bounds_of(f, kind)) for j, f in enumerate(model.features) if f.min is not None and f.max is not None]
    columns = [j for j, _, _, _ in ranged]
    low: Array = np.array([bounds[2] for bounds in ranged], kind)
    high: Array = np.array([bounds[3] for bounds in ranged], kind)
    is_object = model.schema.has_strings
    best_of = outputs.best_of if outputs.has_label_column else best if model.labels else lambda _: 0

    cells, lock = metrics.registry.cells, metrics.registry.lock
    runs, seconds_first = metrics.runs.first[()], metrics.seconds.first[()]
    row_cells = [metrics.rows.first[label,] for label in metrics.labels]

    def count_one(row: list[Any], output: list[float], seconds: float) -> None:
        """Counts a run on one row, under one lock. For one row, plain Python is several times faster than numpy."""
        with lock:
            cells[runs] += 1
            cells[row_cells[best_of(output)]] += 1
            metrics.seconds.record(seconds, seconds_first)
        for j, name, minimum, maximum in ranged:
            if not minimum <= row[j] <= maximum and row[j] == row[j]:
                metrics.out_of_range.add((name,))

    def count_many(rows: Array, output: Array) -> None:
        numbers = outputs.best(output) if model.labels else np.zeros(len(output), np.intp)
        counts = np.bincount(numbers, minlength=len(metrics.labels))
        for label, count in zip(metrics.labels, counts.tolist(), strict=True):
            metrics.rows.add((label,), count)
        within = rows[:, columns].astype(kind) if is_object else rows[:, columns]
        outside = ((within < low) | (within > high)).sum(axis=0)
        for (_, name, _, _), count in zip(ranged, outside.tolist(), strict=True):
            metrics.out_of_range.add((name,), count)

    def predict_and_count(rows: Array, context: PredictContext) -> Prediction:
        started = perf_counter()
        prediction = predict(rows, context)
        seconds = perf_counter() - started
        output = prediction.outputs
        if len(rows) == 1:
            count_one(rows[0].tolist(), output[0].tolist(), seconds)
        else:
            metrics.seconds.observe(seconds)
            metrics.runs.add()
            count_many(rows, output)
        return prediction

    return predict_and_count
