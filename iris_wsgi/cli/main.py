"""The command line: serve, worker, redrive, warm, batch, edge, verify, seal, load, healthcheck, clear, tour."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi import __version__
from iris_wsgi.console import (
    MODEL_PACKAGES,
    SERVER_PACKAGES,
    StdoutFailed,
    missing_packages,
    open_streams,
    print_error,
    print_result,
    print_status,
    report_failure,
)
from iris_wsgi.console import ArgumentParser as Parser
from iris_wsgi.errors import BackendUnavailable, BadModel, BadStore
from iris_wsgi.setting_types import integer, seal_text, server_address
from iris_wsgi.settings import NAMES, REMOVED, BadSetting, Settings, add_flags, checked, read_settings

Given = Mapping[str, Any]

# A worker has its own, so that it can run beside a server.
WORKER_PORT = 8001
# The defaults of settings that differ in a command.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"worker": {"port": WORKER_PORT}}
# How long a command waits for a store of jobs.
STORE_SECONDS = 5.0

BATCH = """Scores the rows of IN and writes the answers to OUT, or those of a table, for a table beside it. The
status is 0 if all is well, 1 for a bad model, 2 for bad arguments, 3 for too many bad rows, 4 when it was interrupted, and 5
when the disk, the database or another part of the machine stopped it; after 4 and 5 the same command goes on where it was.
It is 6 if rows in are not rows out and bad rows together, which is a defect of this program."""


def serve_flags(serve: Parser) -> None:
    add_flags(serve)


def worker_flags(worker: Parser) -> None:
    add_flags(worker, [name for name in (*NAMES, *REMOVED) if name != "role"], DEFAULTS["worker"])
    worker.set_defaults(role="worker")


def redrive_flags(redrive: Parser) -> None:
    redrive.add_argument("ids", metavar="ID", nargs="*", help="these jobs (default: the oldest)")
    redrive.add_argument("--most", type=integer(1, 1_000_000), default=1000, help="so many at most (default 1000)")
    add_flags(redrive, ["state_dir", "redis_url", "jobs_queued"])


def warm_flags(warm: Parser) -> None:
    ids = "these items (default: those of the database, in the order of their ids)"
    warm.add_argument("ids", metavar="ID", nargs="*", help=ids)
    warm.add_argument("--most", type=integer(1, 10_000_000), default=10_000, help="so many at most (default 10000)")
    warm.add_argument("--url", help="the server (default: that of this machine, by IRIS_HOST and IRIS_PORT)")
    warm.add_argument("--quiet", action="store_true", help="tell nothing of the progress")
    add_flags(warm, ["host", "port", "model_dir", "state_dir", "database_url", "token_file"])


def batch_flags(batch: Parser) -> None:
    from iris_wsgi.patterns.batch.options import add_flags as add_batch_flags

    add_batch_flags(batch)
    add_flags(batch, ["model_dir", "model_seal", "workers"])


def edge_flags(edge: Parser) -> None:
    from iris_wsgi.patterns.edge.command import EDGE, add_commands

    edge.description = EDGE
    add_commands(edge)


def verify_flags(verify: Parser) -> None:
    add_flags(verify, ["model_dir", "model_seal", "fast_model_dir"])


def seal_flags(seal: Parser) -> None:
    add_flags(seal, ["model_dir"])
    rows = "rows to pin the answers of (default: drawn from the training ranges)"
    seal.add_argument("--rows", type=Path, metavar="CSV", help=rows)


def load_flags(load: Parser) -> None:
    load.add_argument("source", metavar="SOURCE", help="a model's folder, or the http(s) URL of one")
    load.add_argument("folder", metavar="FOLDER", type=Path, help="where to put the files")
    load.add_argument("--seal", required=True, help="sha256:… of its golden.json, as seal and verify print it")
    load.add_argument("--or-baked", action="store_true", help="take the model of IRIS_MODEL_DIR if that fails, rather than fail")


def healthcheck_flags(healthcheck: Parser) -> None:
    add_flags(healthcheck, ["host", "port"])


def clear_flags(clear: Parser) -> None:
    add_flags(clear, ["host", "port", "token_file"])


def tour_flags(tour: Parser) -> None:
    tour.add_argument("url", metavar="URL", nargs="?", help="the server (default: that of this machine, by --host and --port)")
    add_flags(tour, ["host", "port", "model_dir", "token_file"])


def parser(words: Sequence[str]) -> Parser:
    """Of these words; flags are there for the command that is among them, and nothing is imported for others."""
    top = Parser(prog="iris_wsgi", description="Serves a classifier in ONNX over HTTP.")
    top.add_argument("--version", action="version", version=f"iris_wsgi {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, description=command.description)
        if name in words:
            command.add_flags(one)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. The status is 0, 1 for a model, an address, a store or a package that cannot be used, or 2 for a wrong
    setting or argument."""
    open_streams()
    words = sys.argv[1:] if arguments is None else arguments
    given = vars(parser(words).parse_args(words))
    try:
        settings = read_settings(os.environ, given, DEFAULTS.get(given["command"], {}))
    except BadSetting as error:
        return report_failure(str(error), 2)
    command = COMMANDS[given["command"]]
    if why := missing_packages(command.packages):
        return report_failure(why, 1)
    try:
        return command.run(settings, given)
    except (BadModel, BadSetting, BadStore, StdoutFailed, BackendUnavailable) as error:
        return report_failure(str(error), 1)
    except KeyboardInterrupt:
        return report_failure("interrupted", 130)
    except BrokenPipeError:
        # Who read it wants no more; the interpreter's own last flush would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run_server(settings: Settings, _: Given) -> int:
    """Serves until SIGTERM or SIGINT: this process supervises, and its workers serve."""
    from iris_wsgi.cpu_limits import worker_count
    from iris_wsgi.server.listener import bind, check_descriptors
    from iris_wsgi.server.serve import announce
    from iris_wsgi.server.supervisor import Supervisor

    # As PID 1 a process without a handler ignores SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A new model that comes during the start is loaded anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    count, _why = worker_count(settings)
    check_descriptors(settings, count)
    bound = bind(settings)
    return Supervisor(settings, bound, count, lambda info: announce(settings, info, print_status)).run()


