"""The workflows: they run the scripts of .ci/, with few permissions."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from optional_programs import skip_or_fail
from project import ROOT

import iris_wsgi

FOLDER = ROOT / ".github/workflows"
TEXTS = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.yml"))}
WORKFLOWS: dict[str, dict[Any, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
# Parts of .ci/run, and of the optional jobs.
PARTS = {"bare", "base", "services", "within"}
# Permissions of single jobs, in addition to reading.
WRITERS = {
    ("release", "attest"): {"attestations", "id-token"},
    ("release", "publish"): {"attestations", "contents", "id-token"},
}


def jobs(workflow: str) -> dict[str, dict[str, Any]]:
    return WORKFLOWS[workflow]["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job.get("steps", ()) if "run" in step]


def events(workflow: str) -> dict[str, Any]:
    """Returns the events that start a workflow. YAML reads their key as true."""
    return WORKFLOWS[workflow][True]


def test_the_required_job_is_that_of_every_other_machine():
    (job,) = jobs("ci").values()
    assert commands(job)[-1] == ".ci/run"
    assert events("ci").keys() == {"push", "pull_request", "workflow_call"}
    # The packages of .ci/run are those of the release from which .ci/base makes its image.
    assert job["container"]["image"] == "debian:trixie" and " trixie " in (ROOT / ".ci/base").read_text()


def test_each_optional_job_has_its_run():
    scripts = {path.name for path in (ROOT / ".ci").iterdir() if path.is_file() and not path.suffix} - PARTS - {"run"}
    started_by = events("optional")
    assert started_by.keys() == {"schedule", "workflow_dispatch"}
    assert {*started_by["workflow_dispatch"]["inputs"]["job"]["options"]} == {"all", *scripts}
    (job,) = jobs("optional").values()
    assert set(re.findall(r'"([\w-]+)"', job["strategy"]["matrix"]["job"])) == scripts
    assert commands(job)[-1] == "env -u CI .ci/${{ matrix.job }}"
    for name in scripts:
        assert "Optional job of CI" in (ROOT / ".ci" / name).read_text()


def test_a_release_has_packages_and_images_of_each_locked_architecture_after_ci_is_green():
    found = jobs("release")
    assert events("release") == {"push": {"tags": ["v*.*.*"]}}
    assert found["ci"] == {"uses": "./.github/workflows/ci.yml"}
    assert {*found["attest"]["needs"]} == {"ci", "package", "image"} and found["publish"]["needs"] == "attest"
    locked = {path.name.split(".")[1] for path in (ROOT / "bin/image.d").glob("debian.*.lock")}
    assert {each["architecture"] for each in found["image"]["strategy"]["matrix"]["include"]} == locked
    assert {*found["attest"]["strategy"]["matrix"]["architecture"]} == locked


def test_the_notes_and_the_version_of_a_release_are_found(tmp_path):
    """Runs the two commands as they are."""
    tag = f"v{iris_wsgi.__version__}"
    (tmp_path / "dist").mkdir()
    for name in ("iris_wsgi", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    compare, notes = (
        next(step["run"] for step in jobs("release")["package"]["steps"] if word in step.get("name", ""))
        for word in ("Compare the tag", "Take the notes")
    )
    for command, name, succeeds in (
        (compare, tag, True),
        (compare, "v9.9.9", False),
        (notes, tag, True),
        (notes, "v9.9.9", False),
    ):
        result = subprocess.run(["sh", "-ec", command], cwd=tmp_path, env={**os.environ, "GITHUB_REF_NAME": name})
        assert (result.returncode == 0) == succeeds, (command, name)


def test_the_commands_of_the_image_are_options_of_its_script():
    text = (ROOT / "bin/image.d/__main__.py").read_text()
    for command in re.findall(r"bin/image --with podman (\w+)", TEXTS["release"]):
        assert f'"{command}": ' in text


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_and_uses_pinned_actions_of_github(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for key, job in jobs(name).items():
        written = {scope for scope, access in job.get("permissions", {}).items() if access == "write"}
        assert (written == WRITERS.get((name, key), set()) and (name, key) not in WRITERS) or written == WRITERS[name, key]
        assert "timeout-minutes" in job or "uses" in job
        for step in job.get("steps", ()):
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"])
                assert not step["uses"].startswith("actions/checkout@") or step["with"] == {"persist-credentials": False}
            # An expression in a command could become a command itself.
            assert "${{" not in step.get("run", "").replace("${{ matrix.job }}", "")
    assert "secrets." not in TEXTS[name] and "http" not in TEXTS[name]


def test_actionlint_finds_a_mistake_and_bin_check_runs_it(tmp_path):
    assert "actionlint -shellcheck= -pyflakes= .github/workflows/*.yml" in (ROOT / "bin/check").read_text()
    program = ROOT / ".venv/bin/actionlint"
    if not program.exists():
        skip_or_fail("actionlint is not installed: bin/setup check")
    options = ("-shellcheck=", "-pyflakes=")
    assert subprocess.run([program, *options, *sorted(FOLDER.glob("*.yml"))]).returncode == 0
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(TEXTS["ci"].replace("timeout-minutes", "timeout-hours"))
    result = subprocess.run([program, *options, wrong], capture_output=True, text=True)
    assert result.returncode == 1 and "timeout-hours" in result.stdout


def test_the_workflows_are_complete():
    assert WORKFLOWS.keys() == {"ci", "optional", "release"}
    assert not [path for path in Path(FOLDER).iterdir() if path.suffix != ".yml"]
