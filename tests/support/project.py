"""Folders of the project, and the files of its tests."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model"
# The benchmark and the soak test are programs with separate rules.
TEST_FILES = sorted(file for file in (ROOT / "tests").rglob("*.py") if not {"bench", "soak"} & {*file.parts})


@cache
def parse_file(file: Path) -> ast.AST:
    return ast.parse(file.read_text())


def dotted_name(node: ast.AST) -> str:
    """Returns a name with its attributes, such as os.path.join, or an empty string for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted_name(node.value)):
        return f"{before}.{node.attr}"
    return ""
