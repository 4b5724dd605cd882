"""CPU and memory limits of this process, from its control groups, and the default numbers of workers and threads."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from iris_wsgi.roles import ROLES
from iris_wsgi.settings import Settings

PROC = Path("/proc/self")
# The files of a limit by the controller of cgroup version 1 ("" for version 2). Messages name the first file.
CPU = (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")))
MEMORY = (("", ("memory.max",)), ("memory", ("memory.limit_in_bytes",)))
escaped = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """Mount point of a hierarchy, and the group at its top."""

    top: PurePosixPath
    folder: Path


def cpu_quota(proc: Path = PROC) -> tuple[float, str] | None:
    """Returns the smallest CPU quota, in CPUs, of the own group and its parents, with the name of its file."""
    found = [(int(quota) / int(period), name) for name, (quota, period) in numbers(CPU, proc, 2) if int(period) > 0]
    return min((one for one in found if one[0] > 0), default=None)


def memory_limit(proc: Path = PROC) -> tuple[int, str] | None:
    """Returns the smallest memory limit, in bytes, of the own group and its parents, with the name of its file."""
    return min(((int(limit), name) for name, (limit,) in numbers(MEMORY, proc, 1)), default=None)


def numbers(limits: Sequence[tuple[str, Sequence[str]]], proc: Path, count: int) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields the name and the numbers of the limit of each group. Groups without a limit or file are omitted."""
    for controller, files in limits:
        for folder in folders(controller, proc):
            with suppress(OSError):
                words = " ".join((folder / file).read_text() for file in files).split()
                # "max" in version 2 and "-1" in version 1 mean unlimited.
                if len(words) == count and all(word.isdigit() for word in words):
                    yield files[0], words


def folders(controller: str, proc: Path) -> Iterator[Path]:
    """Yields the folders of the own group and its parents. The controller is empty for version 2."""
    own = group(controller, proc)
    if own is None:
        return
    for mount in mounts(controller, proc):
        # In another namespace, or without the own group in the mount, only the top is visible.
        inside = own.relative_to(mount.top) if own.is_relative_to(mount.top) and ".." not in own.parts else PurePosixPath()
        for level in (inside, *inside.parents):
            yield mount.folder / level


def group(controller: str, proc: Path) -> PurePosixPath | None:
    """Returns the path of the own group in the hierarchy of a controller. See cgroups(7)."""
    for line in lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return PurePosixPath(path)
    return None


def mounts(controller: str, proc: Path) -> Iterator[Mount]:
    """Yields the mount points of the hierarchy of a controller. See proc_pid_mountinfo(5)."""
    for line in lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if kind == "cgroup" and controller in options.strip().split(",") if controller else kind == "cgroup2":
            yield Mount(PurePosixPath(unescaped(fields[3])), Path(unescaped(fields[4])))


def lines(path: Path) -> Sequence[str]:
    """Returns the lines of a file, or none if the file does not exist."""
    with suppress(OSError):
        return path.read_text(errors="surrogateescape").splitlines()
    return ()


def unescaped(path: str) -> str:
    return escaped.sub(lambda found: chr(int(found[1], 8)), path)


MIB = 1 << 20
# An idle worker takes 62 to 68 MiB with the shipped model. The rest is for its requests.
WORKER_MIB = 100
# While onnxruntime loads a model, its memory contains the file and another copy of the weights.
MODEL_COPIES = 2
# A request that writes a job or an item waits for the disk. Concurrent requests share one commit.
WRITING_THREADS = 16


def available_cpus(proc: Path = PROC) -> tuple[int, str]:
    """Returns the number of usable CPUs, at least one, and its source: the quota of the cgroup or the scheduler mask."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(proc)
    if quota is None:
        return usable, f"{usable} CPUs, no quota"
    allowed, name = quota
    return max(1, min(usable, round(allowed))), f"{name} allows {allowed:g} of {usable} CPUs"


def thread_count(settings: Settings, count: int) -> tuple[int, str]:
    """Returns the number of threads in the pool, and the reason."""
    if settings.threads:
        return settings.threads, "as set"
    if ROLES[settings.role].writes:
        return max(WRITING_THREADS, 2 * count), "concurrent requests share one write to the disk"
    if settings.batch_rows:
        return max(4, 2 * count, settings.batch_rows), "IRIS_BATCH_ROWS requests wait for one run"
    return max(4, 2 * count), "two per CPU, at least four, for large requests"


def worker_count(settings: Settings, proc: Path = PROC) -> tuple[int, str]:
    """Returns the number of workers, at least one, and the reason: the setting, the CPUs, or the memory."""
    if settings.workers:
        return settings.workers, "as set"
    count, why = available_cpus(proc)
    limit, name = memory(proc)
    each = WORKER_MIB * MIB + MODEL_COPIES * model_bytes(settings)
    room = max(1, limit // each)
    if room >= count:
        return count, why
    return room, f"memory allows {room}: {name} is {limit // MIB} MiB, at {each // MIB} MiB each"


def memory(proc: Path = PROC) -> tuple[int, str]:
    """Returns the usable memory in bytes, and its source: the limit of the cgroup, or the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the memory of the machine"
    # Version 1 writes a number of 19 digits if there is no limit.
    return min(machine, memory_limit(proc) or machine)


# The model, its companions, and the members.
GRAPHS = ("*.onnx", "*/*.onnx", "members/*/*.onnx")


def model_bytes(settings: Settings) -> int:
    """Returns the size of all graphs in the model folder of the role."""
    folder = Path(settings.model_dir) / ROLES[settings.role].folder.format(member=settings.member)
    # Not at any depth: a wrong folder may be the home directory, or the root.
    graphs = (path for pattern in GRAPHS for path in folder.glob(pattern) if path.is_file())
    return sum(path.stat().st_size for path in graphs)
