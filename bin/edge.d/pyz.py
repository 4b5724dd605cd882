"""Writes the zipapp of the edge commands: the modules that they load, and the model. The bytes are reproducible."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_all, read_file
from iris_wsgi.model.golden import self_test
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.edge.bundle import MODEL
from iris_wsgi.storage.files import replace_file

ROOT = Path(__file__).resolve().parent.parent.parent
SHEBANG = b"#!/usr/bin/env python3\n"
# Modules of the edge pattern that only a server loads.
SERVER_MODULES = ("role", "telemetry")
# Imports all modules of the edge commands, because some of them import others only when they are called.
LIST_MODULES = """
import sys
for name in sys.argv[1:]: __import__(name)
for name, module in sys.modules.items():
    if name.partition(".")[0] == "iris_wsgi": print(module.__file__)
"""


def write(out: Path, model_dir: Path, main: Path) -> str:
    """Writes the file and returns a line about it. Raises OSError, and BadModel, also if the model fails its golden rows."""
    model, golden = load_model(model_dir)
    if model.outputs.kind != CLASSIFIER:
        raise BadModel(f"{model_dir / golden.model} gives {model.outputs.name}; edge is for classifiers with probabilities")
    result = self_test(model, golden.cases, golden.tolerance)
    _, files = read_all(lambda name: read_file(model_dir / name), str(model_dir))
    contents = {str(path.relative_to(ROOT)): path.read_bytes() for path in modules()}
    contents |= {MODEL + name: content for name, content in files.items()} | {"__main__.py": main.read_bytes()}
    out.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    file.write(SHEBANG)
    # Without compression, whose bytes depend on the version of zlib.
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(contents.items()):
            archive.writestr(member_info(name), content)
    replace_file(out, file.getvalue())
    out.chmod(0o755)
    return f"{out}: {len(contents)} files, {out.stat().st_size:,} bytes, {model.name} {model.version}: {result}"


def modules() -> list[Path]:
    """Returns the files of the modules that the edge commands import."""
    paths = (ROOT / "iris_wsgi/patterns/edge").glob("*.py")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem not in SERVER_MODULES]
    command = [sys.executable, "-c", LIST_MODULES, *sorted(names)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return [Path(line) for line in listing.stdout.splitlines()]


def member_info(name: str) -> zipfile.ZipInfo:
    """Returns the header of a member, which is the same on every day and machine."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o644 << 16
    return info
