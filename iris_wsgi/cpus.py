"""How many CPUs this process may use, and so how many processes and threads there are."""

import os
from pathlib import Path

from iris_wsgi.catalogue import ROLES
from iris_wsgi.settings import Settings

CGROUP = Path("/sys/fs/cgroup")
# Quota and period in µs: in one file of version 2, in two of version 1, where -1 is no quota.
QUOTAS = (("cpu.max", ("cpu.max",)), ("cpu.cfs_quota_us", ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")))
# Whoever hands in a job or an item waits until it is on the disk, and all who wait at the same time share one commit.
WRITING_THREADS = 16


def cpus(cgroup: Path = CGROUP) -> tuple[int, str]:
    """How many CPUs this process may use, at least one, and what says so: the cgroup's quota or the scheduler's mask."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, files in QUOTAS:
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            allowed = int(quota) / int(period)
        except (OSError, ValueError):
            continue
        if allowed > 0:
            return max(1, min(usable, round(allowed))), f"{name} allows {allowed:g} of {usable} CPUs"
    return usable, f"{usable} CPUs, no quota"


def threads_for(settings: Settings, count: int) -> tuple[int, str]:
    """Threads of the pool, for what may block or is large; requests of microseconds never get there."""
    if settings.threads:
        return settings.threads, "as set"
    if ROLES[settings.role].writes:
        return max(WRITING_THREADS, 2 * count), "as many requests share one write to the disk"
    if settings.batch_rows:
        return max(4, 2 * count, settings.batch_rows), "as many as IRIS_BATCH_ROWS, for each waits for its run"
    return max(4, 2 * count), "two a CPU, four at least, for large requests"


def workers_for(settings: Settings) -> tuple[int, str]:
    count, why = cpus()
    return (settings.workers, "as set") if settings.workers else (count, why)
