"""The packages that commands need beside Python's own, and what to do where one is not installed."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

MODEL = ("numpy", "onnxruntime")
SERVER = (*MODEL, "waitress")


def why_missing(needed: Sequence[str]) -> str | None:
    """One line that names the packages that are not installed and the way out; None where all are. Imports none of them."""
    missing = [name for name in needed if find_spec(name) is None]
    if not missing:
        return None
    what = f"the package {missing[0]} is" if len(missing) == 1 else f"the packages {', '.join(missing)} are"
    return (
        f"{what} not installed for {sys.executable}: use bin/serve, bin/batch or bin/edge, which set themselves up, "
        "or run `pip install .` in the folder of the project"
    )
