"""Every role as real processes, over a real Redis for each use of one and a real PostgreSQL."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from edge_bundles import build_bundle
from http_clients import NO_COVERAGE, READYZ, TIMEOUT_SECONDS, child_pids, fetch, http_request, is_alive, kill_tree, wait_until
from postgres_server import PostgresServer
from redis_server import RedisServer

MODEL = Path(__file__).parent.parent.parent / "model"
NAMES = ("setosa", "versicolor", "virginica")
# How long servers keep the result of a job, and a connection without a request.
KEEP_SECONDS, IDLE_SECONDS = 20, 10
# Small bounds and short times, so that all that may be kept is full, and expires, within the warm-up.
SMALL = {
    # Its requests are of every kind, with every Host.
    "IRIS_ALLOWED_HOSTS": "*",
    "IRIS_CACHE_BYTES": "262144",
    "IRIS_ITEMS_BYTES": "65536",
    "IRIS_ITEMS_SECONDS": "5",
    "IRIS_KEEP_SECONDS": str(KEEP_SECONDS),
    "IRIS_LEASE_SECONDS": "2",
    "IRIS_RETRY_SECONDS": "0.2",
    "IRIS_HEADER_SECONDS": "8",
    "IRIS_REQUEST_SECONDS": "15",
    "IRIS_IDLE_SECONDS": str(IDLE_SECONDS),
    # One heap for all threads, and none of it for what is large: it is soon as large as it gets, and what still grows is a leak.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}
Store = RedisServer | PostgresServer
at = re.compile(r"http://(\S+):(\d+)$").search


class Server:
    """A server of one role, on one port whatever happens to its processes; what it logs is in a file."""

    def __init__(self, name: str, folder: Path, workers: int, *options: str, **settings: str) -> None:
        self.name, self.workers, self.log = name, workers, folder / f"{name}.log"
        self.host, self.port = "127.0.0.1", 0
        self.options = ["--workers", str(workers), "--model-dir", str(MODEL), "--state-dir", str(folder / name), *options]
        inside = {"PYTHONPATH": str(Path(__file__).parent / "inside"), "SOAK_BLOCKS": str(folder / "blocks")}
        self.environment = {**os.environ, **NO_COVERAGE, **SMALL, **inside, **settings}
        self.begin()

    def begin(self) -> None:
        """Without waiting until it serves."""
        line = [sys.executable, "-m", "iris_wsgi", "serve", *self.options, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment)

    def serves(self) -> "Server":
        """Once it has said where."""
        found = at(self.process.stdout.readline().strip())
        assert found, f"{self.name} does not start: {self.log.read_text()[-2000:]}"
        self.port = int(found[2])
        # It says no more than its first lines.
        for line in self.process.stdout:
            if line.startswith("try: "):
                break
        return self

    def start(self) -> None:
        self.begin()
        self.serves()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def pids(self) -> dict[int, str]:
        """What each of its processes is."""
        own = self.process.pid
        return {own: "parent", **dict.fromkeys(child_pids(own), "worker")}

    def serving(self) -> list[int]:
        """Its processes that take connections, once each of them is ready."""
        return [pid for pid in child_pids(self.process.pid) if is_up(pid)]

    def is_ready(self) -> bool:
        with suppress(OSError, EOFError):
            return fetch(self, READYZ, 5.0).status == 200
        return False

    def answers(self, method: str, path: str, document: object = None, times: int = 8) -> bool:
        """Whether it does so again and again, whichever process is asked."""
        with suppress(OSError, EOFError):
            return all(fetch(self, http_request(method, path, document), 10.0).status < 300 for _ in range(times))
        return False

    def kill(self) -> None:
        kill_tree(self.process)
        self.process.communicate()

    def end(self) -> int:
        """The status it ends with."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.process.returncode


def is_up(pid: int) -> bool:
    """Whether a process has the listener and its trigger in its epoll."""
    with suppress(OSError):
        for one in os.listdir(f"/proc/{pid}/fdinfo"):
            with suppress(OSError):
                if Path(f"/proc/{pid}/fdinfo/{one}").read_text().count("tfd:") >= 2:
                    return True
    return False


class Fleet:
    """All of them; one Redis for jobs, one for the cache and one for items, so that each can fail alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.blocks = folder, folder / "blocks"
        self.blocks.mkdir()
        self.servers: dict[str, Server] = {}
        self.stores: list[Store] = []
        self.jobs, self.cache, self.items = (self.kept(RedisServer(durable)) for durable in (True, False, False))
        self.postgres = self.kept(PostgresServer())

    def start(self) -> None:
        """Returns when all are ready."""
        edge = str(build_bundle(self.folder / "edge", MODEL))
        self.add("all", 2, "--role", "all", "--edge-dir", edge)
        self.add("web_single", 2, "--role", "web_single")
        self.add("synchronous", 2, "--role", "synchronous")
        for role in ("asynchronous", "sync_async", "worker"):
            self.add(role, 2, "--role", role, IRIS_REDIS_URL=self.jobs.url)
        self.add("prediction_cache", 2, "--role", "prediction_cache", IRIS_CACHE_REDIS_URL=self.cache.url)
        # Whoever is asked by others says first where.
        pred = self.add("pred", 2, "--role", "pred")
        members = [self.add(f"member-{name}", 1, "--role", "member", "--member", name) for name in NAMES]
        database = self.postgres.database("items")
        self.add("data_cache", 2, "--role", "data_cache", IRIS_ITEMS_REDIS_URL=self.items.url, IRIS_DATABASE_URL=database)
        self.add("prep", 2, "--role", "prep", "--pred-url", pred.serves().url)
        registry = ",".join(f"{name}={member.serves().url}" for name, member in zip(NAMES, members, strict=True))
        self.add("gateway", 2, "--role", "gateway", "--members", registry)
        for server in self.servers.values():
            if not server.port:
                server.serves()
        wait_until(lambda: all(one.is_ready() for one in self.servers.values()), "all are ready")

    def kept(self, store):
        self.stores.append(store)
        return store

    def add(self, name: str, workers: int, *options: str, **settings: str) -> Server:
        self.servers[name] = Server(name, self.folder, workers, *options, **settings)
        return self.servers[name]

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            if is_alive(server.process.pid):
                server.process.send_signal(signal.SIGCONT)
                server.kill()
        for store in self.stores:
            store.process.send_signal(signal.SIGCONT)
            store.remove()

    def end(self) -> list[str]:
        """Ends all servers as an operator would; those that did not end well. Whoever asks others goes first."""
        found = {name: server.end() for name, server in reversed(self.servers.items())}
        return [f"{name} ended with {status}" for name, status in found.items() if status]
