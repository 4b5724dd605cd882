"""A PostgreSQL of the benchmark's own, over TCP, with a database that is gone afterwards."""

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
from bench import Bench, Failed, environ
from jobs import until_up
from server_trial import free_port

# PostgreSQL refuses to run as root, and its package makes this user.
USER = "postgres"
LIMIT = 60


def program(name: str) -> str:
    """Debian does not put all of them where commands are found. Raises Failed where there is none."""
    known = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(known[-1]) if known else shutil.which(name)
    if found is None:
        raise Failed(f"PostgreSQL's {name} is not installed")
    return found


@contextlib.contextmanager
def postgresql(bench: Bench) -> Iterator[str]:
    """The URL of one with its own settings, but for the address. Raises Failed."""
    initdb, postgres, asks = program("initdb"), program("postgres"), program("pg_isready")
    root, port = os.getuid() == 0, str(free_port())
    under = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"] if root else []
    # Not in the folder of the other things, which is closed to another user.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if root:
            shutil.chown(folder, USER)
        data = f"{folder}/data"
        done([*under, initdb, "-D", data, "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"], folder)
        command = [*under, postgres, "-D", data, "-h", "127.0.0.1", "-p", port, "-k", ""]
        with processes.running(command, environ(folder), bench.cpus, folder) as process:
            try:
                until_up(process, functools.partial(done, [asks, "-q", "-h", "127.0.0.1", "-p", port], folder))
                yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
            finally:
                # By itself, or memory that its processes share would be left.
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LIMIT)


def done(command: list[str], folder: str) -> None:
    """Raises Failed."""
    told = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=folder, env=environ(folder))
    if told.returncode:
        raise Failed((told.stderr.strip().splitlines() or [f"{Path(command[0]).name} ended with {told.returncode}"])[-1])


def version() -> str:
    return subprocess.run(
        [program("postgres"), "--version"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.split()[2]
