"""The files of an installation, the modules of an import, and the version."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from optional_programs import require_program
from packaging.requirements import Requirement
from project import MODEL, ROOT
from server_process import ServerProcess, error_of
from terminal_process import TerminalProcess

import iris_wsgi

# Modules that require an extra.
EXTRAS = {
    "storage.postgres",
    "patterns.data_cache.postgres_store",
    "patterns.batch.postgres",
    "tabular.parquet",
}
RUN_TIME = {"onnxruntime", "numpy", "waitress"}


def requirements_of(names: set[str]) -> set[str]:
    """Returns the packages and their requirements on this platform, without extras."""
    found, new = set(), set(names)
    while new:
        found |= new
        result = [Requirement(text) for name in new for text in requires(name) or ()]
        new = {r.name for r in result if r.marker is None or r.marker.evaluate({"extra": ""})} - found
    return found


@pytest.mark.long
def test_the_repository_has_no_unexpected_files_at_its_top():
    """The remains of an experiment are easily committed by mistake."""
    expected_names = {
        ".ci",
        ".dockerignore",
        ".github",
        ".gitignore",
        "Dockerfile",
        "bin",
        "charts",
        "compose",
        "compose.yaml",
        "docs",
        "examples",
        "iris_wsgi",
        "manifests",
        "model",
        "tests",
    }
    expected_names |= {
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "NOTICE",
        "README.ja.md",
        "README.md",
        "SECURITY.md",
        "pyproject.toml",
        "setup.cfg",
        "setup.py",
    }
    if not (ROOT / ".git").exists():
        pytest.skip("this is an archive without a list of the files that belong there")
    text = subprocess.run([require_program("git"), "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert {name.partition("/")[0] for name in text.split("\0") if name} <= expected_names


@pytest.mark.long
def test_an_install_has_three_packages_and_their_requirements():
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    brought = {item["metadata"]["name"].lower() for item in json.loads(result.stdout)["install"]}
    assert {name for name in brought if name in RUN_TIME} == RUN_TIME
    assert brought - {"iris-wsgi", "iris_wsgi"} == requirements_of(RUN_TIME)


@pytest.fixture(scope="module")
def run_python(tmp_path_factory) -> Callable[..., None]:
    """Runs Python with the build backend of the project, which is installed once."""
    backend = tmp_path_factory.mktemp("backend")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    environment = {**os.environ, "PYTHONPATH": str(backend)}

    def run(*words: str, cwd: Path = ROOT) -> None:
        result = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)
        assert result.returncode == 0, result.stderr

    run("-m", "pip", "install", "--quiet", "--target", str(backend), *needed)
    return run


@pytest.fixture(scope="module")
def build(run_python, tmp_path_factory) -> Callable[[str], Path]:
    def wheel_of(source: str) -> Path:
        folder = tmp_path_factory.mktemp("wheel")
        run_python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), source)
        (wheel,) = folder.glob("*.whl")
        return wheel

    return wheel_of


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The files of the project that a package is built from, because a build writes into their folder."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("iris_wsgi", "model"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(build, project) -> Path:
    return build(str(project))


def files_of(wheel: Path) -> dict[str, bytes]:
    """Returns the content of each file of the package, by its path in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith("iris_wsgi/")}


@pytest.mark.long
def test_a_wheel_has_each_module_the_page_and_the_iris_model(wheel):
    modules = {str(path.relative_to(ROOT)): path for path in (ROOT / "iris_wsgi").rglob("*.*") if path.suffix != ".pyc"}
    model = {f"iris_wsgi/iris_model/{path.relative_to(MODEL)}": path for path in MODEL.rglob("*.*")}
    data = {name: path for name, path in model.items() if path.suffix in (".json", ".onnx", ".csv")}
    assert len(data) >= 22
    assert files_of(wheel) == {name: path.read_bytes() for name, path in (modules | data).items()}


