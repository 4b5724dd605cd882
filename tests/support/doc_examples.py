"""Fenced blocks of the documents: the commands with their shown output, and the test that runs each command."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from project import ROOT
from server_process import free_ports

README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(path for folder in (".", "docs", "docs/design", "manifests", "model") for path in (ROOT / folder).glob("*.md"))
LANGUAGES = {"sh", "python", "json", "text", "mermaid"}
# Commands that test_doc_examples does not run: the name of their place, a pattern, and the test that covers them instead.
OTHER_PLACES = {
    "first": (
        r"^bin/serve .*\nbin/test .*\n$",
        "bin/serve is the server of all other commands, and .ci/run runs these tests with bin/test",
    ),
    "ray": (r"--engine ray ", "tests/live/test_ray.py runs it on a cluster of two processes"),
    "cluster": (
        r"\b(kubectl|minikube) |^manifests/release/",
        "there is no cluster: tests/project/test_manifest_commands.py checks what they need, and in which order",
    ),
    "copy": (r"^sed -i .* manifests/", "tests/project/test_manifests.py runs it on a copy of the manifests"),
    "pack": (
        r"^bin/(pack|setup pack)\b",
        "they need the libraries of models: tests/live/test_pack.py runs them, and the block of docs/own-models.md",
    ),
    "compose": (
        r"^docker compose ",
        "tests/project/test_compose.py plans them with podman-compose, and runs the services",
    ),
    "image": (
        r"^(docker|bin/image|bin/edge build)\b",
        "tests/project/test_image.py runs them: they need an image or an npm package",
    ),
}


class Fence(NamedTuple):
    """Fenced block. The output of a command is the next block, of the kind json or text."""

    document: Path
    language: str
    text: str
    kind: str
    output: str

    @property
    def place(self) -> str:
        """Key of OTHER_PLACES, or "here"."""
        places = [name for name, (pattern, _) in OTHER_PLACES.items() if re.search(pattern, self.text, re.MULTILINE)]
        return places[0] if places else "here"


def fences_of(document: Path) -> list[Fence]:
    found = re.findall(
        r"^```([^\n]*)\n(.*?)^```$(?=(?:\n+```(json|text)\n(.*?)^```$)?)", document.read_text(), re.MULTILINE | re.DOTALL
    )
    return [Fence(document, *groups) for groups in found]


FENCES = [fence for document in DOCUMENTS for fence in fences_of(document)]


def commands_for(place: str) -> list[Fence]:
    return [fence for fence in FENCES if fence.language == "sh" and fence.place == place]


def matches_shown(output: str, shown: str) -> bool:
    """Returns whether an output matches the shown one. `…` matches any text, and white space is ignored."""
    pieces = ("".join(piece.split()) for piece in shown.split("…"))
    return re.fullmatch(".*?".join(map(re.escape, pieces)), "".join(output.split())) is not None


def with_test_server(text: str, port: int, folder: Path) -> str:
    """Replaces port 8000 by the server's port, each other port by a free one, and /tmp by the folder."""
    other_ports = sorted(set(re.findall(r"\bIRIS_PORT=(\d+)", text)))
    ports = {"8000": port, **dict(zip(other_ports, free_ports(len(other_ports)), strict=True))}
    text = re.sub(r"(127\.0\.0\.1:|\bIRIS_PORT=)(\d+)", lambda found: found[1] + str(ports[found[2]]), text)
    return text.replace("/tmp/", f"{folder}/")


def run_command(words: list[str], folder: Path, where: Path = ROOT) -> str:
    """Runs a command and returns its output. Ends the servers that the command leaves in the background."""
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        process = subprocess.Popen(words, cwd=where, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            status = process.wait(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        assert status == 0, (folder / "err").read_text()
    return (folder / "out").read_text()
