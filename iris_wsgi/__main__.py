"""The command line: serve, worker, redrive, warm, batch, edge, verify, seal, load, healthcheck, clear."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iris_wsgi import __version__
from iris_wsgi.batch.options import add_flags as add_batch_flags
from iris_wsgi.edge.command import EDGE, edge
from iris_wsgi.edge.command import add_commands as add_edge_commands
from iris_wsgi.errors import BadModel
from iris_wsgi.settings import NAMES, BadSetting, Settings, add_flags, checked, read_settings, seal_text, server_address, whole
from iris_wsgi.stores.jobs import BadStore, StoreDown

Given = Mapping[str, Any]

# A worker has its own, so that it can run beside a server.
WORKER_PORT = 8001
# How long a command waits for a store of jobs.
STORE_SECONDS = 5.0

BATCH = """Scores the rows of IN and writes the answers to OUT, or those of a table, for a table beside it. The
status is 0 if all is well, 1 for a bad model, 2 for bad arguments, 3 for too many bad rows, 4 when it was interrupted, and 5
when the disk, the database or another part of the machine stopped it; after 4 and 5 the same command goes on where it was."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="iris_wsgi", description="Serves a classifier in ONNX over HTTP.")
    top.add_argument("--version", action="version", version=f"iris_wsgi {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve a role until SIGTERM", description="Serves a role until SIGTERM or SIGINT.")
    add_flags(serve)
    worker = commands.add_parser(
        "worker",
        help="work on jobs until SIGTERM",
        description=f"Works on jobs until SIGTERM or SIGINT: role worker, whose health and metrics are on port {WORKER_PORT}.",
    )
    add_flags(worker, [name for name in NAMES if name != "role"])
    worker.set_defaults(role="worker")
    redrive = commands.add_parser("redrive", help="put dead letters, the jobs that failed for good, back into the queue")
    redrive.add_argument("ids", metavar="ID", nargs="*", help="these jobs (default: the oldest)")
    redrive.add_argument("--most", type=whole(1, 1_000_000), default=1000, help="so many at most (default 1000)")
    add_flags(redrive, ["state_dir", "redis_url", "jobs_queued"])
    warm = commands.add_parser("warm", help="bring items into the memory of a server before its clients ask")
    warm.add_argument(
        "ids", metavar="ID", nargs="*", help="these items (default: those of the database, in the order of their ids)"
    )
    warm.add_argument("--most", type=whole(1, 10_000_000), default=10_000, help="so many at most (default 10000)")
    warm.add_argument("--url", help="the server (default: that of this machine, by IRIS_HOST and IRIS_PORT)")
    warm.add_argument("--quiet", action="store_true", help="tell nothing of the progress")
    add_flags(warm, ["host", "port", "model_dir", "state_dir", "database_url"])
    batch = commands.add_parser("batch", help="score a whole file or table", description=BATCH)
    add_batch_flags(batch)
    add_flags(batch, ["model_dir", "model_seal", "workers"])
    add_edge_commands(commands.add_parser("edge", help="answer on this device without a server, and update it", description=EDGE))
    verify = commands.add_parser("verify", help="check the model's files and answers, offline, and print what it is")
    add_flags(verify, ["model_dir", "model_seal", "fast_model_dir"])
    seal = commands.add_parser("seal", help="write golden.json for a model of your own")
    add_flags(seal, ["model_dir"])
    seal.add_argument(
        "--rows", type=Path, metavar="CSV", help="rows to pin the answers of (default: drawn from the training ranges)"
    )
    load = commands.add_parser("load", help="copy a model from elsewhere into a folder, if it has the right seal")
    load.add_argument("source", metavar="SOURCE", help="a model's folder, or the http(s) URL of one")
    load.add_argument("folder", metavar="FOLDER", type=Path, help="where to put the files")
    load.add_argument("--seal", required=True, help="sha256:… of its golden.json, as seal and verify print it")
    load.add_argument("--or-baked", action="store_true", help="take the model of IRIS_MODEL_DIR if that fails, rather than fail")
    health = commands.add_parser("healthcheck", help="ask the server on this machine whether it is ready")
    add_flags(health, ["host", "port"])
    clear = commands.add_parser("clear", help="have the server on this machine clear its prediction cache")
    add_flags(clear, ["host", "port"])
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. The status is 0, 1 for a model, an address or a store that cannot be used, or 2 for a wrong setting."""
    given = vars(parser().parse_args(arguments))
    try:
        settings = read_settings(os.environ, given, {"port": WORKER_PORT} if given["command"] == "worker" else {})
    except BadSetting as error:
        return failure(str(error), 2)
    try:
        return COMMANDS[given["command"]](settings, given)
    except (BadModel, BadSetting, BadStore, StoreDown) as error:
        return failure(str(error), 1)


def run_server(settings: Settings, _: Given) -> int:
    from iris_wsgi.launch import serve

    return serve(settings, say)


def batch(settings: Settings, given: Given) -> int:
    from iris_wsgi.batch.command import batch

    try:
        return batch(settings, given)
    except BadSetting as error:
        # A wrong argument, like a wrong setting.
        return failure(str(error), 2)


def redrive(settings: Settings, given: Given) -> int:
    from iris_wsgi.stores.choice import open_jobs

    store = open_jobs(settings, STORE_SECONDS)
    moved = store.redrive(given["ids"] or None, given["most"])
    store.close()
    say(f"{moved} dead letters are back in the queue")
    return 0


def warm(settings: Settings, given: Given) -> int:
    from iris_wsgi.batch.progress import teller
    from iris_wsgi.health import EVERYWHERE
    from iris_wsgi.items.choice import open_known
    from iris_wsgi.items.warm import ids_of, warm

    url = given["url"] and checked("--url", given["url"], server_address)
    ids = given["ids"]
    if not ids:
        store = open_known(settings, STORE_SECONDS)
        ids = list(ids_of(store, given["most"]))
        store.close()
    host = EVERYWHERE.get(settings.host, settings.host)
    url = url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    return warm(url, ids, teller(len(ids), "items", given["quiet"]), say)


def verify(settings: Settings, _: Given) -> int:
    from iris_wsgi.beside import held
    from iris_wsgi.golden import batching, self_test
    from iris_wsgi.model import load_model
    from iris_wsgi.parts import fast_folder

    model, golden = load_model(Path(settings.model_dir), settings.model_seal)
    result = self_test(model, golden.cases, golden.tolerance)
    say(f"model {model.name} {model.version} {model.digest}")
    say(f"seal: {golden.seal}")
    say(f"labels: {', '.join(model.labels)}")
    for feature in model.features:
        known = "range unknown" if feature.min is None else f"trained on {feature.min:g} to {feature.max:g} {feature.unit or ''}"
        say(f"feature {feature.name}: {known.strip()}")
    say(f"made with: {', '.join(f'{name} {version}' for name, version in model.libraries.items()) or 'unknown'}")
    say(f"self-test: {result}")
    say(f"batches: {batching(model, golden.cases)}")
    # A model of one's own need not have any beside it.
    for line in held(fast_folder(settings), Path(settings.model_dir)):
        say(line)
    return 0


def seal(settings: Settings, given: Given) -> int:
    from iris_wsgi.golden import seal

    say(seal(Path(settings.model_dir), given["rows"]))
    return 0


def load(settings: Settings, given: Given) -> int:
    from iris_wsgi.load import load

    wanted = checked("--seal", given["seal"] or "empty", seal_text)
    say(load(given["source"], given["folder"], wanted, Path(settings.model_dir) if given["or_baked"] else None))
    return 0


def healthcheck(settings: Settings, _: Given) -> int:
    from iris_wsgi.health import why_unhealthy

    why_not = why_unhealthy(settings.host, settings.port)
    return failure(why_not, 1) if why_not else 0


def clear(settings: Settings, _: Given) -> int:
    from iris_wsgi.health import why_not_cleared

    why_not = why_not_cleared(settings.host, settings.port)
    if why_not:
        return failure(f"the cache is not cleared: {why_not}", 1)
    say("the prediction cache is cleared")
    return 0


COMMANDS: Mapping[str, Callable[[Settings, Given], int]] = {
    "serve": run_server,
    "worker": run_server,
    "redrive": redrive,
    "warm": warm,
    "batch": batch,
    "edge": edge,
    "verify": verify,
    "seal": seal,
    "load": load,
    "healthcheck": healthcheck,
    "clear": clear,
}


def say(line: str) -> None:
    print(line, flush=True)


def failure(message: str, status: int) -> int:
    print(f"iris_wsgi: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
