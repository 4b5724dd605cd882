"""What an install brings, what an import loads, and that documents say what is so."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields
from importlib.metadata import requires

import pytest
from conftest import ROOT, Running, need
from packaging.requirements import Requirement

import iris_wsgi
from iris_wsgi.roles import ROLES
from iris_wsgi.settings import Settings, flag_of, name_of

# Modules that need an extra have its name.
EXTRAS = {"redis", "postgres", "parquet", "tqdm"}
RUN_TIME = {"onnxruntime", "numpy", "waitress"}
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)```(?:\s*```json\n(.*?)```)?", README, re.DOTALL)


def needed_by(names: set[str]) -> set[str]:
    """The packages and what they themselves require, here and without extras."""
    found, new = set(), set(names)
    while new:
        found |= new
        told = [Requirement(text) for name in new for text in requires(name) or ()]
        new = {r.name for r in told if r.marker is None or r.marker.evaluate({"extra": ""})} - found
    return found


@pytest.mark.long
def test_an_install_brings_three_packages_and_what_they_require_themselves():
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", str(ROOT)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    brought = {item["metadata"]["name"].lower() for item in json.loads(told.stdout)["install"]}
    assert {name for name in brought if name in RUN_TIME} == RUN_TIME
    assert brought - {"iris-wsgi", "iris_wsgi"} == needed_by(RUN_TIME)


def test_a_wheel_has_each_module_and_the_page(tmp_path):
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "iris_wsgi", tmp_path / "iris_wsgi", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    there = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("iris_wsgi/")}
    assert there == {str(path.relative_to(tmp_path)) for path in (tmp_path / "iris_wsgi").rglob("*.*")}


def test_importing_every_module_of_the_server_loads_no_extra():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "iris_wsgi").rglob("*.py")
        if not path.stem.startswith("__") and path.stem not in EXTRAS
    ]
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    told = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
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
    assert {"iris_wsgi", "numpy", "onnxruntime", "waitress"} <= set(told.stdout.split())
    assert not extras & set(told.stdout.split())


def test_importing_the_package_alone_loads_no_model_runtime():
    code = "import sys, iris_wsgi; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not RUN_TIME & set(told.stdout.split())


def test_what_asks_other_servers_is_imported_by_the_roles_that_do(tmp_path):
    code = (
        "import sys; from iris_wsgi.log import Log; from iris_wsgi.roles import build; from iris_wsgi.settings import Settings\n"
        "build(Settings(role=sys.argv[1], members=sys.argv[2], pred_url=sys.argv[3], state_dir=sys.argv[4]), Log(2))\n"
        "print('iris_wsgi.remote' in sys.modules)"
    )
    for role, members, pred, asks in (
        ("all", "", "", False),
        ("gateway", "a=http://x", "", True),
        ("prep", "", "http://x", True),
    ):
        words = [sys.executable, "-c", code, role, members, pred, str(tmp_path)]
        told = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
        assert told.stdout == f"{asks}\n"


def test_telemetry_is_off_before_onnxruntime_is_imported():
    code = (
        "import sys, os\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import iris_wsgi.roles"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_the_readme_table_of_settings_is_the_table_of_settings():
    rows = [
        f"| `{name_of(one.name)}` | `{flag_of(one.name)}` | `{one.default}` | {one.metadata['help']} |"
        for one in fields(Settings)
    ]
    assert re.findall(r"^\| `IRIS_.*$", README, re.MULTILINE) == rows


def test_the_readme_names_every_role_and_route(service):
    for role in ROLES:
        assert f"`{role}`" in README
    for path, on_path in service.app.table.items():
        for method in on_path:
            # The text says once for all of them that a version may stand behind the model, and a slash behind /v2.
            told = path.replace("/versions/{version}", "").rstrip("/") or "/"
            assert f"`{method} {told}`" in README


def test_the_first_screen_has_the_two_commands_and_a_curl_line():
    first, second = COMMANDS[0][0].strip().splitlines()
    assert (first.split()[0], second.split()[0]) == ("bin/serve", "bin/test")
    assert README.index("bin/serve") < README.index("bin/test") < README.index("curl ") < README.index("| pattern |")


@pytest.fixture(scope="module")
def as_in_the_readme(tmp_path_factory):
    """bin/serve itself, on a free port."""
    command = ["bin/serve", "--port", "0", "--state-dir", str(tmp_path_factory.mktemp("state"))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server = Running(process)
    yield server
    server.stop()


@pytest.mark.parametrize(("command", "answer"), COMMANDS[1:], ids=[command.strip()[:60] for command, _ in COMMANDS[1:]])
def test_the_commands_of_the_readme_work_and_answer_as_shown(as_in_the_readme, command, answer):
    need("curl")
    here = command.replace("127.0.0.1:8000", f"127.0.0.1:{as_in_the_readme.port}")
    told = subprocess.run(["sh", "-ec", here], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    if answer:
        assert same(json.loads(told), json.loads(answer)), told
    else:
        assert told


def same(a, b) -> bool:
    """Equal, numbers to six places: the last bits may differ on another kind of processor."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return abs(a - b) < 1e-6 if isinstance(a, float) and isinstance(b, float) else a == b


def test_the_version_is_told_by_the_command_and_in_the_changelog():
    told = subprocess.run([sys.executable, "-m", "iris_wsgi", "--version"], capture_output=True, text=True, check=True).stdout
    assert told == f"iris_wsgi {iris_wsgi.__version__}\n"
    assert f"## {iris_wsgi.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["serve", "tour", "test", "check", "train", "bench", "edge", "setup"])
def test_every_door_is_a_script_that_can_be_run(name):
    path = ROOT / "bin" / name
    assert path.stat().st_mode & 0o111
    assert f"`bin/{name}`" in README or f"bin/{name} " in README or name == "setup"
    subprocess.run(["sh", "-n", str(path)], check=True)
