"""What the statistics extension of the Open Inference Protocol counts: requests, rows, runs, and the time of each stage."""

import time
from collections.abc import Iterable
from types import TracebackType

from iris_wsgi.observability.metrics import Counter, Nanoseconds, Registry

STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
LAPS = ("compute_input", "compute_infer", "compute_output")


class Tallies:
    """The counts of all models that a process serves; with the registry's cells they are exact over all processes."""

    def __init__(self, registry: Registry, models: Iterable[str]) -> None:
        """Every name of a model is known here, as every label value is."""
        self.registry = registry
        labels, staged = ("model", "stage"), (list(models), STAGES)
        self.rows = registry.counter("inference_rows_total", "Rows predicted under /v2 and /v1.", "model", staged[0])
        self.runs = registry.counter("inference_runs_total", "Runs of a model under /v2 and /v1.", "model", staged[0])
        self.counts = Counter(
            registry, "inference_stages_total", "Stages of requests under /v2 and /v1 that ended.", labels, staged, sparse=True
        )
        self.times = Nanoseconds(
            registry, "inference_stage_seconds_total", "Seconds that these stages took.", labels, staged, sparse=True
        )


class Tally:
    """The counts of one model."""

    def __init__(self, tallies: Tallies, model: str) -> None:
        self.registry = tallies.registry
        self.rows, self.runs = tallies.rows.first[model,], tallies.runs.first[model,]
        self.stages = {stage: (tallies.counts.first[model, stage], tallies.times.first[model, stage]) for stage in STAGES}

    def watch(self, arrived: float) -> "Watch":
        """For one request, which arrived at that monotonic time."""
        return Watch(self, arrived)

    def count(self, stages: dict[str, int], rows: int) -> None:
        """The ns of the stages that one request went through; `rows` of it were predicted in a run of the model, if any."""
        cells = self.registry.cells
        with self.registry.lock:
            for stage, nanoseconds in stages.items():
                count, total = self.stages[stage]
                cells[count] += 1
                cells[total] += nanoseconds
            cells[self.rows] += rows
            cells[self.runs] += rows > 0

    def figures(self) -> dict[str, object]:
        """What all processes of the service counted, as Triton's statistics extension words it; times in ns."""
        total = self.registry.total
        stages = {stage: {"count": total(count), "ns": total(ns)} for stage, (count, ns) in self.stages.items()}
        return {"inference_count": total(self.rows), "execution_count": total(self.runs), "inference_stats": stages}


class Watch:
    """Times one request in a `with` block; leaving it counts the request, as a failure where it raised."""

    def __init__(self, tally: Tally, arrived: float) -> None:
        self.tally, self.arrived, self.rows = tally, arrived, 0
        self.laps: list[int] = []

    def __enter__(self) -> "Watch":
        self.began = self.last = time.perf_counter_ns()
        self.queued = max(0, int((time.monotonic() - self.arrived) * 1e9))
        return self

    def lap(self) -> None:
        """The next of LAPS has ended."""
        now = time.perf_counter_ns()
        self.laps.append(now - self.last)
        self.last = now

    def __exit__(self, raised: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        took = self.queued + time.perf_counter_ns() - self.began
        if raised is not None:
            self.tally.count({"fail": took}, 0)
        else:
            self.tally.count({"success": took, "queue": self.queued, **dict(zip(LAPS, self.laps, strict=True))}, self.rows)
