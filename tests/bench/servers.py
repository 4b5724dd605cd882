"""Servers of the benchmark: how each is started, and its options."""

from typing import NamedTuple

from environments import BENCH, python

PEERS = str(BENCH / "peers")
UVICORN = ("-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")
GUNICORN = ("-m", "gunicorn", "fastapi_app:app", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}")
ASGI = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop", "--http", "httptools")
GRANIAN = ("-m", "granian", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1", "--no-ws", "--log-level", "error")
# granian accepts no more connections than its backlog has places.
GRANIAN += ("--backlog", "4096", "--interface")
# With the default, a thread for every second place, threads wait for each other and a request takes three times the CPU.
GRANIAN_WSGI = (*GRANIAN, "wsgi", "--blocking-threads", "1")
OURS = ("-m", "iris_wsgi", "serve", "--port", "{port}", "--model-dir", "{model}", "--role")


class Server(NamedTuple):
    """Row of the tables. `words` follow the environment's Python; {port} and {model} are filled in.

    `logs`: the server counts and logs each request, as iris_wsgi does. `idle` and `many` add the windows with 2,000 idle and
    with 2,000 busy connections.
    """

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
    logs: bool = False
    idle: bool = False
    many: bool = False

    def command(self, port: int, model: str) -> list[str]:
        return [python(self.environment), *(word.format(port=port, model=model) for word in self.words)]


SERVERS = [
    Server(
        "ours",
        "iris_wsgi",
        "ours",
        (*OURS, "web_single", "--workers", "1"),
        "counts and logs each request",
        peer=False,
        logs=True,
        idle=True,
        many=True,
    ),
    Server("ours2", "iris_wsgi", "ours", (*OURS, "web_single", "--workers", "2"), "as above", 2, peer=False, logs=True),
    Server(
        "waitress",
        "our application on stock waitress",
        "ours",
        (f"{PEERS}/waitress_app.py", "{port}"),
        "4 threads; connection_limit and asyncore_use_poll raised, otherwise most of 256 connections starve",
        logs=True,
        idle=True,
    ),
    Server(
        "our_granian",
        "our application on granian",
        "our_servers",
        (*GRANIAN_WSGI, "--factory", "our_app:make_app"),
        "HTTP in Rust, with its own threads; one thread for the application",
        logs=True,
        many=True,
    ),
    Server(
        "our_bjoern",
        "our application on bjoern",
        "our_bjoern",
        (f"{PEERS}/our_app.py", "{port}"),
        "HTTP in C",
        logs=True,
        many=True,
    ),
    Server(
        "asgi_fair",
        "msgspec on uvicorn with log and metrics",
        "msgspec",
        (*ASGI, "--factory", "msgspec_asgi:measured"),
        "uvicorn's access log, and prometheus-client",
        logs=True,
        many=True,
    ),
    Server(
        "asgi_old_fair",
        "msgspec on uvicorn (older uvloop) with log and metrics",
        "msgspec_old",
        (*ASGI, "--factory", "msgspec_asgi:measured"),
        "as above, with uvloop 0.22",
        logs=True,
        many=True,
    ),
    Server(
        "rsgi_granian_fair",
        "msgspec on granian (RSGI) with log and metrics",
        "msgspec",
        (*GRANIAN, "rsgi", "--factory", "msgspec_rsgi:measured"),
        "a log line by the application, which costs less than granian's access log, and prometheus-client",
        logs=True,
        many=True,
    ),
    Server(
        "wsgi_granian_fair",
        "msgspec on granian (WSGI) with log and metrics",
        "msgspec",
        (*GRANIAN_WSGI, "--access-log", "--factory", "msgspec_wsgi:make_measured"),
        "one thread for the application; granian's access log, and prometheus-client",
        logs=True,
        many=True,
    ),
    Server(
        "bjoern_fair",
        "msgspec on bjoern with log and metrics",
        "bjoern",
        (f"{PEERS}/msgspec_wsgi.py", "{port}", "measured"),
        "a log line by the application, and prometheus-client",
        logs=True,
        many=True,
    ),
    Server(
        "asgi",
        "msgspec on uvicorn",
        "msgspec",
        (*ASGI, "--no-access-log", "msgspec_asgi:plain"),
        "no framework; uvloop, httptools; no log, no metrics",
        many=True,
    ),
    Server(
        "asgi_old",
        "msgspec on uvicorn (older uvloop)",
        "msgspec_old",
        (*ASGI, "--no-access-log", "msgspec_asgi:plain"),
        "as above, with uvloop 0.22",
        many=True,
    ),
    Server(
        "asgi_granian",
        "msgspec on granian (ASGI)",
        "msgspec",
        (*GRANIAN, "asginl", "msgspec_asgi:plain"),
        "no framework; HTTP in Rust, with its own threads; no log, no metrics",
        many=True,
    ),
    Server(
        "rsgi_granian",
        "msgspec on granian (RSGI)",
        "msgspec",
        (*GRANIAN, "rsgi", "msgspec_rsgi:plain"),
        "as above",
        many=True,
    ),
    Server(
        "wsgi_granian",
        "msgspec on granian (WSGI)",
        "msgspec",
        (*GRANIAN_WSGI, "--factory", "msgspec_wsgi:make_plain"),
        "as above; one thread for the application",
        many=True,
    ),
    Server(
        "bjoern",
        "msgspec on bjoern",
        "bjoern",
        (f"{PEERS}/msgspec_wsgi.py", "{port}"),
        "no framework; HTTP in C; no log, no metrics",
        many=True,
    ),
    Server(
        "uvicorn",
        "FastAPI on uvicorn",
        "fastapi",
        (*UVICORN, "--loop", "uvloop", "--http", "httptools"),
        "uvloop, httptools, async handlers, pydantic models; access log off",
        many=True,
    ),
    Server(
        "gunicorn",
        "FastAPI on gunicorn with uvicorn-worker",
        "fastapi",
        (*GUNICORN, "-w", "1"),
        "uvloop, httptools; access log off by default",
    ),
    Server("gunicorn2", "FastAPI on gunicorn with uvicorn-worker", "fastapi", (*GUNICORN, "-w", "2"), "as above", 2),
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
]

# Servers of the other sections: ours with all routes and without a cache, and the most common peer.
ALL_ROLES = Server(
    "ours", "iris_wsgi", "ours", (*OURS, "all", "--workers", "1", "--cache", "off"), "logs each request", peer=False
)
(UVICORN_SERVER,) = (server for server in SERVERS if server.name == "uvicorn")
