"""The workers of a server, and what its log tells of them."""

import json
import os
from contextlib import suppress
from pathlib import Path

from http_clients import (
    child_pids,
    wait_until,
)


def wait_for_two_workers(server) -> list[int]:
    """The process ids of two workers, once both of them serve."""
    found: list[int] = []

    def two() -> bool:
        found[:] = serving_workers(server)
        return len(found) == 2

    wait_until(two, "two workers")
    return found


def serving_workers(server) -> list[int]:
    """The workers that wait for connections: those that have an epoll with the listener and their trigger in it."""
    return [pid for pid in child_pids(server.process.pid) if epoll_descriptor_count(pid) >= 2]


def epoll_descriptor_count(pid: int) -> int:
    """How many descriptors a process has in its epoll."""
    count = 0
    with suppress(OSError):
        for one in os.listdir(f"/proc/{pid}/fdinfo"):
            with suppress(OSError):
                count += Path(f"/proc/{pid}/fdinfo/{one}").read_text().count("tfd:")
    return count


def log_events(log: Path) -> list[dict]:
    """What the log tells beside requests."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if "message" in line]


def events_containing(log: Path, text: str) -> list[dict]:
    return [event for event in log_events(log) if text in event["message"]]
