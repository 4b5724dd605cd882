"""Main module of the zipapp that bin/edge pyz writes. The device provides Python, onnxruntime, and numpy."""

import sys

INSTALL = "pip install 'onnxruntime>=1.23,!=1.26.0,!=1.27.0' 'numpy>=2.0'"


def main():
    """Runs the commands. The syntax is that of old Pythons, so that they can print the error message."""
    if sys.version_info < (3, 11):  # noqa: UP036
        return "iris-edge: Python 3.11 or later is required, this is {}.{}".format(*sys.version_info)
    from pathlib import Path
    from zipfile import Path as ZipPath

    try:
        import numpy

        if int(numpy.__version__.partition(".")[0]) < 2:
            return f"iris-edge: numpy 2 or later is required, this is {numpy.__version__}: {INSTALL}"
        from iris_wsgi.patterns.edge.__main__ import main

        return main(model=ZipPath(Path(__file__).parent, "model/"))
    except ImportError as error:
        return f"iris-edge: {error}: {INSTALL}"


if __name__ == "__main__":
    sys.exit(main())
