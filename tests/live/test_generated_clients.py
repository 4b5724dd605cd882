"""Clients that generators write from the OpenAPI document: they compile without warnings, and call every operation."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge_bundles import write_bundle
from http_clients import fetch, http_request
from openapi_documents import example_in, parameters_of
from optional_programs import require_program
from server_process import ServerProcess, start_server

pytestmark = pytest.mark.long

# The generator does not know the media type of the runtime of the edge page.
PYTHON_CONFIG = """
post_hooks: []
package_name_override: iris_client
content_type_overrides:
  application/wasm: application/octet-stream
"""
# Calls every operation with its examples. An undocumented status raises.
PYTHON_CALLS = """
import inspect, json, pkgutil, sys, typing
from importlib import import_module
from pathlib import Path

import iris_client.api
from iris_client import Client

calls = json.loads(Path("calls.json").read_text())
client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
found = {name.rpartition(".")[2].replace("_", ""): name for _, name, is_package in
         pkgutil.walk_packages(iris_client.api.__path__, "iris_client.api.") if not is_package}
job = None
for call in calls:
    module = import_module(found[call["operation"].replace("_", "").lower()])
    options = {name: job if value == "JOB" else value for name, value in call["path"].items()}
    if call["body"] is not None:
        kinds = inspect.signature(module.sync_detailed).parameters["body"].annotation
        kind = next(kind for kind in typing.get_args(kinds) or [kinds] if hasattr(kind, "from_dict"))
        options["body"] = kind.from_dict(call["body"])
    response = module.sync_detailed(client=client, **options)
    job = response.parsed.id if call["operation"] == "post_jobs" else job
    # A response whose type the generator does not know has no value.
    assert response.parsed is not None or not call["json"], (call, response)
    print(call["operation"], int(response.status_code))
client.get_httpx_client().close()
"""
TYPESCRIPT_START = """
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

declare const process: { argv: string[] };
const client = createClient<paths>({ baseUrl: process.argv[2] as string });
function report(operation: string, result: { response: Response; data?: unknown }): void {
  console.log(operation, result.response.status);
}
"""
TYPESCRIPT_CONFIG = {
    "compilerOptions": {
        "strict": True, "noUnusedLocals": True, "noUncheckedIndexedAccess": True, "exactOptionalPropertyTypes": True,
        "module": "nodenext", "target": "es2022", "lib": ["es2022", "dom"], "types": [], "outDir": "out",
    },
    "files": ["main.ts"],
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    """Server of all patterns, with the edge page."""
    folder = tmp_path_factory.mktemp("edge")
    write_bundle(folder)
    started = start_server("--edge-dir", str(folder))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def document(server) -> dict[str, Any]:
    return fetch(server, http_request("GET", "/openapi.json")).json()


def calls_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a call of each operation with its examples, and POST /jobs before the operations on its job."""
    calls = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parameters = parameters_of(document, operation)
            values = {name: each["example"] for name, each in parameters.items() if each["in"] == "path"}
            if path.startswith("/jobs/"):
                values["id"] = "JOB"
            body = operation.get("requestBody", {"content": {}})["content"].get("application/json")
            success = next(response for status, response in operation["responses"].items() if status < "400")
            call = {"operation": operation["operationId"], "method": method.upper(), "path": values, "template": path}
            media_types = list(success.get("content", {}))
            calls.append({**call, "body": body and example_in(document, body), "json": media_types[:1] == ["application/json"]})
    return sorted(calls, key=lambda call: (call["template"].startswith("/jobs/"), call["method"] == "DELETE"))


def called(output: str) -> dict[str, int]:
    """Returns the status of each operation that a client has reported."""
    return {name: int(status) for name, status in (line.split() for line in output.splitlines())}


def check_calls(output: str, calls: list[dict[str, Any]]) -> None:
    found = called(output)
    assert found.keys() == {call["operation"] for call in calls}
    assert found["post_v2_models__model__infer"] == 200
    # The worker may have been faster than the client.
    assert found.pop("delete_jobs__id_") in (200, 409)
    assert all(status < 400 for status in found.values())


def run_program(*command: str | Path, cwd: Path) -> str:
    """Returns the output of a program, which must succeed."""
    result = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_client_of_openapi_python_client_calls_every_operation(server, document, tmp_path):
    generator = Path(require_program("openapi-python-client"))
    python = Path(generator.read_text().splitlines()[0].removeprefix("#!"))
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "config.yml").write_text(PYTHON_CONFIG)
    source = ("generate", "--path", "openapi.json", "--config", "config.yml", "--output-path", "generated", "--fail-on-warning")
    assert "arning" not in run_program(generator, *source, cwd=tmp_path)
    package = tmp_path / "generated"
    assert run_program(python, "-W", "error", "-m", "compileall", "-q", "iris_client", cwd=package) == ""
    calls = calls_of(document)
    (package / "calls.json").write_text(json.dumps(calls))
    check_calls(run_program(python, "-W", "error", "-c", PYTHON_CALLS, server.url, cwd=package), calls)


def typescript_call(call: dict[str, Any]) -> str:
    """Returns the code that calls an operation."""
    options = {"params": {"path": call["path"]}} if call["path"] else {}
    if call["body"] is not None:
        options["body"] = call["body"]
    if not call["json"]:
        options["parseAs"] = "text"
    code = json.dumps(options, ensure_ascii=False).replace('"JOB"', "id")
    request = f"await client.{call['method']}({json.dumps(call['template'])}, {code})"
    if call["operation"] != "post_jobs":
        return f"report({json.dumps(call['operation'])}, {request});\n"
    return f'const job = {request};\nreport("post_jobs", job);\nconst id: string = job.data?.id ?? "";\n'


def test_the_client_of_openapi_typescript_compiles_and_calls_every_operation(server, document, tmp_path):
    generator, compiler, node = (require_program(name) for name in ("openapi-typescript", "tsc", "node"))
    (tmp_path / "node_modules").symlink_to(Path(generator).resolve().parents[2])
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "tsconfig.json").write_text(json.dumps(TYPESCRIPT_CONFIG))
    output = run_program(generator, "openapi.json", "--output", "schema.ts", cwd=tmp_path)
    assert "warn" not in output.lower() and "error" not in output.lower()
    calls = calls_of(document)
    (tmp_path / "main.ts").write_text(TYPESCRIPT_START + "".join(map(typescript_call, calls)))
    assert run_program(compiler, "--project", ".", cwd=tmp_path) == ""
    check_calls(run_program(node, "out/main.js", server.url, cwd=tmp_path), calls)