def batch(settings: Settings, given: Given) -> int:
    from iris_wsgi.patterns.batch.file_run import batch

    try:
        return batch(settings, given)
    except BadSetting as error:
        # A wrong argument, like a wrong setting.
        return report_failure(str(error), 2)


def edge(settings: Settings, given: Given) -> int:
    from iris_wsgi.patterns.edge.command import edge

    return edge(settings, given)


def redrive(settings: Settings, given: Given) -> int:
    from iris_wsgi.patterns.asynchronous.stores import create_job_store

    store = create_job_store(settings, STORE_SECONDS)
    moved = store.redrive(given["ids"] or None, given["most"])
    store.close()
    print_result(f"{moved} dead letters are back in the queue")
    return 0


def warm(settings: Settings, given: Given) -> int:
    from iris_wsgi.console import ProgressReporter
    from iris_wsgi.patterns.data_cache.stores import open_existing_item_store
    from iris_wsgi.patterns.data_cache.warmup import first_ids, warm

    url = checked("--url", given["url"] or url_here(settings), server_address)
    ids = given["ids"]
    if not ids:
        store = open_existing_item_store(settings, STORE_SECONDS)
        ids = list(first_ids(store, given["most"]))
        store.close()
    reporter = ProgressReporter(len(ids), "items", given["quiet"])
    return warm(url, dict(credentials(settings)), ids, reporter, print_result)


def url_here(settings: Settings) -> str:
    """Of the server of this machine."""
    from iris_wsgi.server.listener import server_url

    return server_url(settings.host, settings.port)


def credentials(settings: Settings) -> Sequence[tuple[str, str]]:
    """What a command shows to the server that it asks. Raises BadSetting."""
    if not settings.token_file:
        return ()
    from iris_wsgi.wsgi.bearer_auth import Tokens

    return Tokens(settings.token_file, lambda _, message: None).headers()


