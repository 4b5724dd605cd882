"""GET /metrics, read by an independent parser."""

import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from http_clients import wait_until
from metrics_text import metric_families, sample_value
from predictors import of_arrays, predictor

from iris_wsgi.codec.model_schema import Feature, RowSchema, classifier_outputs
from iris_wsgi.model.predictor import ModelMetrics, measured
from iris_wsgi.observability.metrics import Counter, Gauge, Histogram, Registry, linux_process, number, process_samples
from iris_wsgi.observability.shared_memory import SharedMemory

WANTED = {
    "iris_wsgi_info": ("gauge", {"role", "version"}),
    "http_requests": ("counter", {"method", "route", "status"}),
    "http_request_duration_seconds": ("histogram", {"method", "route"}),
    "http_requests_in_flight": ("gauge", set()),
    "http_connections": ("gauge", set()),
    "http_requests_queued": ("gauge", set()),
    "http_held_bytes": ("gauge", {"of"}),
    "model_rows": ("counter", {"label"}),
    "model_runs": ("counter", set()),
    "model_run_duration_seconds": ("histogram", set()),
    "model_input_out_of_range": ("counter", {"feature"}),
    "model_info": ("gauge", {"name", "version", "digest"}),
    "inference_rows": ("counter", {"model"}),
    "inference_runs": ("counter", {"model"}),
    "inference_stages": ("counter", {"model", "stage"}),
    "inference_stage_seconds": ("counter", {"model", "stage"}),
    "job_submissions": ("counter", {"outcome"}),
    "job_attempts": ("counter", {"outcome"}),
    "job_reclaimed": ("counter", set()),
    "job_queue_duration_seconds": ("histogram", set()),
    "job_result_duration_seconds": ("histogram", set()),
    "hybrid_answers": ("counter", {"final"}),
    "hybrid_agreements": ("counter", {"agrees"}),
    "prediction_cache_rows": ("counter", {"result"}),
    "prediction_cache_evictions": ("counter", {"reason"}),
    "prediction_cache_entries": ("gauge", set()),
    "prediction_cache_bytes": ("gauge", set()),
    "prediction_cache_shared_failures": ("counter", set()),
    "job_store_up": ("gauge", set()),
    "jobs": ("gauge", {"state"}),
    "jobs_oldest_queued_seconds": ("gauge", set()),
    "item_lookups": ("counter", {"source"}),
    "item_predictions": ("counter", {"source"}),
    "item_writes": ("counter", {"outcome"}),
    "item_invalidations": ("counter", {"by"}),
    "item_store_failures": ("counter", {"of"}),
    "item_cache_evictions": ("counter", set()),
    "item_cache_entries": ("gauge", set()),
    "item_cache_bytes": ("gauge", set()),
    "process_cpu_seconds": ("counter", set()),
    "process_resident_memory_bytes": ("gauge", set()),
    "process_virtual_memory_bytes": ("gauge", set()),
    "process_start_time_seconds": ("gauge", set()),
    "process_open_fds": ("gauge", set()),
    "process_max_fds": ("gauge", set()),
}


def test_all_families_have_their_types_and_labels(app):
    app.post_json("/predict", {"data": [[1, 2, 3, 4]]})
    app.post_json("/v1/models/iris_svc:predict", {"instances": [[1, 2, 3, 4]]})
    app.service.background.start()
    wait_until(lambda: "job_store_up" in app.get("/metrics").text, "the store was checked")
    app.service.background.stop(time.monotonic() + 10)
    response = app.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = metric_families(response.text)
    assert set(found) == set(WANTED)
    for name, (kind, labels) in WANTED.items():
        assert found[name].type == kind
        assert found[name].documentation
        assert found[name].samples
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == labels


def test_requests_are_counted_by_method_route_and_status(app):
    for _ in range(3):
        app.post_json("/predict/label", {"data": [[1, 2, 3, 4]]})
    app.post_json("/predict/label", {}, status=422)
    app.get("/predict/label", status=405)
    text = app.get("/metrics").text
    requests = [sample_value(text, "http_requests_total", method=m, route="/predict/label", status=s) for m, s in
                (("POST", "200"), ("POST", "422"), ("GET", "405"), ("POST", "500"))]  # fmt: skip
    assert requests == [3, 1, 1, None]
    assert sample_value(text, "http_request_duration_seconds_count", method="POST", route="/predict/label") == 4
    # The scrape itself is the one request in flight.
    assert sample_value(text, "http_requests_in_flight") == 1


