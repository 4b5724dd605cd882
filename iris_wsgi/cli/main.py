"""The command line: serve, worker, redrive, warm, batch, edge, verify, pack, load, healthcheck, clear, tour."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iris_wsgi import __version__
from iris_wsgi.console import (
    MODEL_PACKAGES,
    SERVER_PACKAGES,
    StdoutFailed,
    missing_packages,
    open_streams,
    print_error,
    print_result,
    report_failure,
    set_log_formatter,
)
from iris_wsgi.console import ArgumentParser as Parser
from iris_wsgi.errors import BackendUnavailable, BadModel, BadStore
from iris_wsgi.setting_types import integer, seal_text, server_address
from iris_wsgi.settings import NAMES, REMOVED, BadSetting, Settings, add_flags, checked, read_settings

if TYPE_CHECKING:
    from iris_wsgi.codec.model_schema import Feature
    from iris_wsgi.model.artifact import ArtifactManifest
    from iris_wsgi.model.session import Model

Given = Mapping[str, Any]

SERVERS = ("serve", "worker")
# Another port than that of a server, so that both can run on one machine.
WORKER_PORT = 8001
# The timeout of the requests of healthcheck and clear.
CHECK_SECONDS = 4.0
# The defaults of settings that differ for a command.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"worker": {"port": WORKER_PORT}}
# Options before a command. Other options without a command are those of serve.
TOP_OPTIONS = ("-h", "--help", "--version")
# The usage line of a command with every setting.
USAGE = "%(prog)s [--SETTING VALUE …]"
# The time limit of a command for a call to a store.
STORE_SECONDS = 5.0

BATCH = """Scores the rows of IN and writes the predictions to OUT, or scores a table and writes another table. The status is
0 for success, 1 for an invalid model, 2 for invalid arguments, 3 for too many bad rows, 4 after an interruption, and 5 if
the disk, the database, or another part of the machine failed. After 4 and 5 the same command continues the run. The status is
6 if the input rows are not the output rows plus the bad rows, which is a defect of this program."""


def serve_flags(serve: Parser) -> None:
    serve.usage = USAGE
    add_flags(serve)


def worker_flags(worker: Parser) -> None:
    worker.usage = USAGE
    add_flags(worker, [name for name in (*NAMES, *REMOVED) if name != "role"], DEFAULTS["worker"])
    worker.set_defaults(role="worker")


def redrive_flags(redrive: Parser) -> None:
    redrive.add_argument("ids", metavar="ID", nargs="*", help="ids of jobs (default: the oldest dead letters)")
    redrive.add_argument("--most", type=integer(1, 1_000_000), default=1000, help="maximum number of jobs (default 1000)")
    add_flags(redrive, ["state_dir", "redis_url", "jobs_queued"])


def warm_flags(warm: Parser) -> None:
    ids = "ids of items (default: those of the database, in order)"
    warm.add_argument("ids", metavar="ID", nargs="*", help=ids)
    warm.add_argument("--most", type=integer(1, 10_000_000), default=10_000, help="maximum number of items (default 10000)")
    warm.add_argument("--url", help="URL of the server (default: the server of IRIS_HOST and IRIS_PORT on this machine)")
    warm.add_argument("--quiet", action="store_true", help="no progress reports")
    add_flags(warm, ["host", "port", "model_dir", "state_dir", "database_url", "token_file"])


def batch_flags(batch: Parser) -> None:
    from iris_wsgi.patterns.batch.options import add_flags as add_batch_flags

    add_batch_flags(batch)
    log_format_flag(batch)
    add_flags(batch, ["model_dir", "model_seal", "workers"])


def edge_flags(edge: Parser) -> None:
    from iris_wsgi.patterns.edge.command import EDGE, add_commands

    edge.description = EDGE
    add_commands(edge)


def verify_flags(verify: Parser) -> None:
    add_flags(verify, ["model_dir", "model_seal", "fast_model_dir"])


def pack_flags(pack: Parser) -> None:
    from iris_wsgi.packing.command import PACK
    from iris_wsgi.packing.command import add_flags as add_pack_flags

    pack.description = PACK
    add_pack_flags(pack)


def load_flags(load: Parser) -> None:
    load.add_argument("source", metavar="SOURCE", help="folder or http(s) URL of a model")
    load.add_argument("folder", metavar="FOLDER", type=Path, help="target folder")
    load.add_argument("--seal", required=True, help="sha256:… of golden.json, as the commands seal and verify print it")
    load.add_argument("--or-baked", action="store_true", help="use the model of IRIS_MODEL_DIR if this fails")
    log_format_flag(load)


def healthcheck_flags(healthcheck: Parser) -> None:
    add_flags(healthcheck, ["host", "port"])


def clear_flags(clear: Parser) -> None:
    add_flags(clear, ["host", "port", "token_file"])


def tour_flags(tour: Parser) -> None:
    tour.add_argument(
        "url", metavar="URL", nargs="?", help="URL of the server (default: the server of --host and --port on this machine)"
    )
    add_flags(tour, ["host", "port", "model_dir", "token_file"])


def parser(words: Sequence[str]) -> Parser:
    """Returns the parser, with the flags of the command in `words`. Other commands are not imported."""
    top = Parser(prog="iris-wsgi", description=TOP, usage="%(prog)s [COMMAND] [OPTION …]")
    top.add_argument("--version", action="version", version=f"iris_wsgi {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, prog="iris-wsgi")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, description=command.description)
        if name in words:
            command.add_flags(one)
    return top


def with_command(words: Sequence[str]) -> Sequence[str]:
    """Returns the words with the command serve if they have no command, as for `iris-wsgi` and `iris-wsgi --port 9000`."""
    is_serve = not words or (words[0].startswith("-") and words[0] not in TOP_OPTIONS)
    return ["serve", *words] if is_serve else words


def read_words(words: Sequence[str]) -> tuple[Settings, Given]:
    """Returns the settings and the arguments of a command. bin/setup calls this function before it installs the packages.

    Raises BadSetting. Raises SystemExit after the help, with status 0, and after an invalid argument, with status 2.
    """
    given = vars(parser(words).parse_args(words))
    return read_settings(os.environ, given, DEFAULTS.get(given["command"], {})), given


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 1 if a model, address, store, or package cannot be used, or 2 for an invalid setting or
    argument."""
    open_streams()
    words = with_command(sys.argv[1:] if arguments is None else arguments)
    is_log = wants_log_lines(words)
    set_log_formatter(as_log_line if is_log else None)
    try:
        settings, given = read_words(words)
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
        # The reader has closed the pipe. The last flush of the interpreter would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        # A traceback of several lines is not a line of the log.
        if not is_log:
            raise
        print_error("the command failed", traceback=traceback.format_exc())
        return 1