def verify(settings: Settings, _: Given) -> int:
    from iris_wsgi.cli.verify import verify_companions
    from iris_wsgi.model.golden import batch_consistency, load_verified_model

    model, golden, result = load_verified_model(Path(settings.model_dir), settings.model_seal)
    print_result(f"model {model.name} {model.version} {model.digest}")
    print_result(f"seal: {golden.seal}")
    print_result(f"labels: {', '.join(model.labels)}")
    for feature in model.features:
        known = "range unknown" if feature.min is None else f"trained on {feature.min:g} to {feature.max:g} {feature.unit or ''}"
        print_result(f"feature {feature.name}: {known.strip()}")
    print_result(f"made with: {', '.join(f'{name} {version}' for name, version in model.libraries.items()) or 'unknown'}")
    print_result(f"self-test: {result}")
    print_result(f"batches: {batch_consistency(model, golden.cases)}")
    # A model of one's own need not have any beside it.
    for line in verify_companions(Path(settings.model_dir)):
        print_result(line)
    return 0


def seal(settings: Settings, given: Given) -> int:
    from iris_wsgi.model.golden import seal

    print_result(seal(Path(settings.model_dir), given["rows"]))
    return 0


def load(settings: Settings, given: Given) -> int:
    from iris_wsgi.model.download import download

    wanted = checked("--seal", given["seal"] or "empty", seal_text)
    print_result(download(given["source"], given["folder"], wanted, Path(settings.model_dir) if given["or_baked"] else None))
    return 0


def healthcheck(settings: Settings, _: Given) -> int:
    from iris_wsgi.cli.healthcheck import why_not

    why = why_not("GET /readyz", settings.host, settings.port)
    return report_failure(why, 1) if why else 0


def clear(settings: Settings, _: Given) -> int:
    from iris_wsgi.cli.healthcheck import why_not

    if why := why_not("DELETE /cache", settings.host, settings.port, fields=credentials(settings)):
        return report_failure(f"the cache is not cleared: {why}", 1)
    print_result("the prediction cache is cleared")
    return 0


def tour(settings: Settings, given: Given) -> int:
    from iris_wsgi.cli.tour import tour
    from iris_wsgi.cli.tour_client import Guide

    url = checked("URL", given["url"] or url_here(settings), server_address)
    # A server of role prep, which the tour starts, shows it too.
    environ = os.environ | {"IRIS_TOKEN_FILE": settings.token_file}
    return tour(Guide(url, environ, settings.model_dir, dict(credentials(settings))), print_error)


class Command(NamedTuple):
    """What it is for, what adds its flags, what it does with settings and flags (the exit status), and the packages it needs."""

    help: str
    add_flags: Callable[[Parser], None]
    run: Callable[[Settings, Given], int]
    description: str | None = None
    packages: Sequence[str] = ()


SERVE = "Serves a role until SIGTERM or SIGINT."
WORKER = f"Works on jobs until SIGTERM or SIGINT: role worker, whose health and metrics are on port {WORKER_PORT}."
TOUR = """Tries every pattern on a running server, and tells each as right, wrong, or not served by its role and settings. The
status is 0 if all that is served is right, 1 if an answer is wrong, if there is no server, or if it is another program, wants
another token or has another model, and 2 for a wrong argument."""
COMMANDS = {
    "serve": Command("serve a role until SIGTERM", serve_flags, run_server, SERVE, SERVER_PACKAGES),
    "worker": Command("work on jobs until SIGTERM", worker_flags, run_server, WORKER, SERVER_PACKAGES),
    "redrive": Command("put dead letters, the jobs that failed for good, back into the queue", redrive_flags, redrive),
    "warm": Command("bring items into the memory of a server before its clients ask", warm_flags, warm),
    "batch": Command("score a whole file or table", batch_flags, batch, BATCH, MODEL_PACKAGES),
    "edge": Command("answer on this device without a server, and update it", edge_flags, edge, packages=MODEL_PACKAGES),
    "verify": Command(
        "check the model's files and answers, offline, and print what it is", verify_flags, verify, packages=MODEL_PACKAGES
    ),
    "seal": Command("write golden.json for a model of your own", seal_flags, seal, packages=MODEL_PACKAGES),
    "load": Command(
        "copy a model from elsewhere into a folder, if it has the right seal", load_flags, load, packages=MODEL_PACKAGES
    ),
    "healthcheck": Command("ask the server on this machine whether it is ready", healthcheck_flags, healthcheck),
    "clear": Command("have the server on this machine clear its prediction cache", clear_flags, clear),
    "tour": Command(
        "try every pattern on a running server, and see that its answers are right", tour_flags, tour, TOUR, SERVER_PACKAGES
    ),
}