def test_histograms_are_cumulative_and_end_with_all(make_app):
    app = make_app(role="web_single")
    for _ in range(5):
        app.post_json("/predict/label", {"data": [[1, 2, 3, 4]]})
    samples = metric_families(app.get("/metrics").text)["model_run_duration_seconds"].samples
    buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == (math.inf, 5)
    (total,) = (s.value for s in samples if s.name.endswith("_sum"))
    assert 0 < total < 5


def test_rows_are_counted_by_predicted_label_in_one_run_each(make_app):
    app = make_app(role="web_single")
    points = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]]
    app.post_json("/predict/batch", {"data": points * 2 + points[:1]})
    app.post_json("/predict/label", {"data": points[1:2]})
    text = app.get("/metrics").text
    assert [sample_value(text, "model_rows_total", label=label) for label in ("setosa", "versicolor", "virginica")] == [3, 3, 2]
    assert sample_value(text, "model_runs_total") == 2


def test_values_outside_the_training_range_are_counted_by_feature(app):
    features = app.service.model.features
    low, high = [f.min for f in features], [f.max for f in features]
    app.post_json("/predict", {"data": [low]})
    app.post_json("/predict", {"data": [high]})
    app.post_json("/predict/batch", {"data": [low, high]})
    names = [f.name for f in features]
    assert [sample_value(app.get("/metrics").text, "model_input_out_of_range_total", feature=n) for n in names] == [0, 0, 0, 0]
    app.post_json("/predict", {"data": [[low[0] - 0.01, *low[1:]]]})
    app.post_json("/predict/batch", {"data": [[low[0] - 1, low[1], low[2], high[3] + 1], high]})
    assert [sample_value(app.get("/metrics").text, "model_input_out_of_range_total", feature=n) for n in names] == [2, 0, 0, 1]


def test_a_model_without_ranges_counts_none():
    class Plain:
        name, version, digest, labels = "m", "1", "sha256:0", ("a", "b")
        features = (Feature("x"), Feature("y", "cm", None, 3.0))
        schema = RowSchema(features)

    registry = Registry()
    metrics = ModelMetrics(registry, Plain(), classifier_outputs(Plain.labels))
    registry.join()
    model = predictor(lambda rows, until: np.array([[0.2, 0.8]] * len(rows), np.float32))
    predict = of_arrays(measured(model, metrics))
    predict(np.zeros((1, 2), np.float32))
    predict(np.zeros((5, 2), np.float32))
    text = registry.text().decode()
    assert sample_value(text, "model_rows_total", label="b") == 6
    assert not metric_families(text)["model_input_out_of_range"].samples


def test_unknown_paths_and_methods_never_add_a_series(app, call):
    app.get("/a", status=404)
    app.request("/a", method="PATCH", status=404)
    before = {str(s.labels) for f in metric_families(app.get("/metrics").text).values() for s in f.samples}
    for i in range(50):
        app.get(f"/a/{i}", status=404)
        app.get(f"/predict/{i}?q={i}", status=404)
    after = {str(s.labels) for f in metric_families(app.get("/metrics").text).values() for s in f.samples}
    assert after - before <= {str({"method": "GET", "route": "/metrics"} | more) for more in ({}, {"status": "200"}, *(
        {"le": le} for le in ("1e-05", "2.5e-05", "5e-05", "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01",
                              "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf")))}  # fmt: skip
    assert sample_value(app.get("/metrics").text, "http_requests_total", method="GET", route="unmatched", status="404") == 101


def test_unknown_methods_count_as_one(service, call):
    for method in ("BREW", "BREW2", "x"):
        assert call(method, "/label")[0] == 501
    text = call("GET", "/metrics")[2].decode()
    assert sample_value(text, "http_requests_total", method="other", route="/label", status="501") >= 3
    assert "BREW" not in text


def test_label_values_are_escaped():
    registry = Registry()
    hostile = 'a"b\\c\nd'
    gauge = Gauge(registry, "g", "A gauge.", ("label",), [[hostile]])
    registry.join()
    gauge.add((hostile,), 2.5)
    assert sample_value(registry.text().decode(), "g", label=hostile) == 2.5


def test_no_count_is_lost_between_threads():
    registry = Registry()
    counter, histogram = Counter(registry, "c_total", "Counts."), Histogram(registry, "h", "Observes.")
    registry.join()

    def work():
        for _ in range(5000):
            counter.add()
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = registry.text().decode()
    assert sample_value(text, "c_total") == sample_value(text, "h_count") == 40_000


@pytest.mark.parametrize(("expected", "wanted"), [(0.0, "0"), (3.0, "3"), (0.25, "0.25"), (1e-5, "1e-05"), (math.inf, "+Inf")])
def test_numbers_are_written_as_prometheus_reads_them(expected, wanted):
    assert number(expected) == wanted
    assert float(wanted) == expected


