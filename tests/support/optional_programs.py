"""Programs and packages that may be missing: a test that needs one skips on a laptop and fails in CI."""

import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

# Programs that are missing on a minimal system. Tests start them directly, through another program, or in a shell command.
OPTIONAL = {
    "arch-test", "buildah", "checkov", "chromedriver", "chromium", "curl", "faketime", "git", "hadolint", "haproxy", "initdb",
    "kubectl", "mmdebstrap", "nft", "nginx", "node", "npm", "nsenter", "openapi-python-client", "openapi-typescript",
    "pg_ctlcluster", "pgbouncer", "podman", "postgres", "prometheus", "promtool", "ps", "psql", "redis-cli", "redis-server",
    "runc", "slowhttptest", "strace", "tsc", "unshare", "uwsgi", "wget", "fish", "zsh",
}  # fmt: skip
# Programs that start the program named in their arguments.
LAUNCHERS = {"bash", "env", "script", "setpriv", "setsid", "sh", "timeout", "unshare"}
SHELLS = {"bash", "script", "sh"}


def require_program(name: str) -> str:
    """Returns the path of the program. Without the program, skips the test on a laptop and fails it in CI."""
    path = shutil.which(name)
    if path is None:
        skip_or_fail(f"{name} is not installed")
    return path


def require_package(name: str, extra: str = "models") -> ModuleType:
    """Returns the package. Without the package, skips the test on a laptop and fails it in CI."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except ImportError:
        skip_or_fail(f"the package {name} is not installed: bin/setup {extra}")


def skip_or_fail(reason: str) -> NoReturn:
    """Skips the test on a laptop and fails it in CI."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def programs_in(words: Sequence[str]) -> Iterator[str]:
    """Yields the names of the programs that a command starts, as far as its arguments show them."""
    # A test that gives a path has found or written the program itself.
    if "/" not in words[0] or Path(words[0]).name in OPTIONAL:
        yield words[0]
    launcher = Path(words[0]).name
    if launcher not in LAUNCHERS:
        return
    for word in words[1:]:
        yield from (name for name in (command_words(word) if launcher in SHELLS else [word]) if Path(name).name in OPTIONAL)


# Finds the first word of each command in a shell command line.
command_words = re.compile(r"(?:^|[;|&(\n]|\b(?:exec|if|then|do)\s)\s*(?:\w+=\S*\s+)*([\w./-]+)").findall


def check_programs(command: object, shell: bool = False) -> None:
    """Calls require_program() for each program that subprocess would start for this command."""
    words = [command] if isinstance(command, str | bytes | os.PathLike) else command
    for name in programs_in(["sh", "-c"] * shell + [os.fsdecode(word) for word in words]):
        require_program(name)


def check_subprocesses() -> None:
    """Checks each program that this process starts from now on with require_program().

    An audit hook would also be called while coverage installs its trace function in a thread. Python 3.11 then refuses the
    trace function of a second thread that starts at that moment, and the thread ends at once.
    """
    start = subprocess.Popen.__init__

    def check_and_start(self: subprocess.Popen, args: object, *others: object, shell: bool = False, **options: object) -> None:
        check_programs(args, shell)
        start(self, args, *others, shell=shell, **options)

    subprocess.Popen.__init__ = check_and_start
