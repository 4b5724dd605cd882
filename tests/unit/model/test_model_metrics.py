"""Metrics of the model: runs on one row are collected, and their sums are those of counting one at a time."""

import random
from functools import partial
from itertools import chain
from math import nan

import numpy as np
from metrics_text import sample_value
from packed_models import write_model
from predictors import of_arrays, predictor
from project import MODEL
from racing_threads import race

from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.predictor import MAX_COLLECTED, ModelMetrics, measured
from iris_wsgi.model.session import load_model
from iris_wsgi.observability.metrics import SECONDS, Registry


def counted(folder) -> tuple[Registry, ModelMetrics]:
    model = load_verified_model(folder, "")[0]
    registry = Registry()
    metrics = ModelMetrics(registry, model, model.outputs)
    registry.join()
    return registry, metrics


class PlainCounts:
    """Counts of runs, one at a time, from the text of the documentation and nothing else."""

    def __init__(self, labels, ranges) -> None:
        """`ranges` has the name, the lowest, and the highest value of each column."""
        self.ranges, self.runs, self.sum = ranges, 0, 0.0
        self.labels, self.outside = dict.fromkeys(labels, 0), {name: 0 for name, _, _ in ranges}
        self.buckets = dict.fromkeys((*map(str, SECONDS), "+Inf"), 0)

    def add(self, row, label, seconds) -> None:
        self.runs += 1
        self.sum += seconds
        self.labels[label] += 1
        for bound in self.buckets:
            self.buckets[bound] += seconds <= float(bound)
        for value, (name, low, high) in zip(row, self.ranges, strict=True):
            self.outside[name] += value < low or value > high

    def compare(self, text) -> None:
        assert sample_value(text, "model_runs_total") == self.runs == sample_value(text, "model_run_duration_seconds_count")
        assert sample_value(text, "model_run_duration_seconds_sum") == self.sum
        for label, count in self.labels.items():
            assert sample_value(text, "model_rows_total", label=label) == count, label
        for name, count in self.outside.items():
            assert sample_value(text, "model_input_out_of_range_total", feature=name) == count, name
        for bound, count in self.buckets.items():
            assert sample_value(text, "model_run_duration_seconds_bucket", le=bound) == count, bound


def iris_counts(kind=np.float32) -> PlainCounts:
    model = load_model(MODEL)[0]
    return PlainCounts(model.labels, [(f.name, float(kind(f.min)), float(kind(f.max))) for f in model.features])


def random_run(drawn: random.Random, counts: PlainCounts):
    """Returns a row, probabilities, their label, and seconds. Sums of the seconds are exact in any order."""
    row = []
    for _, low, high in counts.ranges:
        inside = drawn.uniform(low, high)
        outside = [np.nextafter(np.float32(low), np.float32(-9)).item(), np.nextafter(np.float32(high), np.float32(99)).item()]
        row.append(drawn.choice([low, high, inside, inside, *outside, -1e30, nan]))
    best = drawn.randrange(3)
    output = [0.5 if j == best else 0.25 for j in range(3)]
    seconds = drawn.choice([2.0 ** -drawn.randrange(20), 0.25, 0.5, 1.0, 2.5, 16.0])
    return row, output, list(counts.labels)[best], seconds


def test_collected_runs_have_the_sums_of_counting_one_at_a_time():
    (registry, metrics), counts, drawn = counted(MODEL), iris_counts(), random.Random(1)
    for _ in range(1000):
        row, output, label, seconds = random_run(drawn, counts)
        metrics.add_one(row, output, seconds)
        counts.add(row, label, seconds)
    counts.compare(registry.text().decode())
    assert min(counts.outside.values()) > 100 < min(counts.labels.values())


def test_of_equal_probabilities_the_first_label_is_counted():
    registry, metrics = counted(MODEL)
    for output in ([0.25, 0.5, 0.5], [0.5, 0.5, 0.0], [0.1, 0.2, 0.7]):
        metrics.add_one([5.0, 3.0, 1.0, 0.5], output, 0.5)
    text = registry.text().decode()
    assert [sample_value(text, "model_rows_total", label=label) for label in metrics.labels] == [1, 1, 1]


