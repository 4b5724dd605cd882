"""Temporary PostgreSQL server over TCP."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import processes
from bench import Bench, TrialFailed, environ
from jobs import wait_until_up
from server_trial import free_port

# PostgreSQL does not run as root. Its package creates this user.
USER = "postgres"
LIMIT = 60


def program(name: str) -> str:
    """Returns the path of a program of PostgreSQL; Debian installs some of them outside of the PATH. Raises TrialFailed."""
    known = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(known[-1]) if known else shutil.which(name)
    if found is None:
        raise TrialFailed(f"PostgreSQL's {name} is not installed")
    return found


@contextlib.contextmanager
def postgresql(bench: Bench) -> Iterator[str]:
    """Starts a server with default settings and yields its URL. Raises TrialFailed."""
    initdb, postgres, asks = program("initdb"), program("postgres"), program("pg_isready")
    root, port = os.getuid() == 0, str(free_port())
    under = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"] if root else []
    # Not in the scratch folder, which this user cannot access.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if root:
            shutil.chown(folder, USER)
        data = f"{folder}/data"
        done([*under, initdb, "-D", data, "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"], folder)
        command = [*under, postgres, "-D", data, "-h", "127.0.0.1", "-p", port, "-k", ""]
        with processes.running(command, environ(folder), bench.cpus, folder) as process:
            try:
                wait_until_up(process, functools.partial(done, [asks, "-q", "-h", "127.0.0.1", "-p", port], folder))
                yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
            finally:
                # An ordered shutdown releases the shared memory.
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LIMIT)


def done(command: list[str], folder: str) -> None:
    """Runs a command. Raises TrialFailed."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=folder, env=environ(folder))
    if result.returncode:
        raise TrialFailed((result.stderr.strip().splitlines() or [f"{Path(command[0]).name} ended with {result.returncode}"])[-1])


def version() -> str:
    return subprocess.run(
        [program("postgres"), "--version"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.split()[2]
