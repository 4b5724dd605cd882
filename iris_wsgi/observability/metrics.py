"""Metrics in shared memory and of processes, in the Prometheus text format (version 0.0.4)."""

import hashlib
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.observability.shared_memory import TRANSIENT_CELLS, SharedMemory


class MetricSample(NamedTuple):
    """A metric that is computed at each scrape. The keys of `values` are labels with their braces, or "" without labels."""

    name: str
    kind: str
    help_text: str
    values: Mapping[str, float]


def metric_sample(name: str, kind: str, help_text: str, value: float) -> MetricSample:
    """Returns a sample without labels."""
    return MetricSample(name, kind, help_text, {"": value})


def process_samples(pids: Sequence[int], exited_cpu_seconds: float) -> list[MetricSample]:
    """Returns sums over `pids`, and over ended processes for the CPU time. Without /proc there is only the CPU time."""
    found = [process for pid in pids if (process := linux_process(Path("/proc"), pid))]
    times = os.times()
    cpu = exited_cpu_seconds + sum(process.cpu for process in found) if found else times.user + times.system
    samples = [metric_sample("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", cpu)]
    if found:
        samples += [
            metric_sample(
                "process_virtual_memory_bytes",
                "gauge",
                "Virtual memory size in bytes.",
                sum(process.virtual for process in found),
            ),
            metric_sample(
                "process_resident_memory_bytes",
                "gauge",
                "Resident memory size in bytes.",
                sum(process.resident for process in found),
            ),
            metric_sample("process_start_time_seconds", "gauge", "Start time since the Unix epoch in seconds.", found[0].started),
            metric_sample(
                "process_open_fds", "gauge", "Number of open file descriptors.", sum(process.open_fds for process in found)
            ),
            metric_sample("process_max_fds", "gauge", "Maximum number of open file descriptors of a process.", found[0].max_fds),
        ]
    return samples


class Process(NamedTuple):
    """Resources of a process, in seconds and bytes."""

    cpu: float
    virtual: float
    resident: float
    started: float
    open_fds: float
    max_fds: float


def linux_process(proc: Path, pid: int) -> Process | None:
    """Returns None for an ended process, and on a system without /proc."""
    own = proc / str(pid)
    try:
        # The second field, the name of the command in parentheses, may contain blanks.
        fields = (own / "stat").read_text().rpartition(")")[2].split()
        booted = next(line.split()[1] for line in (proc / "stat").read_text().splitlines() if line.startswith("btime"))
        limits = (own / "limits").read_text().splitlines()
        open_fds = len(os.listdir(own / "fd"))
    except OSError:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    max_fds = next(line.split()[3] for line in limits if line.startswith("Max open files"))
    return Process(
        cpu=(int(fields[11]) + int(fields[12])) / ticks,
        virtual=float(fields[20]),
        resident=float(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        started=int(booted) + int(fields[19]) / ticks,
        open_fds=float(open_fds),
        max_fds=inf if max_fds == "unlimited" else float(max_fds),
    )


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
# The number of series that are skipped together if all are zero.
BLOCK = 64


class Registry:
    """All series of a process. Every label value is known when a family is created, so no request adds a series."""

    def __init__(self, memory: SharedMemory | None = None, slot: int = 0) -> None:
        self.memory, self.slot = memory or SharedMemory(), slot
        self.cells = self.memory.cells(slot)
        self.transient, self.used = 0, TRANSIENT_CELLS
        self.lock = threading.Lock()
        self.families: list[Family] = []
        # Functions that write collected counts into the cells.
        self.collectors: list[Callable[[], None]] = []
        # Functions that return samples at each scrape. None may block.
        self.sources: list[Callable[[], list[MetricSample]]] = []

    def counter(self, name: str, help_text: str, label: str, values: Iterable[str]) -> "Counter":
        """Returns a counter with one label."""
        return Counter(self, name, help_text, (label,), [values])

    def allocate(self, count: int, transient: bool) -> int:
        """Allocates `count` cells and returns the first number. `transient` cells are reset when the process ends."""
        first = self.transient if transient else self.used
        if transient:
            self.transient += count
        else:
            self.used += count
        if self.transient > TRANSIENT_CELLS or self.used > len(self.cells):
            raise ValueError("there are more metric cells than a slot holds")
        return first

    def join(self) -> None:
        """Adopts the cells of an earlier process of this slot. Call it after the last family, and before the first count."""
        described = repr([(family.head, family.names, family.first.axes) for family in self.families])
        # At most 52 bits, so that a float64 holds it exactly. 0 marks an unused slot.
        self.layout = int.from_bytes(hashlib.sha256(described.encode()).digest()[:6], "big") + 1
        self.memory.join(self.slot, self.layout, self.used)

    def flush(self) -> None:
        """Writes the counts that were collected since the last call. Any thread may call this method."""
        for collector in self.collectors:
            collector()

    def total(self, cell: int) -> int:
        """Returns the sum of a cell over all processes of the service, exact up to 2**53."""
        self.flush()
        return sum(int(cells[cell]) for cells in self.memory.cells_with_layout(self.layout))

    def text(self) -> bytes:
        """Returns the exposition text with the sums over all processes of the service."""
        self.flush()
        columns = [cells[: self.used].tolist() for cells in self.memory.cells_with_layout(self.layout)]
        total = [sum(column) for column in zip(*columns, strict=True)] if len(columns) > 1 else columns[0]
        lines = [line for family in self.families for line in family.lines(total)]
        samples = [sample for source in self.sources for sample in source()]
        for sample in [*process_samples(self.memory.pids(), self.memory.exited_cpu_seconds()), *samples]:
            lines += heading(sample.name, sample.kind, sample.help_text)
            lines += [f"{sample.name}{labels} {number(value)}" for labels, value in sample.values.items()]
        return ("\n".join(lines) + "\n").encode()


class SeriesIndex:
    """The first cell of each series, by its label values. The series are all combinations of the values in `axes`.

    Offsets are computed lazily and cached: most method × route × status combinations never occur.
    """

    def __init__(self, axes: Iterable[Iterable[str]], width: int) -> None:
        self.axes, self.width = [list(axis) for axis in axes], width
        self.numbers = [{value: i for i, value in enumerate(axis)} for axis in self.axes]
        self.count, self.start = prod(map(len, self.axes)), 0
        self.offsets: dict[Key, int] = {}

    def __getitem__(self, key: Key) -> int:
        first = self.offsets.get(key)
        if first is None:
            number = 0
            for value, numbers in zip(key, self.numbers, strict=True):
                number = number * len(numbers) + numbers[value]
            first = self.offsets[key] = self.start + number * self.width
        return first

    def __iter__(self) -> Iterator[Key]:
        return product(*self.axes)

    def key(self, number: int) -> Key:
        """Returns the label values of the series with this number."""
        values = []
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis))
            values.append(axis[place])
        return tuple(reversed(values))


