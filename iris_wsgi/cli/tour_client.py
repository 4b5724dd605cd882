"""Asks a server and runs commands as a newcomer would, shows what comes, and judges it by the golden rows."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPMessage
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

from iris_wsgi.cli.http_client import connect, exchange
from iris_wsgi.model.artifact import GoldenRow
from iris_wsgi.model.session import Model, load_model

SECONDS, READY_SECONDS = 30.0, 15.0
# How long a job may take, and the pause between two looks at it.
JOB_SECONDS, LOOK_SECONDS = 10.0, 0.1
UNFINISHED = ("queued", "running")
# So much of an answer is shown, and these of its fields.
SHOWN, TELLING = 400, ("Location", "Cache-Status")
JSON = {"Content-Type": "application/json"}
BOLD, GREEN, RED, YELLOW, CYAN = 1, 32, 31, 33, 36
# What doors there are beside the package, where it lies in its own folder.
DOORS = Path(__file__).parents[2] / "bin"
COMMAND = [sys.executable, "-m", "iris_wsgi"]
# What of the environment the commands of the tour are to have too.
KEPT = ("IRIS_STATE_DIR", "IRIS_TOKEN_FILE")


class Wrong(Exception):
    """An answer that is not right: what it is, and what was expected."""


class Unserved(Exception):
    """A pattern that the server does not have by its role or its settings: the reason."""


class NotJudged(Exception):
    """A server of which the tour can say nothing: it is another program, wants a token, or has another model."""


class TourResponse(NamedTuple):
    status: int
    document: Any
    fields: HTTPMessage

    @property
    def is_hit(self) -> bool:
        return "; hit" in self.fields.get("Cache-Status", "")


class Guide:
    """The `cases` are golden rows, one of each class, of the `model` in the folder; `role` and `routes` are the server's."""

    def __init__(self, url: str, environ: Mapping[str, str], model_dir: str, credentials: Mapping[str, str]) -> None:
        """Raises BadModel."""
        self.url = url.rstrip("/")
        # What is set for a server is not for the commands of the tour.
        kept = {name: value for name, value in environ.items() if not name.startswith("IRIS_") or name in KEPT}
        self.environ = kept | {"IRIS_MODEL_DIR": model_dir}
        self.fields = credentials
        self.model_dir = Path(model_dir)
        self.model, golden = load_model(self.model_dir)
        firsts: dict[str, GoldenRow] = {}
        for case in golden.cases:
            firsts.setdefault(case.label, case)
        self.cases, self.tolerance = list(firsts.values()), golden.tolerance
        self.connection = connect(self.url, SECONDS)
        self.role = "of no name"
        self.routes: frozenset[tuple[str, str]] = frozenset()

    def look(self) -> None:
        """Finds out what the server is and has. Raises NotJudged."""
        answer, text = exchange(self.connection, "GET", "/openapi.json", headers=self.fields)
        if answer.status == 401:
            raise NotJudged(
                f"{self.url} wants {'another' if self.fields else 'a'} token: --token-file or IRIS_TOKEN_FILE names its file"
            )
        title, self.routes = described(text) if answer.status == 200 else ("", frozenset())
        if title != "iris_wsgi":
            raise NotJudged(
                f"{self.url} is not an iris_wsgi server: GET /openapi.json answers {answer.status}, and not with its title"
            )
        told = re.search(r'^iris_wsgi_info\{role="(\w+)"', exchange(self.connection, "GET", "/metrics")[1], re.MULTILINE)
        self.role = told[1] if told else self.role
        if ("GET", "/metadata") in self.routes:
            self.compare(self.ask("GET", "/metadata").document["model"])

    def compare(self, told: Mapping[str, Any]) -> None:
        """Raises NotJudged where the server has another model than the folder, or halves of another one."""
        if told["digest"] not in (self.model.digest, self.pair()):
            raise NotJudged(
                f"{self.url} serves the model {told['name']} {told['version']} {told['digest']}, and {self.model_dir} holds "
                f"{self.model.name} {self.model.version} {self.model.digest}: --model-dir names the folder of the server's model"
            )

    def half(self) -> Model | None:
        """The model of role pred; None where the folder has no halves."""
        halves = self.model_dir / "prep", self.model_dir / "pred"
        return load_model(halves[1])[0] if all(half.is_dir() for half in halves) else None

    def pair(self) -> str | None:
        """What role prep tells as the digest of its model, which is in two halves."""
        half = self.half()
        return half.identity.get("pair") if half else None

    def models(self) -> list[str]:
        """The names of the models that the server has under /v2."""
        if ("GET", "/v2/models") not in self.routes:
            return []
        names: list[str] = self.ask("GET", "/v2/models").document["models"]
        return names

    def say(self, text: str, colour: int = 0) -> None:
        print(f"\x1b[{colour}m{text}\x1b[0m" if colour and sys.stdout.isatty() else text, flush=True)

    def ask(self, method: str, path: str, document: object = None, url: str = "", **fields: str) -> TourResponse:
        """Raises Wrong for a status that is not one of success."""
        body = None if document is None else json.dumps(document)
        asked = {name.title(): value for name, value in fields.items()} | (JSON if body else {})
        told = dict.fromkeys(self.fields, "Bearer …") | asked
        words = [f"-X {method}"] * (method not in ("GET", "POST")) + [f"-H '{name}: {value}'" for name, value in told.items()]
        self.say(" ".join([f"$ curl -si {url or self.url}{path}", *words, *([f"-d '{body}'"] if body else [])]), CYAN)
        connection = connect(url, SECONDS) if url else self.connection
        answer, text = exchange(connection, method, path, body, {**self.fields, **asked})
        self.say("".join(f"{name}: {answer.headers[name]}\n" for name in TELLING if name in answer.headers) + shortened(text))
        if not 200 <= answer.status < 300:
            raise Wrong(f"{method} {path} answers {answer.status}, expected success: {' '.join(text.split())[:SHOWN]}")
        return TourResponse(answer.status, json.loads(text), answer.headers)

    def job(self, job_id: str) -> Mapping[str, Any]:
        """The record of a job, once it is done or has been waited for; a server need not hold its answer back."""
        until, path = monotonic() + JOB_SECONDS, f"/jobs/{job_id}"
        record: Mapping[str, Any] = self.ask("GET", path, Prefer=f"wait={JOB_SECONDS:g}").document
        while record["status"] in UNFINISHED and monotonic() < until:
            sleep(LOOK_SECONDS)
            record = json.loads(exchange(self.connection, "GET", path, headers=self.fields)[1])
        return record

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

    def right(self, probabilities: Sequence[Any], label: object = None, case: GoldenRow | None = None) -> None:
        """Whether an answer is that of golden.json, for its first row if no case is given, and its label that of the highest."""
        case, found = case or self.cases[0], [float(one) for one in probabilities]
        if not all(abs(a - b) <= self.tolerance for a, b in zip(found, case.probabilities, strict=True)):
            raise Wrong(f"the probabilities are {found}, expected {case.probabilities} within {self.tolerance:g}")
        self.same("the label", label or self.model.labels[found.index(max(found))], case.label)

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
            connection, until = connect(url, SECONDS), monotonic() + READY_SECONDS
            while (told := exchange(connection, "GET", "/readyz"))[0].status != 200:
                if monotonic() > until:
                    raise Wrong(f"prep does not become ready: {told[1]}")
                sleep(0.1)
            connection.close()
            yield url
        finally:
            child.terminate()
            child.communicate()


def described(text: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """The title of an OpenAPI document, and its routes as method and path; nothing for any other text."""
    try:
        document = json.loads(text)
        routes = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
        return str(document["info"]["title"]), frozenset(routes)
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", frozenset()


def typed(words: Sequence[str]) -> str:
    """What a person would type."""
    return " ".join([f"bin/{words[0]}" if DOORS.is_dir() else f"python3 -m iris_wsgi {words[0]}", *words[1:]])


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def shortened(text: str) -> str:
    return text.rstrip() if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
