"""The process_* metrics of the Prometheus client libraries, from /proc."""

import os
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple


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
