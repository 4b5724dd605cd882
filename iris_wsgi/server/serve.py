"""Start of a worker: builds the role, announces the server, and installs the signal handlers."""

import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from iris_wsgi import __version__
from iris_wsgi.console import print_status
from iris_wsgi.cpu_limits import available_cpus, thread_count, worker_count
from iris_wsgi.errors import BackendUnavailable, BadModel, BadStore
from iris_wsgi.observability.log import LibraryLogHandler, Log
from iris_wsgi.roles import LABEL, ROLES
from iris_wsgi.server.listener import server_url
from iris_wsgi.settings import BadSetting, Settings

if TYPE_CHECKING:
    from iris_wsgi.factory import Service
    from iris_wsgi.observability.shared_memory import WorkerGroup
    from iris_wsgi.server.event_loop import EventLoop

SWITCH_SECONDS = 0.0005
# The kind of a model without labels. The parent does not import the package that has the constant, because it loads numpy.
REGRESSOR = "regressor"
# The maximum number of values of the row in the printed command.
MAX_EXAMPLE_VALUES = 100
POST = "curl -s {url} -H 'Content-Type: application/json' -d '{body}'"
# The signal of the parent to a worker whose replacement is ready. SIGTERM may come from any process.
RETIRE = signal.SIGQUIT
# The message of the log line of the start.
STARTED = "the server is ready"
START_ERRORS = (BadModel, BadSetting, BadStore, BackendUnavailable)


class ReadyInfo(NamedTuple):
    """Facts about a worker that is ready. `proof` is the origin of the golden rows, and `sample` one row of JSON values."""

    host: str
    port: int
    model: str
    self_test: str
    proof: str
    kind: str
    sample: list[Any]


def announce(settings: Settings, info: ReadyInfo, log: Log) -> None:
    """Reports the start: as one line of the log, or as lines for people if standard error is a terminal.

    If only standard output is a terminal, both are written: the log is then in a file or in a pipe.
    """
    if not sys.stderr.isatty():
        log.event("info", STARTED, **start_fields(settings, info))
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            for line in start_lines(settings, info):
                print_status(line, stream)
            break


def start_fields(settings: Settings, info: ReadyInfo) -> dict[str, object]:
    """Returns the fields of the log line of the start. The address is the one of the socket, such as 0.0.0.0."""
    workers, why_workers = worker_count(settings)
    threads, why_threads = thread_count(settings, available_cpus()[0])
    name, version, digest = info.model.rsplit(" ", 2)
    model = {"model": name, "model_version": version, "model_digest": digest}
    counts = {"workers": workers, "workers_reason": why_workers, "threads": threads, "threads_reason": why_threads}
    address = {"host": info.host, "port": info.port}
    folders = {"model_dir": os.path.abspath(settings.model_dir)}
    if settings.has_embedded_store:
        folders["state_dir"] = os.path.abspath(settings.state_dir)
    return {
        "role": settings.role,
        "version": __version__,
        **address,
        **model,
        **folders,
        "self_test": info.self_test,
        "proof": info.proof,
        **counts,
    }


def start_lines(settings: Settings, info: ReadyInfo) -> Iterator[str]:
    """Yields the address, the model, and a command to try the server."""
    url = server_url(info.host, info.port)
    workers, why_workers = worker_count(settings)
    threads, why_threads = thread_count(settings, available_cpus()[0])
    yield f"iris_wsgi {__version__} serves role {settings.role} on {url}"
    yield f"model {info.model}"
    yield f"model folder: {os.path.abspath(settings.model_dir)}"
    if settings.has_embedded_store:
        yield f"state folder: {os.path.abspath(settings.state_dir)}"
    yield f"self-test: {info.self_test}"
    yield f"proof: {info.proof}"
    yield f"workers: {workers} ({why_workers}); threads: {threads} ({why_threads}); model: 1 thread (a run takes microseconds)"
    authorization = ""
    if settings.token_file:
        # Imported only for this line.
        import shlex

        authorization = f' -H "Authorization: Bearer $(head -n 1 {shlex.quote(settings.token_file)})"'
    yield f"try: {example(settings, info, url)}{authorization}"


