"""Counters, gauges and histograms in the Prometheus text format (version 0.0.4), each series in a numbered cell."""

import hashlib
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf

from iris_wsgi.board import PASSING, Board
from iris_wsgi.processes import Figure, process_figures

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

    def __init__(self, board: Board | None = None, slot: int = 0) -> None:
        self.board, self.slot = board or Board(), slot
        self.cells = self.board.cells(slot)
        self.passing, self.used = 0, PASSING
        self.lock = threading.Lock()
        self.families: list[Family] = []
        # What is asked at each scrape; none may block.
        self.sources: list[Callable[[], list[Figure]]] = []

    def counter(self, name: str, help_text: str, label: str, values: Iterable[str]) -> "Counter":
        """A family whose series one label tells apart."""
        return Counter(self, name, help_text, (label,), [(value,) for value in values])

    def take(self, count: int, passing: bool) -> int:
        """The number of the first of `count` cells that nobody has; `passing` for what ends with the process."""
        first = self.passing if passing else self.used
        if passing:
            self.passing += count
        else:
            self.used += count
        if self.passing > PASSING or self.used > len(self.cells):
            raise ValueError("there are more metric cells than a slot holds")
        return first

    def join(self) -> None:
        """To be called when all families are made and none has counted: takes up what an earlier process of this slot left."""
        described = repr([(family.head, family.names, list(family.first)) for family in self.families])
        # 52 bits, so that it is the same number as a float64; never 0, which is an unused slot.
        self.layout = int.from_bytes(hashlib.sha256(described.encode()).digest()[:6], "big") + 1
        self.board.join(self.slot, self.layout, self.used)

    def total(self, cell: int) -> int:
        """The sum of one cell over all processes of the service; whole numbers up to 2**53 of each lose nothing."""
        return sum(int(cells[cell]) for cells in self.board.alike(self.layout))

    def text(self) -> bytes:
        """What GET /metrics answers: the sum over all processes of the service."""
        columns = [board[: self.used].tolist() for board in self.board.alike(self.layout)]
        total = [sum(column) for column in zip(*columns, strict=True)] if len(columns) > 1 else columns[0]
        lines = [line for family in self.families for line in family.lines(total)]
        found = [one for ask in self.sources for one in ask()]
        for one in [*process_figures(self.board.pids(), self.board.dead_cpu()), *found]:
            lines += heading(one.name, one.kind, one.help_text)
            lines += [f"{one.name}{labels} {number(value)}" for labels, value in one.values.items()]
        return ("\n".join(lines) + "\n").encode()


class Family:
    """The series of one name; subclasses say what a cell means. A sparse family leaves out series that are still zero."""

    kind = ""
    width = 1
    passing = False

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
        self.name, self.head = name, heading(name, self.kind, help_text)
        self.first = {key: registry.take(self.width, self.passing) for key in keys}
        self.names = names
        registry.families.append(self)

    def lines(self, total: Sequence[float]) -> Iterator[str]:
        yield from self.head
        for key, first in self.first.items():
            cells = total[first : first + self.width]
            if any(cells) or not self.sparse:
                labels = ",".join(f'{n}="{escaped(v)}"' for n, v in zip(self.names, key, strict=True))
                yield from self.series(labels, cells)

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        yield f"{self.name}{braced(labels)} {number(cells[0])}"

    def add(self, key: Key = (), amount: float = 1) -> None:
        with self.lock:
            self.cells[self.first[key]] += amount


class Counter(Family):
    """Only grows."""

    kind = "counter"


class Nanoseconds(Counter):
    """Counts whole nanoseconds, which add up exactly, and shows seconds."""

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        yield f"{self.name}{braced(labels)} {number(cells[0] / 1e9)}"


class Gauge(Family):
    """Goes up and down, and tells what is now."""

    kind = "gauge"
    passing = True

    def set(self, value: float, key: Key = ()) -> None:
        self.cells[self.first[key]] = value


class Info(Family):
    """Tells something by its labels; its value is always 1."""

    kind = "gauge"

    def series(self, labels: str, cells: Sequence[float]) -> Iterator[str]:
        yield f"{self.name}{braced(labels)} 1"


class Histogram(Family):
    """Counts observations, in seconds, by upper bound; its cells are one per bucket and the sum."""

    kind = "histogram"
    bounds: tuple[float, ...] = SECONDS
    width = len(SECONDS) + 2

    def observe(self, value: float, key: Key = ()) -> None:
        with self.lock:
            self.record(value, self.first[key])

    def record(self, value: float, first: int) -> None:
        """The same, for who holds the lock and knows the first cell."""
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
