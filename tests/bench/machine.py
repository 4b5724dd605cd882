"""Description of the machine: CPU, kernel, Python, versions of packages, and the date."""

import datetime
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import environments


def lines() -> str:
    packages: dict[str, str] = {}
    for name in environments.PACKAGES:
        if (environments.HOME / name / "installed").exists():
            packages |= environments.versions(name)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    return (
        f"* {cpu()}, {os.cpu_count()} CPUs, {memory()}\n"
        f"* {platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}, {today()}\n"
        f"* {versions}\n"
    )


def line(names: Iterable[str]) -> str:
    """Returns a description in one sentence, with the versions of these environments."""
    packages = {name: version for one in names for name, version in environments.versions(one).items()}
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    return f"{cpu()}, {os.cpu_count()} CPUs; Python {platform.python_version()}, {versions}; {today()}"


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or "unknown CPU"


def memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB of memory"
