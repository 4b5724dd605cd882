"""Constants of iris_wsgi with other values in the processes that a test starts, by an environment variable."""

import json
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

VARIABLE = "CHANGED_CONSTANTS"
# Python runs the sitecustomize.py in this folder at the start of each process.
STARTUP = Path(__file__).parent / "startup"


def with_constants(constants: dict[str, object]) -> dict[str, str]:
    """Returns the environment of a process in which module.NAME has the value of its entry."""
    return {VARIABLE: json.dumps(constants), "PYTHONPATH": str(STARTUP)} if constants else {}


class ConstantFinder(MetaPathFinder):
    """Sets the constants of a module as soon as it is loaded, and loads no module by itself."""

    def __init__(self, constants: dict[str, object]) -> None:
        self.constants: dict[str, dict[str, object]] = {}
        for name, value in constants.items():
            module, _, constant = name.rpartition(".")
            self.constants.setdefault(module, {})[constant] = value

    def find_spec(self, name, path=None, target=None):
        if name not in self.constants:
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def load_and_set(module) -> None:
            load(module)
            for constant, value in self.constants[name].items():
                assert hasattr(module, constant), f"{name} has no {constant}"
                setattr(module, constant, value)

        spec.loader.exec_module = load_and_set
        return spec


def install() -> None:
    sys.meta_path.insert(0, ConstantFinder(json.loads(os.environ[VARIABLE])))
