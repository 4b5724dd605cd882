"""CPU and memory limits of this process, from its control groups, and the numbers of workers and threads that follow."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from iris_wsgi.roles import ROLES
from iris_wsgi.settings import Settings

PROC = Path("/proc/self")
# The files of a limit, by the controller that version 1 has it in; the first file names the limit to people.
CPU = (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")))
MEMORY = (("", ("memory.max",)), ("memory", ("memory.limit_in_bytes",)))
escaped = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """Where a hierarchy is mounted, and which of its groups is the top there."""

    top: PurePosixPath
    folder: Path


def cpu_quota(proc: Path = PROC) -> tuple[float, str] | None:
    """Returns the smallest CPU quota, in CPUs, of the process's group and of those around it, with its file's name."""
    found = [(int(quota) / int(period), name) for name, (quota, period) in numbers(CPU, proc, 2) if int(period) > 0]
    return min((one for one in found if one[0] > 0), default=None)


def memory_limit(proc: Path = PROC) -> tuple[int, str] | None:
    """Returns the smallest memory limit, in bytes, of the process's group and of those around it, with its file's name."""
    return min(((int(limit), name) for name, (limit,) in numbers(MEMORY, proc, 1)), default=None)


def numbers(limits: Sequence[tuple[str, Sequence[str]]], proc: Path, count: int) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields the name and the numbers of a limit of each group; a group without a limit, or without the file, is left out."""
    for controller, files in limits:
        for folder in folders(controller, proc):
            with suppress(OSError):
                words = " ".join((folder / file).read_text() for file in files).split()
                # The words "max" in version 2 and "-1" in version 1 are no limit.
                if len(words) == count and all(word.isdigit() for word in words):
                    yield files[0], words


def folders(controller: str, proc: Path) -> Iterator[Path]:
    """Yields the folder of the process's group and those around it; the controller is empty for version 2."""
    own = group(controller, proc)
    if own is None:
        return
    for mount in mounts(controller, proc):
        # Another namespace, or a part of the hierarchy without the group: then the top is all that can be seen.
        inside = own.relative_to(mount.top) if own.is_relative_to(mount.top) and ".." not in own.parts else PurePosixPath()
        for level in (inside, *inside.parents):
            yield mount.folder / level


def group(controller: str, proc: Path) -> PurePosixPath | None:
    """Returns the path of the process's group in the hierarchy of a controller. See cgroups(7)."""
    for line in lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return PurePosixPath(path)
    return None


def mounts(controller: str, proc: Path) -> Iterator[Mount]:
    """Yields where the hierarchy of a controller is mounted. See proc_pid_mountinfo(5)."""
    for line in lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if kind == "cgroup" and controller in options.strip().split(",") if controller else kind == "cgroup2":
            yield Mount(PurePosixPath(unescaped(fields[3])), Path(unescaped(fields[4])))


def lines(path: Path) -> Sequence[str]:
    """Returns the lines of a file; none where there is no such file, as elsewhere than on Linux."""
    with suppress(OSError):
        return path.read_text(errors="surrogateescape").splitlines()
    return ()


def unescaped(path: str) -> str:
    return escaped.sub(lambda found: chr(int(found[1], 8)), path)


MIB = 1 << 20
# A worker of any role takes 62 to 68 MiB at rest with the shipped model; the rest is for the requests that it holds.
WORKER_MIB = 100
# onnxruntime has a model twice while it loads it: its file, and the weights in a form of its own.
MODEL_COPIES = 2
# Whoever hands in a job or an item waits until it is on the disk, and all who wait at the same time share one commit.
WRITING_THREADS = 16


def cpus(proc: Path = PROC) -> tuple[int, str]:
    """How many CPUs this process may use, at least one, and what says so: the cgroup's quota or the scheduler's mask."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(proc)
    if quota is None:
        return usable, f"{usable} CPUs, no quota"
    allowed, name = quota
    return max(1, min(usable, round(allowed))), f"{name} allows {allowed:g} of {usable} CPUs"


def threads_for(settings: Settings, count: int) -> tuple[int, str]:
    """Threads of the pool, for what may block or is large; requests of microseconds never get there."""
    if settings.threads:
        return settings.threads, "as set"
    if ROLES[settings.role].writes:
        return max(WRITING_THREADS, 2 * count), "as many requests share one write to the disk"
    if settings.batch_rows:
        return max(4, 2 * count, settings.batch_rows), "as many as IRIS_BATCH_ROWS, for each waits for its run"
    return max(4, 2 * count), "two a CPU, four at least, for large requests"


def workers_for(settings: Settings, proc: Path = PROC) -> tuple[int, str]:
    """Returns the number of workers, at least one, and what decides it: the setting, the CPUs, or the memory."""
    if settings.workers:
        return settings.workers, "as set"
    count, why = cpus(proc)
    limit, name = memory(proc)
    each = WORKER_MIB * MIB + MODEL_COPIES * model_bytes(settings)
    room = max(1, limit // each)
    if room >= count:
        return count, why
    return room, f"memory allows {room}: {name} is {limit // MIB} MiB, at {each // MIB} MiB each"


def memory(proc: Path = PROC) -> tuple[int, str]:
    """Returns the bytes of memory that this process may use, and what says so: the cgroup's limit, or that of the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "that of the machine"
    # Version 1 writes a number of 19 digits where there is no limit.
    return min(machine, memory_limit(proc) or machine)


def model_bytes(settings: Settings) -> int:
    """Returns the size of the graphs of the role, with those that are in folders of the model's own."""
    folder = Path(settings.model_dir) / ROLES[settings.role].folder.format(member=settings.member)
    return sum(path.stat().st_size for path in folder.rglob("*.onnx") if path.is_file())
