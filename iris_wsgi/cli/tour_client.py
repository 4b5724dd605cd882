"""Client of the tour: sends requests, runs commands, prints the responses, and compares them with the golden rows."""

import hashlib
import json
import re
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

from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.model.artifact import GoldenRow
from iris_wsgi.model.golden import batch_difference, value_scales
from iris_wsgi.model.session import Model, load_model

TIMEOUT_SECONDS, READY_SECONDS = 30.0, 15.0
# The timeout of a job, and the period of its polling.
JOB_SECONDS, POLL_SECONDS = 10.0, 0.1
# The maximum number of golden rows that are sent.
MAX_CASES = 100
UNFINISHED = ("queued", "running")
# The number of characters of a response that are printed, and the headers that are printed.
MAX_SHOWN, SHOWN_HEADERS = 400, ("Location", "Cache-Status")
JSON = {"Content-Type": "application/json"}
BOLD, GREEN, RED, YELLOW, CYAN = 1, 32, 31, 33, 36
# The scripts next to the package, if it is in the folder of the project.
SCRIPTS = Path(__file__).parents[2] / "bin"
COMMAND = [sys.executable, "-m", "iris_wsgi"]
# The variables of the server that the commands of the tour need too.
KEPT = ("IRIS_STATE_DIR", "IRIS_TOKEN_FILE")


class Mismatch(Exception):
    """A response that differs from the expected one."""


class NotTested(Exception):
    """A pattern without a result. The subclass states the cause."""


class NotInRole(NotTested):
    """A pattern that other roles serve."""


class NotForModel(NotTested):
    """A pattern in which this model cannot be served."""


class NotSetUp(NotTested):
    """A pattern of this role and this model that the server lacks. The message states what to do."""


class UnknownServer(Exception):
    """A server that the tour cannot check: another program, one that requires a token, or one with another model."""


class TourResponse(NamedTuple):
    status: int
    document: Any
    headers: HTTPMessage

    @property
    def is_hit(self) -> bool:
        return "; hit" in self.headers.get("Cache-Status", "")


