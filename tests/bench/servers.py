"""Servers of the benchmark: how each is started, and its options."""

from typing import NamedTuple

from environments import BENCH, python

PEERS = str(BENCH / "peers")
UVICORN = ("-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")
GUNICORN = ("-m", "gunicorn", "fastapi_app:app", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}")
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
