"""Every role as real processes, over a separate real Redis for each use and a real PostgreSQL."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from changed_constants import with_constants
from edge_bundles import build_bundle
from http_clients import NO_COVERAGE, READYZ, TIMEOUT_SECONDS, child_pids, fetch, http_request, is_alive, kill_tree, wait_until
from postgres_server import PostgresServer
from redis_server import RedisServer
from terminal_process import TerminalProcess

MODEL = Path(__file__).parent.parent.parent / "model"
NAMES = ("setosa", "versicolor", "virginica")
# How long servers keep the result of a job, and a connection without a request.
KEEP_SECONDS, IDLE_SECONDS = 20, 10
# Small limits and short times, so that every store is full, and its entries expire, within the warm-up.
SMALL = {
    # The malformed requests come with every Host.
    "IRIS_ALLOWED_HOSTS": "*",
    "IRIS_CACHE_BYTES": "262144",
    "IRIS_ITEMS_BYTES": "65536",
    "IRIS_ITEMS_SECONDS": "5",
    "IRIS_KEEP_SECONDS": str(KEEP_SECONDS),
    "IRIS_LEASE_SECONDS": "2",
    "IRIS_REQUEST_SECONDS": "15",
    # One heap for all threads, and no large blocks in it: it soon reaches its final size, so that further growth is a leak.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}
CONSTANTS: dict[str, object] = {
    "iris_wsgi.patterns.asynchronous.role.RETRY_SECONDS": 0.2,
    "iris_wsgi.server.connection.HEADER_SECONDS": 8.0,
    "iris_wsgi.server.connection.KEEP_ALIVE_SECONDS": IDLE_SECONDS,
}
Store = RedisServer | PostgresServer
find_url = re.compile(r"http://(\S+):(\d+)$").search


class Server:
    """Server of one role, which keeps its port when its processes are replaced; its log is a file."""

    def __init__(self, name: str, folder: Path, workers: int, *options: str, **settings: str) -> None:
        self.name, self.workers, self.log = name, workers, folder / f"{name}.log"
        self.host, self.port = "127.0.0.1", 0
        self.options = ["--workers", str(workers), "--model-dir", str(MODEL), "--state-dir", str(folder / name), *options]
        reporting = {"PYTHONPATH": str(Path(__file__).parent / "inside"), "SOAK_REPORTS": str(folder / "reports")}
        self.environment = {**os.environ, **NO_COVERAGE, **SMALL, **with_constants(CONSTANTS), **reporting, **settings}
        self.launch()

    def launch(self) -> None:
        """Starts the process without waiting until it is ready."""
        command = [sys.executable, "-m", "iris_wsgi", "serve", *self.options, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = TerminalProcess(command, stderr=log, env=self.environment)

    def wait_for_port(self) -> "Server":
        """Reads the port from the first lines of the server."""
        lines = self.process.startup_lines()
        found = find_url(lines[0]) if lines else None
        assert found, f"{self.name} does not start: {self.log.read_text()[-2000:]}"
        self.port = int(found[2])
        return self

    def start(self) -> None:
        self.launch()
        self.wait_for_port()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def pids(self) -> dict[int, str]:
        """Returns the kind of each process by its pid."""
        parent = self.process.pid
        return {parent: "parent", **dict.fromkeys(child_pids(parent), "worker")}

    def accepting_pids(self) -> list[int]:
        """Returns the worker processes that accept connections."""
        return [pid for pid in child_pids(self.process.pid) if is_accepting(pid)]

    def is_ready(self) -> bool:
        with suppress(OSError, EOFError):
            return fetch(self, READYZ, 5.0).status == 200
        return False

    def succeeds(self, method: str, path: str, document: object = None, times: int = 8) -> bool:
        """Returns whether a request succeeds several times in a row, so that each worker probably gets it."""
        with suppress(OSError, EOFError):
            return all(fetch(self, http_request(method, path, document), 10.0).status < 300 for _ in range(times))
        return False

    def kill(self) -> None:
        kill_tree(self.process)
        self.process.communicate()

    def stop(self) -> int:
        """Stops the server as an operator does and returns its exit status."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.process.returncode


def is_accepting(pid: int) -> bool:
    """Returns whether a process has the listener and the wake-up descriptor in its epoll instance."""
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fdinfo"):
            with suppress(OSError):
                if Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().count("tfd:") >= 2:
                    return True
    return False


class Deployment:
    """All servers and stores. Jobs, the prediction cache, and items have separate Redis servers, which fail separately."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reports = folder, folder / "reports"
        self.reports.mkdir()
        self.servers: dict[str, Server] = {}
        self.stores: list[Store] = []
        self.jobs, self.cache, self.items = (self.add_store(RedisServer(durable)) for durable in (True, False, False))
        self.postgres = self.add_store(PostgresServer())

    def start(self) -> None:
        """Starts all servers and returns when they are ready."""
        edge = str(build_bundle(self.folder / "edge", MODEL))
        self.add("all", 2, "--role", "all", "--edge-dir", edge)
        self.add("web_single", 2, "--role", "web_single")
        self.add("synchronous", 2, "--role", "synchronous")
        for role in ("asynchronous", "sync_async", "worker"):
            self.add(role, 2, "--role", role, IRIS_REDIS_URL=self.jobs.url)
        self.add("prediction_cache", 2, "--role", "prediction_cache", IRIS_CACHE_REDIS_URL=self.cache.url)
        # The other servers need the ports of these.
        pred = self.add("pred", 2, "--role", "pred")
        members = [self.add(f"member-{name}", 1, "--role", "member", "--member", name) for name in NAMES]
        database = self.postgres.create_database("items")
        self.add("data_cache", 2, "--role", "data_cache", IRIS_CACHE_REDIS_URL=self.items.url, IRIS_DATABASE_URL=database)
        self.add("prep", 2, "--role", "prep", "--pred-url", pred.wait_for_port().url)
        registry = ",".join(f"{name}={member.wait_for_port().url}" for name, member in zip(NAMES, members, strict=True))
        self.add("gateway", 2, "--role", "gateway", "--members", registry)
        for server in self.servers.values():
            if not server.port:
                server.wait_for_port()
        wait_until(lambda: all(server.is_ready() for server in self.servers.values()), "all servers are ready")

    def add_store(self, store):
        self.stores.append(store)
        return store

    def add(self, name: str, workers: int, *options: str, **settings: str) -> Server:
        self.servers[name] = Server(name, self.folder, workers, *options, **settings)
        return self.servers[name]

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            if is_alive(server.process.pid):
                server.process.send_signal(signal.SIGCONT)
                server.kill()
        for store in self.stores:
            store.process.send_signal(signal.SIGCONT)
            store.remove()

    def stop(self) -> list[str]:
        """Stops all servers, clients of other servers first, and returns a line for each that fails to stop properly."""
        found = {name: server.stop() for name, server in reversed(self.servers.items())}
        return [f"{name} exited with status {status}" for name, status in found.items() if status]
