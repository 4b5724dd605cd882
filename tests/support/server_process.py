"""Servers in separate processes, and functions that start and stop them."""

import atexit
import json
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
from terminal_process import TerminalProcess


@cache
def state_root() -> str:
    """Returns the folder that contains the state folder of each server. The test process creates and removes it."""
    folder = tempfile.TemporaryDirectory(prefix="iris-states-")
    atexit.register(folder.cleanup)
    return folder.name


class ServerProcess:
    """Server in a separate process that has printed its address."""

    def __init__(self, process: TerminalProcess) -> None:
        self.process = process
        self.startup_lines = process.startup_lines()
        address = re.search(r"http://(\S+):(\d+)$", self.startup_lines[0]) if self.startup_lines else None
        assert address, f"no address in {self.startup_lines}: {process.communicate()}"
        self.url, self.host, self.port = address[0], address[1], int(address[2])

    @property
    def worker_pid(self) -> int:
        """Process id of the only worker."""
        (pid,) = child_pids(self.process.pid)
        return pid

    def stop(self) -> tuple[str, str]:
        """Ends the server with SIGTERM. Returns an empty output, and its standard error without the line of the start."""
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
    """Starts a server, or the given command, on a free port and with one worker process.

    The process imports the package from `cwd`. `under` is a command prefix. With a clock the server uses that clock.
    `constants` maps names of the form module.NAME to the values that these constants have in the process.
    """
    line = [*under, sys.executable, *(("-m", "iris_wsgi") if clock is None else (CLOCK_SCRIPT, clock.path)), command]
    line += ["--port", "0", "--workers", "1", "--model-dir", str(MODEL), *arguments]
    environment = {**os.environ, "IRIS_STATE_DIR": tempfile.mkdtemp(dir=state_root()), **environ}
    environment |= with_constants(constants or {})
    return ServerProcess(TerminalProcess(line, stderr=subprocess.PIPE, env=environment, cwd=cwd))


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
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def run_failing_start(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    """Starts a server that is expected to fail, and waits for its end. Its standard error is a log of JSON lines."""
    command = [sys.executable, "-m", "iris_wsgi", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})


def error_of(text: str) -> str:
    """Returns the message of a start that has failed, whose standard error is one line of the log."""
    (line,) = text.splitlines()
    event = json.loads(line)
    assert list(event) == ["time", "level", "message"] and event["level"] == "error", line
    return event["message"]
