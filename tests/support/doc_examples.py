"""What is fenced in the documents: commands with their answers, and where each command is run."""

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
# Where commands are run that cannot be asked of a server that is just there, or what holds them instead.
OTHER_PLACES = {
    "first": (
        r"^bin/serve .*\nbin/test .*\n$",
        "the one is the server that all others are asked of, the other runs these tests in .ci/run",
    ),
    "cluster": (
        r"\b(kubectl|minikube) ",
        "there is none: tests/project/test_manifests.py checks every path and name in them",
    ),
    "copy": (r"^sed -i .* manifests/", "tests/project/test_manifests.py runs it on a copy of the manifests"),
    "image": (
        r"^(docker|bin/image|bin/edge build)\b",
        "tests/project/test_image.py runs them: they need an image or an npm package",
    ),
}


class Fence(NamedTuple):
    """A fenced block; the answer, of some kind, is what stands right below a command."""

    document: Path
    language: str
    text: str
    kind: str
    answer: str

    @property
    def place(self) -> str:
        """Where it is run: one of the above, or here."""
        found = [name for name, (pattern, _) in OTHER_PLACES.items() if re.search(pattern, self.text, re.MULTILINE)]
        return found[0] if found else "here"


def fences_of(document: Path) -> list[Fence]:
    found = re.findall(
        r"^```([^\n]*)\n(.*?)^```$(?=(?:\n+```(json|text)\n(.*?)^```$)?)", document.read_text(), re.MULTILINE | re.DOTALL
    )
    return [Fence(document, *one) for one in found]


FENCES = [one for document in DOCUMENTS for one in fences_of(document)]


def commands_for(place: str) -> list[Fence]:
    return [one for one in FENCES if one.language == "sh" and one.place == place]


def matches_shown(told: str, shown: str) -> bool:
    """Whether an answer is the one that is shown, of which `…` may be anything, and spaces and lines as they are easy to read."""
    pieces = ("".join(piece.split()) for piece in shown.split("…"))
    return re.fullmatch(".*?".join(map(re.escape, pieces)), "".join(told.split())) is not None


def with_test_server(text: str, port: int, folder: Path) -> str:
    """A command with the server's port for 8000, a free one for each other, and a folder of the test's own for /tmp."""
    others = sorted(set(re.findall(r"\bIRIS_PORT=(\d+)", text)))
    ports = {"8000": port, **dict(zip(others, free_ports(len(others)), strict=True))}
    text = re.sub(r"(127\.0\.0\.1:|\bIRIS_PORT=)(\d+)", lambda found: found[1] + str(ports[found[2]]), text)
    return text.replace("/tmp/", f"{folder}/")


def run_command(words: list[str], folder: Path, where: Path = ROOT) -> str:
    """What a command writes; servers that it leaves in the background are ended behind it."""
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        process = subprocess.Popen(words, cwd=where, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            status = process.wait(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        assert status == 0, (folder / "err").read_text()
    return (folder / "out").read_text()
