"""How many CPUs and how much memory this process may use, and so how many workers and threads there are."""

import os
from pathlib import Path

from iris_wsgi.catalogue import ROLES
from iris_wsgi.cgroups import PROC, cpu_quota, memory_limit
from iris_wsgi.settings import Settings

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