@pytest.mark.long
def test_a_source_distribution_and_a_repository_give_the_same_wheel(wheel, build, run_python, project, tmp_path):
    git = [require_program("git"), "-c", "user.name=x", "-c", "user.email=x@example.com", "-C", str(project)]
    for words in (
        ["init", "--quiet"],
        ["add", "iris_wsgi", "model", "*.*", "LICENSE", "NOTICE"],
        ["commit", "--quiet", "-m", "x"],
    ):
        subprocess.run([*git, *words], check=True)
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run_python("-c", code, str(tmp_path), cwd=project)
    (archive,) = tmp_path.glob("*.tar.gz")
    for source in (str(archive), f"git+file://{project}"):
        assert files_of(build(source)) == files_of(wheel), source


@pytest.mark.long
def test_the_metadata_of_a_wheel_is_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        for name in ("LICENSE", "NOTICE"):
            assert archive.read(f"{folder}/licenses/{name}") == (ROOT / name).read_bytes()
        assert "iris-wsgi = iris_wsgi.cli.main:main" in archive.read(f"{folder}/entry_points.txt").decode()
    assert (metadata["License-Expression"], metadata["Author"]) == ("MIT", "The iris_wsgi maintainers")
    assert metadata["Summary"] and "wsgi" in metadata["Keywords"] and metadata["Requires-Python"] == ">=3.11"
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)} <= set(metadata.get_all("Classifier"))
    assert metadata["Description-Content-Type"] == "text/markdown" and metadata.get_payload().startswith("# ")


def test_the_license_and_the_citation_are_those_of_this_version():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"], citation["cff-version"]) == (iris_wsgi.__version__, "MIT", "1.2.0")
    assert citation["title"] == "iris_wsgi" and citation["authors"] and citation["message"]
    sources = {each["title"]: each.get("license") for each in citation["references"]}
    assert sources == {"Machine Learning System Design Patterns": None, "ml-system-in-actions": "MIT", "Iris": "CC-BY-4.0"}


@pytest.mark.parametrize("path", ["NOTICE", "model/README.md"])
def test_the_data_set_is_credited_with_its_license(path):
    text = " ".join((ROOT / path).read_text().split())
    assert re.search(r"Fisher.*1936", text) and "UCI Machine Learning Repository" in text
    assert "Attribution 4.0" in text and "https://doi.org/10.24432/C56C76" in text


