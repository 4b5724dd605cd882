"""Memory shared by the processes of one service, in which each has its own slot of cells and needs no lock."""

import mmap
import os
import time
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

SLOT_BYTES = 1 << 20
HEADER = 8
LAYOUT, PID, DEAD_CPU, GENERATION, CONNECTIONS = range(5)
# The first cells are for what a process is doing now, which ends with it.
PASSING = 256
# Words that any process may write, each as a whole: marks by which they tell each other what has changed.
MARKS = 12288
# Places for the keys of what devices at the edge have reported.
REPORTS = 8192


class Board:
    """Slots of float64 cells. A process writes only to its own; any process can add up those of all.

    A slot keeps its counts when its process dies, and the next process that takes it goes on from there. The memory is
    anonymous: it takes no more than was touched, and no file.
    """

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.view: memoryview[float] = memoryview(mmap.mmap(-1, slots * SLOT_BYTES)).cast("d")
        self.marks: memoryview[int] = memoryview(mmap.mmap(-1, MARKS * 8)).cast("Q")
        self.reports: memoryview[int] = memoryview(mmap.mmap(-1, REPORTS * 8)).cast("Q")
        self.parent = os.getpid()

    def slot(self, number: int) -> "memoryview[float]":
        size = SLOT_BYTES // 8
        return self.view[number * size : (number + 1) * size]

    def cells(self, number: int) -> "memoryview[float]":
        """The cells of a slot, behind its header."""
        return self.slot(number)[HEADER:]

    def join(self, number: int, layout: int, used: int) -> None:
        """Takes a slot for this process; what stands there is kept if it has the same layout, else zeroed."""
        slot = self.slot(number)
        if slot[LAYOUT] != layout:
            zero(slot, used)
            slot[LAYOUT] = layout
        zero(slot, PASSING)
        slot[PID], slot[CONNECTIONS] = os.getpid(), 0

    def leave(self, number: int, cpu_seconds: float) -> None:
        """Called by the parent when the process of a slot has ended after so much CPU time."""
        slot = self.slot(number)
        slot[PID] = 0
        slot[DEAD_CPU] += cpu_seconds
        zero(slot, PASSING)

    def alike(self, layout: int) -> "list[memoryview[float]]":
        """The cells of all slots with this layout, those of the dead among them."""
        return [self.cells(number) for number in range(self.slots) if self.slot(number)[LAYOUT] == layout]

    def pids(self) -> Sequence[int]:
        """The processes alive, the parent first."""
        found = [int(self.slot(number)[PID]) for number in range(self.slots)]
        return list(dict.fromkeys(pid for pid in (self.parent, *found) if pid))

    def connected(self, number: int, connections: float) -> None:
        """The process of a slot has so many now; infinitely many are those of one that takes no more."""
        self.slot(number)[CONNECTIONS] = connections

    def is_ahead(self, number: int) -> bool:
        """Whether it has more by a quarter than another, and by two at least, so that the next should be for that one."""
        others = [self.slot(i) for i in range(self.slots) if i != number]
        least = min((slot[CONNECTIONS] for slot in others if slot[PID]), default=inf)
        return self.slot(number)[CONNECTIONS] > 1.25 * least + 1

    def generation(self) -> float:
        """Another number than before says to each process that what it keeps in a cache counts no more."""
        return self.view[GENERATION]

    def next_generation(self) -> None:
        # The time, so that of two processes which do this at once neither's is lost on a third that looks in between.
        self.view[GENERATION] = float(time.monotonic_ns())

    def dead_cpu(self) -> float:
        return float(sum(self.slot(number)[DEAD_CPU] for number in range(self.slots)))


class Company(NamedTuple):
    """What a process knows of the others that serve with it."""

    parent: int
    board: Board
    slot: int


def zero(slot: "memoryview[float]", count: int) -> None:
    """Zeroes the first cells behind the header."""
    slot[HEADER : HEADER + count] = memoryview(bytes(count * 8)).cast("d")
