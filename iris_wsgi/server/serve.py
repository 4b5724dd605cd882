"""From settings to a running server: binds, builds the role, says what it serves, and obeys signals."""

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from iris_wsgi import __version__
from iris_wsgi.cpu_limits import cpus, threads_for, workers_for
from iris_wsgi.errors import BackendUnavailable, BadModel, BadStore
from iris_wsgi.observability.log import LibraryLines, Log
from iris_wsgi.roles import ROLES
from iris_wsgi.server.listener import url_of
from iris_wsgi.settings import BadSetting, Settings

if TYPE_CHECKING:
    from iris_wsgi.factory import Service
    from iris_wsgi.observability.shared_memory import Company
    from iris_wsgi.server.event_loop import Server

SWITCH_SECONDS = 0.0005
POST = "curl -s {url} -H 'Content-Type: application/json' -d '{body}'"
# The parent's signal to a worker whose replacement serves. SIGTERM may come from anybody.
RETIRE = signal.SIGQUIT
# What may be wrong with what a start finds, told in one line.
CANNOT_START = (BadModel, BadSetting, BadStore, BackendUnavailable)


class Facts(NamedTuple):
    """What a process has to tell when it serves."""

    host: str
    port: int
    model: str
    self_test: str
    sample: list[float]


def announce(settings: Settings, facts: Facts, say: Callable[[str], None]) -> None:
    """The lines that tell a person what runs here and how to try it."""
    url = url_of(facts.host, facts.port)
    workers, why_workers = workers_for(settings)
    threads, why_threads = threads_for(settings, cpus()[0])
    say(f"iris_wsgi {__version__} serves role {settings.role} on {url}")
    say(f"model {facts.model}")
    say(f"self-test: {facts.self_test}")
    say(f"workers: {workers} ({why_workers}); threads: {threads} ({why_threads}); model: 1 thread (a run takes microseconds)")
    path, member = ROLES[settings.role].example
    target = url + path.format(model=quote(facts.model.rsplit(" ", 2)[0]))
    shows = ""
    if settings.token_file:
        # Imported only for this line.
        import shlex

        shows = f' -H "Authorization: Bearer $(head -n 1 {shlex.quote(settings.token_file)})"'
    say("try: " + (POST.format(url=target, body=f'{{"{member}": [{facts.sample}]}}') if member else f"curl -s {target}") + shows)


def serve_here(
    settings: Settings,
    bound: socket.socket,
    company: "Company",
    ready: Callable[[Facts], None],
    ask_replacement: Callable[[], None],
) -> int:
    """Loads the model and serves in this process, beside the other workers of `company`, until its parent ends it.

    Calls `ready` when it serves, and `ask_replacement` when somebody else than the parent wants it to end.
    """
    # While a thread of the pool works on a large request, the I/O loop waits so long at most for its turn.
    sys.setswitchinterval(SWITCH_SECONDS)
    # All that is loaded from here on stays: to look for garbage in between only takes time.
    gc.disable()
    # Only now, so that the parent never has onnxruntime, whose threads do not survive a fork.
    from iris_wsgi.factory import build
    from iris_wsgi.observability.metrics import Registry
    from iris_wsgi.server.event_loop import Server

    log = Log(sys.stderr.fileno(), buffered=True)
    logging.getLogger().addHandler(LibraryLines(log))
    service = build(settings, log, Registry(company.board, company.slot))
    threads, _ = threads_for(settings, cpus()[0])
    try:
        server = Server(service.app, bound, settings, threads, service.observer, log, company)
    except OSError as error:
        raise BadSetting(
            f"IRIS_PORT={settings.port}: cannot listen there: {error.strerror}; choose another with --port"
        ) from None
    obey(server, service, company, ask_replacement)
    gc.freeze()
    gc.enable()
    host, port = bound.getsockname()[:2]
    model = service.model
    ready(Facts(host, port, f"{model.name} {model.version} {model.digest}", service.self_test, service.sample))
    # Only now: a job that ends its worker must not look like a start that failed.
    service.background.start()
    run_to_end(server, service, log)
    return 0


def run_to_end(server: "Server", service: "Service", log: Log) -> None:
    """Serves until the end of the drain. The process ends here if work was cut off."""
    cut = server.run()
    busy = service.background.stop(server.end_at)
    if cut or busy:
        log.event("warning", "work was cut off at the end of the drain", requests=cut, busy=busy)
        log.finish()
        # A thread of the pool may be in the middle of a run, which the interpreter's own end does not survive.
        os._exit(0)


def obey(server: "Server", service: "Service", company: "Company", ask_replacement: Callable[[], None]) -> None:
    """Installs the signals of a worker. All but SIGTERM come from its parent.

    SIGUSR2 ends the service: readiness fails, and the worker drains after the grace. RETIRE drains this worker at once, as its
    replacement serves. SIGTERM asks the parent for a replacement, so that nothing is lost whoever sends it.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        service.readiness.stopping = True
        stop()

    def stop(others_go_on: bool = False) -> None:
        service.background.stopping = True
        server.stop(others_go_on)

    signal.signal(signal.SIGUSR2, end)
    signal.signal(RETIRE, lambda *_: stop(others_go_on=True))
    signal.signal(signal.SIGTERM, lambda *_: ask_replacement())
    server.tick = lambda: stop() if os.getppid() != company.parent else None
