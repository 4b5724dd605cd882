"""Processes of a server: the process tree, its CPU time, its memory, and its end."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence


def tree(root: int) -> list[int]:
    """Returns `root` and its descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # The name in parentheses may contain any character. The state and the parent follow the last parenthesis.
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_times(pids: Iterable[int]) -> dict[int, int]:
    """Returns the exact CPU time in ns of each process with all its threads, including ended ones."""
    times = {}
    for pid in pids:
        # The number of the clock of another process, as clock_getcpuclockid(3) of Linux computes it.
        with contextlib.suppress(OSError):
            times[pid] = time.clock_gettime_ns((~pid << 3) | 2)
    return times


def cpu_between(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    return sum(value - before.get(pid, 0) for pid, value in after.items())


def memory(root: int) -> int:
    """Returns the proportional set size of the tree in bytes."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total * 1024


def stands(pid: int) -> bool:
    """Returns whether a signal has stopped all threads of a process."""
    states = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
            states.append(file.read().rpartition(b")")[2].split()[0])
    return set(states) == {b"T"}


@contextlib.contextmanager
def running(command: Sequence[str], environ: Mapping[str, str], cpus: Iterable[int], folder: str) -> Iterator[subprocess.Popen]:
    """Starts a command in a new process group on these CPUs, without output, and kills all its processes at exit."""
    allowed = set(cpus)
    process = subprocess.Popen(
        command,
        env=environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    try:
        yield process
    finally:
        # Children that left the group are found by their parents, so the tree is read before the parents end.
        left = tree(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in left[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
