"""The files of an installation, the modules of an import, and the version."""

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires

import pytest
from optional_programs import require_program
from packaging.requirements import Requirement
from project import ROOT

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
        "CONTRIBUTING.md",
        "README.ja.md",
        "README.md",
        "SECURITY.md",
        "pyproject.toml",
        "setup.cfg",
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


@pytest.mark.long
def test_a_wheel_has_each_module_and_the_page(tmp_path):
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "iris_wsgi", tmp_path / "iris_wsgi", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("iris_wsgi/")}
    assert packaged == {str(path.relative_to(tmp_path)) for path in (tmp_path / "iris_wsgi").rglob("*.*")}


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
