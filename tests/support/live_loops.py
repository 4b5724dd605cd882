"""Event loops in a thread of the test process."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from http_clients import HttpResponse, RawConnection, wait_until
from project import MODEL

from iris_wsgi.factory import Service, build
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.observability.shared_memory import WorkerGroup
from iris_wsgi.server.event_loop import EventLoop
from iris_wsgi.settings import Settings

# A client may send an empty line before a request (RFC 9112, section 2.2). No head is remembered with it.
EMPTY_LINE = b"\r\n"


class LiveLoop(NamedTuple):
    """An event loop in a thread of this process, its service, its log file, and whether it took the fast path for each read."""

    host: str
    port: int
    loop: EventLoop
    service: Service
    log_file: int
    fast: list[bool]

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in os.pread(self.log_file, 1 << 26, 0).rpartition(b"\n")[0].splitlines()]

    def both(self, request: bytes) -> tuple[HttpResponse, HttpResponse, bool]:
        """Returns the responses over both paths, and whether the first was the fast one."""
        with RawConnection(self) as connection:
            count = len(self.fast)
            first = connection.exchange(request)
            # The loop notes its path after it has sent the response.
            wait_until(lambda: len(self.fast) > count, "the path of the first")
            fast = any(self.fast[count:])
        with RawConnection(self) as connection:
            count = len(self.fast)
            second = connection.exchange(EMPTY_LINE + request)
            wait_until(lambda: len(self.fast) > count, "the path of the second")
            assert not any(self.fast[count:])
        return first, second, fast


@contextmanager
def serving(folder, wrap=lambda app: app, **settings) -> Iterator[LiveLoop]:
    """Serves a role on a free port."""
    log_file = os.open(folder / "log", os.O_CREAT | os.O_APPEND | os.O_RDWR)
    values = Settings(**{"model_dir": str(MODEL), "state_dir": str(folder / "state"), "cache": "off", **settings})
    registry, log = Registry(), Log(log_file, buffered=True)
    service = build(values, log, registry)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as bound:
        address = bound.getsockname()
        loop = EventLoop(
            wrap(service.app), bound, values, 1, service.observer, log, WorkerGroup(os.getppid(), registry.memory, 0)
        )
        fast: list[bool] = []
        serve = loop.fast_path.serve
        loop.fast_path.serve = lambda connection, data: fast.append(serve(connection, data)) or fast[-1]
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield LiveLoop(*address, loop, service, log_file, fast)
        finally:
            loop.stop()
            thread.join()
            os.close(log_file)


def post(path: str, body: bytes, *fields: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
