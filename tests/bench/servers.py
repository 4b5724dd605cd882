"""Servers of the benchmark: how each is started, and its options."""

from typing import NamedTuple

from environments import BENCH, python

PEERS = str(BENCH / "peers")
UVICORN = ("-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")
GUNICORN = ("-m", "gunicorn", "fastapi_app:app", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}")
ASGI = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop", "--http", "httptools")
GRANIAN = ("-m", "granian", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1", "--no-ws", "--log-level", "error")
OURS = ("-m", "iris_wsgi", "serve", "--port", "{port}", "--model-dir", "{model}", "--role")


class Server(NamedTuple):
    """Row of the tables. `words` follow the environment's Python; {port} and {model} are filled in."""

    name: str
    title: str
    environment: str
    words: tuple[str, ...]
    note: str
    workers: int = 1
    label_path: str = "/predict/label"
    batch_path: str | None = "/predict/batch"
    checked: bool = True
    peer: bool = True
    idle: bool = False

    def command(self, port: int, model: str) -> list[str]:
        return [python(self.environment), *(word.format(port=port, model=model) for word in self.words)]


SERVERS = (
    Server("ours", "iris_wsgi", "ours", (*OURS, "web_single", "--workers", "1"), "logs each request", peer=False, idle=True),
    Server("ours2", "iris_wsgi", "ours", (*OURS, "web_single", "--workers", "2"), "logs each request", 2, peer=False),
    Server(
        "waitress",
        "stock waitress, our application",
        "ours",
        (f"{PEERS}/waitress_app.py", "{port}"),
        "4 threads; connection_limit and asyncore_use_poll raised, otherwise most of 256 connections starve; logs each request",
        idle=True,
    ),
    Server(
        "our_granian",
        "granian, our application",
        "our_servers",
        (*GRANIAN, "--interface", "wsgi", "--factory", "our_app:make_app"),
        "HTTP in Rust; logs each request",
        peer=False,
    ),
    Server(
        "our_bjoern",
        "bjoern, our application",
        "our_bjoern",
        (f"{PEERS}/our_app.py", "{port}"),
        "HTTP in C; logs each request",
        peer=False,
    ),
    Server(
        "asgi",
        "msgspec, uvicorn",
        "msgspec",
        (*ASGI, "--no-access-log", "msgspec_asgi:plain"),
        "no framework; uvloop, httptools; no log",
    ),
    Server(
        "asgi_old",
        "msgspec, uvicorn with uvloop 0.22",
        "msgspec_old",
        (*ASGI, "--no-access-log", "msgspec_asgi:plain"),
        "as above",
    ),
    Server(
        "asgi_granian",
        "msgspec, granian (ASGI)",
        "msgspec",
        (*GRANIAN, "--interface", "asginl", "msgspec_asgi:plain"),
        "no framework; HTTP in Rust; no log",
    ),
    Server(
        "wsgi_granian",
        "msgspec, granian (WSGI)",
        "msgspec",
        (*GRANIAN, "--interface", "wsgi", "--factory", "msgspec_wsgi:make_plain"),
        "no framework; HTTP in Rust; no log",
    ),
    Server("bjoern", "msgspec, bjoern", "bjoern", (f"{PEERS}/msgspec_wsgi.py", "{port}"), "no framework; HTTP in C; no log"),
    Server(
        "asgi_fair",
        "msgspec, uvicorn, with log and metrics",
        "msgspec",
        (*ASGI, "--factory", "msgspec_asgi:measured"),
        "uvicorn's access log, and prometheus-client",
    ),
    Server(
        "wsgi_granian_fair",
        "msgspec, granian (WSGI), with log and metrics",
        "msgspec",
        (*GRANIAN, "--access-log", "--interface", "wsgi", "--factory", "msgspec_wsgi:make_measured"),
        "granian's access log, and prometheus-client",
    ),
    Server(
        "bjoern_fair",
        "msgspec, bjoern, with log and metrics",
        "bjoern",
        (f"{PEERS}/msgspec_wsgi.py", "{port}", "measured"),
        "a log line by the application, and prometheus-client",
    ),
    Server(
        "uvicorn",
        "FastAPI, uvicorn",
        "fastapi",
        (*UVICORN, "--loop", "uvloop", "--http", "httptools"),
        "uvloop, httptools, async handlers, pydantic models; access log off",
    ),
    Server(
        "gunicorn",
        "FastAPI, gunicorn with uvicorn-worker",
        "fastapi",
        (*GUNICORN, "-w", "1"),
        "uvloop, httptools; access log off by default",
    ),
    Server("gunicorn2", "FastAPI, gunicorn with uvicorn-worker", "fastapi", (*GUNICORN, "-w", "2"), "as above", 2),
    Server(
        "mosec",
        "mosec",
        "mosec",
        (f"{PEERS}/mosec_app.py", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning"),
        "HTTP in Rust, one worker process",
        label_path="/inference",
        batch_path="/inference",
    ),
    Server(
        "litserve",
        "LitServe",
        "litserve",
        (f"{PEERS}/litserve_app.py", "{port}"),
        "one API server process, one worker process; access log off",
        label_path="/predict",
        batch_path="/predict",
    ),
    Server(
        "bentoml",
        "BentoML",
        "bentoml",
        ("-m", "bentoml", "serve", "bentoml_app:Iris", "--host", "127.0.0.1", "--port", "{port}"),
        "one worker, async handlers, uvloop and httptools also installed; access log off",
    ),
    Server(
        "bare",
        "a bare epoll loop, one fixed response",
        "ours",
        (str(BENCH / "baseline_epoll.py"), "{port}"),
        "the minimum cost of a server in Python",
        batch_path=None,
        checked=False,
        peer=False,
    ),
)

# Servers of the other sections: ours with all routes and without a cache, and the most common peer.
ALL_ROLES = Server(
    "ours", "iris_wsgi", "ours", (*OURS, "all", "--workers", "1", "--cache", "off"), "logs each request", peer=False
)
(UVICORN_SERVER,) = (server for server in SERVERS if server.name == "uvicorn")
