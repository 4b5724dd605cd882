"""Asks a server and runs commands as a newcomer would, shows what comes, and judges it by the golden rows."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPMessage, HTTPResponse
from pathlib import Path
from time import monotonic, sleep
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from iris_wsgi.folder import GOLDEN, Case, parse_golden, read_file

SECONDS, READY_SECONDS = 30.0, 15.0
# So much of an answer is shown, and these of its fields.
SHOWN, TELLING = 400, ("Location", "Cache-Status")
JSON = {"Content-Type": "application/json"}
BOLD, GREEN, RED, CYAN = 1, 32, 31, 36
# What doors there are beside the package, where it lies in its own folder.
DOORS = Path(__file__).parent.parent / "bin"
COMMAND = [sys.executable, "-m", "iris_wsgi"]
# What of the environment the commands of the tour are to have too.
KEPT = ("IRIS_STATE_DIR", "IRIS_TOKEN_FILE")


class Wrong(Exception):
    """An answer that is not right: what it is, and what was expected."""


class Reply(NamedTuple):
    status: int
    document: Any
    fields: HTTPMessage

    @property
    def is_hit(self) -> bool:
        return "; hit" in self.fields.get("Cache-Status", "")


class Guide:
    """The `cases` are golden rows, one of each class; `model` is what the server tells of its own."""

    def __init__(self, url: str, environ: Mapping[str, str], model_dir: str, credentials: Mapping[str, str]) -> None:
        """Raises BadModel."""
        self.url = url.rstrip("/")
        # What is set for a server is not for the commands of the tour.
        kept = {name: value for name, value in environ.items() if not name.startswith("IRIS_") or name in KEPT}
        self.environ = kept | {"IRIS_MODEL_DIR": model_dir}
        self.fields = credentials
        path = Path(model_dir) / GOLDEN
        golden = parse_golden(read_file(path), str(path))
        firsts: dict[str, Case] = {}
        for case in golden.cases:
            firsts.setdefault(case.label, case)
        self.cases, self.tolerance = list(firsts.values()), golden.tolerance
        self.connection = connected(self.url)
        self.model: dict[str, Any] = {}

    def say(self, text: str, colour: int = 0) -> None:
        print(f"\x1b[{colour}m{text}\x1b[0m" if colour and sys.stdout.isatty() else text, flush=True)

    def ask(self, method: str, path: str, document: object = None, url: str = "", may_be: int = 200, **fields: str) -> Reply:
        """Raises Wrong for a status that is neither one of success nor the other one that it may be."""
        body = None if document is None else json.dumps(document)
        asked = {name.title(): value for name, value in fields.items()} | (JSON if body else {})
        told = dict.fromkeys(self.fields, "Bearer …") | asked
        words = [f"-X {method}"] * (method not in ("GET", "POST")) + [f"-H '{name}: {value}'" for name, value in told.items()]
        self.say(" ".join([f"$ curl -si {url or self.url}{path}", *words, *([f"-d '{body}'"] if body else [])]), CYAN)
        connection = connected(url) if url else self.connection
        answer, text = exchanged(connection, method, path, body, {**self.fields, **asked})
        self.say("".join(f"{name}: {answer.headers[name]}\n" for name in TELLING if name in answer.headers) + shortened(text))
        if not 200 <= answer.status < 300 and answer.status != may_be:
            raise Wrong(f"{method} {path} answers {answer.status}, expected success: {' '.join(text.split())[:SHOWN]}")
        return Reply(answer.status, json.loads(text), answer.headers)

    def run(self, *words: str, given: str = "") -> str:
        """What one of our own commands answers, which has no server."""
        shown = f"printf '{given!r}' | ".replace("''", "'") if given else ""
        self.say(f"$ {shown}{typed(words)}", CYAN)
        told = subprocess.run([*COMMAND, *words], input=given, env=self.environ, capture_output=True, text=True, timeout=SECONDS)
        self.say(shortened(told.stdout))
        if told.returncode:
            raise Wrong(f"the command ends with {told.returncode}: {last_line(told.stderr)}")
        return told.stdout

    def same(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise Wrong(f"{what} is {found!r}, expected {wanted!r}")

    def right(self, probabilities: Sequence[Any], label: object = None, case: Case | None = None) -> None:
        """Whether an answer is that of golden.json, for its first row if no case is given, and its label that of the highest."""
        case, found = case or self.cases[0], [float(one) for one in probabilities]
        if not all(abs(a - b) <= self.tolerance for a, b in zip(found, case.probabilities, strict=True)):
            raise Wrong(f"the probabilities are {found}, expected {case.probabilities} within {self.tolerance:g}")
        self.same("the label", label or self.model["labels"][found.index(max(found))], case.label)

    @contextmanager
    def prep(self) -> Iterator[str]:
        """The address of a server of role prep, which asks the other one, once it is ready."""
        words = ("serve", "--role", "prep", "--port", "0", "--pred-url", self.url)
        self.say(f"$ {typed(words)}", CYAN)
        pipe = subprocess.PIPE
        child = subprocess.Popen([*COMMAND, *words, "--workers", "1"], env=self.environ, stdout=pipe, stderr=pipe, text=True)
        try:
            first = child.stdout.readline() if child.stdout else ""
            if not first:
                raise Wrong(f"prep does not start: {last_line(child.communicate()[1])}")
            self.say(first.rstrip())
            url = first.split()[-1]
            connection, until = connected(url), monotonic() + READY_SECONDS
            while (told := exchanged(connection, "GET", "/readyz"))[0].status != 200:
                if monotonic() > until:
                    raise Wrong(f"prep does not become ready: {told[1]}")
                sleep(0.1)
            connection.close()
            yield url
        finally:
            child.terminate()
            child.communicate()


def connected(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    return HTTPConnection(parts.hostname or "", parts.port or 80, timeout=SECONDS)


def exchanged(
    connection: HTTPConnection, method: str, path: str, body: str | None = None, fields: Mapping[str, str] = MappingProxyType({})
) -> tuple[HTTPResponse, str]:
    """The answer and its text."""
    try:
        connection.request(method, path, body, fields)
        answer = connection.getresponse()
        return answer, answer.read().decode("utf-8", "replace")
    except BaseException:
        connection.close()
        raise


def typed(words: Sequence[str]) -> str:
    """What a person would type."""
    return " ".join([f"bin/{words[0]}" if DOORS.is_dir() else f"python3 -m iris_wsgi {words[0]}", *words[1:]])


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def shortened(text: str) -> str:
    return text.rstrip() if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
