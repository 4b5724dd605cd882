"""The predictor interface, and its wrappers for deadlines and metrics."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from iris_wsgi.codec.rows import Array, best
from iris_wsgi.errors import PARSED_TOO_LATE, RAN_TOO_LONG, DeadlineExceeded
from iris_wsgi.http.cache_headers import DEFAULT, CacheDirectives
from iris_wsgi.model.run_timeout import RunWatchdog
from iris_wsgi.model.session import Graph, Model
from iris_wsgi.observability.metrics import Counter, Histogram, Info, Registry
from iris_wsgi.observability.trace_context import Ids

# onnxruntime looks between two nodes of a graph whether to go on, and a classifier may be one node. So many rows are half a
# millisecond of an SVM, and the cost of a run over them is 1 % more than that of the rows.
PIECE_ROWS = 1024


# Slotted dataclasses: a request creates one of each, and in CPython they cost less than named tuples.
@dataclass(slots=True)
class PredictContext:
    """Properties of the request that a predictor and its wrappers use; they do not modify it."""

    # Monotonic time, after which a predictor raises DeadlineExceeded (504).
    deadline: float = inf
    cache: CacheDirectives = DEFAULT
    # Upstream calls send the request id and the trace context.
    ids: Ids | None = None


@dataclass(slots=True)
class Prediction:
    """Probabilities [n, classes], and the response headers that describe how the predictor obtained them."""

    probabilities: Array
    headers: tuple[tuple[str, str], ...] = ()


# From rows [n, features].
Predict = Callable[[Array, PredictContext], Prediction]


class ModelMetrics:
    """What is counted of a model's work."""

    def __init__(self, registry: Registry, model: Graph) -> None:
        ranged = [f.name for f in model.features if f.min is not None and f.max is not None]
        self.registry = registry
        self.runs = Counter(registry, "model_runs_total", "Runs of the model.")
        self.seconds = Histogram(registry, "model_run_duration_seconds", "Seconds that a run of the model took.")
        self.rows = registry.counter("model_rows_total", "Rows predicted, by predicted label.", "label", model.labels)
        self.out_of_range = registry.counter(
            "model_input_out_of_range_total",
            "Values outside the range that the feature had in training.",
            "feature",
            ranged,
        )
        info = (model.name, model.version, model.digest)
        Info(registry, "model_info", "The model that is served.", ("name", "version", "digest"), [[one] for one in info])


def within_deadline(model: Model, watch: RunWatchdog) -> Predict:
    """Returns the predictor of a model in this process. It starts no run after the deadline, and ends a run at the deadline."""

    def predict(rows: Array, context: PredictContext) -> Prediction:
        deadline = context.deadline
        if deadline == inf:
            return Prediction(model.predict(rows))
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(PARSED_TOO_LATE)
        if len(rows) <= PIECE_ROWS:
            return Prediction(watch.run(lambda options: model.predict(rows, options), deadline))
        pieces = [piece(rows[i : i + PIECE_ROWS], deadline) for i in range(0, len(rows), PIECE_ROWS)]
        return Prediction(np.concatenate(pieces))

    def piece(rows: Array, deadline: float) -> Array:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(RAN_TOO_LONG)
        return watch.run(lambda options: model.predict(rows, options), deadline)

    return predict


def measured(predict: Predict, model: Graph, metrics: ModelMetrics) -> Predict:
    """Counts runs, seconds, rows by label, and values outside the range that the feature had in training."""
    # Rounded as the rows are, or the highest training row itself would count as above the range.
    ranged = [
        (j, f.name, float(np.float32(f.min)), float(np.float32(f.max)))
        for j, f in enumerate(model.features)
        if f.min is not None and f.max is not None
    ]
    columns = [j for j, _, _, _ in ranged]
    low, high = (np.array([bounds[k] for bounds in ranged], np.float32) for k in (2, 3))

    cells, lock = metrics.registry.cells, metrics.registry.lock
    runs, seconds_first = metrics.runs.first[()], metrics.seconds.first[()]
    row_cells = [metrics.rows.first[label,] for label in model.labels]

    def count_one(row: list[float], probabilities: list[float], seconds: float) -> None:
        """All that a run on one row counts, under one lock; as plain Python several times faster than with numpy."""
        with lock:
            cells[runs] += 1
            cells[row_cells[best(probabilities)]] += 1
            metrics.seconds.record(seconds, seconds_first)
        for j, name, least, most in ranged:
            if not least <= row[j] <= most:
                metrics.out_of_range.add((name,))

    def count_many(rows: Array, probabilities: Array) -> None:
        counts = np.bincount(probabilities.argmax(axis=1), minlength=len(model.labels))
        for label, count in zip(model.labels, counts.tolist(), strict=True):
            metrics.rows.add((label,), count)
        within = rows[:, columns]
        outside = ((within < low) | (within > high)).sum(axis=0)
        for (_, name, _, _), count in zip(ranged, outside.tolist(), strict=True):
            metrics.out_of_range.add((name,), count)

    def predict_and_count(rows: Array, context: PredictContext) -> Prediction:
        started = time.perf_counter()
        prediction = predict(rows, context)
        seconds = time.perf_counter() - started
        probabilities = prediction.probabilities
        if len(rows) == 1:
            count_one(rows[0].tolist(), probabilities[0].tolist(), seconds)
        else:
            metrics.seconds.observe(seconds)
            metrics.runs.add()
            count_many(rows, probabilities)
        return prediction

    return predict_and_count
