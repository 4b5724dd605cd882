"""The one place that decides what becomes of a test whose program is not installed."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

# Programs that a minimal system lacks, and that tests start behind another program or in a line of a shell.
OPTIONAL = {
    "arch-test", "buildah", "checkov", "chromedriver", "chromium", "curl", "faketime", "git", "hadolint", "haproxy", "initdb",
    "kubectl", "mmdebstrap", "nginx", "nsenter", "pg_ctlcluster", "pgbouncer", "podman", "postgres", "prometheus", "promtool",
    "ps", "psql", "redis-cli", "redis-server", "runc", "slowhttptest", "strace", "unshare", "uwsgi", "wget",
}  # fmt: skip
# Programs that start those which their arguments name.
LAUNCHERS = {"bash", "env", "script", "setpriv", "setsid", "sh", "timeout", "unshare"}
SHELLS = {"bash", "script", "sh"}


def require_program(part: str) -> str:
    """The path of a program; without it the test skips on a laptop and fails in CI."""
    found = shutil.which(part)
    if found is None:
        skip_or_fail(f"{part} is not installed")
    return found


def skip_or_fail(what: str) -> NoReturn:
    """Ends a test on a machine that lacks something: a skip on a laptop, a failure in CI."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


def programs_in(words: Sequence[str]) -> Iterator[str]:
    """Names the programs that a command starts, as far as its words tell."""
    # A path is one that the test has found or made.
    if "/" not in words[0] or Path(words[0]).name in OPTIONAL:
        yield words[0]
    launcher = Path(words[0]).name
    if launcher not in LAUNCHERS:
        return
    for word in words[1:]:
        yield from (name for name in (command_words(word) if launcher in SHELLS else [word]) if Path(name).name in OPTIONAL)


# The first word of each command in a line of a shell.
command_words = re.compile(r"(?:^|[;|&(\n]|\b(?:exec|if|then|do)\s)\s*(?:\w+=\S*\s+)*([\w./-]+)").findall


def check_event(event: str, given: tuple) -> None:
    """Called by the interpreter for each event that it audits: asks require_program() for each program before it starts."""
    if event not in ("subprocess.Popen", "os.posix_spawn"):
        return
    words = given[1]
    for name in programs_in([os.fsdecode(word) for word in ([words] if isinstance(words, str | bytes | os.PathLike) else words)]):
        require_program(name)


def install_audit_hook() -> None:
    """From now on no program starts past require_program(), whichever test starts it and however."""
    sys.addaudithook(check_event)
