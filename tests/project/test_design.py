"""The documents describe the package as it is."""

import re
from pathlib import Path

import pytest
from project import ROOT

PACKAGE = ROOT / "iris_wsgi"
DESIGN = (ROOT / "docs/design.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/design").glob("*.md"))]
# Folders to which a page may refer without their path.
PLACES = (ROOT, PACKAGE, ROOT / "bin/image.d", ROOT / "bin/edge.d", *sorted((PACKAGE / "patterns").iterdir()))


def packages(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/__init__.py")}


def test_the_tree_shows_every_package_pattern_and_top_level_module():
    tree = re.search(r"^```text\niris_wsgi/\n(.*?)^```$", DESIGN, re.MULTILINE | re.DOTALL)[1]
    top = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
    patterns = re.findall(r"(\w+)/(?=\s)", "".join(re.findall(r"^ {4}\w.*\n", tree, re.MULTILINE)))
    assert sorted(top) == sorted(packages(PACKAGE))
    assert sorted(patterns) == sorted(packages(PACKAGE / "patterns"))
    assert sorted(re.findall(r"\w+\.py", tree)) == sorted([path.name for path in PACKAGE.glob("*.py")] + ["role.py"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_module_that_a_page_names_exists(page):
    names = re.findall(r"`([\w/.]+\.(?:py|js))`", page.read_text())
    assert [name for name in names if not any((place / name).exists() for place in PLACES)] == []
