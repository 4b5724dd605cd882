"""Commands of edge: predict, stream, update, rollback, status."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris_wsgi.console import ArgumentParser, print_error, print_result, report_failure
from iris_wsgi.errors import BadModel
from iris_wsgi.settings import BadSetting, Settings, add_flags
from iris_wsgi.tabular.columns import add_column_flags, delimiter, names, parse_option

if TYPE_CHECKING:
    from iris_wsgi.model.session import Model
    from iris_wsgi.patterns.edge.device_store import DeviceStore
    from iris_wsgi.tabular.record_splitter import BadRow

Given = Mapping[str, Any]

EDGE = """Runs the model on this device, without a server. The exit status is 0 for success, 1 if the model or the bundle cannot
be used, 2 for invalid arguments, 3 if rows of a stream were bad, 4 after an interruption, 5 if the disk or a pipe failed.
bin/edge has two more commands: build and pyz write the bundle and the single file for devices."""
GOOD, BAD_MODEL, BAD_ARGUMENTS, BAD_ROWS, INTERRUPTED, STOPPED = range(6)


def add_commands(edge: ArgumentParser) -> None:
    edge.elsewhere = {"build": "bin/edge build", "pyz": "bin/edge pyz"}
    commands = edge.add_subparsers(dest="edge_command", metavar="COMMAND", required=True)
    predict = commands.add_parser("predict", help="classify one row")
    predict.add_argument(
        "values",
        metavar="VALUE",
        nargs="+",
        help='features in the model\'s order; "" for a missing value; -- before a number such as -1e5',
    )
    predict.add_argument("--json", action="store_true", help="print one line of JSON")
    stream = commands.add_parser("stream", help="classify rows of CSV or JSON Lines from standard input, line by line")
    add_column_flags(stream)
    for command in (predict, stream):
        add_flags(command, ["model_dir", "model_seal"])
    update = commands.add_parser("update", help="install a bundle if it is complete and passes its self-test here")
    update.add_argument("source", metavar="URL", help="http(s) URL or folder of a bundle")
    update.add_argument("--again", action="store_true", help="install even the bundle that a rollback left")
    commands.add_parser("rollback", help="return to the previous bundle")
    commands.add_parser("status", help="show the bundles, and run the self-test of the current one")
    for command in commands.choices.values():
        command.add_argument(
            "--device", metavar="FOLDER", type=Path, help="folder of the bundles (default: edge in the folder of IRIS_STATE_DIR)"
        )
        add_flags(command, ["state_dir"])


def edge(settings: Settings, given: Given, baked: Path | None = None) -> int:
    """Runs a command. `baked` is the model for a device without a bundle, in place of the model of the settings."""
    from iris_wsgi.patterns.edge.device_store import DeviceStore

    device = DeviceStore(given["device"] or Path(settings.state_dir) / "edge")
    try:
        match given["edge_command"]:
            case "predict":
                predict(find_classifier(device, settings, given, baked), given["values"], given["json"])
            case "stream":
                return stream(find_classifier(device, settings, given, baked), given)
            case "update":
                from iris_wsgi.patterns.edge.update import update

                print_result(update(device, given["source"], given["again"]))
            case "rollback":
                from iris_wsgi.patterns.edge.update import roll_back

                print_result(roll_back(device))
            case "status":
                status(device)
    except BadSetting as error:
        return report_failure(str(error), BAD_ARGUMENTS)
    except BadModel as error:
        prefix = "not updated, the current bundle stays: " if given["edge_command"] == "update" else ""
        return report_failure(f"{prefix}{error}", BAD_MODEL)
    except KeyboardInterrupt:
        return report_failure("interrupted", INTERRUPTED)
    except OSError as error:
        return report_failure(f"stopped: {error.strerror}", STOPPED)
    return GOOD


def find_classifier(device: "DeviceStore", settings: Settings, given: Given, baked: Path | None) -> "Model":
    """Returns the model. Raises BadModel for a model that is not a classifier with probabilities."""
    from iris_wsgi.patterns.edge.stream import check_kind

    model = find_model(device, settings, given, baked)
    check_kind(model)
    return model


def find_model(device: "DeviceStore", settings: Settings, given: Given, baked: Path | None) -> "Model":
    """Loads the model of the flag, else of the device's current bundle, else `baked`, else that of the settings."""
    from iris_wsgi.model.session import load_model

    if given["model_dir"] is None and (bundle := device.current()) is not None:
        return bundle.load()[0]
    if given["model_dir"] is None and baked is not None:
        return load_model(baked)[0]
    return load_model(Path(settings.model_dir), settings.model_seal)[0]


def predict(model: "Model", values: Sequence[str], as_json: bool) -> None:
    from iris_wsgi.patterns.edge.stream import predict_row

    label, probabilities = predict_row(model, values)
    if as_json:
        metadata = {"name": model.name, "version": model.version, "digest": model.digest}
        document = {"model": metadata, "classes": model.labels, "label": label, "probabilities": probabilities}
        print_result(json.dumps(document, ensure_ascii=False))
    else:
        for line in (label, *(f"{name} {p!r}" for name, p in zip(model.labels, probabilities, strict=True))):
            print_result(line)


def stream(model: "Model", given: Given) -> int:
    from iris_wsgi.patterns.edge.stream import StreamOptions, predict_stream
    from iris_wsgi.storage.files import StdStream

    options = StreamOptions(
        parse_option(given, "features", names, ()),
        parse_option(given, "keep", names, ()),
        not given["no_header"],
        parse_option(given, "delimiter", delimiter, ""),
    )
    with open(sys.stdin.fileno(), "rb", closefd=False) as source:
        bad = predict_stream(model, options, source, StdStream(sys.stdout.fileno()), report)
    return BAD_ROWS if bad else GOOD


def status(device: "DeviceStore") -> None:
    state = device.state()
    for name, folder in (("current", state.current), ("previous", state.previous)):
        manifest = device.bundle(folder).manifest if folder else None
        print_result(f"{name}: {manifest.bundle} ({manifest.model} {manifest.digest})" if manifest else f"{name}: none")
    if (bundle := device.current()) is not None:
        print_result(f"self-test: {bundle.test()}")


def report(bad: "BadRow") -> None:
    column = f"column {bad.column} " if bad.column else ""
    print_error(f"line {bad.line}: {column}{bad.reason}")
