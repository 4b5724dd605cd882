"""Virtual environments of the servers: a separate one each, so that their requirements do not conflict."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent.parent
HOME = ROOT / ".venv-bench"
REQUIREMENTS = BENCH / "requirements.txt"
INSTALL_LIMIT = 600
FASTAPI = ("fastapi", "uvicorn[standard]", "uvloop", "httptools", "gunicorn", "uvicorn-worker")

MSGSPEC = ("msgspec", "numpy", "onnxruntime", "prometheus-client")

PACKAGES: dict[str, tuple[str, ...]] = {
    # Installed like the others, so that its byte code exists at the first start.
    "ours": (str(ROOT),),
    "redis": (f"{ROOT}[redis]",),
    "postgres": (f"{ROOT}[postgres,redis]",),
    "fastapi": (*FASTAPI, "numpy", "onnxruntime"),
    "msgspec": (*MSGSPEC, "uvicorn", "uvloop", "httptools", "granian"),
    # A request takes less CPU with this version than with the next one.
    "msgspec_old": (*MSGSPEC, "uvicorn", "uvloop==0.22.1", "httptools"),
    # bjoern has no wheel: it needs a C compiler and the headers of libev.
    "bjoern": (*MSGSPEC, "bjoern"),
    "our_servers": (str(ROOT), "granian"),
    "our_bjoern": (str(ROOT), "bjoern"),
    "mosec": ("mosec", "numpy", "onnxruntime"),
    "litserve": ("litserve", "uvloop", "httptools", "numpy", "onnxruntime"),
    # BentoML's uvicorn uses uvloop and httptools if they are installed, but does not require them.
    "bentoml": ("bentoml", "uvloop", "httptools", "numpy", "onnxruntime"),
    # For the section on whole files, which needs more packages.
    "batch": (f"{ROOT}[batch,parquet]",),
    "ray": (f"{ROOT}[batch,parquet,ray]",),
    # It does not support pandas 3.
    "spark": (f"{ROOT}[spark]", "pandas==2.3.3"),
    "scripts": ("pandas", "pyarrow", "numpy", "onnxruntime"),
    "chart": ("matplotlib",),
    # Writes the heavier models of heavy.py.
    "models": ("numpy", "onnx", "scikit-learn", "skl2onnx"),
}


class Unavailable(Exception):
    """Environment that cannot be created; the message is one line without paths."""


def python(name: str) -> str:
    return str(HOME / name / "bin" / "python")


def ensure(name: str) -> None:
    """Creates the environment, unless it is up to date. Raises Unavailable."""
    stamp = HOME / name / "installed"
    of_this_project = PACKAGES[name][0].partition("[")[0] == str(ROOT)
    ours = (ROOT / "setup.cfg", *sorted((ROOT / "iris_wsgi").rglob("*.py"))) if of_this_project else ()
    setup = b"".join(path.read_bytes() for path in ours)
    inputs = repr((sys.version, PACKAGES[name])).encode() + REQUIREMENTS.read_bytes() + setup
    digest = hashlib.sha256(inputs).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    # Hides the folder from git, and from tools that read its ignore files.
    (HOME / ".gitignore").write_text("*\n")
    print(f"bench: setting up .venv-bench/{name}, once", file=sys.stderr, flush=True)
    # setuptools would install modules from there that are no longer in the package.
    shutil.rmtree(ROOT / "build/lib", ignore_errors=True)
    constraints = HOME / f"{name}.txt"
    constraints.write_text(constraints_for(PACKAGES[name]))
    pip = [python(name), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints)]
    for command in ([sys.executable, "-m", "venv", "--clear", str(HOME / name)], [*pip, *PACKAGES[name]]):
        run(command)
    stamp.write_text(digest)


def constraints_for(packages: Sequence[str]) -> str:
    """Returns the constraints of pip, except those of packages that name their own version."""
    own = {package.partition("==")[0] for package in packages if "==" in package}
    lines = REQUIREMENTS.read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if line.partition("==")[0] not in own)


def run(command: list[str]) -> None:
    """Runs a step of the installation. Raises Unavailable."""
    # Lets pip write byte code, which otherwise each start would have to compile.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"not installed after {INSTALL_LIMIT} seconds") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        # The last ERROR line of pip has the cause. Its warnings about this machine do not.
        cause = [line for line in lines if line.startswith("ERROR")] or lines
        raise Unavailable("not installed: " + re.sub(r"(/[^\s/]+)+/", "", cause[-1])[:200])


def versions(name: str) -> dict[str, str]:
    """Returns the version of each installed package that requirements.txt pins."""
    pinned = re.findall(r"^([\w.-]+)==", REQUIREMENTS.read_text().split("\n\n")[0], re.MULTILINE)
    code = """if True:
        import json, sys
        from importlib.metadata import PackageNotFoundError, version
        found = {}
        for name in sys.argv[1:]:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                pass
        print(json.dumps(found))
    """
    return json.loads(subprocess.run([python(name), "-c", code, *pinned], capture_output=True, check=True, timeout=60).stdout)
