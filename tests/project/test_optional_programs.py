"""A missing program affects only the tests that start it."""

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from optional_programs import OPTIONAL, programs_in
from project import ROOT, TEST_FILES, dotted_name, parse_file

# Ways to start a program. The programs of the last two entries are not in a list.
STARTS = {
    "by name": ["redis-server", "--port", "0"],
    "in a line": ["sh", "-c", "echo; curl -s http://127.0.0.1:1/ | cat"],
    "in a substitution": ["sh", "-c", 'echo "$(git --version)"'],
    "under a shell": ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", "strace", "true"],
    "as another user": ["setpriv", "--clear-groups", "postgres", "-D", "/nowhere"],
    "unknown": ["an-unknown-program"],
    "unknown, without arguments": "an-unknown-program",
}


@pytest.fixture
def small_path(tmp_path, monkeypatch):
    """PATH with few programs."""
    for name in ("sh", "setpriv", "true"):
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("way", STARTS)
@pytest.mark.parametrize(("ci", "outcome"), [("false", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_test_that_starts_a_missing_program_is_skipped_and_fails_in_ci(small_path, monkeypatch, way, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="is not installed"):
        subprocess.run(STARTS[way], check=True)


def test_an_installed_program_starts(small_path):
    assert subprocess.run(["sh", "-c", "exec true"], check=True).returncode == 0
    assert subprocess.run("true", shell=True, check=True).returncode == 0


def test_words_that_are_not_programs_are_ignored():
    assert list(programs_in(["python3", "scored_tables.py", "postgres"])) == ["python3"]
    assert list(programs_in(["sh", "-c", "echo 'curl it' > git.txt"])) == ["sh"]


def test_the_programs_of_ci_are_listed_as_optional():
    packages = re.search(r"^packages=\((.*?)\)$", (ROOT / ".ci/run").read_text(), re.DOTALL | re.MULTILINE)[1].split()
    assert {package.partition(":")[0] for package in packages} <= OPTIONAL


@cache
def calls(file: Path) -> list[tuple[ast.Call, str]]:
    return [(node, dotted_name(node.func)) for node in ast.walk(parse_file(file)) if isinstance(node, ast.Call)]


@pytest.mark.long
def test_every_required_program_is_listed_as_optional():
    """Otherwise a test could start the program through another one without a check."""
    needed = {
        node.args[0].value
        for file in TEST_FILES
        for node, name in calls(file)
        if name == "require_program" and isinstance(node.args[0], ast.Constant)
    }
    assert needed and needed <= OPTIONAL


@pytest.mark.long
def test_every_test_starts_its_programs_with_subprocess():
    unseen = re.compile(r"os\.(exec|spawn|posix_spawn|popen|system)|pty\.|asyncio\.create_subprocess")
    found = {(file.name, name) for file in TEST_FILES for _, name in calls(file) if unseen.match(name)}
    assert found == set()


THREADS = """
import sys, threading
from optional_programs import check_subprocesses
check_subprocesses()
sys.setswitchinterval(1e-6)
ran = []
for _ in range(300):
    threads = [threading.Thread(target=ran.append, args=(1,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(len(ran))
"""


@pytest.mark.long
def test_a_thread_that_starts_beside_another_runs_while_coverage_traces(tmp_path):
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    command = [sys.executable, "-m", "coverage", "run", f"--data-file={tmp_path / 'data'}", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/support")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("3000\n", "")