class TourClient:
    """`cases` are golden rows of the `model` in the folder: one of each class, and one with a missing value.

    Of a regressor they are its first ones. `role` and `routes` are those of the server.
    """

    def __init__(self, url: str, environ: Mapping[str, str], model_dir: str, credentials: Mapping[str, str]) -> None:
        """Raises BadModel."""
        self.url = url.rstrip("/")
        # The settings of a server do not apply to the commands of the tour.
        kept = {name: value for name, value in environ.items() if not name.startswith("IRIS_") or name in KEPT}
        self.environ = kept | {"IRIS_MODEL_DIR": model_dir}
        self.credentials = credentials
        self.model_dir = Path(model_dir)
        self.model, golden = load_model(self.model_dir)
        self.outputs = self.model.outputs
        self.cases, self.tolerance = chosen(golden.cases), golden.tolerance
        self.scales = value_scales(self.outputs, golden.cases)
        self.all_cases = golden.cases
        self.connection = connect(self.url, TIMEOUT_SECONDS)
        self.role = "unknown"
        self.routes: frozenset[tuple[str, str]] = frozenset()

    def inspect(self) -> None:
        """Finds out the role and the routes of the server. Raises UnknownServer."""
        response, text = exchange(self.connection, "GET", "/openapi.json", headers=self.credentials)
        if response.status == 401:
            kind = "another" if self.credentials else "a"
            raise UnknownServer(f"{self.url} requires {kind} token: set --token-file or IRIS_TOKEN_FILE to its file")
        title, self.routes = parse_description(text) if response.status == 200 else ("", frozenset())
        if title != "iris_wsgi":
            raise UnknownServer(
                f"{self.url} is not an iris_wsgi server: GET /openapi.json answers {response.status}, without its title"
            )
        found = re.search(r'^iris_wsgi_info\{role="(\w+)"', exchange(self.connection, "GET", "/metrics")[1], re.MULTILINE)
        self.role = found[1] if found else self.role
        self.print(f"It has role {self.role}. {self.model_dir} has the model {self.model.name} {self.model.version}.")
        if ("GET", "/metadata") in self.routes:
            self.compare_model(self.send("GET", "/metadata").document["model"])

    def compare_model(self, served: Mapping[str, Any]) -> None:
        """Raises UnknownServer if the server and the folder have different models or pairs of halves."""
        if served["digest"] not in (self.model.digest, self.pair()):
            raise UnknownServer(
                f"{self.url} serves the model {served['name']} {served['version']} {served['digest']}, and {self.model_dir} has "
                f"{self.model.name} {self.model.version} {self.model.digest}: set --model-dir to the folder of the server's model"
            )

    def can_cache(self) -> bool:
        """Returns whether the model gives a row the same bits alone and in a batch."""
        return not batch_difference(self.model, self.all_cases)

    def half(self) -> Model | None:
        """Returns the model of role pred, or None if the folder has no halves."""
        halves = self.model_dir / "prep", self.model_dir / "pred"
        return load_model(halves[1])[0] if all(half.is_dir() for half in halves) else None

    def pair(self) -> str | None:
        """Returns the digest that role prep reports: that of the pair of halves."""
        half = self.half()
        return half.identity.get("pair") if half else None

    def models(self) -> list[str]:
        """Returns the names of the models under /v2."""
        if ("GET", "/v2/models") not in self.routes:
            return []
        names: list[str] = self.send("GET", "/v2/models").document["models"]
        return names

    def print(self, text: str, color: int = 0) -> None:
        print(f"\x1b[{color}m{text}\x1b[0m" if color and sys.stdout.isatty() else text, flush=True)

    def send(self, method: str, path: str, document: object = None, url: str = "", **headers: str) -> TourResponse:
        """Sends a request, and prints it and its response. Raises Mismatch for an unsuccessful status."""
        body = None if document is None else json.dumps(document)
        own = {name.title(): value for name, value in headers.items()} | (JSON if body else {})
        quoted = (body or "").replace("'", "'\\''")
        shown = dict.fromkeys(self.credentials, "Bearer …") | own
        words = [f"-X {method}"] * (method not in ("GET", "POST")) + [f"-H '{name}: {value}'" for name, value in shown.items()]
        self.print(" ".join([f"$ curl -si {url or self.url}{path}", *words, *([f"-d '{quoted}'"] if body else [])]), CYAN)
        connection = connect(url, TIMEOUT_SECONDS) if url else self.connection
        response, text = exchange(connection, method, path, body, {**self.credentials, **own})
        self.print(
            "".join(f"{name}: {response.headers[name]}\n" for name in SHOWN_HEADERS if name in response.headers) + shortened(text)
        )
        if not 200 <= response.status < 300:
            raise Mismatch(f"{method} {path} answers {response.status}, expected success: {' '.join(text.split())[:MAX_SHOWN]}")
        return TourResponse(response.status, json.loads(text), response.headers)

    def file_digest(self, path: str) -> str:
        """Downloads a file, and returns its SHA-256 in hexadecimal digits. Raises Mismatch for an unsuccessful status."""
        shown = [f"-H '{name}: Bearer …'" for name in self.credentials]
        self.print(" ".join(["$ curl -sf", *shown, f"{self.url}{path} | sha256sum"]), CYAN)
        self.connection.request("GET", path, headers=dict(self.credentials))
        response = self.connection.getresponse()
        digest = hashlib.sha256(response.read()).hexdigest()
        if response.status != 200:
            raise Mismatch(f"GET {path} answers {response.status}, expected success")
        self.print(f"{digest}  -")
        return digest

    def job(self, job_id: str) -> Mapping[str, Any]:
        """Returns the record of a job when it has finished, or after a timeout. The server need not support Prefer: wait."""
        deadline, path = monotonic() + JOB_SECONDS, f"/jobs/{job_id}"
        record: Mapping[str, Any] = self.send("GET", path, Prefer=f"wait={JOB_SECONDS:g}").document
        while record["status"] in UNFINISHED and monotonic() < deadline:
            sleep(POLL_SECONDS)
            record = json.loads(exchange(self.connection, "GET", path, headers=self.credentials)[1])
        return record

    def run(self, *words: str, stdin: str = "") -> str:
        """Runs a command of this project, and returns its standard output. Raises Mismatch if it fails."""
        pipe = f"printf '{stdin!r}' | ".replace("''", "'") if stdin else ""
        self.print(f"$ {pipe}{command_line(words)}", CYAN)
        done = subprocess.run(
            [*COMMAND, *words], input=stdin, env=self.environ, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
        self.print(shortened(done.stdout))
        if done.returncode:
            raise Mismatch(f"the command ended with status {done.returncode}: {last_line(done.stderr)}")
        return done.stdout

    def check_equal(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise Mismatch(f"{what} is {found!r}, expected {expected!r}")

    def check(self, values: Sequence[Any], label: object = None, case: GoldenRow | None = None) -> None:
        """Compares probabilities, scores, or values, and the label, with a golden row, by default the first. Raises Mismatch."""
        case, found = case or self.cases[0], [float(value) for value in values]
        pairs = zip(found, case.outputs, self.scales, strict=True)
        if not all(abs(a - b) <= self.tolerance * scale for a, b, scale in pairs):
            raise Mismatch(f"the {self.outputs.name} are {found}, expected {case.outputs} within {self.tolerance:g}")
        if label is None and self.outputs.kind == CLASSIFIER and not self.outputs.has_label_column:
            label = self.model.labels[self.outputs.best_of(found)]
        if label is not None:
            self.check_equal("the label", label, case.label)

    @contextmanager
    def prep(self) -> Iterator[str]:
        """Starts a server of role prep in front of the tested server, and yields its URL when it is ready."""
        words = ("serve", "--role", "prep", "--port", "0", "--pred-url", self.url)
        self.print(f"$ {command_line(words)}", CYAN)
        pipe = subprocess.PIPE
        child = subprocess.Popen([*COMMAND, *words, "--workers", "1"], env=self.environ, stdout=pipe, stderr=pipe, text=True)
        try:
            url = self.url_of(child)
            connection, deadline = connect(url, TIMEOUT_SECONDS), monotonic() + READY_SECONDS
            while (readiness := exchange(connection, "GET", "/readyz"))[0].status != 200:
                if monotonic() > deadline:
                    raise Mismatch(f"prep does not become ready: {readiness[1]}")
                sleep(0.1)
            connection.close()
            yield url
        finally:
            child.terminate()
            child.communicate()

    def url_of(self, child: "subprocess.Popen[str]") -> str:
        """Waits for the log line of the start of a server. Returns its URL. Raises Mismatch with the last line of another end."""
        from iris_wsgi.server.listener import server_url
        from iris_wsgi.server.serve import STARTED

        message = "no message"
        for line in child.stderr or ():
            try:
                event = json.loads(line)
                message = event.get("message", message)
            except ValueError:
                # Such as a line of a traceback.
                message = line.strip()
            if message == STARTED:
                url = server_url(event["host"], event["port"])
                self.print(f"iris_wsgi {event['version']} serves role {event['role']} on {url}")
                return url
        raise Mismatch(f"prep does not start: {message}")


def connect(url: str, seconds: float) -> HTTPConnection:
    parts = urlsplit(url)
    return HTTPConnection(parts.hostname or "", parts.port or 80, timeout=seconds)


def exchange(
    connection: HTTPConnection, method: str, path: str, body: str | None = None, headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[HTTPResponse, str]:
    """Returns the response and its text."""
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read().decode("utf-8", "replace")
    except BaseException:
        connection.close()
        raise


def chosen(cases: Sequence[GoldenRow]) -> list[GoldenRow]:
    """Returns the first golden row of each class, or the first ones of a regressor, and one with a missing value."""
    firsts = {case.label or i: case for i, case in reversed([*enumerate(cases)])}
    found = [case for case in cases if any(case is first for first in firsts.values())][:MAX_CASES]
    return found + [case for case in cases if None in case.row and all(case is not one for one in found)][:1]


def parse_description(text: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Returns the title of an OpenAPI document, and its routes as method and path. Any other text has none."""
    try:
        document = json.loads(text)
        routes = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
        return str(document["info"]["title"]), frozenset(routes)
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", frozenset()


def command_line(words: Sequence[str]) -> str:
    """Returns the command as a person would type it."""
    return " ".join([f"bin/{words[0]}" if SCRIPTS.is_dir() else f"python3 -m iris_wsgi {words[0]}", *words[1:]])


def bundle_advice(model_dir: Path) -> str:
    """Returns what to do for a server without a bundle of the model."""
    if not SCRIPTS.is_dir():
        return "set IRIS_EDGE_DIR to the folder of bin/edge build (the image target edge has it), and restart the server"
    option = "" if model_dir.resolve() == SCRIPTS.parent / "model" else f" --model-dir {model_dir}"
    return f"run bin/edge build{option}, and restart bin/serve{option}"


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def shortened(text: str) -> str:
    return text.rstrip() if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"
