"""The project's folders and the files of its tests."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model"

TEST_FILES = sorted(file for file in (ROOT / "tests").rglob("*.py") if not {"bench", "soak"} & {*file.parts})


@cache
def parse_file(file: Path) -> ast.AST:
    return ast.parse(file.read_text())