class Family:
    """The series of one name. A sparse family omits the series that are zero."""

    kind = ""
    width = 1
    transient = False

    def __init__(
        self,
        registry: Registry,
        name: str,
        help_text: str,
        names: Key = (),
        axes: Iterable[Iterable[str]] = (),
        sparse: bool = False,
    ) -> None:
        """Allocates the cells. `axes` has the values of each label in `names`."""
        self.cells, self.lock, self.sparse = registry.cells, registry.lock, sparse
        self.name, self.head = name, heading(name, self.kind, help_text)
        self.names, self.first = names, SeriesIndex(axes, self.width)
        self.first.start = registry.allocate(self.first.count * self.width, self.transient)
        registry.families.append(self)

    def lines(self, total: Sequence[float]) -> Iterator[str]:
        yield from self.head
        start, width, count = self.first.start, self.width, self.first.count
        for begin in range(0, count, BLOCK):
            end = min(begin + BLOCK, count)
            if self.sparse and not any(total[start + begin * width : start + end * width]):
                continue
            for number in range(begin, end):
                cells = total[start + number * width : start + (number + 1) * width]
                if any(cells) or not self.sparse:
                    yield from self.series(self.labels(self.first.key(number)), cells)

    def labels(self, key: Key) -> str:
        return ",".join(f'{n}="{escaped(v)}"' for n, v in zip(self.names, key, strict=True))

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        yield f"{self.name}{braced(labels)} {number(cells[0])}"

    def add(self, key: Key = (), amount: float = 1) -> None:
        with self.lock:
            self.cells[self.first[key]] += amount


class Counter(Family):
    """A value that only increases."""

    kind = "counter"


class NanosecondCounter(Counter):
    """Counter of whole nanoseconds, whose sums are exact, shown in seconds."""

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        yield f"{self.name}{braced(labels)} {number(cells[0] / 1e9)}"


class Gauge(Family):
    """A current value, which increases and decreases."""

    kind = "gauge"
    transient = True

    def set(self, value: float, key: Key = ()) -> None:
        self.cells[self.first[key]] = value


class Info(Family):
    """Facts in labels; the value is always 1."""

    kind = "gauge"

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        yield f"{self.name}{braced(labels)} 1"


class Histogram(Family):
    """Counts of observed seconds by upper bound. The cells are one for each bucket, and the sum."""

    kind = "histogram"
    bounds: tuple[float, ...] = SECONDS
    width = len(SECONDS) + 2

    def observe(self, value: float, key: Key = ()) -> None:
        with self.lock:
            self.record(value, self.first[key])

    def record(self, value: float, first: int) -> None:
        """Variant of observe() for callers that already hold the lock and know the first cell."""
        self.cells[first + bisect_left(self.bounds, value)] += 1
        self.cells[first + self.width - 1] += value

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        count, comma = 0.0, "," if labels else ""
        for bound, cell in zip((*map(str, self.bounds), "+Inf"), cells, strict=False):
            count += cell
            yield f'{self.name}_bucket{{{labels}{comma}le="{bound}"}} {number(count)}'
        yield f"{self.name}_sum{braced(labels)} {number(cells[-1])}"
        yield f"{self.name}_count{braced(labels)} {number(count)}"


def heading(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def number(value: float) -> str:
    if value == inf:
        return "+Inf"
    return str(int(value)) if value.is_integer() else repr(value)
