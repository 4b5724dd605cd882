"""Commands of bin/edge that use files of this repository: build, pyz."""

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
    for name, run, out in (("build", build, DIST / "edge"), ("pyz", single, DIST / "iris-edge.pyz")):
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.add_argument("--out", type=Path, default=out, help=f"output path (default {out.relative_to(DIST.parent)})")
        command.add_argument(
            "--model-dir", type=Path, default=Path(os.environ.get("IRIS_MODEL_DIR", "model")), help="the model (IRIS_MODEL_DIR)"
        )
        command.set_defaults(run=run)
    given = parser.parse_args(arguments)
    try:
        print(given.run(given))
    except (BadModel, npm.NotTaken) as error:
        print(f"bin/edge: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"bin/edge: {error.filename or given.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def build(given: argparse.Namespace) -> str:
    """write the bundle: the model, its golden rows, a page, onnxruntime-web, and a manifest"""
    runtime = npm.take(HERE / "package-lock.json", DIST / "npm", bundle.RUNTIME)
    return bundle.write(given.out, given.model_dir, HERE, runtime)


def single(given: argparse.Namespace) -> str:
    """write predict, stream, update, rollback, and status with the model into one file, for Python with onnxruntime and numpy"""
    return pyz.write(given.out, given.model_dir, HERE / "single.py")


if __name__ == "__main__":
    sys.exit(main())
