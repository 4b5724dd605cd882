"""haproxy in front of servers of this machine."""

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from http_clients import wait_until
from optional_programs import require_program
from server_process import free_ports, refuses_connections

STATISTICS = """
global
    stats socket {folder}/stats level admin
"""


class Proxy(NamedTuple):
    """haproxy in front of some ports. The backend of its configuration is `servers`."""

    folder: Path
    host: str
    port: int
    ports: tuple[int, ...]

    def column(self, name: str) -> dict[str, str]:
        """Returns a column of the statistics by the name of the server: status, scur (current sessions), and others."""
        with socket.socket(socket.AF_UNIX) as stats:
            stats.connect(f"{self.folder}/stats")
            stats.sendall(b"show stat\n")
            text = b"".join(iter(lambda: stats.recv(65536), b"")).decode()
        head, *lines = (line.split(",") for line in text.removeprefix("# ").splitlines() if line)
        rows = [dict(zip(head, line, strict=False)) for line in lines if line[0] == "servers"]
        return {row["svname"]: row[name] for row in rows if row["svname"] != "BACKEND"}

    def states(self) -> dict[str, str]:
        """Returns the states of the servers as haproxy sees them, by name."""
        return self.column("status")


@contextmanager
def start_haproxy(folder: Path, config: str, names: Sequence[str]) -> Iterator[Proxy]:
    """Runs haproxy. `config` has the fields front, for its own port, and `names`, for the ports of the servers."""
    program = require_program("haproxy")
    front, *ports = free_ports(len(names) + 1)
    file = folder / "haproxy.cfg"
    file.write_text((STATISTICS + config).format(folder=folder, front=front, **dict(zip(names, ports, strict=True))))
    process = subprocess.Popen([program, "-db", "-q", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = Proxy(folder, "127.0.0.1", front, tuple(ports))
    try:
        wait_until((folder / "stats").exists, "haproxy")
        wait_until(lambda: not refuses_connections(proxy), "the port of haproxy")
        yield proxy
    finally:
        process.terminate()
        process.wait(120)
