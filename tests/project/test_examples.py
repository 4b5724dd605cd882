"""The examples: each file runs against a server of all patterns, and fails without one."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from edge_bundles import build_bundle
from optional_programs import require_package, require_program
from project import MODEL, ROOT
from server_process import ServerProcess, start_server

EXAMPLES = ROOT / "examples"
PATTERNS = {path.parent.name for path in (ROOT / "iris_wsgi/patterns").glob("*/__init__.py")}
TABLE = (EXAMPLES / "README.md").read_text()
# The packages that a file imports, other than those of the server.
PACKAGES = {"httpx", "tritonclient.http"}
# Runs a notebook, and prints the texts of its cells. Another process could take the TCP ports of a kernel before the kernel does.
RUN_NOTEBOOK = """
import os, sys, tempfile
folder = tempfile.TemporaryDirectory()
os.environ |= dict.fromkeys(("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), folder.name)
import jupyter_client, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
kernel = jupyter_client.AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{folder.name}/kernel")
nbclient.NotebookClient(notebook, kernel, timeout=120).execute()
print("".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output))
"""
SCORED = r"a,setosa,0\.99\d*,.*\nb,versicolor,.*\nc,virginica,"
JOB = r"^(j\S+) is queued\n(?:\1 is running\n)*\1 is succeeded\nlabels: setosa versicolor virginica$"
CACHE = r"^setosa in [\d.]+ ms, Cache-Status: \w+; fwd=miss; stored\n(?:.*\n)*setosa in [\d.]+ ms, Cache-Status: \w+; hit; "
ITEM = r"^version 1 is setosa, .*fwd=\S+; stored\n(?:version 1 .*\n)*version 1 is setosa, .*; hit; .*\nversion 2 is virginica, "
PREP = r"^http://127\.0\.0\.1:\d+ has scaled the row, and http://\S+ has predicted virginica\.$"
THREE_ROWS = r"is of class 0, with probability 0\.9995\n.* is of class 1, .*\n.* is of class 2, "
BOTH_MODELS = r"^provisional: versicolor \(iris_lr\)\nfinal:       virginica \(iris_svc\)$"
VOTES = r"^3 members, down: none\nsetosa +0\.00\d\d\n.*\n.*\nThe members decide: versicolor \(complete\)\.$"
PROBABILITIES = r"^setosa +0\.9995\n(?:.*\n)*This flower is an Iris setosa\.$"
# What each file prints.
OUTPUTS = {
    "python/web_single.py": PROBABILITIES,
    "python/synchronous.py": THREE_ROWS,
    "python/asynchronous.py": JOB,
    "python/batch.py": r"^setosa +50 rows\nversicolor +48 rows\nvirginica +52 rows$",
    "python/prep_pred.py": PREP,
    "python/sync_async.py": BOTH_MODELS,
    "python/prediction_cache.py": CACHE,
    "python/data_cache.py": ITEM,
    "python/horizontal.py": VOTES,
    "python/edge.py": r"golden rows answered, .*\nsetosa, with probability 0\.9995$",
    "javascript/web_single.mjs": PROBABILITIES,
    "javascript/synchronous.mjs": THREE_ROWS,
    "javascript/asynchronous.mjs": JOB,
    "javascript/prep_pred.mjs": PREP,
    "javascript/sync_async.mjs": BOTH_MODELS,
    "javascript/prediction_cache.mjs": CACHE,
    "javascript/data_cache.mjs": ITEM,
    "javascript/horizontal.mjs": VOTES,
    "shell/batch.sh": SCORED,
    "shell/edge.sh": r"golden rows answered, .*\nsetosa\nsetosa 0\.9995",
    "patterns.ipynb": r"(?s)^setosa +0\.9995 .*\[0, 1, 2\].*^provisional: versicolor\nfinal: virginica.*'label': 'virginica'",
}
# Spark is too large for CI. The optional job .ci/spark runs its example.
SPARK = "spark_batch.py"
WITHOUT_SERVER = {name for name in OUTPUTS if Path(name).stem == "batch"}


class Broken(BaseHTTPRequestHandler):
    """Server that answers every request with an error."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b'{"error": "broken"}'
        self.send_response(500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def command_of(name: str) -> list[str]:
    """Returns the command of an example. Skips the test if a program or a package is missing, and fails it in CI."""
    path = EXAMPLES / name
    if path.suffix == ".ipynb":
        for package in ("nbclient", "ipykernel", "httpx"):
            require_package(package, "examples")
        return [sys.executable, "-c", RUN_NOTEBOOK, str(path)]
    if path.suffix == ".mjs":
        return [require_program("node"), str(path)]
    if path.suffix == ".sh":
        return [str(path)]
    for package in sorted(PACKAGES):
        if re.search(rf"^(?:import|from) {package}\b", path.read_text(), re.MULTILINE):
            require_package(package, "examples")
    return [sys.executable, str(path)]


def run_example(name: str, url: str, *, by_argument: bool = False) -> subprocess.CompletedProcess:
    environ = {**os.environ, "SERVER_URL": "http://nowhere.invalid" if by_argument else url}
    command = [*command_of(name), *([url] if by_argument else [])]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    server = start_server("--edge-dir", str(build_bundle(tmp_path_factory.mktemp("edge") / "bundle", MODEL)))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def broken_url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_example_prints_its_result(server, name):
    # The notebook has no arguments.
    result = run_example(name, server.url, by_argument=name not in WITHOUT_SERVER and not name.endswith(".ipynb"))
    assert result.returncode == 0, result.stderr
    assert re.search(OUTPUTS[name], result.stdout, re.MULTILINE), result.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(OUTPUTS.keys() - WITHOUT_SERVER))
def test_an_example_fails_with_a_reason_if_the_server_fails(broken_url, name):
    result = run_example(name, broken_url)
    assert result.returncode == 1 and "500" in result.stderr, result
    assert name.endswith(".ipynb") or ("Traceback" not in result.stderr and "    at " not in result.stderr)


def test_every_file_of_the_folder_is_run_and_in_the_table():
    files = {
        str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - {"README.md"} == OUTPUTS.keys() | {SPARK}
    assert set(re.findall(r"\]\((.+?)\)", TABLE)) == OUTPUTS.keys() | {SPARK}
    assert set(
        re.findall(r"`(?:\.venv/bin/(?:python|jupyter execute) |node )?examples/(\S+?)(?: IN OUT)?`", TABLE)
    ) == OUTPUTS.keys() | {SPARK}


def test_every_pattern_has_an_example_in_python_and_in_a_second_language():
    stems = [Path(name).stem for name in OUTPUTS]
    assert {Path(name).stem for name in OUTPUTS if name.startswith("python/")} == PATTERNS
    assert all(stems.count(pattern) == 2 for pattern in PATTERNS)


def test_the_notebook_has_no_stored_output():
    notebook = json.loads((EXAMPLES / "patterns.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_no_example_in_javascript_has_a_dependency():
    for path in EXAMPLES.glob("javascript/*.mjs"):
        assert all(name.startswith("node:") for name in re.findall(r'^import .* from "(.*)";$', path.read_text(), re.MULTILINE))
