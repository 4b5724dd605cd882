"""Commands of bin/edge that need the files of this folder: build and pyz."""

import argparse
import os
import sys
from pathlib import Path

import bundle
import npm
import pyz

from iris_wsgi.console import ArgumentParser
from iris_wsgi.errors import BadModel

HERE = Path(__file__).resolve().parent
DIST = HERE.parent.parent / "dist"


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="bin/edge", description="Builds the bundle and the single file for devices.")
    commands = parser.add_subparsers(required=True)
    for name, run, out in (("build", build, DIST / "edge"), ("pyz", build_zipapp, DIST / "iris-edge.pyz")):
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.add_argument("--out", type=Path, default=out, help=f"output path (default {out.relative_to(DIST.parent)})")
        command.add_argument(
            "--model-dir",
            type=Path,
            default=Path(os.environ.get("IRIS_MODEL_DIR", "model")),
            help="folder of the model (IRIS_MODEL_DIR)",
        )
        command.set_defaults(run=run)
    options = parser.parse_args(arguments)
    try:
        print(options.run(options))
    except (BadModel, npm.DownloadError) as error:
        print(f"bin/edge: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"bin/edge: {error.filename or options.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def build(options: argparse.Namespace) -> str:
    """write the bundle: the model, its golden rows, a page, onnxruntime-web, and a manifest"""
    runtime = npm.get_files(HERE / "package-lock.json", DIST / "npm", bundle.RUNTIME)
    return bundle.write(options.out, options.model_dir, HERE, runtime)


def build_zipapp(options: argparse.Namespace) -> str:
    """write the commands predict, stream, update, rollback, and status and the model into one file"""
    return pyz.write(options.out, options.model_dir, HERE / "zipapp_main.py")


if __name__ == "__main__":
    sys.exit(main())
