"""The virtual environments of the servers, one each, so that no peer is held back by another's requirements."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent.parent
HOME = ROOT / ".venv-bench"
REQUIREMENTS = BENCH / "requirements.txt"
INSTALL_LIMIT = 600
FASTAPI = ("fastapi", "uvicorn[standard]", "uvloop", "httptools", "gunicorn", "uvicorn-worker")

PACKAGES: dict[str, tuple[str, ...]] = {
    # Installed as the others are, so that its byte code is there at the first start.
    "ours": (str(ROOT),),
    "redis": (f"{ROOT}[redis]",),
    "postgres": (f"{ROOT}[postgres,redis]",),
    "fastapi": (*FASTAPI, "numpy", "onnxruntime"),
    "mosec": ("mosec", "numpy", "onnxruntime"),
    "litserve": ("litserve", "uvloop", "httptools", "numpy", "onnxruntime"),
    # BentoML's uvicorn takes uvloop and httptools where they are installed; it does not bring them.
    "bentoml": ("bentoml", "uvloop", "httptools", "numpy", "onnxruntime"),
    # The same for the section on whole files, which needs more.
    "batch": (f"{ROOT}[batch,parquet]",),
    "scripts": ("pandas", "pyarrow", "numpy", "onnxruntime"),
    "chart": ("matplotlib",),
    # Writes the heavier models of heavy.py.
    "models": ("numpy", "onnx", "scikit-learn", "skl2onnx"),
}


class Unavailable(Exception):
    """An environment that could not be made; the message is one line without paths."""


def python(name: str) -> str:
    return str(HOME / name / "bin" / "python")


def ensure(name: str) -> None:
    """Makes the environment, unless it stands already and nothing changed since. Raises Unavailable."""
    stamp = HOME / name / "installed"
    ours = (ROOT / "setup.cfg", *sorted((ROOT / "iris_wsgi").rglob("*.py"))) if str(ROOT) in PACKAGES[name][0] else ()
    setup = b"".join(path.read_bytes() for path in ours)
    told = repr((sys.version, PACKAGES[name])).encode() + REQUIREMENTS.read_bytes() + setup
    want = hashlib.sha256(told).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return
    # The folder keeps itself out of git and of the tools that respect git's ignore files.
    (HOME / ".gitignore").write_text("*\n")
    print(f"bench: setting up .venv-bench/{name}, once", file=sys.stderr, flush=True)
    # setuptools would take modules from there that are no longer in the package.
    shutil.rmtree(ROOT / "build/lib", ignore_errors=True)
    pip = [python(name), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(REQUIREMENTS)]
    for command in ([sys.executable, "-m", "venv", "--clear", str(HOME / name)], [*pip, *PACKAGES[name]]):
        run(command)
    stamp.write_text(want)


def run(command: list[str]) -> None:
    """Runs a step of the installation. Raises Unavailable."""
    # Byte code is to be written at installation, else each start would pay for the lack of it.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"not installed: it took over {INSTALL_LIMIT} seconds") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        # pip's last line that says ERROR is the cause; its warnings about the machine's own set-up are not.
        cause = [line for line in lines if line.startswith("ERROR")] or lines
        raise Unavailable("not installed: " + re.sub(r"(/[^\s/]+)+/", "", cause[-1])[:200])


def versions(name: str) -> dict[str, str]:
    """Name and version of each package that requirements.txt pins and the environment holds."""
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
