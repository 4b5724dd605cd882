"""The process_* metrics that Prometheus's client libraries share, as far as /proc tells them."""

import os
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple


class Figure(NamedTuple):
    """A metric that is found out when it is asked for: its values by their labels, {} and all; "" is no label."""

    name: str
    kind: str
    help_text: str
    values: Mapping[str, float]


def figure(name: str, kind: str, help_text: str, value: float) -> Figure:
    """One without labels."""
    return Figure(name, kind, help_text, {"": value})


def process_figures(pids: Sequence[int], dead_cpu: float) -> list[Figure]:
    """Summed over `pids`, with the CPU seconds of processes that have ended; the time alone where there is no /proc."""
    found = [one for pid in pids if (one := linux_process(Path("/proc"), pid))]
    times = os.times()
    cpu = dead_cpu + sum(one.cpu for one in found) if found else times.user + times.system
    figures = [figure("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", cpu)]
    if found:
        figures += [
            figure("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", sum(one.virtual for one in found)),
            figure(
                "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", sum(one.resident for one in found)
            ),
            figure("process_start_time_seconds", "gauge", "Start time since the Unix epoch in seconds.", found[0].started),
            figure("process_open_fds", "gauge", "Number of open file descriptors.", sum(one.open_fds for one in found)),
            figure("process_max_fds", "gauge", "Most file descriptors that a process may open.", found[0].max_fds),
        ]
    return figures


class Process(NamedTuple):
    """What /proc tells of a process, in seconds and bytes."""

    cpu: float
    virtual: float
    resident: float
    started: float
    open_fds: float
    max_fds: float


def linux_process(proc: Path, pid: int) -> Process | None:
    """None for a process that is gone, or on a system without /proc."""
    own = proc / str(pid)
    try:
        # The second field, the command's name, may hold blanks; what follows its bracket does not.
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