def wants_log_lines(words: Sequence[str]) -> bool:
    """Returns whether messages are log lines. The standard error of a server is its log, unless it is a terminal."""
    is_server = next((word for word in words if not word.startswith("-")), "") in SERVERS
    # Before the words are parsed, because an invalid one is also a message.
    return "--log-format=json" in "=".join(words) or (is_server and not sys.stderr.isatty())


def as_log_line(level: str, message: str, **fields: object) -> str:
    from iris_wsgi.observability.log import log_line

    return log_line(level, message, **fields)


def log_format_flag(command: Parser) -> None:
    command.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="messages as text or as JSON lines (default text)"
    )


def run_server(settings: Settings, _: Given) -> int:
    """Supervises the workers, which serve, until SIGTERM or SIGINT."""
    from iris_wsgi.cpu_limits import worker_count
    from iris_wsgi.server.listener import bind, check_descriptors
    from iris_wsgi.server.supervisor import Supervisor

    # As PID 1 a process without a handler ignores SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # The start loads the newest model anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    count, _why = worker_count(settings)
    check_descriptors(settings, count)
    bound = bind(settings)
    supervisor = Supervisor(settings, bound, count)
    try:
        return supervisor.run()
    except BadSetting:
        raise
    except Exception:
        # A traceback of several lines is not a line of the log.
        supervisor.log.failure("the server failed")
        return 1


def batch(settings: Settings, given: Given) -> int:
    from iris_wsgi.patterns.batch.file_run import batch

    try:
        return batch(settings, given)
    except BadSetting as error:
        # An invalid argument has the status of an invalid setting.
        return report_failure(str(error), 2)


def edge(settings: Settings, given: Given) -> int:
    from iris_wsgi.patterns.edge.command import edge

    return edge(settings, given)


