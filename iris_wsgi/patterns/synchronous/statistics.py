"""Statistics extension of the Open Inference Protocol: counts of requests, rows, and runs, and the time of each stage."""

import time
from collections.abc import Iterable
from types import TracebackType

from iris_wsgi.observability.metrics import Counter, NanosecondCounter, Registry

STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
TIMED_STAGES = ("compute_input", "compute_infer", "compute_output")


class StatisticsMetrics:
    """Metrics of all models. The shared memory of the registry makes them exact over all processes."""

    def __init__(self, registry: Registry, models: Iterable[str]) -> None:
        self.registry = registry
        labels, values = ("model", "stage"), (list(models), STAGES)
        self.rows = registry.counter("inference_rows_total", "Rows predicted under /v2 and /v1.", "model", values[0])
        self.runs = registry.counter("inference_runs_total", "Model runs under /v2 and /v1.", "model", values[0])
        self.counts = Counter(
            registry, "inference_stages_total", "Completed stages of requests under /v2 and /v1.", labels, values, sparse=True
        )
        self.times = NanosecondCounter(
            registry, "inference_stage_seconds_total", "Total duration of these stages in seconds.", labels, values, sparse=True
        )


class ModelStatistics:
    """Statistics of one model."""

    def __init__(self, metrics: StatisticsMetrics, model: str) -> None:
        self.registry = metrics.registry
        self.rows, self.runs = metrics.rows.first[model,], metrics.runs.first[model,]
        self.stages = {stage: (metrics.counts.first[model, stage], metrics.times.first[model, stage]) for stage in STAGES}

    def count(self, stages: dict[str, int], rows: int) -> None:
        """Adds the stages of a request in nanoseconds, and its rows. A request without rows has no run."""
        cells = self.registry.cells
        with self.registry.lock:
            for stage, nanoseconds in stages.items():
                count, total = self.stages[stage]
                cells[count] += 1
                cells[total] += nanoseconds
            cells[self.rows] += rows
            cells[self.runs] += rows > 0

    def document(self) -> dict[str, object]:
        """Returns the totals of all processes with the names of Triton's statistics extension."""
        total = self.registry.total
        stages = {stage: {"count": total(count), "ns": total(ns)} for stage, (count, ns) in self.stages.items()}
        return {"inference_count": total(self.rows), "execution_count": total(self.runs), "inference_stats": stages}


class StageTimer:
    """Context manager that times a request, and adds it to the statistics. A request that raises counts as a failure."""

    def __init__(self, statistics: ModelStatistics, arrived: float) -> None:
        """`arrived` is a monotonic time."""
        self.statistics, self.arrived, self.rows = statistics, arrived, 0
        self.durations: list[int] = []

    def __enter__(self) -> "StageTimer":
        self.began = self.last = time.perf_counter_ns()
        self.queued = max(0, int((time.monotonic() - self.arrived) * 1e9))
        return self

    def end_stage(self) -> None:
        """Ends the next of TIMED_STAGES."""
        now = time.perf_counter_ns()
        self.durations.append(now - self.last)
        self.last = now

    def __exit__(self, raised: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        total = self.queued + time.perf_counter_ns() - self.began
        if raised is not None:
            self.statistics.count({"fail": total}, 0)
        else:
            timed = dict(zip(TIMED_STAGES, self.durations, strict=True))
            self.statistics.count({"success": total, "queue": self.queued, **timed}, self.rows)