def test_the_label_of_the_graph_is_counted_and_a_regressor_counts_under_no_label(tmp_path):
    registry, metrics = counted(write_model(tmp_path / "label", "the label of the graph"))
    # The last column is the number of the label.
    for output in ([0.75, 0.25, 1.0], [0.25, 0.75, 0.0], [0.75, 0.25, 1.0]):
        metrics.add_one([0.0] * 4, output, 0.5)
    text = registry.text().decode()
    assert [sample_value(text, "model_rows_total", label=label) for label in ("no", "yes")] == [1, 2]
    registry, metrics = counted(write_model(tmp_path / "regressor", "regressor of three targets"))
    metrics.add_one([0.0] * 4, [3.0, -1.0, 7.0], 0.5)
    assert sample_value(registry.text().decode(), "model_rows_total", label="") == 1


def test_runs_are_collected_and_a_scrape_has_them_at_once():
    registry, metrics = counted(MODEL)
    for i in range(1, 4):
        metrics.add_one([5.0, 3.0, 1.0, 0.5], [1.0, 0.0, 0.0], 0.5)
        # Nothing is counted yet.
        assert registry.cells[metrics.runs.first[()]] == i - 1
        assert sample_value(registry.text().decode(), "model_runs_total") == i
    metrics.add_one([5.0, 3.0, 1.0, 0.5], [1.0, 0.0, 0.0], 0.5)
    assert registry.total(metrics.runs.first[()]) == 4 and not metrics.collected


def test_a_process_that_nobody_scrapes_collects_a_limited_number_of_runs():
    registry, metrics = counted(MODEL)
    longest = 0
    for i in range(1, 10 * MAX_COLLECTED):
        metrics.add_one([5.0, 3.0, 1.0, 0.5], [1.0, 0.0, 0.0], 0.5)
        longest = max(longest, len(metrics.collected))
        assert registry.cells[metrics.runs.first[()]] + len(metrics.collected) == i
    assert longest == MAX_COLLECTED == 64


def test_a_run_on_one_row_is_collected_and_one_on_many_rows_is_counted():
    registry, metrics = counted(MODEL)
    predict = of_arrays(measured(predictor(lambda rows, until: np.array([[0.2, 0.8, 0.0]] * len(rows), np.float32)), metrics))
    predict(np.array([[5.0, 3.0, 1.5, 99.0]], np.float32))
    (row, output, seconds), runs = metrics.collected[0], metrics.runs.first[()]
    assert (row, output) == ([5.0, 3.0, 1.5, 99.0], np.float32([0.2, 0.8, 0.0]).tolist()) and seconds > 0
    assert registry.cells[runs] == 0
    predict(np.array([[5.0, 3.0, 1.5, 99.0]] * 3, np.float32))
    assert registry.cells[runs] == 1
    text = registry.text().decode()
    assert [sample_value(text, "model_rows_total", label=label) for label in metrics.labels] == [0, 4, 0]
    assert sample_value(text, "model_input_out_of_range_total", feature=metrics.ranged[3][1]) == 4


def test_no_run_is_lost_or_counted_twice_while_threads_predict_and_another_one_scrapes():
    (registry, metrics), counts, drawn = counted(MODEL), iris_counts(), random.Random(2)
    shares = [[random_run(drawn, counts) for _ in range(3000)] for _ in range(4)]
    for row, _, label, seconds in chain.from_iterable(shares):
        counts.add(row, label, seconds)
    scrapes = []

    def predict(share):
        for row, output, _, seconds in share:
            metrics.add_one(row, output, seconds)

    def scrape():
        scrapes.append(sample_value(registry.text().decode(), "model_runs_total"))

    race(*(partial(predict, share) for share in shares), meanwhile=scrape)
    assert scrapes == sorted(scrapes)
    counts.compare(registry.text().decode())
