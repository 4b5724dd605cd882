"""The commands of edge: predict, stream, update, rollback, status."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris_wsgi.console import ArgumentParser, failure, say, tell
from iris_wsgi.errors import BadModel
from iris_wsgi.settings import BadSetting, Settings, add_flags
from iris_wsgi.tabular.columns import add_column_flags, delimiter, names, parse_option

if TYPE_CHECKING:
    from iris_wsgi.model.session import Model
    from iris_wsgi.patterns.edge.device_store import Device
    from iris_wsgi.tabular.record_splitter import BadRow

Given = Mapping[str, Any]

EDGE = """The model on this device, without a server. The status is 0 if all is well, 1 if the model or the bundle cannot be
used, 2 for wrong arguments, 3 if rows of a stream were bad, 4 when it was interrupted, 5 when the disk or a pipe failed.
bin/edge has two more, build and pyz, which write what devices take."""
GOOD, BAD_MODEL, BAD_ARGUMENTS, BAD_ROWS, INTERRUPTED, STOPPED = range(6)


def add_commands(edge: ArgumentParser) -> None:
    edge.elsewhere = {"build": "bin/edge build", "pyz": "bin/edge pyz"}
    commands = edge.add_subparsers(dest="edge_command", metavar="COMMAND", required=True)
    predict = commands.add_parser("predict", help="answer one row")
    predict.add_argument(
        "values", metavar="NUMBER", nargs="+", help="the features, in the model's order; -- before one like -1e5"
    )
    predict.add_argument("--json", action="store_true", help="as one line of JSON")
    stream = commands.add_parser("stream", help="answer rows of CSV or JSON lines from standard input, line by line")
    add_column_flags(stream)
    for command in (predict, stream):
        add_flags(command, ["model_dir", "model_seal"])
    update = commands.add_parser("update", help="take a bundle, if it is whole and answers its golden rows here")
    update.add_argument("source", metavar="URL", help="the http(s) URL of a bundle, or its folder")
    update.add_argument("--again", action="store_true", help="also the one that rollback left here")
    commands.add_parser("rollback", help="go back to the bundle before the current one")
    commands.add_parser("status", help="tell which bundles are here, and whether the current one works")
    for command in commands.choices.values():
        command.add_argument(
            "--device", metavar="FOLDER", type=Path, help="where its bundles are (default: edge in that of IRIS_STATE_DIR)"
        )
        add_flags(command, ["state_dir"])


def edge(settings: Settings, given: Given, baked: Path | None = None) -> int:
    """Runs one of them. `baked` is the model that answers where there is no bundle, in place of that of the settings."""
    from iris_wsgi.patterns.edge.device_store import Device

    device = Device(given["device"] or Path(settings.state_dir) / "edge")
    try:
        match given["edge_command"]:
            case "predict":
                predict(model_of(device, settings, given, baked), given["values"], given["json"])
            case "stream":
                return stream(model_of(device, settings, given, baked), given)
            case "update":
                from iris_wsgi.patterns.edge.update import update

                say(update(device, given["source"], given["again"]))
            case "rollback":
                from iris_wsgi.patterns.edge.update import roll_back

                say(roll_back(device))
            case "status":
                status(device)
    except BadSetting as error:
        return failure(str(error), BAD_ARGUMENTS)
    except BadModel as error:
        stays = "not updated, all stays as it was: " if given["edge_command"] == "update" else ""
        return failure(f"{stays}{error}", BAD_MODEL)
    except KeyboardInterrupt:
        return failure("interrupted", INTERRUPTED)
    except OSError as error:
        return failure(f"stopped: {error.strerror}", STOPPED)
    return GOOD


def model_of(device: "Device", settings: Settings, given: Given, baked: Path | None) -> "Model":
    """That of the device's bundle, unless there is none or another one is asked for."""
    from iris_wsgi.model.session import load_model

    if given["model_dir"] is None and (bundle := device.current()) is not None:
        return bundle.load()[0]
    if given["model_dir"] is None and baked is not None:
        return load_model(baked)[0]
    return load_model(Path(settings.model_dir), settings.model_seal)[0]


def predict(model: "Model", values: Sequence[str], as_json: bool) -> None:
    from iris_wsgi.patterns.edge.predict import answer

    label, probabilities = answer(model, values)
    if as_json:
        told = {"name": model.name, "version": model.version, "digest": model.digest}
        document = {"model": told, "classes": model.labels, "label": label, "probabilities": probabilities}
        say(json.dumps(document, ensure_ascii=False))
    else:
        for line in (label, *(f"{name} {one!r}" for name, one in zip(model.labels, probabilities, strict=True))):
            say(line)


def stream(model: "Model", given: Given) -> int:
    from iris_wsgi.patterns.edge.stream import Wanted, stream
    from iris_wsgi.storage.files import StdStream

    wanted = Wanted(
        parse_option(given, "features", names, ()),
        parse_option(given, "keep", names, ()),
        not given["no_header"],
        parse_option(given, "delimiter", delimiter, ""),
    )
    with open(sys.stdin.fileno(), "rb", closefd=False) as source:
        bad = stream(model, wanted, source, StdStream(sys.stdout.fileno()), tell_fault)
    return BAD_ROWS if bad else GOOD


def status(device: "Device") -> None:
    state = device.state()
    for name, what in (("current", state.current), ("previous", state.previous)):
        manifest = device.bundle(what).manifest if what else None
        say(f"{name}: {manifest.bundle} ({manifest.name} {manifest.version} {manifest.digest})" if manifest else f"{name}: none")
    if (bundle := device.current()) is not None:
        say(f"self-test: {bundle.test()}")


def tell_fault(fault: "BadRow") -> None:
    where = f"column {fault.column} " if fault.column else ""
    tell(f"line {fault.line}: {where}{fault.reason}")
