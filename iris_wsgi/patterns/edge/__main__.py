"""Command line of edge without the server, used by the single file."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from iris_wsgi import __version__
from iris_wsgi.console import MODEL_PACKAGES, ArgumentParser, missing_packages, report_failure
from iris_wsgi.patterns.edge.command import BAD_ARGUMENTS, BAD_MODEL, EDGE, add_commands, edge
from iris_wsgi.settings import BadSetting, read_settings


def main(arguments: Sequence[str] | None = None, model: Path | None = None) -> int:
    """Runs a command and returns its exit status. `model` is the model folder for a device without a bundle."""
    parser = ArgumentParser(prog="iris-edge", description=EDGE)
    parser.add_argument("--version", action="version", version=f"iris_wsgi {__version__}")
    add_commands(parser)
    given = vars(parser.parse_args(arguments))
    try:
        settings = read_settings(os.environ, given)
    except BadSetting as error:
        return report_failure(str(error), BAD_ARGUMENTS)
    return edge(settings, given, model)


if __name__ == "__main__":
    # The single file prints other advice.
    missing = missing_packages(MODEL_PACKAGES)
    sys.exit(report_failure(missing, BAD_MODEL) if missing else main())
