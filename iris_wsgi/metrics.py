"""Counters, gauges and histograms in the Prometheus text format (version 0.0.4), each series in a numbered cell."""

import os
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)

Key = tuple[str, ...]


class Registry:
    """All series of a process. Every label value is known when a family is made, so no request can add a series."""

    def __init__(self) -> None:
        self.cells = array("d")
        self.lock = threading.Lock()
        self.families: list[Family] = []

    def take(self, count: int) -> int:
        """The number of the first of `count` new cells, all zero."""
        first = len(self.cells)
        self.cells.extend([0.0] * count)
        return first

    def text(self) -> bytes:
        """What GET /metrics answers."""
        lines = [line for family in self.families for line in family.lines()]
        lines += process_lines()
        return ("\n".join(lines) + "\n").encode()


class Family:
    """The series of one name; subclasses say what a cell means. A sparse family leaves out series that are still zero."""

    kind = ""
    width = 1

    def __init__(
        self,
        registry: Registry,
        name: str,
        help_text: str,
        names: Key = (),
        keys: Iterable[Key] = ((),),
        sparse: bool = False,
    ) -> None:
        self.cells, self.lock, self.sparse = registry.cells, registry.lock, sparse
        self.name, self.head = name, (f"# HELP {name} {help_text}", f"# TYPE {name} {self.kind}")
        self.first = {key: registry.take(self.width) for key in keys}
        self.labels = {key: ",".join(f'{n}="{escaped(v)}"' for n, v in zip(names, key, strict=True)) for key in self.first}
        registry.families.append(self)

    def lines(self) -> Iterator[str]:
        yield from self.head
        for key, first in self.first.items():
            cells = self.cells[first : first + self.width]
            if any(cells) or not self.sparse:
                yield from self.series(self.labels[key], cells)

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        yield f"{self.name}{braced(labels)} {number(cells[0])}"

    def add(self, key: Key = (), amount: float = 1) -> None:
        with self.lock:
            self.cells[self.first[key]] += amount


class Counter(Family):
    """Only grows."""

    kind = "counter"


class Gauge(Family):
    """Goes up and down."""

    kind = "gauge"


class Histogram(Family):
    """Counts observations, in seconds, by upper bound; its cells are one per bucket and the sum."""

    kind = "histogram"
    bounds = SECONDS
    width = len(SECONDS) + 2

    def observe(self, value: float, key: Key = ()) -> None:
        first = self.first[key]
        with self.lock:
            self.cells[first + bisect_left(self.bounds, value)] += 1
            self.cells[first + self.width - 1] += value

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        count, comma = 0.0, "," if labels else ""
        for bound, cell in zip((*map(str, self.bounds), "+Inf"), cells, strict=False):
            count += cell
            yield f'{self.name}_bucket{{{labels}{comma}le="{bound}"}} {number(count)}'
        yield f"{self.name}_sum{braced(labels)} {number(cells[-1])}"
        yield f"{self.name}_count{braced(labels)} {number(count)}"


def braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def number(value: float) -> str:
    if value == inf:
        return "+Inf"
    return str(int(value)) if value.is_integer() else repr(value)


def process_lines() -> Iterator[str]:
    """The process_* metrics that Prometheus's client libraries share, as far as /proc tells them."""
    times = os.times()
    values: dict[str, tuple[str, str, float]] = {
        "process_cpu_seconds_total": ("counter", "User and system CPU time in seconds.", times.user + times.system)
    }
    values |= linux_process(Path("/proc"))
    for name, (kind, help_text, value) in values.items():
        yield f"# HELP {name} {help_text}"
        yield f"# TYPE {name} {kind}"
        yield f"{name} {number(value)}"


def linux_process(proc: Path) -> Mapping[str, tuple[str, str, float]]:
    """Memory, start time and descriptors; nothing on a system without /proc."""
    try:
        # The second field, the command's name, may hold blanks; what follows its bracket does not.
        fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
        booted = next(line.split()[1] for line in (proc / "stat").read_text().splitlines() if line.startswith("btime"))
        limits = (proc / "self/limits").read_text().splitlines()
        open_fds = len(os.listdir(proc / "self/fd"))
    except OSError:
        return {}
    started = int(booted) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    max_fds = next(line.split()[3] for line in limits if line.startswith("Max open files"))
    return {
        "process_virtual_memory_bytes": ("gauge", "Virtual memory size in bytes.", float(fields[20])),
        "process_resident_memory_bytes": (
            "gauge",
            "Resident memory size in bytes.",
            float(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        ),
        "process_start_time_seconds": ("gauge", "Start time since the Unix epoch in seconds.", started),
        "process_open_fds": ("gauge", "Number of open file descriptors.", float(open_fds)),
        "process_max_fds": (
            "gauge",
            "Most file descriptors that may be open.",
            inf if max_fds == "unlimited" else float(max_fds),
        ),
    }