def example(settings: Settings, info: ReadyInfo, url: str) -> str:
    """Returns a curl command for the role with the sample row, or one without a body if the row has many values."""
    path, member = ROLES[settings.role].example
    if path == LABEL[0] and info.kind == REGRESSOR:
        path = "/predict"
    if member and len(info.sample) > MAX_EXAMPLE_VALUES:
        path, member = ("/predict/test" if path.startswith("/predict") else "/openapi.json"), None
    target = url + path.format(model=quote(info.model.rsplit(" ", 2)[0]))
    if member is None:
        return f"curl -s {target}"
    # A single quote within single quotes, for a shell.
    body = json.dumps({member: [info.sample]}, ensure_ascii=False).replace("'", "'\\''")
    return POST.format(url=target, body=body)


def serve_here(
    settings: Settings,
    bound: socket.socket,
    group: "WorkerGroup",
    ready: Callable[[ReadyInfo], None],
    request_replacement: Callable[[], None],
) -> int:
    """Loads the model and serves as a worker of `group` until the parent stops it.

    Calls `ready` when it serves, and `request_replacement` if a process other than the parent stops it.
    """
    # The maximum time that the event loop waits for a pool thread with a large request.
    sys.setswitchinterval(SWITCH_SECONDS)
    # All objects that the start creates stay, so garbage collection would only take time.
    gc.disable()
    # Imported here, so that the parent never loads onnxruntime, whose threads do not survive a fork.
    from iris_wsgi.factory import build
    from iris_wsgi.observability.metrics import Registry
    from iris_wsgi.server.event_loop import EventLoop

    log = Log(sys.stderr.fileno(), buffered=True)
    logging.getLogger().addHandler(LibraryLogHandler(log))
    # Python would print warnings as text.
    logging.captureWarnings(True)
    service = build(settings, log, Registry(group.memory, group.slot))
    threads, _ = thread_count(settings, available_cpus()[0])
    try:
        server = EventLoop(service.app, bound, settings, threads, service.observer, log, group)
    except OSError as error:
        raise BadSetting(
            f"IRIS_PORT={settings.port}: cannot listen there: {error.strerror}; choose another with --port"
        ) from None
    install_signal_handlers(server, service, group, request_replacement)
    gc.freeze()
    gc.enable()
    ready(ready_info(service, bound))
    # Started last, so that a job that kills the worker does not look like a failed start.
    service.background.start()
    run_until_drained(server, service, log)
    return 0


def ready_info(service: "Service", bound: socket.socket) -> ReadyInfo:
    from iris_wsgi.model.golden import proof_of

    (host, port), model = bound.getsockname()[:2], service.model
    identity, description = f"{model.name} {model.version} {model.digest}", model.description
    return ReadyInfo(host, port, identity, service.self_test, proof_of(description), description.kind, service.sample)


def run_until_drained(server: "EventLoop", service: "Service", log: Log) -> None:
    """Serves until the end of the drain. Exits the process if work was cut off."""
    cut = server.run()
    busy = service.background.stop(server.end_at)
    if cut or busy:
        log.event("warning", "work was cut off at the end of the drain", requests=cut, busy=busy)
        log.finish()
        # A pool thread may be in a run of the model. The interpreter would crash if it exited normally.
        os._exit(0)


def install_signal_handlers(
    server: "EventLoop", service: "Service", group: "WorkerGroup", request_replacement: Callable[[], None]
) -> None:
    """Installs the signal handlers of a worker. All signals except SIGTERM come from its parent.

    SIGUSR2 ends the service: readiness fails, and the worker drains after the grace. RETIRE drains this worker at once, because
    its replacement serves. SIGTERM requests a replacement from the parent, so that no request is lost.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        service.readiness.stopping = True
        stop()

    def stop(others_go_on: bool = False) -> None:
        service.background.stopping = True
        server.stop(others_go_on)

    signal.signal(signal.SIGUSR2, end)
    signal.signal(RETIRE, lambda *_: stop(others_go_on=True))
    signal.signal(signal.SIGTERM, lambda *_: request_replacement())
    server.tick = lambda: stop() if os.getppid() != group.parent else None