def redrive(settings: Settings, given: Given) -> int:
    from iris_wsgi.patterns.asynchronous.sqlite_store import create_job_store

    store = create_job_store(settings, STORE_SECONDS)
    moved = store.redrive(given["ids"] or None, given["most"])
    store.close()
    print_result(f"{moved} dead letters are back in the queue")
    return 0


def warm(settings: Settings, given: Given) -> int:
    from iris_wsgi.console import ProgressReporter
    from iris_wsgi.patterns.data_cache.sqlite_store import open_existing_item_store
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
    """Returns the URL of the server on this machine."""
    from iris_wsgi.server.listener import server_url

    return server_url(settings.host, settings.port)


def credentials(settings: Settings) -> Sequence[tuple[str, str]]:
    """Returns the Authorization header of a command. Raises BadSetting."""
    if not settings.token_file:
        return ()
    from iris_wsgi.wsgi.bearer_auth import Tokens

    return Tokens(settings.token_file, lambda _, message: None).headers()


def verify(settings: Settings, _: Given) -> int:
    from iris_wsgi.model.golden import batch_consistency, load_verified_model, proof_of

    model, golden, result = load_verified_model(Path(settings.model_dir), settings.model_seal)
    print_result(f"model {model.name} {model.version} {model.digest}")
    print_result(f"seal: {golden.seal}")
    print_result(f"kind: {model.outputs.kind}")
    print_result(f"labels: {', '.join(model.labels)}" if model.labels else f"targets: {', '.join(model.outputs.columns)}")
    for feature in model.features:
        print_result(f"feature {feature.name}: {description_of(feature)}")
    print_result(f"made with: {', '.join(f'{name} {version}' for name, version in model.libraries.items()) or 'unknown'}")
    print_result(f"self-test: {result}")
    print_result(f"proof: {proof_of(golden.description)}")
    print_result(f"batches: {batch_consistency(model, golden.cases)}")
    for line in verify_companions(Path(settings.model_dir), model, golden):
        print_result(line)
    return 0


def verify_companions(whole: Path, full: "Model", golden: "ArtifactManifest") -> Iterator[str]:
    """Yields one line of report for each companion of the full model that exists. Raises BadModel for those of another model."""
    from iris_wsgi.model.artifact import FAST_FOLDER, member_folders
    from iris_wsgi.model.companions import load_fast, load_members
    from iris_wsgi.model.golden import load_verified_model, proof_of, self_test
    from iris_wsgi.patterns.prep_pred.halves import PRED, PREP, load_pair

    folders = {"fast model": whole / FAST_FOLDER, "pred": whole / PRED}
    folders |= {f"member {name}": folder for name, folder in member_folders(whole).items()}
    for name, folder in folders.items():
        if folder.exists():
            model, pinned, result = load_verified_model(folder)
            yield f"{name} {model.name} {model.version} {model.digest}: {result}; {proof_of(pinned.description)}"
    if (whole / FAST_FOLDER).exists():
        load_fast(whole, full, full.outputs)
    if member_folders(whole):
        load_members(whole, full)
    if (whole / PREP).exists():
        pair = load_pair(whole, full, golden)
        result = self_test(pair.joined, pair.pinned.cases, pair.pinned.tolerance)
        yield f"prep and pred, pair {pair.prep.digest}: {result}"


def description_of(feature: "Feature") -> str:
    """Returns type and training range of a feature in words."""
    trained = f"trained on {feature.min:g} to {feature.max:g} {feature.unit or ''}".strip() if feature.min is not None else ""
    return f"{feature.type}, {trained or 'range unknown'}{', may be missing' if feature.missing else ''}"


def pack(settings: Settings, given: Given) -> int:
    from iris_wsgi.packing.command import pack

    return pack(settings, given)


def load(settings: Settings, given: Given) -> int:
    from iris_wsgi.model.download import download

    wanted = checked("--seal", given["seal"] or "empty", seal_text)
    print_result(download(given["source"], given["folder"], wanted, Path(settings.model_dir) if given["or_baked"] else None))
    return 0


def healthcheck(settings: Settings, _: Given) -> int:
    why = failure_of("GET /readyz", settings.host, settings.port)
    return report_failure(why, 1) if why else 0


def clear(settings: Settings, _: Given) -> int:
    if why := failure_of("DELETE /cache", settings.host, settings.port, headers=credentials(settings)):
        return report_failure(f"the cache is not cleared: {why}", 1)
    print_result("the prediction cache is cleared")
    return 0


