"""Writes the single file with the modules of the edge commands and the model, the same bytes each time."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from iris_wsgi.model.artifact import read_all, read_file
from iris_wsgi.model.golden import self_test
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.edge.manifest import MODEL
from iris_wsgi.storage.files import replace_file

ROOT = Path(__file__).resolve().parent.parent.parent
SHEBANG = b"#!/usr/bin/env python3\n"
# The modules of the pattern that a server loads.
OF_SERVERS = ("bundle_files", "role", "routes", "telemetry")
# Modules that one edge module imports only when called are imported by another one.
LISTED = """
import sys
for name in sys.argv[1:]: __import__(name)
for name, module in sys.modules.items():
    if name.partition(".")[0] == "iris_wsgi": print(module.__file__)
"""


def write(out: Path, model_dir: Path, start: Path) -> str:
    """Writes the file and returns one line about it. Raises OSError, and BadModel if the model fails its golden rows."""
    model, golden = load_model(model_dir)
    result = self_test(model, golden.cases, golden.tolerance)
    _, files = read_all(lambda name: read_file(model_dir / name), str(model_dir))
    contents = {str(path.relative_to(ROOT)): path.read_bytes() for path in modules()}
    contents |= {MODEL + name: content for name, content in files.items()} | {"__main__.py": start.read_bytes()}
    out.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    file.write(SHEBANG)
    # Without compression, because its bytes depend on the version of zlib.
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(contents.items()):
            archive.writestr(member(name), content)
    replace_file(out, file.getvalue())
    out.chmod(0o755)
    return f"{out}: {len(contents)} files, {out.stat().st_size:,} bytes, {model.name} {model.version}: {result}"


def modules() -> list[Path]:
    """Returns the files of the modules that the edge commands import."""
    paths = (ROOT / "iris_wsgi/patterns/edge").glob("*.py")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem not in OF_SERVERS]
    command = [sys.executable, "-c", LISTED, *sorted(names)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return [Path(line) for line in told.stdout.splitlines()]


def member(name: str) -> zipfile.ZipInfo:
    """Returns an entry without the time and the properties of this machine."""
    told = zipfile.ZipInfo(name)
    told.create_system, told.external_attr = 3, 0o644 << 16
    return told