def test_the_process_metrics_are_those_of_this_process(app):
    text = app.get("/metrics").text
    assert sample_value(text, "process_cpu_seconds_total") > 0
    assert 10e6 < sample_value(text, "process_resident_memory_bytes") < sample_value(text, "process_virtual_memory_bytes")
    assert sample_value(text, "process_start_time_seconds") < time.time()
    assert 3 <= sample_value(text, "process_open_fds") < sample_value(text, "process_max_fds")


def test_a_system_without_proc_has_the_cpu_time_only(tmp_path: Path):
    assert linux_process(tmp_path, 1) is None
    assert [figure[0] for figure in process_samples([2**22 + 1], 0.0)] == ["process_cpu_seconds_total"]


def test_an_unlimited_limit_is_infinity(tmp_path: Path):
    (tmp_path / "7/fd").mkdir(parents=True)
    (tmp_path / "7/stat").write_text("7 (a b) c) " + " ".join(["0"] * 30))
    (tmp_path / "stat").write_text("cpu 1\nbtime 5\n")
    (tmp_path / "7/limits").write_text("Limit Soft Hard\nMax open files            unlimited  unlimited  files\n")
    result = linux_process(tmp_path, 7)
    assert (result.max_fds, result.started, result.cpu) == (math.inf, 5, 0)


def registry_of(memory: SharedMemory, slot: int, *labels: str) -> tuple[Registry, Counter, Gauge]:
    registry = Registry(memory, slot)
    counter = Counter(registry, "c_total", "Counts.", ("label",), [labels])
    gauge = Gauge(registry, "g", "Gauges.")
    registry.join()
    return registry, counter, gauge


def test_every_process_of_a_service_reports_the_sum_of_all():
    memory = SharedMemory(3)
    first, counts, gauges = registry_of(memory, 0, "a", "b")
    two, others, _ = registry_of(memory, 1, "a", "b")
    counts.add(("a",), 5)
    others.add(("a",), 2)
    others.add(("b",))
    gauges.add()
    for registry in (first, two):
        text = registry.text().decode()
        assert [sample_value(text, "c_total", label=label) for label in "ab"] == [7, 1]
        assert sample_value(text, "g") == 1


def test_counts_survive_the_process_that_made_them_and_gauges_do_not():
    memory = SharedMemory(2)
    _, counts, gauges = registry_of(memory, 0, "a")
    counts.add(("a",), 5)
    gauges.add()
    memory.leave(0, 1.5)
    registry, counts, _ = registry_of(memory, 0, "a")
    counts.add(("a",))
    text = registry.text().decode()
    assert (sample_value(text, "c_total", label="a"), sample_value(text, "g")) == (6, 0)
    assert sample_value(text, "process_cpu_seconds_total") >= 1.5


def test_counts_of_another_layout_are_not_mixed_in():
    memory = SharedMemory(2)
    _, counts, _ = registry_of(memory, 0, "a")
    counts.add(("a",), 5)
    other, _, _ = registry_of(memory, 1, "x", "y")
    assert [sample_value(other.text().decode(), "c_total", label=label) for label in "xy"] == [0, 0]
    again, _, _ = registry_of(memory, 0, "x", "y")
    assert sample_value(again.text().decode(), "c_total", label="x") == 0


def test_of_thousands_of_series_those_with_a_count_are_shown_with_their_labels():
    registry = Registry()
    axes = [("a", "b"), map(str, range(100)), ("x", "y", "z")]
    counter = Counter(registry, "c_total", "Counts.", ("one", "two", "three"), axes, sparse=True)
    after = Counter(registry, "d_total", "Counts.")
    registry.join()
    assert len(set(counter.first)) == 600 and len({counter.first[key] for key in counter.first}) == 600
    assert [counter.first.key(i) for i in range(600)] == list(counter.first)
    after.add()
    for key in (("a", "0", "x"), ("a", "63", "z"), ("b", "99", "z")):
        counter.add(key, 2)
    assert [line for line in registry.text().decode().splitlines() if line.startswith(("c_total", "d_total"))] == [
        'c_total{one="a",two="0",three="x"} 2',
        'c_total{one="a",two="63",three="z"} 2',
        'c_total{one="b",two="99",three="z"} 2',
        "d_total 1",
    ]
    with pytest.raises(KeyError):
        counter.add(("c", "0", "x"))


def test_more_cells_than_a_slot_has_are_refused():
    with pytest.raises(ValueError, match="more metric cells than a slot holds"):
        Counter(Registry(), "c_total", "Counts.", ("i",), [map(str, range(200_000))])
