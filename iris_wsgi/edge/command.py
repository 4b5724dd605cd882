"""The commands of edge: predict, stream, update, rollback, status."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris_wsgi.batch.options import names
from iris_wsgi.errors import BadModel
from iris_wsgi.settings import BadSetting, Settings, add_flags

if TYPE_CHECKING:
    from iris_wsgi.batch.cutter import Fault
    from iris_wsgi.edge.device import Device
    from iris_wsgi.model import Model

Given = Mapping[str, Any]

EDGE = """The model on this device, without a server. The status is 0 if all is well, 1 if the model or the bundle cannot be
used, 2 for wrong arguments, 3 if rows of a stream were bad, 4 when it was interrupted, 5 when the disk or a pipe failed.
bin/edge has two more, build and pyz, which write what devices take."""
GOOD, BAD_MODEL, BAD_ARGUMENTS, BAD_ROWS, INTERRUPTED, STOPPED = range(6)


def add_commands(edge: argparse.ArgumentParser) -> None:
    commands = edge.add_subparsers(dest="edge_command", metavar="COMMAND", required=True)
    predict = commands.add_parser("predict", help="answer one row")
    predict.add_argument(
        "values", metavar="NUMBER", nargs="+", help="the features, in the model's order; -- before one like -1e5"
    )
    predict.add_argument("--json", action="store_true", help="as one line of JSON")
    stream = commands.add_parser("stream", help="answer rows of CSV or JSON lines from standard input, line by line")
    stream.add_argument(
        "--features", metavar="A,B,…", help="columns of the features, in the model's order (default: its own names)"
    )
    stream.add_argument("--keep", metavar="A,B,…", help="columns that answers repeat, such as the key (default: none)")
    stream.add_argument("--no-header", action="store_true", help="CSV without names; columns are then numbers, from 1")
    for command in (predict, stream):
        add_flags(command, ["model_dir", "model_seal"])
    update = commands.add_parser("update", help="take a bundle, if it is whole and answers its golden rows here")
    update.add_argument("source", metavar="URL", help="the http(s) URL of a bundle, or its folder")
    update.add_argument("--again", action="store_true", help="also the one that rollback left here")
    rollback = commands.add_parser("rollback", help="go back to the bundle before the current one")
    status = commands.add_parser("status", help="tell which bundles are here, and whether the current one works")
    for command in (predict, stream, update, rollback, status):
        command.add_argument(
            "--device", metavar="FOLDER", type=Path, help="where its bundles are (default: edge in that of IRIS_STATE_DIR)"
        )
        add_flags(command, ["state_dir"])


def edge(settings: Settings, given: Given, baked: Path | None = None) -> int:
    """Runs one of them. `baked` is the model that answers where there is no bundle, in place of that of the settings."""
    from iris_wsgi.edge.device import Device

    device = Device(given["device"] or Path(settings.state_dir) / "edge")
    try:
        return COMMANDS[given["edge_command"]](device, settings, given, baked)
    except BadSetting as error:
        return failure(str(error), BAD_ARGUMENTS)
    except BadModel as error:
        return failure(str(error), BAD_MODEL)
    except KeyboardInterrupt:
        return failure("interrupted", INTERRUPTED)
    except OSError as error:
        return failure(f"stopped: {error.strerror}", STOPPED)


def predict(device: "Device", settings: Settings, given: Given, baked: Path | None) -> int:
    from iris_wsgi.edge.answer import answer

    model = model_of(device, settings, given, baked)
    label, probabilities = answer(model, given["values"])
    if given["json"]:
        told = {"name": model.name, "version": model.version, "digest": model.digest}
        document = {"model": told, "classes": model.labels, "label": label, "probabilities": probabilities}
        say(json.dumps(document, ensure_ascii=False))
        return GOOD
    say(label)
    for name, probability in zip(model.labels, probabilities, strict=True):
        say(f"{name} {probability!r}")
    return GOOD


def stream(device: "Device", settings: Settings, given: Given, baked: Path | None) -> int:
    from iris_wsgi.batch.output import Standard
    from iris_wsgi.edge.stream import Wanted, stream

    model = model_of(device, settings, given, baked)
    wanted = Wanted(names("--features", given["features"]), names("--keep", given["keep"]), not given["no_header"])
    bad = stream(model, wanted, sys.stdin.buffer, Standard(sys.stdout.fileno()), tell)
    return BAD_ROWS if bad else GOOD


def model_of(device: "Device", settings: Settings, given: Given, baked: Path | None) -> "Model":
    """That of the device's bundle, unless there is none or another one is asked for."""
    from iris_wsgi.model import load_model

    if given["model_dir"] is None and (bundle := device.current()) is not None:
        return bundle.load()[0]
    if given["model_dir"] is None and baked is not None:
        return load_model(baked)[0]
    return load_model(Path(settings.model_dir), settings.model_seal)[0]


def update(device: "Device", settings: Settings, given: Given, baked: Path | None) -> int:
    from iris_wsgi.edge.update import update

    try:
        say(update(device, given["source"], given["again"]))
    except BadModel as error:
        return failure(f"not updated, all stays as it was: {error}", BAD_MODEL)
    return GOOD


def rollback(device: "Device", settings: Settings, given: Given, baked: Path | None) -> int:
    from iris_wsgi.edge.update import roll_back

    say(roll_back(device))
    return GOOD


def status(device: "Device", settings: Settings, given: Given, baked: Path | None) -> int:
    state = device.state()
    for name, what in (("current", state.current), ("previous", state.previous)):
        if what is None:
            say(f"{name}: none")
            continue
        manifest = device.bundle(what).manifest
        say(f"{name}: {manifest.bundle} ({manifest.name} {manifest.version} {manifest.digest})")
    if (bundle := device.current()) is not None:
        say(f"self-test: {bundle.test()}")
    return GOOD


COMMANDS: Mapping[str, Callable[["Device", Settings, Given, Path | None], int]] = {
    "predict": predict,
    "stream": stream,
    "update": update,
    "rollback": rollback,
    "status": status,
}


def tell(fault: "Fault") -> None:
    """Standard output is for answers."""
    where = f"column {fault.column} " if fault.column else ""
    print(f"iris_wsgi: line {fault.line}: {where}{fault.reason}", file=sys.stderr, flush=True)


def say(line: str) -> None:
    print(line, flush=True)


def failure(message: str, status: int) -> int:
    print(f"iris_wsgi: {message}", file=sys.stderr)
    return status
