"""The chart as Helm renders and lints it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from optional_programs import require_package
from project import ROOT

CHART = ROOT / "charts/model-in-image"
Object = dict

# Helm is a Go library, whose threads must not be in the process of the tests.
RENDER = """
import json, sys
import helm_python

def render(chart, values, name, namespace):
    try:
        return {"files": chart.render(values=values, name=name, namespace=namespace)}
    except helm_python.HelmError as error:
        return {"error": str(error)}

path, releases = json.load(sys.stdin)
with helm_python.Chart.load(path) as chart:
    print(json.dumps([render(chart, *release) for release in releases]))
"""
LINT = """
import json, sys
import helm_python

path, all_values, version = json.load(sys.stdin)
print(json.dumps([helm_python.lint(path, values, strict=True, kube_version=version) for values in all_values]))
"""
PACKAGE = """
import json, sys
import helm_python

path, folder = json.load(sys.stdin)
print(json.dumps([helm_python.package(path, destination=folder)]))
"""


class Release(NamedTuple):
    """Values of a release, with its name and its namespace."""

    values: dict[str, Any]
    name: str = "model-in-image"
    namespace: str = "model-in-image"


class ChartError(Exception):
    """Helm does not render the chart with these values."""


def run_helm(script: str, *arguments: Any) -> list[Any]:
    """Runs a script with Helm, which reads its arguments from standard input and prints a list."""
    require_package("helm_python", "chart")
    command = [sys.executable, "-W", "error", "-c", script]
    result = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def render_files(releases: list[Release], chart: Path = CHART) -> list[dict[str, str]]:
    """Returns the text of each rendered file, for each release. Raises ChartError."""
    results = run_helm(RENDER, str(chart), releases)
    for result in results:
        if "error" in result:
            raise ChartError(result["error"])
    return [{path.rpartition("/")[2]: text for path, text in result["files"].items()} for result in results]


def render_releases(releases: list[Release]) -> list[list[Object]]:
    """Returns the objects of each release. Raises ChartError."""
    return [
        [obj for name, text in files.items() if name != "NOTES.txt" for obj in yaml.load_all(text, yaml.CSafeLoader) if obj]
        for files in render_files(releases)
    ]


def render_release(values: dict[str, Any], name: str = "model-in-image", namespace: str = "model-in-image") -> list[Object]:
    return render_releases([Release(values, name, namespace)])[0]


def package_chart(folder: Path) -> Path:
    """Writes the archive of `helm package` to a folder, and returns its path."""
    (path,) = run_helm(PACKAGE, str(CHART), str(folder))
    return Path(path)


def lint_chart(all_values: list[dict[str, Any]], kubernetes: str) -> list[dict]:
    """Returns the messages of `helm lint --strict` for all these values."""
    return [message for report in run_helm(LINT, str(CHART), all_values, f"v{kubernetes}.0") for message in report["messages"]]
