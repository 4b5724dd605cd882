"""What /proc tells of each process every few seconds, and what that must not do: grow."""

import os
import signal
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fleet import Fleet

# Of a process's own memory, over the steady half; see `growth`. Large requests that meet by chance let its heap grow for hours,
# less and less, while Python holds no more than before.
MOST_KB_PER_MINUTE = 400.0
# Of the blocks that Python holds, from one half of that to the other: a thousand requests and more of one process.
MOST_BLOCKS = 3000
# Over less there is nothing to be seen.
LEAST_SECONDS = 240.0
# What an allocator may still spread into, however short the run was.
NOISE_KB = 1024.0


class Sample(NamedTuple):
    """One look at a process: KB that are its own, KB of its share of all, descriptors, threads, blocks that Python holds."""

    at: float
    own: int
    share: int
    descriptors: int
    threads: int
    blocks: int = 0


def look(pid: int, report: Path) -> Sample | None:
    """Samples a process and asks it to replace its report; returns None for a process that is gone.

    The sample has the number of blocks of the report before, and 0 if the process has not reported yet.
    """
    with suppress(OSError, KeyError, ValueError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        rollup = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        kilobytes = (int(rollup[name].split()[0]) for name in ("Private_Dirty", "Pss"))
        blocks = int(report.read_text()) if report.exists() else 0
        # One that has just begun would end by it.
        if catches(pid, signal.SIGUSR1):
            os.kill(pid, signal.SIGUSR1)
        return Sample(time.time(), *kilobytes, descriptors, int(status["Threads"]), blocks)
    return None


def catches(pid: int, number: int) -> bool:
    """Returns whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


class Gauge:
    """Looks at all processes of a fleet until it is ended."""

    def __init__(self, fleet: Fleet, seconds: float) -> None:
        self.fleet, self.seconds = fleet, seconds
        self.samples: dict[int, list[Sample]] = defaultdict(list)
        # Of which server a process is, and what it is there.
        self.names: dict[int, tuple[str, str]] = {}
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self) -> "Gauge":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.thread.join()

    def run(self) -> None:
        while not self.ending.wait(self.seconds):
            self.look()

    def look(self) -> dict[int, Sample]:
        """Of each process that lives now."""
        found = {}
        for server in self.fleet.servers.values():
            for pid, kind in server.pids().items():
                if sample := look(pid, self.fleet.blocks / str(pid)):
                    self.names[pid] = server.name, kind
                    self.samples[pid].append(sample)
                    found[pid] = sample
        return found

    def kinds(self, found: dict[int, Sample]) -> dict[tuple[str, str], list[Sample]]:
        """What was found, by server and kind of process."""
        grouped = defaultdict(list)
        for pid, sample in found.items():
            grouped[self.names[pid]].append(sample)
        return grouped


def slope(samples: list[Sample]) -> float:
    """KB a minute by which a process's own memory grows, by least squares."""
    minutes = np.array([one.at for one in samples]) / 60
    return float(np.polyfit(minutes - minutes[0], [one.own for one in samples], 1)[0])


def growth(samples: list[Sample]) -> float:
    """The same, and the least of the whole, its two halves and its last third.

    A leak is in all of them. What an allocator takes once is in one, and what it takes less and less of is least in the last.
    """
    middle, late = len(samples) // 2, len(samples) * 2 // 3
    return min(slope(part) for part in (samples, samples[:middle], samples[middle:], samples[late:]))


def more_blocks(samples: list[Sample]) -> int:
    """By how many blocks Python holds more in the second half, of the least in each: in between are those of requests."""
    told = [one.blocks for one in samples if one.blocks]
    middle = len(told) // 2
    return min(told[middle:]) - min(told[:middle]) if middle else 0


def leaks(gauge: Gauge, since: float, till: float) -> tuple[dict[int, float], list[str]]:
    """KB a minute of each process that lived from `since` to `till`, and the servers all of whose processes grew too much.

    A leak is in each process that does the work. One that was begun in the middle still fills its heap when the others do not.
    """
    found: dict[int, float] = {}
    least: dict[tuple[str, str], tuple[float, int]] = {}
    for pid, samples in gauge.samples.items():
        steady = [one for one in samples if since <= one.at <= till]
        if len(steady) < 9 or samples[-1].at < till or samples[0].at > since:
            continue
        found[pid] = growth(steady)
        kilobytes, blocks = least.get(gauge.names[pid], (inf, sys.maxsize))
        least[gauge.names[pid]] = min(kilobytes, found[pid]), min(blocks, more_blocks(steady))
    if till - since < LEAST_SECONDS:
        return found, []
    minutes = (till - since) / 60
    most = max(MOST_KB_PER_MINUTE, NOISE_KB / minutes)
    return found, [
        f"{' '.join(name)} grows by {kilobytes:.0f} KB a minute over {minutes:.1f} minutes, and by {blocks} blocks of Python's"
        for name, (kilobytes, blocks) in least.items()
        if kilobytes > most or blocks > MOST_BLOCKS
    ]


def silent(gauge: Gauge, found: dict[int, Sample]) -> list[str]:
    """Names the processes that have not reported how many blocks Python has allocated."""
    return [
        f"{' '.join(gauge.names[pid])} ({pid}) does not report what Python holds" for pid, one in found.items() if not one.blocks
    ]


def more(gauge: Gauge, before: dict[int, Sample], after: dict[int, Sample], spare: int) -> list[str]:
    """Who has more descriptors or threads than any process of the kind had after the warm-up, both without load.

    Threads and connections to stores are made when they are wanted and kept, for each client that waits or has gone away while
    a thread was busy with it, hence `spare`.
    """
    faults, first = [], gauge.kinds(before)
    for pid, sample in after.items():
        server, kind = gauge.names[pid]
        for what in ("descriptors", "threads"):
            most = max(getattr(one, what) for one in first[server, kind]) + (0 if kind == "parent" else spare)
            if getattr(sample, what) > most:
                faults.append(f"{server} {kind} ({pid}) has {getattr(sample, what)} {what}, and may have {most}")
    return faults