def test_no_text_recommends_a_package_of_this_name_from_pypi():
    """The name is not published, so a stranger could publish another package under it."""
    texts = [path for suffix in ("py", "md", "yml", "html", "cfg") for path in ROOT.glob(f"[a-z]*/**/*.{suffix}")]
    texts += [*ROOT.glob("*.md"), *(path for path in ROOT.glob("bin/*") if path.is_file())]
    published = re.compile(r"pip install [^\n.]*?\biris[-_]wsgi\b(?!\S*(?:/|\.whl| @ ))")
    for path in texts:
        if not {"tests", "build", "dist", "bench"} & set(path.relative_to(ROOT).parts[:1]):
            assert not published.search(path.read_text()), path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Virtual environment with the wheel. Its packages are those of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # Python ignores the .pth files of this folder, and with them the project.
    (packages / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def home_environment(home: Path) -> dict[str, str]:
    """Returns the environment of a new user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IRIS_", "XDG_", "PYTHONPATH"))}
    return {**kept, "HOME": str(home)}


def first_answer(shell: str, command: str, folder: Path, home: Path) -> list[str]:
    """Runs a command that serves, and then the command that it prints, in a shell. Returns the lines of the start."""
    options = {"cwd": folder, "env": home_environment(home)}
    server = ServerProcess(TerminalProcess([shell, "-c", command], stderr=subprocess.PIPE, **options))
    try:
        line = server.startup_lines[-1].removeprefix("try: ")
        result = subprocess.run([shell, "-c", line], capture_output=True, text=True, check=True, **options)
        assert json.loads(result.stdout) == {"prediction": "setosa"}
    finally:
        server.stop()
    return server.startup_lines


@pytest.mark.long
@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_an_installed_package_reaches_the_first_answer_from_an_empty_folder_in_every_shell(installed, name, tmp_path):
    shell, home, empty = require_program(name), tmp_path / "home", tmp_path / "empty"
    require_program("curl")
    empty.mkdir()
    activate = installed / "bin" / ("activate.fish" if name == "fish" else "activate")
    lines = first_answer(shell, f"source {activate}; exec iris-wsgi --port 0 --workers 1", empty, home)
    (model,) = installed.glob("lib/python3*/site-packages/iris_wsgi/iris_model")
    assert f"model folder: {model}" in lines and f"state folder: {home}/.local/state/iris-wsgi" in lines
    assert (home / ".local/state/iris-wsgi/jobs.db").exists() and not [*empty.iterdir()]


@pytest.mark.long
@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_two_commands_of_the_project_work_in_every_shell(name, tmp_path):
    shell, state = require_program(name), tmp_path / "state"
    require_program("curl")
    command = f"bin/test --version >&2 && exec bin/serve --port 0 --workers 1 --state-dir '{state}'"
    lines = first_answer(shell, command, ROOT, tmp_path)
    assert f"model folder: {MODEL}" in lines and f"state folder: {state}" in lines


@pytest.mark.long
def test_an_installed_package_serves_the_model_of_the_current_folder(installed, tmp_path):
    shutil.copytree(MODEL / "fast", tmp_path / "model")
    words = [str(installed / "bin/iris-wsgi"), "verify"]
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path, env=home_environment(tmp_path))
    assert result.stdout.startswith("model iris_lr ")
    (tmp_path / "model/golden.json").unlink()
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=home_environment(tmp_path))
    assert result.returncode == 1 and "iris_lr.onnx is not packed yet" in result.stderr and "iris-wsgi pack" in result.stderr


@pytest.mark.long
def test_an_installed_package_without_its_packages_reports_the_solution(installed, tmp_path):
    (pth,) = installed.glob("lib/python3*/site-packages/packages.pth")
    text = pth.read_text()
    pth.unlink()
    python = installed / "bin/python"
    result = subprocess.run([python, "-m", "iris_wsgi"], capture_output=True, text=True, cwd=tmp_path)
    pth.write_text(text)
    assert result.returncode == 1 and error_of(result.stderr) == (
        f"the packages numpy, onnxruntime, waitress are not installed for {python}: run "
        f"`{python} -m pip install numpy onnxruntime waitress`"
    )


@pytest.mark.long
def test_a_home_that_nobody_may_write_to_is_reported_with_the_solution(installed, tmp_path):
    words = [str(installed / "bin/iris-wsgi"), "--port", "0"]
    environment = home_environment(Path("/proc/home"))
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    error = json.loads(result.stderr.splitlines()[-1])["message"]
    assert result.returncode == 1
    assert error.startswith("the store /proc/home/.local/state/iris-wsgi/jobs.db cannot be opened: ")
    assert error.endswith("; set IRIS_STATE_DIR to another folder")


def test_importing_every_module_of_the_server_loads_no_extra():
    paths = [path.relative_to(ROOT) for path in (ROOT / "iris_wsgi").rglob("*.py") if not path.stem.startswith("__")]
    names = {".".join(path.with_suffix("").parts) for path in paths}
    modules = sorted(names - {f"iris_wsgi.{name}" for name in EXTRAS})
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    extras = {
        "sklearn",
        "skl2onnx",
        "onnx",
        "matplotlib",
        "scipy",
        "redis",
        "psycopg",
        "pyarrow",
        "tqdm",
        "webtest",
        "pytest",
        "hypothesis",
    }
    assert {"iris_wsgi", "numpy", "onnxruntime", "waitress"} <= set(result.stdout.split())
    assert not extras & set(result.stdout.split())


def test_importing_the_package_alone_loads_no_model_runtime():
    code = "import sys, iris_wsgi; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not RUN_TIME & set(result.stdout.split())


def test_telemetry_is_off_before_onnxruntime_is_imported():
    code = (
        "import sys, os\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import iris_wsgi.factory"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_the_version_is_shown_by_the_command_and_in_the_changelog():
    text = subprocess.run([sys.executable, "-m", "iris_wsgi", "--version"], capture_output=True, text=True, check=True).stdout
    assert text == f"iris_wsgi {iris_wsgi.__version__}\n"
    assert f"## {iris_wsgi.__version__}" in (ROOT / "CHANGELOG.md").read_text()
