"""Mistakes of a new user in an empty folder: each ends with one line that states the problem and the solution.

Tests of other mistakes: broken models in tests/unit/model, settings in tests/unit/test_settings.py, unreachable servers in
tests/unit/cli/test_healthcheck.py, batch runs in tests/unit/batch. The mistakes of the tour are in tests/live/test_tour.py.
"""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import MODEL, ROOT
from server_process import error_of

from iris_wsgi.cli.main import COMMANDS, DEFAULTS, main
from iris_wsgi.settings import read_settings

SERVE = ("serve", "--model-dir", str(MODEL), "--port", "0", "--workers", "1")
# Runs the command line without these packages.
WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(("redis", "psycopg", "pyarrow", "ray", "tqdm"))
runpy.run_module("iris_wsgi", run_name="__main__", alter_sys=True)
"""
# The command, its exit status, and the last line of its output, or a part of it.
MISTAKES = {
    "an option without a command": (("--prot", "1"), 2, "unrecognized arguments: --prot 1; did you mean --port? See --help"),
    "no such command": (("serv",), 2, "invalid choice: 'serv' (choose from serve, worker, "),
    "a mistyped command": (("tuor",), 2, "; did you mean tour? See --help"),
    "a mistyped command of edge": (("edge", "predct", "1"), 2, "; did you mean predict? See --help"),
    "a command of bin/edge alone": (("edge", "bulid"), 2, "; did you mean bin/edge build? See --help"),
    "a command unlike any": (("xyzzy",), 2, "healthcheck, clear, tour); see --help"),
    "no such flag": (("serve", "--prot", "1"), 2, "unrecognized arguments: --prot 1; did you mean --port? See --help"),
    "a mistyped flag with its value": (("worker", "--prot=1"), 2, "unrecognized arguments: --prot=1; did you mean --port?"),
    "an abbreviated flag": (("serve", "--por", "1"), 2, "unrecognized arguments: --por 1; did you mean --port?"),
    "a mistyped flag of batch": (("batch", "a", "b", "--keeep", "id"), 2, "did you mean --keep?"),
    "a mistyped flag of edge": (("edge", "predict", "--jsn", "1"), 2, "did you mean --json?"),
    "a flag unlike any": (("serve", "--xyzzy"), 2, "unrecognized arguments: --xyzzy; see --help"),
    "a word too many": (("verify", "model"), 2, "unrecognized arguments: model; see --help"),
    "no such role": (("serve", "--role", "web"), 2, "--role='web' must be one of all, web_single, "),
    "no model": (("serve", "--model-dir", "model", "--port", "0", "--workers", "1"), 1,
                 "model/golden.json cannot be read: No such file or directory; IRIS_MODEL_DIR names the folder"),
    "no such address": ((*SERVE, "--host", "192.0.2.1"), 1, "Cannot assign requested address; is it an address of this machine?"),
    "no such name": ((*SERVE, "--host", "nowhere.invalid"), 1, "; is it an address of this machine?"),
    "jobs where nobody may write": ((*SERVE, "--role", "asynchronous", "--state-dir", "/proc/iris"), 1,
                                    "cannot be opened: No such file or directory; set IRIS_STATE_DIR to another"),
    "items where nobody may write": ((*SERVE, "--role", "data_cache", "--state-dir", "/proc/iris"), 1,
                                     "cannot be opened: No such file or directory; set IRIS_STATE_DIR to another"),
    "several processes": ((*SERVE, "--workers", "2", "--state-dir", "/proc/iris"), 1, "set IRIS_STATE_DIR to"),
    "jobs in Redis": ((*SERVE, "--redis-url", "redis://x"), 1, "REDIS_URL requires the package redis: run `bin/setup redis`"),
    "items in Redis": ((*SERVE, "--cache-redis-url", "redis://x"), 1, "requires the package redis: run `bin/setup redis`, or "),
    "answers in Redis": ((*SERVE, "--cache-redis-url", "redis://x"), 1, "requires the package redis: run `bin/setup redis`, or "),
    "items in PostgreSQL": ((*SERVE, "--database-url", "postgresql://x/y"), 1,
                            "requires the package psycopg: run `bin/setup postgres`, or "),
    "a batch in PostgreSQL": (("batch", "--model-dir", str(MODEL), "--table", "x", "--database", "postgresql://x/y"), 2,
                              "PostgreSQL needs the package psycopg: run `bin/setup postgres`, or "),
    "a batch in Parquet": (("batch", "--model-dir", str(MODEL), "rows.csv", "out.parquet"), 2, "run `bin/setup parquet`, or "),
    "a batch on Ray": (("batch", "--model-dir", str(MODEL), "--engine", "ray", "rows.csv", "out"), 2,
                       "--engine ray needs the package ray: run `bin/setup ray`, or "),
    "a batch of no file": (("batch", "--model-dir", str(MODEL), "none.csv", "out.csv"), 2, "none.csv cannot be read: No such"),
    "a tour of no URL": (("tour", "127.0.0.1:8000"), 1, "URL='127.0.0.1:8000' must be http://host[:port]"),
}  # fmt: skip


def run_in(words: tuple[str, ...], folder: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=120, **options)


def last_line(process: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in process.stderr, process.stderr
    line = process.stderr.splitlines()[-1]
    # The standard error of a server is a log of JSON lines.
    return f"iris_wsgi: {json.loads(line)['message']}" if line.startswith("{") else line


@pytest.mark.parametrize(("words", "status", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_with_a_helpful_line(tmp_path, words, status, says):
    (tmp_path / "rows.csv").write_text("sepal_length,sepal_width,petal_length,petal_width\n5.1,3.5,1.4,0.2\n")
    result = run_in((sys.executable, "-c", WITHOUT, *words), tmp_path)
    assert result.returncode == status and result.stdout == ""
    assert last_line(result).startswith("iris_wsgi: ") and says in last_line(result)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["--redis-ulr", "redis://:secret@x"], ["--redis-ulr=redis://u:secret@x"], ["redis://:secret@x"]]
)
def test_a_password_after_a_mistyped_flag_is_not_shown(words, capsys):
    with pytest.raises(SystemExit):
        main(["serve", *words])
    result = capsys.readouterr().err
    assert "unrecognized arguments" in result and "secret" not in result


NEED_PACKAGES = [name for name, command in COMMANDS.items() if command.packages]
ENOUGH = {
    "load": ("a", "b", "--seal", f"sha256:{'0' * 64}"),
    "edge": ("predict", "1", "2", "3", "4"),
    "batch": ("a.csv", "b.csv"),
    "pack": ("a.onnx", "--out", "b"),
}


@pytest.mark.parametrize("missing", ["numpy", "onnxruntime", "waitress"])
@pytest.mark.parametrize("command", NEED_PACKAGES)
def test_a_command_without_a_required_package_names_it_and_the_solution(tmp_path, command, missing):
    if missing not in COMMANDS[command].packages:
        return
    words = (command, *ENOUGH.get(command, ()))
    result = run_in((sys.executable, "-c", WITHOUT.replace('"redis"', f'"{missing}", "redis"'), *words), tmp_path)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert last_line(result) == (
        f"iris_wsgi: the package {missing} is not installed for {sys.executable}: use bin/serve, bin/batch, bin/edge, or "
        "bin/pack, which set themselves up, or run `pip install .` in the folder of the project"
    )


@pytest.mark.long
def test_the_other_commands_and_every_help_need_no_package(tmp_path):
    without = WITHOUT.replace('"redis"', '"numpy", "onnxruntime", "waitress", "redis"')
    for command in COMMANDS:
        result = run_in((sys.executable, "-c", without, command, "--help"), tmp_path)
        assert (result.returncode, result.stderr) == (0, ""), command
    for command in sorted(COMMANDS.keys() - set(NEED_PACKAGES)):
        result = run_in(
            (sys.executable, "-c", without, command, *(["--port", "1"] if command == "healthcheck" else [])), tmp_path
        )
        assert "is not installed" not in last_line(result) if result.stderr else result.returncode == 0


def test_the_edge_command_names_a_missing_package(tmp_path):
    without = WITHOUT.replace('"redis"', '"onnxruntime", "redis"').replace('"iris_wsgi"', '"iris_wsgi.patterns.edge"')
    result = run_in((sys.executable, "-c", without, "predict", "1", "2", "3", "4"), tmp_path)
    assert (result.returncode, "the package onnxruntime is not installed" in last_line(result)) == (1, True)


def test_every_help_shows_the_defaults_of_its_command(capsys, monkeypatch):
    # argparse breaks lines within paths.
    monkeypatch.setenv("COLUMNS", "2000")
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        result = " ".join(capsys.readouterr().out.split())
        defaults = dict(re.findall(r"\((IRIS_\w+), default ([^)]*)\)", result))
        assert defaults.get("IRIS_PORT", "8001" if name == "worker" else "8000") == ("8001" if name == "worker" else "8000")
        settings = read_settings({}, {}, DEFAULTS.get(name, {}))
        values = {default: getattr(settings, default.removeprefix("IRIS_").lower()) for default in defaults}
        assert defaults == {default: "empty" if value == "" else str(value) for default, value in values.items()}


def test_the_scripts_report_mistyped_arguments_in_one_line():
    for door, words, says in (
        ("bin/serve", ["--prot", "1"], "iris_wsgi: unrecognized arguments: --prot 1; did you mean --port? See --help"),
        ("bin/tour", ["--hots", "x"], "did you mean --host?"),
        ("bin/batch", ["--keeep"], "did you mean --keep?"),
        ("bin/edge", ["bulid"], "did you mean bin/edge build?"),
        ("bin/edge", ["build", "--modl-dir", "x"], "bin/edge: unrecognized arguments: --modl-dir x; did you mean --model-dir?"),
    ):
        # The first call of a script runs the setup and prints a message.
        run_in((str(ROOT / door), "--help"), ROOT)
        result = run_in((str(ROOT / door), *words), ROOT)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1) and says in last_line(result)


def test_a_batch_without_tqdm_is_not_a_mistake(tmp_path):
    (tmp_path / "rows.csv").write_text("sepal_length,sepal_width,petal_length,petal_width\n5.1,3.5,1.4,0.2\n")
    words = ("batch", "--model-dir", str(MODEL), "--workers", "1", "rows.csv", "out.csv")
    assert run_in((sys.executable, "-c", WITHOUT, *words), tmp_path).returncode == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("setosa,")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_used_port_is_reported_before_the_model_is_loaded(tmp_path, workers):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run_in((sys.executable, "-m", "iris_wsgi", "serve", "--port", str(port), "--workers", workers), tmp_path)
    assert (result.returncode, error_of(result.stderr)) == (
        1,
        f"IRIS_HOST=127.0.0.1 IRIS_PORT={port}: cannot listen there: Address already in use; choose another with --port",
    )


def test_a_closed_pipe_and_an_interrupt_end_without_a_traceback(tmp_path, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "iris_wsgi", "verify", "--model-dir", str(MODEL)]
    result = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "verify", COMMANDS["verify"]._replace(run=interrupted))
    assert (main(["verify"]), capsys.readouterr().err) == (130, "iris_wsgi: interrupted\n")


def test_an_older_python_gets_a_message_and_not_a_syntax_error(tmp_path):
    # The old Python reads this file, so its syntax must be old too.
    ast.parse((ROOT / "iris_wsgi/__init__.py").read_text(), feature_version=(3, 6))
    code = "import runpy, sys; sys.hexversion = 0x030902F0; sys.version = '3.9.2 (old)'; runpy.run_module('iris_wsgi')"
    result = run_in((sys.executable, "-c", code), tmp_path)
    assert (result.returncode, result.stderr) == (
        1,
        "iris_wsgi: this is Python 3.9.2, and 3.11 or later is needed; bin/setup looks for one\n",
    )


@pytest.fixture
def clone() -> Iterator[Path]:
    """Files of a new clone that other users may read."""
    folder = Path(tempfile.mkdtemp(prefix="iris-clone-"))
    folder.chmod(0o755)
    for name in ("bin", "iris_wsgi", "model"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    yield folder
    shutil.rmtree(folder)


def test_bin_serve_uses_the_built_bundle_unless_another_is_set(clone):
    # Replaces the Python of the virtual environment by a script that prints its environment.
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "${IRIS_EDGE_DIR-none} ${IRIS_EDGE_REQUIRED-yes}"\n')
    python.chmod(0o755)
    (clone / "bin/setup").write_text("#!/bin/sh\n")
    serve, bare = (str(clone / "bin/serve"),), {name: value for name, value in os.environ.items() if "IRIS_EDGE" not in name}
    assert run_in(serve, clone, env=bare).stdout == "none yes\n"
    (clone / "dist/edge").mkdir(parents=True)
    assert run_in(serve, clone, env=bare).stdout == f"{clone}/dist/edge no\n"
    assert run_in(serve, clone, env={**bare, "IRIS_EDGE_REQUIRED": "yes"}).stdout == f"{clone}/dist/edge yes\n"
    for other in ("elsewhere", ""):
        assert run_in(serve, clone, env={**bare, "IRIS_EDGE_DIR": other}).stdout == f"{other} yes\n"
    for words in (("--edge-dir", "elsewhere"), ("--edge-dir=elsewhere",), ("--port", "1", "--edge-dir", "")):
        assert run_in((*serve, *words), clone, env=bare).stdout == "none yes\n"


def test_bin_test_shows_its_duration_and_has_the_exit_status_of_the_tests(clone):
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    (clone / "bin/setup").write_text("#!/bin/sh\n")
    words = (str(clone / "bin/test"),)
    result = run_in(words, clone, env={name: value for name, value in os.environ.items() if name != "CI"})
    before, after = result.stderr.splitlines()
    assert result.returncode == 3 and "take about 3 minutes on two idle cores; a part: bin/test tests/live/test_jobs.py" in before
    assert re.match(
        r"took \d+ seconds; slow tests: bin/test -n 4 --durations=20; reasons of skipped tests: bin/test -n 4 -rs$", after
    )
    assert run_in((*words, "-k", "words"), clone).stderr == ""


def test_the_package_without_extras_is_not_set_up_again_after_a_setup_with_extras(clone):
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho set up >&2\nexit 1\n")
    python.chmod(0o755)
    want = run_in(("sh", "-c", f"cksum < {clone}/setup.cfg"), clone).stdout
    (clone / ".venv/installed-test,train").write_text(want)
    result = run_in((str(clone / "bin/setup"),), clone)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("serve", "--help"), 0, "--cache-seconds SECONDS"),
        (("serve", "-h"), 0, "horizontal microservice:"),
        (("serve", "--prot", "1"), 2, "iris_wsgi: unrecognized arguments: --prot 1; did you mean --port? See --help"),
        (("serve", "--port", "x"), 2, "iris_wsgi: --port='x' must be a whole number from 0 to 65535"),
        (("tour", "--help"), 0, "Tests every pattern on a running server"),
        (("batch", "--keeep"), 2, "did you mean --keep?"),
        (("pack", "--help"), 0, "--rows"),
        (("edge", "predct"), 2, "did you mean predict?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_help_and_a_mistake_need_no_setup(clone, tmp_path, words, status, says):
    result = run_in((str(clone / "bin" / words[0]), *words[1:]), tmp_path)
    assert result.returncode == status and says in (result.stderr if status else result.stdout), result
    assert result.stdout == "" if status else result.stderr == ""
    assert len(result.stderr.splitlines()) == (1 if status else 0)
    assert not (clone / ".venv").exists() and not [*clone.rglob("__pycache__")]


def test_the_help_of_bin_serve_names_the_folders_of_the_project(clone, tmp_path):
    result = run_in((str(clone / "bin/serve"), "--help"), tmp_path, env={**os.environ, "COLUMNS": "2000"})
    text = " ".join(result.stdout.split())
    assert f"(IRIS_MODEL_DIR, default {clone}/model)" in text and f"(IRIS_STATE_DIR, default {clone}/state)" in text


def test_a_setup_with_an_older_python_names_it(clone):
    old = clone / "python3.9"
    # The fake Python fails the version check.
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = run_in((str(clone / "bin/serve"),), clone, env={**os.environ, "PYTHON": str(old)})
    assert result.returncode == 1 and not (clone / ".venv").exists()
    assert last_line(result).startswith(f"iris_wsgi: PYTHON={old} is not Python 3.11 or later; install one, or name it: PYTHON=/")
    for name in ("sh", "dirname", "cksum", "cat"):
        (clone / name).symlink_to(shutil.which(name))
    result = run_in((str(clone / "bin/serve"),), clone, env={"PATH": str(clone)})
    assert result.returncode == 1 and last_line(result).startswith("iris_wsgi: no Python 3.11 or later was found; install one")


def test_a_setup_in_the_folder_of_another_user_reports_this(clone):
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    # The Python of the tests may be executable for its owner only.
    new = clone / "python3"
    new.write_text("#!/bin/sh\nexit 0\n")
    new.chmod(0o755)
    clone.chmod(0o555)
    result = run_in((*nobody, str(clone / "bin/serve")), clone, env={**os.environ, "PYTHON": str(new)})
    clone.chmod(0o755)
    assert result.returncode == 1 and result.stderr == (
        f"iris_wsgi: {clone}/.venv is not writable, and packages are installed there; copy this folder to a writable place\n"
    )


@pytest.mark.long
def test_a_setup_without_a_network_reports_this_and_continues_when_there_is_one(clone):
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": ""}
    result = run_in((str(clone / "bin/setup"),), clone, env={**os.environ, **offline, "PIP_EXTRA_INDEX_URL": ""})
    assert result.returncode == 1 and last_line(result) == (
        "iris_wsgi: the packages could not be installed; check the network and run the same command again"
    )
    # Empty packages replace the three required ones, which are large.
    result = run_in((str(clone / "bin/setup"),), clone, env={**os.environ, "PIP_NO_DEPS": "1"})
    assert result.returncode == 0 and (clone / ".venv/installed-none").exists(), result.stderr
