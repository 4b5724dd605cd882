"""A program that is not installed costs the tests that start it, and no others."""

import ast
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from optional_programs import OPTIONAL, programs_in
from project import ROOT, TEST_FILES, parse_file

# Each starts a program in its own way, and the last two are of no list.
STARTS = {
    "by name": ["redis-server", "--port", "0"],
    "in a line": ["sh", "-c", "echo; curl -s http://127.0.0.1:1/ | cat"],
    "in a substitution": ["sh", "-c", 'echo "$(git --version)"'],
    "under a shell": ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", "strace", "true"],
    "as another user": ["setpriv", "--clear-groups", "postgres", "-D", "/nowhere"],
    "that nobody knows": ["a-program-that-nobody-has"],
    "that nobody knows, alone": "a-program-that-nobody-has",
}


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A PATH with little on it."""
    for name in ("sh", "setpriv", "true"):
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("way", STARTS)
@pytest.mark.parametrize(("ci", "ends"), [("false", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_test_that_starts_what_is_not_there_is_skipped_and_fails_in_ci(fresh, monkeypatch, way, ci, ends):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(ends, match="is not installed"):
        subprocess.run(STARTS[way], check=True)


def test_what_is_there_starts(fresh):
    assert subprocess.run(["sh", "-c", "exec true"], check=True).returncode == 0
    assert subprocess.run("true", shell=True, check=True).returncode == 0


def test_words_that_are_no_programs_are_not_asked_for():
    assert list(programs_in(["python3", "scored_tables.py", "postgres"])) == ["python3"]
    assert list(programs_in(["sh", "-c", "echo 'curl it' > git.txt"])) == ["sh"]


def test_the_programs_of_ci_are_known_as_such_as_it_might_lack():
    packages = re.search(r"^packages=\((.*?)\)$", (ROOT / ".ci/run").read_text(), re.DOTALL | re.MULTILINE)[1].split()
    assert {package.partition(":")[0] for package in packages} <= OPTIONAL


@cache
def calls(file: Path) -> list[tuple[ast.Call, str]]:
    return [(node, ast.unparse(node.func)) for node in ast.walk(parse_file(file)) if isinstance(node, ast.Call)]


@pytest.mark.long
def test_what_a_test_needs_is_known_as_what_a_machine_may_lack():
    """Otherwise it could start behind another program unseen."""
    needed = {
        node.args[0].value
        for file in TEST_FILES
        for node, name in calls(file)
        if name == "require_program" and isinstance(node.args[0], ast.Constant)
    }
    assert needed and needed <= OPTIONAL


@pytest.mark.long
def test_no_test_starts_a_program_in_a_way_that_the_interpreter_does_not_report():
    unseen = re.compile(r"os\.(exec|spawn|popen|system)|pty\.|asyncio\.create_subprocess")
    found = {(file.name, name) for file in TEST_FILES for _, name in calls(file) if unseen.match(name)}
    assert found == set()
