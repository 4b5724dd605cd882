"""Sampler of the memory, the descriptors, and the threads of each process, and the checks that none of them leaks."""

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
from processes import Deployment

# Maximum growth of a process's private memory over the steady half of the soak; see `memory_growth`. Large requests that meet by
# chance let the heap grow for hours, ever more slowly, while the number of allocated blocks stays the same.
MAX_KB_PER_MINUTE = 400.0
# Maximum growth of the number of allocated blocks between the two halves of that time: less than 3 for each request of a process.
MAX_BLOCK_GROWTH = 3000
# A shorter time is not long enough to find a leak.
MIN_LEAK_SECONDS = 240.0
# Memory that an allocator may spread into, however short the soak was.
NOISE_KB = 1024.0


class Sample(NamedTuple):
    """Sample of a process: KB of private memory, KB of its share of all memory, descriptors, threads, and Python's blocks."""

    at: float
    private_kb: int
    shared_kb: int
    descriptors: int
    threads: int
    blocks: int = 0


def sample_process(pid: int, report: Path) -> Sample | None:
    """Samples a process and asks it to replace its report; returns None for a process that is gone.

    The sample has the number of blocks of the report before, and 0 if the process has not reported yet.
    """
    with suppress(OSError, KeyError, ValueError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        rollup = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        kilobytes = (int(rollup[name].split()[0]) for name in ("Private_Dirty", "Pss"))
        blocks = int(report.read_text()) if report.exists() else 0
        # The signal ends a process that has just started and has no handler yet.
        if has_handler(pid, signal.SIGUSR1):
            os.kill(pid, signal.SIGUSR1)
        return Sample(time.time(), *kilobytes, descriptors, int(status["Threads"]), blocks)
    return None


def has_handler(pid: int, number: int) -> bool:
    """Returns whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


class ResourceSampler:
    """Samples all processes of a deployment in a background thread."""

    def __init__(self, deployment: Deployment, seconds: float) -> None:
        self.deployment, self.seconds = deployment, seconds
        self.samples: dict[int, list[Sample]] = defaultdict(list)
        # The server of each process, and the kind of the process: parent or worker.
        self.names: dict[int, tuple[str, str]] = {}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self) -> "ResourceSampler":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()

    def run(self) -> None:
        while not self.stopping.wait(self.seconds):
            self.sample_all()

    def sample_all(self) -> dict[int, Sample]:
        """Returns a new sample of each living process by its pid."""
        found = {}
        for server in self.deployment.servers.values():
            for pid, kind in server.pids().items():
                if sample := sample_process(pid, self.deployment.reports / str(pid)):
                    self.names[pid] = server.name, kind
                    self.samples[pid].append(sample)
                    found[pid] = sample
        return found

    def by_kind(self, found: dict[int, Sample]) -> dict[tuple[str, str], list[Sample]]:
        """Groups samples by server and kind of process."""
        grouped = defaultdict(list)
        for pid, sample in found.items():
            grouped[self.names[pid]].append(sample)
        return grouped


def slope(samples: list[Sample]) -> float:
    """Returns the growth of a process's private memory in KB a minute, by least squares."""
    minutes = np.array([sample.at for sample in samples]) / 60
    return float(np.polyfit(minutes - minutes[0], [sample.private_kb for sample in samples], 1)[0])


def memory_growth(samples: list[Sample]) -> float:
    """Returns the minimum slope of the whole time, its two halves, and its last third.

    A leak is in all of them. Memory that an allocator takes once is in one of them. Memory that an allocator takes ever more
    slowly has its minimum in the last third.
    """
    middle, late = len(samples) // 2, len(samples) * 2 // 3
    return min(slope(part) for part in (samples, samples[:middle], samples[middle:], samples[late:]))


def block_growth(samples: list[Sample]) -> int:
    """Returns the difference between the minimum numbers of blocks in the two halves: the blocks of requests come and go."""
    blocks = [sample.blocks for sample in samples if sample.blocks]
    middle = len(blocks) // 2
    return min(blocks[middle:]) - min(blocks[:middle]) if middle else 0


def find_leaks(sampler: ResourceSampler, since: float, until: float) -> tuple[dict[int, float], list[str]]:
    """Returns the growth in KB a minute of each process that lived from `since` to `until`, and a line for each leaking server.

    A leak is in each process that does the work. A process that was started in between still fills its heap when the others do
    not.
    """
    found: dict[int, float] = {}
    minima: dict[tuple[str, str], tuple[float, int]] = {}
    for pid, samples in sampler.samples.items():
        steady = [sample for sample in samples if since <= sample.at <= until]
        if len(steady) < 9 or samples[-1].at < until or samples[0].at > since:
            continue
        found[pid] = memory_growth(steady)
        kilobytes, blocks = minima.get(sampler.names[pid], (inf, sys.maxsize))
        minima[sampler.names[pid]] = min(kilobytes, found[pid]), min(blocks, block_growth(steady))
    if until - since < MIN_LEAK_SECONDS:
        return found, []
    minutes = (until - since) / 60
    limit = max(MAX_KB_PER_MINUTE, NOISE_KB / minutes)
    return found, [
        f"{' '.join(name)} grows by {kilobytes:.0f} KB a minute and by {blocks} Python blocks over {minutes:.1f} minutes"
        for name, (kilobytes, blocks) in minima.items()
        if kilobytes > limit or blocks > MAX_BLOCK_GROWTH
    ]


def without_report(sampler: ResourceSampler, found: dict[int, Sample]) -> list[str]:
    """Returns a line for each process that has not reported how many blocks Python has allocated."""
    return [
        f"{' '.join(sampler.names[pid])} ({pid}) does not report its Python blocks"
        for pid, sample in found.items()
        if not sample.blocks
    ]


def in_excess(sampler: ResourceSampler, before: dict[int, Sample], after: dict[int, Sample], spare: int) -> list[str]:
    """Returns a line for each process with more descriptors or threads than any process of its kind had after the warm-up.

    Both samples are taken without load. A worker may have `spare` more: it starts threads and connections to stores when it
    needs them, and keeps them. It needs one for each waiting client, and for each client that left while a thread was busy.
    """
    lines, first = [], sampler.by_kind(before)
    for pid, sample in after.items():
        server, kind = sampler.names[pid]
        for resource in ("descriptors", "threads"):
            limit = max(getattr(other, resource) for other in first[server, kind]) + (0 if kind == "parent" else spare)
            if getattr(sample, resource) > limit:
                lines.append(f"{server} {kind} ({pid}) has {getattr(sample, resource)} {resource}; the limit is {limit}")
    return lines
