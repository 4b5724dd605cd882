"""Counters, gauges and histograms in the Prometheus text format (version 0.0.4), each series in a numbered cell."""

import hashlib
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import inf, prod

from iris_wsgi.observability.process_metrics import Figure, process_figures
from iris_wsgi.observability.shared_memory import PASSING, Board

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
# So many series that are all zero are passed over at once.
BLOCK = 64


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
        return Counter(self, name, help_text, (label,), [values])

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
        described = repr([(family.head, family.names, family.first.axes) for family in self.families])
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


class Grid:
    """The first cells of series by their keys, which are all combinations of values, with an axis for each label.

    Each is reckoned once, when it is asked for: of methods, routes and statuses there are thousands, and most never come.
    """

    def __init__(self, axes: Iterable[Iterable[str]], width: int) -> None:
        self.axes, self.width = [list(axis) for axis in axes], width
        self.numbers = [{value: i for i, value in enumerate(axis)} for axis in self.axes]
        self.count, self.start = prod(map(len, self.axes)), 0
        self.reckoned: dict[Key, int] = {}

    def __getitem__(self, key: Key) -> int:
        first = self.reckoned.get(key)
        if first is None:
            number = 0
            for value, numbers in zip(key, self.numbers, strict=True):
                number = number * len(numbers) + numbers[value]
            first = self.reckoned[key] = self.start + number * self.width
        return first

    def __iter__(self) -> Iterator[Key]:
        return product(*self.axes)

    def key(self, number: int) -> Key:
        """Of the series with this number, counted from 0 in their order."""
        values = []
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis))
            values.append(axis[place])
        return tuple(reversed(values))


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
        axes: Iterable[Iterable[str]] = (),
        sparse: bool = False,
    ) -> None:
        """`axes` are the values of each of the labels `names`."""
        self.cells, self.lock, self.sparse = registry.cells, registry.lock, sparse
        self.name, self.head = name, heading(name, self.kind, help_text)
        self.names, self.first = names, Grid(axes, self.width)
        self.first.start = registry.take(self.first.count * self.width, self.passing)
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
