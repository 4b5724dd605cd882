"""The control groups of this process, of versions 1 and 2, and the limits that they set."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

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
