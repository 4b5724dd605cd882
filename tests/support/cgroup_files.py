"""Control groups as files in a folder, and the files in /proc of a process in one of these groups."""

from collections.abc import Mapping
from pathlib import Path

Files = Mapping[str, Mapping[str, str]]


def write_proc_folder(folder: Path, group: str, files: Files, controller: str = "", top: str = "/") -> Path:
    """Creates a substitute for /proc/self of a process in `group` and returns its folder.

    `files` maps the path of each group to the group's files. Without a controller the hierarchy has version 2. `top` is the
    mounted group.
    """
    mounted, proc = folder / "with blank" / (controller or "unified"), folder / "proc"
    for path, texts in files.items():
        level = mounted / path.removeprefix(top).lstrip("/")
        level.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (level / name).write_text(text + "\n")
    proc.mkdir(exist_ok=True)
    mount_point = str(mounted).replace(" ", "\\040")
    kind = f"cgroup cgroup rw,{controller},{controller}acct" if controller else "cgroup2 cgroup2 rw,nsdelegate"
    other = "31 23 0:28 / /proc rw,nosuid shared:1 - proc proc rw\n32 23 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    (proc / "mountinfo").write_text(f"{other}33 23 0:30 {top} {mount_point} rw,relatime shared:2 master:1 - {kind}\n")
    line = f"4:{controller},{controller}acct:{group}" if controller else f"0::{group}"
    (proc / "cgroup").write_text(f"12:pids:/elsewhere\n1:name=systemd:/\n{line}\n")
    return proc