def failure_of(
    request: str, host: str, port: int, seconds: float = CHECK_SECONDS, headers: Sequence[tuple[str, str]] = ()
) -> str | None:
    """Returns None if a request such as GET /readyz gets 200, else one line with the reason."""
    from contextlib import closing
    from http.client import BadStatusLine, HTTPConnection, HTTPException, RemoteDisconnected

    from iris_wsgi.server.listener import WILDCARD_HOSTS, reason

    where = WILDCARD_HOSTS.get(host, host)
    method, path = request.split()
    try:
        with closing(HTTPConnection(where, port, timeout=seconds)) as connection:
            # Only the status counts, so the body is not read.
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
    except TimeoutError:
        return f"no response from {where} port {port} within {seconds:g} seconds"
    except RemoteDisconnected:
        return f"{where} port {port} answers: nothing"
    except BadStatusLine as error:
        line = str(error.args[0]).rstrip("\r\n").encode("latin-1").decode("ascii", "replace")
        return f"{where} port {port} answers: {line}"
    except (OSError, UnicodeError) as error:
        return f"no server at {where} port {port}: {reason(error)}"
    except HTTPException as error:
        return f"{where} port {port} answers: {type(error).__name__}"
    return None if response.status == 200 else f"{where} port {port} answers: HTTP/1.1 {response.status} {response.reason}"


def tour(settings: Settings, given: Given) -> int:
    from iris_wsgi.cli.tour import tour
    from iris_wsgi.cli.tour_client import TourClient

    url = checked("URL", given["url"] or url_here(settings), server_address)
    # The tour passes the token file to the server of role prep that it starts.
    environ = os.environ | {"IRIS_TOKEN_FILE": settings.token_file}
    return tour(TourClient(url, environ, settings.model_dir, dict(credentials(settings))), print_error)


class Command(NamedTuple):
    """A command: help, flags, function (which returns the exit status), description, and required packages."""

    help: str
    add_flags: Callable[[Parser], None]
    run: Callable[[Settings, Given], int]
    description: str | None = None
    packages: Sequence[str] = ()


TOP = """Serves a classifier in ONNX over HTTP, in ten serving patterns. Without a command it serves every pattern on port 8000.
`COMMAND --help` lists the options of a command."""
EACH_SETTING = "Each option is also a variable of the environment, and the option takes precedence."
SERVE = f"Serves a role until SIGTERM or SIGINT. {EACH_SETTING}"
WORKER = f"""Runs jobs until SIGTERM or SIGINT. Health and metrics of the role worker are on port {WORKER_PORT}, so that a worker
can run next to a server. {EACH_SETTING}"""
TOUR = """Tests every pattern on a running server, and prints for each: right, wrong, not served by this role, skipped for this
model, or not set up. The end counts those of the role. The status is 0 if no pattern is wrong. It is 1 if a pattern is
wrong, or if the server is missing, is another program, requires another token, or has another model. It is 2 for an invalid
argument."""
COMMANDS = {
    "serve": Command("serve a role until SIGTERM", serve_flags, run_server, SERVE, SERVER_PACKAGES),
    "worker": Command("run jobs until SIGTERM", worker_flags, run_server, WORKER, SERVER_PACKAGES),
    "redrive": Command("put dead letters, the jobs without attempts left, back into the queue", redrive_flags, redrive),
    "warm": Command("load items into the memory of a server before its clients request them", warm_flags, warm),
    "batch": Command("score a whole file or table", batch_flags, batch, BATCH, MODEL_PACKAGES),
    "edge": Command("predict on this device without a server, and update its model", edge_flags, edge, packages=MODEL_PACKAGES),
    "verify": Command(
        "check the files and the golden rows of the model offline, and print its identity",
        verify_flags,
        verify,
        packages=MODEL_PACKAGES,
    ),
    "pack": Command("make a model folder from an estimator or an ONNX file", pack_flags, pack, packages=MODEL_PACKAGES),
    "load": Command("copy a model into a folder if its seal matches", load_flags, load, packages=MODEL_PACKAGES),
    "healthcheck": Command("check whether the server on this machine is ready", healthcheck_flags, healthcheck),
    "clear": Command("clear the prediction cache of the server on this machine", clear_flags, clear),
    "tour": Command("test every pattern on a running server", tour_flags, tour, TOUR, SERVER_PACKAGES),
}
