"""Worker processes of a server, and the events in its log."""

import json
import os
from contextlib import suppress
from pathlib import Path

from http_clients import child_pids, wait_until

from iris_wsgi.server.serve import STARTED


def wait_for_two_workers(server) -> list[int]:
    """Returns the process ids of the two workers after both of them have started to serve."""
    pids: list[int] = []

    def both_serve() -> bool:
        pids[:] = serving_workers(server)
        return len(pids) == 2

    wait_until(both_serve, "two workers")
    return pids


def serving_workers(server) -> list[int]:
    """Returns the process ids of the workers that wait for connections. Their epoll contains the listener and the wakeup pipe."""
    return [pid for pid in child_pids(server.process.pid) if epoll_descriptor_count(pid) >= 2]


def epoll_descriptor_count(pid: int) -> int:
    """Returns the number of descriptors in the epoll instances of a process."""
    count = 0
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fdinfo"):
            with suppress(OSError):
                count += Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().count("tfd:")
    return count


def complete_lines(log: Path) -> list[str]:
    """Returns the lines of a file that another process writes, without one whose end is not written yet."""
    return log.read_text().rpartition("\n")[0].splitlines()


def log_events(log: Path) -> list[dict]:
    """Returns the log lines that describe neither a request nor the start."""
    lines = [json.loads(line) for line in complete_lines(log) if line.startswith("{")]
    return [line for line in lines if line.get("message", STARTED) != STARTED]


def request_lines(log: Path) -> list[dict]:
    """Returns the log lines of requests."""
    return [line for line in map(json.loads, complete_lines(log)) if "route" in line]


def events_containing(log: Path, text: str) -> list[dict]:
    return [event for event in log_events(log) if text in event["message"]]
