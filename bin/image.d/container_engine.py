"""Builds and runs images with docker, podman, or buildah, the first that works."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from iris_wsgi.model.artifact import manifest_digest

# The model of this project.
MODEL = "model"
TOOLS = ("docker", "podman", "buildah")


class EngineError(Exception):
    """Missing or broken tool, or missing image. The message is one line."""


def first_working_tool() -> str:
    for tool in TOOLS:
        # The client of docker may exist without an engine.
        if shutil.which(tool) and subprocess.run([tool, "info"], capture_output=True).returncode == 0:
            return tool
    raise EngineError("docker, podman, and buildah do not work here; install one of them")


def build(tool: str, root: Path, target: str, tag: str, fresh: bool = False, model: str = MODEL) -> None:
    """Builds `target` of the Dockerfile with the model in the folder `model` of the root.

    A layer has the same bytes as long as its content is the same. Layers have no time of the build or of the commit.

    A new commit changes only the layers whose files it changes.
    """
    words = ["--target", target, "--tag", tag, "--file", str(root / "Dockerfile")]
    image_labels = labels(root, root / model)
    words += ["--build-arg", f"MODEL_FOLDER={model}", "--build-arg", f"MODEL_SEAL={image_labels['iris-wsgi.model.seal']}"]
    words += [word for name, value in image_labels.items() for word in ("--label", f"{name}={value}")]
    if fresh:
        words.append("--no-cache")
    environment = os.environ | {"SOURCE_DATE_EPOCH": "0"}
    if tool == "docker":
        output = f"type=docker,name={tag},rewrite-timestamp=true"
        command = ["docker", "buildx", "build", "--provenance=false", "--build-arg", "SOURCE_DATE_EPOCH=0", "--output", output]
    else:
        # The format of docker, because that of OCI has no HEALTHCHECK.
        command = [
            tool,
            "build",
            "--format",
            "docker",
            "--timestamp",
            "0",
            "--identity-label=false",
            "--layers",
        ]
    subprocess.run([*command, *words, str(root)], check=True, env=environment)


def labels(root: Path, model: Path) -> dict[str, str]:
    """Returns the labels of the image with this model folder, which replace those of the Dockerfile for the Iris model."""
    seal = sha256((model / "golden.json").read_bytes()).hexdigest()
    version = re.search(r'__version__ = "(.+)"', (root / "iris_wsgi/__init__.py").read_text())
    return {
        "org.opencontainers.image.created": commit_time(root),
        "org.opencontainers.image.version": version[1] if version else "unknown",
        "org.opencontainers.image.revision": revision(root),
        "iris-wsgi.model.digest": manifest_digest(model),
        "iris-wsgi.model.seal": f"sha256:{seal}",
    }


def revision(root: Path) -> str:
    """Returns the commit, and whether files differ from it."""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True).stdout
    return head.stdout.strip() + ("-changed" if changed else "")


def commit_time(root: Path) -> str:
    """Returns the time of the commit in UTC. Without a commit it is the start of 1970: no build depends on the clock."""
    head = subprocess.run(["git", "-C", str(root), "log", "-1", "--format=%ct"], capture_output=True, text=True)
    seconds = int(head.stdout) if head.returncode == 0 else 0
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def full_name(tag: str) -> str:
    """Returns the name under which a cluster looks for an image.

    docker omits the registry, and podman and buildah write localhost.
    """
    tag = tag.removeprefix("localhost/")
    first, slash, _ = tag.partition("/")
    if slash and ("." in first or ":" in first):
        return tag
    return f"docker.io/{tag}" if slash else f"docker.io/library/{tag}"


def save(tool: str, tag: str, file: Path) -> None:
    """Writes the image as an archive in the format of docker."""
    command = {
        "docker": ["docker", "save", "--output", str(file), tag],
        "podman": ["podman", "save", "--quiet", "--format", "docker-archive", "--output", str(file), tag],
        "buildah": ["buildah", "push", "--quiet", tag, f"docker-archive:{file}:{tag}"],
    }[tool]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"{tag} cannot be read; build it with bin/image build. {tool}: {done.stderr.strip()[-200:]}")


def load(tool: str, file: Path) -> None:
    """Loads an image from an archive."""
    command = {"buildah": ["buildah", "pull", "--quiet", f"docker-archive:{file}"]}.get(
        tool, [tool, "load", "--quiet", "--input", str(file)]
    )
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def runner(tool: str) -> str:
    """Returns the tool that runs containers. buildah only builds."""
    for name in (tool, "podman", "docker"):
        if name != "buildah" and shutil.which(name):
            return name
    raise EngineError("this needs docker or podman")
