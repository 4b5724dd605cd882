"""Servers in processes of their own, and how tests start and end them."""

import atexit
import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from changed_constants import with_constants
from http_clients import (
    CI,
    TIMEOUT_SECONDS,
    RawConnection,
    child_pids,
)
from manual_clock import CLOCK_SCRIPT, ManualClock
from optional_programs import require_program
from project import MODEL


@cache
def state_root() -> str:
    """The folder in which each server that is started has one of its own; made by who starts one, as others may be killed."""
    folder = tempfile.TemporaryDirectory(prefix="iris-states-")
    atexit.register(folder.cleanup)
    return folder.name


class ServerProcess:
    """A server in a process of its own, once it has said that it serves."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.said: list[str] = []
        for line in process.stdout:
            self.said.append(line.rstrip("\n"))
            if line.startswith("try: "):
                break
        found = re.search(r"http://(\S+):(\d+)$", self.said[0]) if self.said else None
        assert found, f"no address in {self.said}: {process.communicate()}"
        self.url, self.host, self.port = found[0], found[1], int(found[2])

    @property
    def worker(self) -> int:
        """The process id of its only worker."""
        (pid,) = child_pids(self.process.pid)
        return pid

    def stop(self) -> tuple[str, str]:
        """Ends it with SIGTERM and gives what it wrote since."""
        self.process.terminate()
        return self.process.communicate(timeout=120)


def start_server(
    *arguments: str,
    under: tuple[str, ...] = (),
    command: str = "serve",
    cwd: Path | None = None,
    clock: ManualClock | None = None,
    constants: dict[str, object] | None = None,
    **environ: str,
) -> ServerProcess:
    """Starts a server, or a worker, on a free port, with one worker if nothing else is asked; the package is that in `cwd`.

    With a clock the server goes by that one. `constants` are names as module.NAME and the values that they have there.
    """
    line = [*under, sys.executable, *(("-m", "iris_wsgi") if clock is None else (CLOCK_SCRIPT, clock.path)), command]
    line += ["--port", "0", "--workers", "1", "--model-dir", str(MODEL), *arguments]
    environment = {**os.environ, "IRIS_STATE_DIR": tempfile.mkdtemp(dir=state_root()), **environ}
    environment |= with_constants(constants or {})
    pipe = subprocess.PIPE
    return ServerProcess(subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=cwd))


def wait_for_exit(server) -> int:
    return server.process.wait(TIMEOUT_SECONDS)


def refuses_connections(server) -> bool:
    try:
        RawConnection(server, timeout=0.2).socket.close()
    except OSError:
        return True
    return False


def start_as_pid_1(*arguments: str, **environ: str) -> ServerProcess:
    require_program("unshare")
    if subprocess.run(["unshare", "--pid", "--fork", "--kill-child", "true"], capture_output=True).returncode:
        (pytest.fail if CI else pytest.skip)("no right to make a process namespace")
    return start_server(*arguments, under=("unshare", "--pid", "--fork", "--kill-child"), **environ)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def run_failing_start(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    """A start that is expected to fail."""
    command = [sys.executable, "-m", "iris_wsgi", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})
