"""Shared memory of the processes of one service: metrics, cache generation, invalidation marks, and keys of reports."""

import mmap
import os
import time
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

SLOT_BYTES = 1 << 20
HEADER = 8
LAYOUT, PID, EXITED_CPU, GENERATION, CONNECTIONS = range(5)
# The first cells are gauges of the current state of a process. They are reset when it ends.
TRANSIENT_CELLS = 256
# The number of invalidation marks, words that any process may write.
MARKS = 12288
# The number of keys of reports from edge devices.
REPORTS = 8192


class SharedMemory:
    """Slots of float64 cells, without a lock. A process writes only to its own slot, and reads all slots.

    A slot keeps its counts when its process dies, and the next process of the slot continues them. The memory is anonymous: it
    has no file, and untouched pages take no memory.
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
        """Returns the cells of a slot, after its header."""
        return self.slot(number)[HEADER:]

    def join(self, number: int, layout: int, used: int) -> None:
        """Takes a slot for this process. Its counts are kept if the layout is the same, else zeroed."""
        slot = self.slot(number)
        if slot[LAYOUT] != layout:
            zero(slot, used)
            slot[LAYOUT] = layout
        zero(slot, TRANSIENT_CELLS)
        slot[PID], slot[CONNECTIONS] = os.getpid(), 0

    def leave(self, number: int, cpu_seconds: float) -> None:
        """Releases the slot of an ended process and adds its CPU time. Only the parent calls this method."""
        slot = self.slot(number)
        slot[PID] = 0
        slot[EXITED_CPU] += cpu_seconds
        zero(slot, TRANSIENT_CELLS)

    def cells_with_layout(self, layout: int) -> "list[memoryview[float]]":
        """Returns the cells of all slots with this layout, including those of dead processes."""
        return [self.cells(number) for number in range(self.slots) if self.slot(number)[LAYOUT] == layout]

    def pids(self) -> Sequence[int]:
        """Returns the ids of the living processes, the parent first."""
        found = [int(self.slot(number)[PID]) for number in range(self.slots)]
        return list(dict.fromkeys(pid for pid in (self.parent, *found) if pid))

    def set_connections(self, number: int, connections: float) -> None:
        """Records the open connections of a slot; `inf` marks a process that no longer accepts."""
        self.slot(number)[CONNECTIONS] = connections

    def has_excess_connections(self, number: int) -> bool:
        """Returns whether the slot has 25 % plus at least two more connections than the least loaded process."""
        others = [self.slot(i) for i in range(self.slots) if i != number]
        minimum = min((slot[CONNECTIONS] for slot in others if slot[PID]), default=inf)
        return self.slot(number)[CONNECTIONS] > 1.25 * minimum + 1

    def generation(self) -> float:
        """Returns the generation of the prediction caches. A change invalidates the entries of all processes."""
        return self.view[GENERATION]

    def next_generation(self) -> None:
        # The time, so that two concurrent changes give two different values.
        self.view[GENERATION] = float(time.monotonic_ns())

    def exited_cpu_seconds(self) -> float:
        return float(sum(self.slot(number)[EXITED_CPU] for number in range(self.slots)))


class WorkerGroup(NamedTuple):
    """The processes that serve together: their parent, their memory, and the slot of this process."""

    parent: int
    memory: SharedMemory
    slot: int


def zero(slot: "memoryview[float]", count: int) -> None:
    """Sets the first cells after the header to zero."""
    slot[HEADER : HEADER + count] = memoryview(bytes(count * 8)).cast("d")
