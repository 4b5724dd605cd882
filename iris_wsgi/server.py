"""waitress around the application: binds, says what it serves, and stops when told to."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from waitress.server import create_server

from iris_wsgi import __version__
from iris_wsgi.roles import Service
from iris_wsgi.settings import BadSetting, Settings

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
CURL = "curl -s {url}/predict/label -H 'Content-Type: application/json' -d '{body}'"


def bind(settings: Settings) -> socket.socket:
    """A bound socket that does not listen yet, so that a taken port is found before the model is loaded. Raises BadSetting."""
    where = f"IRIS_HOST={settings.host} IRIS_PORT={settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise BadSetting(f"{where}: cannot listen there: {error.strerror}; is it taken? Choose another with --port") from None
    return bound


def cpus(cpu_max: Path = CPU_MAX) -> tuple[int, str]:
    """How many CPUs this process may use, at least one, and what says so: the cgroup's quota or the scheduler's mask."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        allowed = int(quota) / int(period)
    except (OSError, ValueError):
        return usable, f"{usable} CPUs, no quota"
    return max(1, min(usable, round(allowed))), f"cpu.max allows {allowed:g} of {usable} CPUs"


def threads_for(settings: Settings) -> tuple[int, str]:
    if settings.threads:
        return settings.threads, "as set"
    count, why = cpus()
    return max(4, 2 * count), f"{why}; two a CPU, four at least"


def serve(settings: Settings, bound: socket.socket, service: Service, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; `say` gets the lines that tell a person what runs here and how to try it."""
    threads, why = threads_for(settings)
    try:
        server = create_server(
            service.app,
            sockets=[bound],
            threads=threads,
            ident=None,
            max_request_body_size=settings.max_body_bytes,
            inbuf_overflow=settings.max_body_bytes + 1,
            clear_untrusted_proxy_headers=True,
        )
    except OSError as error:
        raise BadSetting(f"IRIS_PORT={settings.port}: cannot listen there: {error.strerror}") from None
    host, port = bound.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{shown}:{port}"
    say(f"iris_wsgi {__version__} serves role {settings.role} on {url}")
    say(f"model {service.model.name} {service.model.version} {service.model.digest}")
    say(f"self-test: {service.self_test}")
    say(f"threads: {threads} ({why}); workers: 1 (one process); model: 1 thread (a run takes microseconds)")
    say("try: " + CURL.format(url=url, body=f'{{"data": [{service.sample}]}}'))

    def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
        service.readiness.stopping = True
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    server.run()
