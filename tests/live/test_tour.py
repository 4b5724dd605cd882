"""The tour of all patterns: each pattern is correct, reported as wrong for a lying server, or not served."""

import re
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import ClassVar

import pytest
from chosen_models import pack_mixed
from edge_bundles import build_bundle
from fault_proxy import FaultProxy
from http_clients import fetch, wait_until
from http_clients import http_request as http
from packed_models import write_model
from pattern_table import ROWS
from project import MODEL, ROOT

from iris_wsgi.cli.tour import PATTERNS, no_cache
from iris_wsgi.cli.tour_client import NotForModel, NotSetUp

NAMES = [pattern.name for pattern in PATTERNS]
# A server where no request waits for a job.
NO_WAIT = {"iris_wsgi.patterns.asynchronous.role.MAX_WAIT_SECONDS": 0.0}
# Lies for each pattern: a path, the true bytes of its response, and the false ones.
LIES = {
    "web single": (b"POST /predict/proba ", b'"label":"setosa"', b'"label":"satyrs"'),
    "synchronous": (b"/infer ", b'"data":[0.9', b'"data":[0.1'),
    "asynchronous": (b"GET /jobs/", b'"succeeded"', b'"abandoned"'),
    "sync-async": (b"POST /predict/hybrid ", b'"label":"setosa"', b'"label":"satyrs"'),
    "prediction cache": (b"POST /predict ", b"iris_wsgi; hit", b"iris_wsgi; hat"),
    "data cache": (b"GET /items/", b"fwd=uri-miss", b"; hit=no, sir"),
    "horizontal microservice": (b"/ensemble/predict ", b'"complete"', b'"complied"'),
    "edge AI": (b"/edge/manifest.json ", b'"sha256:', b'"sha257:'),
}


# A bundle whose manifest is right, and whose model is another one.
OTHER_FILE = (b"/edge/model/golden.json ", b'"setosa"', b'"satyrs"')


class LyingProxy(FaultProxy):
    """Proxy that replaces parts of the responses by false ones of the same length."""

    def __init__(self, server, *lies: tuple[bytes, bytes, bytes]) -> None:
        self.lies = lies
        super().__init__(server)

    def forward(self, request: bytes) -> bytes:
        response = super().forward(request)
        for path, truth, lie in self.lies:
            if path in request.partition(b"\r\n")[0]:
                response = response.replace(truth, lie)
        return response


def tour(url: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([ROOT / "bin/tour", url, *words], capture_output=True, text=True)


def errors_of(process: subprocess.CompletedProcess) -> dict[str, str]:
    """Runs a tour to its end. Returns the patterns with errors, and the errors."""
    assert process.returncode == 1 and f"\n{len(NAMES)}/{len(NAMES)} " in process.stdout and "Traceback" not in process.stderr, (
        process
    )
    found = dict(re.findall(r"^iris_wsgi: (.*?) is wrong: (.*)$", process.stderr, re.MULTILINE))
    assert len(found) == len(process.stderr.splitlines())
    return found


@pytest.mark.long
def test_every_pattern_of_the_readme_is_shown_and_correct(run, tmp_path):
    bundle = build_bundle(tmp_path / "bundle", MODEL)
    result = tour(run("--edge-dir", str(bundle)).url)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.findall(r"^(\d+)/10 (.*)$", result.stdout, re.MULTILINE) == [(str(i), name) for i, name in enumerate(NAMES, 1)]
    assert result.stdout.count("\nright\n") == result.stdout.count("\nUse it when ") == 10 and "\x1b" not in result.stdout
    assert result.stdout.endswith("\n10 of 10 patterns of role all are right\n")
    assert "fwd=uri-miss" in result.stdout and "; hit" in result.stdout and "Location: /jobs/" in result.stdout
    # The last two rows of the table are not patterns.
    assert [row.pattern for row in ROWS[:-2]] == NAMES


@pytest.mark.long
def test_each_lie_of_a_server_is_reported_for_its_pattern(run, tmp_path):
    server = run("--edge-dir", str(build_bundle(tmp_path / "bundle", MODEL)))
    with LyingProxy(server, *LIES.values()) as liar:
        found = errors_of(tour(liar.url))
    assert list(found) == list(LIES)
    assert found["web single"] == "the label is 'satyrs', expected 'setosa'"
    assert found["asynchronous"] == "the status of the job is 'abandoned', expected 'succeeded'"
    assert "expected [0.99" in found["synchronous"]
    with LyingProxy(server, OTHER_FILE) as liar:
        found = errors_of(tour(liar.url))
    assert list(found) == ["edge AI"] and found["edge AI"].startswith("the digest of /edge/model/golden.json is ")


@pytest.mark.long
def test_responses_are_compared_with_the_local_golden_rows(run, model_copy):
    golden = model_copy / "golden.json"
    swapped = {"setosa": "virginica", "virginica": "setosa"}
    labels = re.compile(r'"label": "(setosa|virginica)"')
    golden.write_text(labels.sub(lambda found: f'"label": "{swapped[found[1]]}"', golden.read_text()))
    assert [*errors_of(tour(run().url, "--model-dir", str(model_copy)))] == NAMES


CAUSE = r"^(not served by role \w+|skipped for this model|not set up): (.*)$"


def unserved_patterns(process: subprocess.CompletedProcess, cause: str = "") -> dict[str, str]:
    """Runs a tour without errors. Returns the patterns that the server does not serve, or those of one cause, and the reasons."""
    assert (process.returncode, process.stderr) == (0, ""), process
    parts = re.split(r"^\d+/10 (.*)$", process.stdout, flags=re.MULTILINE)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    reasons = {name: re.search(CAUSE, text, re.MULTILINE) for name, text in found.items()}
    assert all((reasons[name] is None) == ("\nright\n" in text) for name, text in found.items())
    return {name: reason[2] for name, reason in reasons.items() if reason and reason[1].startswith(cause)}


def summary_of(process: subprocess.CompletedProcess) -> str:
    """Returns the line that counts the patterns."""
    (line,) = re.findall(r"^\d+ of \d+ pattern.*$", process.stdout, re.MULTILINE)
    return line


@pytest.mark.long
def test_a_server_of_another_model_is_reported_in_one_line_that_names_both_and_the_solution(run):
    for words in ((), ("--role", "web_single")):
        server = run("--model-dir", str(MODEL / "fast"), *words)
        result = tour(server.url)
        assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith(f"iris_wsgi: {server.url} serves the model iris_lr 1.0.0 sha256:")
        assert f"{MODEL} has iris_svc 1.0.0 sha256:" in result.stderr and "set --model-dir to" in result.stderr


@pytest.mark.long
def test_with_a_custom_model_without_companions_the_other_patterns_are_not_served(run):
    result = tour(run("--model-dir", str(MODEL / "fast")).url, "--model-dir", str(MODEL / "fast"))
    found = unserved_patterns(result, "skipped for this model")
    assert list(found) == ["prep-pred", "sync-async", "horizontal microservice"]
    assert "no halves" in found["prep-pred"] and "no matching fast model" in found["sync-async"]
    assert unserved_patterns(result, "not set up").keys() == {"edge AI"}
    assert summary_of(result) == (
        "6 of 7 patterns of role all are right; not set up: edge AI; "
        "skipped for this model: prep-pred, sync-async, horizontal microservice"
    )
    option = f" --model-dir {MODEL / 'fast'}"
    assert f"run bin/edge build{option}, and restart bin/serve{option}\n" in result.stdout


@pytest.mark.long
def test_without_a_bundle_the_last_line_says_how_to_get_one(run):
    result = tour(run().url)
    assert unserved_patterns(result).keys() == {"edge AI"}
    assert result.stdout.endswith(
        "\n9 of 10 patterns of role all are right; not set up: edge AI\nedge AI: the command works, but the server has no bundle "
        "for devices: run bin/edge build, and restart bin/serve\n"
    )


# Patterns of each role, in addition to batch, which needs no server.
SERVED = {
    "web_single": ["web single"],
    "synchronous": ["synchronous"],
    "worker": [],
    "prediction_cache": ["web single", "prediction cache"],
    "data_cache": ["data cache"],
    "prep": ["web single", "prep-pred"],
    "pred": ["prep-pred"],
    "gateway": ["horizontal microservice"],
    "member": [],
}


@pytest.mark.long
@pytest.mark.parametrize("role", SERVED)
def test_a_server_of_one_role_is_correct_in_its_patterns_and_the_others_are_not_served(run, request, role):
    upstream = request.getfixturevalue("upstream_settings")[role] if role in ("prep", "gateway") else {}
    more = {"member": {"member": "setosa"}}.get(role, upstream)
    server = run("--role", role, **{f"IRIS_{name.upper()}": str(value) for name, value in more.items()})
    wait_until(lambda: fetch(server, http("GET", "/readyz")).status == 200, "the server is ready")
    if role == "gateway":
        wait_until(
            lambda: fetch(server, http("GET", "/ensemble/health")).json()["status"] == "complete", "the gateway knows all members"
        )
    result = tour(server.url)
    found = unserved_patterns(result, f"not served by role {role}")
    assert set(NAMES) - found.keys() == {"batch", *SERVED[role]} and found.keys() == unserved_patterns(result).keys()
    assert f"\nIt has role {role}. " in result.stdout.partition("\n1/10 ")[0]
    count = len(SERVED[role]) + 1
    words = "pattern of role" if count == 1 else "patterns of role"
    assert summary_of(result).startswith(f"{count} of {count} {words} {role} {'is' if count == 1 else 'are'} right; ")


@pytest.mark.long
def test_jobs_without_a_worker_are_an_error_that_names_the_worker(run, monkeypatch):
    monkeypatch.setenv("IRIS_TOKEN_FILE", "")
    server = run("--role", "sync_async", constants=NO_WAIT)
    result = tour(server.url)
    found = errors_of(result)
    assert list(found) == ["asynchronous", "sync-async"]
    assert all(why.startswith("the job is still queued; is a worker running") for why in found.values())


@pytest.mark.long
def test_settings_of_a_server_that_serves_all_patterns_are_no_errors(run):
    server = run("--cache", "off", "--escalate-below", "0.5", "--url-prefix", "/iris", constants=NO_WAIT)
    result = tour(server.url)
    found = unserved_patterns(result, "not set up")
    assert list(found) == ["prediction cache", "edge AI"] and "its cache is off" in found["prediction cache"]
    assert "\nprediction cache: its cache is off; restart the server without IRIS_CACHE=off\n" in result.stdout


@pytest.mark.long
def test_a_pattern_that_a_setting_adds_to_a_role_counts_for_it(run, tmp_path):
    server = run("--role", "web_single", "--cache", "on", "--edge-dir", str(build_bundle(tmp_path / "bundle", MODEL)))
    assert summary_of(tour(server.url)).startswith("4 of 4 patterns of role web_single are right; not served by this role: ")


def test_a_cache_is_missing_because_of_a_setting_or_because_of_the_model():
    assert isinstance(no_cache(SimpleNamespace(can_cache=lambda: True)), NotSetUp)
    assert isinstance(no_cache(SimpleNamespace(can_cache=lambda: False)), NotForModel)


@pytest.mark.long
def test_a_model_of_another_folder_under_v2_alone_is_not_set_up(run):
    result = tour(run("--role", "synchronous", "--model-dir", str(MODEL / "fast")).url)
    found = unserved_patterns(result, "not set up")
    assert list(found) == ["synchronous"] and "set --model-dir to the folder of the server's model" in found["synchronous"]
    assert summary_of(result).startswith("1 of 2 patterns of role synchronous is right; not set up: synchronous; ")


class Other(BaseHTTPRequestHandler):
    """Server other than iris_wsgi: its OpenAPI document has another title, or is missing."""

    answers: ClassVar = {
        "no description": (404, b"<h1>Not found</h1>"),
        "another title": (200, b'{"info": {"title": "x"}, "paths": {}}'),
        "no JSON": (200, b"[1"),
        "no object": (200, b"[]"),
        "unavailable": (503, b"{}"),
        "elsewhere": (302, b""),
    }
    which = "no JSON"

    def do_GET(self) -> None:
        status, body = self.answers[self.which]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.long
@pytest.mark.parametrize("which", Other.answers)
def test_another_server_is_reported_in_one_line(which):
    handler = type("Handler", (Other,), {"which": which})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = tour(url)
        server.shutdown()
    status = Other.answers[which][0]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr == (
        f"iris_wsgi: {url} is not an iris_wsgi server: GET /openapi.json answers {status}, without its title\n"
    )


@pytest.mark.long
def test_a_server_that_requires_a_token_is_reported_in_one_line(run, tmp_path, monkeypatch):
    path = tmp_path / "tokens"
    path.write_text("first-one-of-the-file\n")
    server = run("--token-file", str(path))
    monkeypatch.delenv("IRIS_TOKEN_FILE", raising=False)
    advice = "token: set --token-file or IRIS_TOKEN_FILE to its file\n"
    result = tour(server.url)
    assert (result.returncode, result.stderr) == (1, f"iris_wsgi: {server.url} requires a {advice}")
    other = tmp_path / "other"
    other.write_text("another-one-of-letters\n")
    result = tour(server.url, "--token-file", str(other))
    assert (result.returncode, result.stderr) == (1, f"iris_wsgi: {server.url} requires another {advice}")
    assert unserved_patterns(tour(server.url, "--token-file", str(path))).keys() == {"edge AI"}


def test_without_a_server_one_line_states_the_action():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    result = tour(url)
    assert result.returncode == 1
    assert result.stderr == (
        f"iris_wsgi: no server responds at {url}: Connection refused; start one with bin/serve in another terminal, "
        "or name its URL\n"
    )


@pytest.mark.long
def test_the_tour_sends_the_token_of_the_settings_to_the_server_only(run, tmp_path, monkeypatch):
    path = tmp_path / "tokens"
    path.write_text("first-one-of-the-file\nsecond-one-of-the-file\n")
    monkeypatch.setenv("IRIS_TOKEN_FILE", str(path))
    result = tour(run().url)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Bearer …" in result.stdout and "first-one" not in result.stdout
    monkeypatch.setenv("IRIS_TOKEN_FILE", str(tmp_path / "none"))
    assert "IRIS_TOKEN_FILE" in tour("http://127.0.0.1:1").stderr


def test_in_a_terminal_the_output_is_colored(run):
    # script(1) gives its command a terminal.
    line = f"{ROOT / 'bin/tour'} http://127.0.0.1:1"
    terminal_output = subprocess.run([shutil.which("script"), "-qec", line, "/dev/null"], capture_output=True, text=True).stdout
    assert "\x1b[1mThe server at http://127.0.0.1:1:\x1b[0m" in terminal_output


# The patterns that are served for a model of each kind without companions.
CLASSIFIER_PATTERNS = ["web single", "synchronous", "asynchronous", "batch", "prediction cache", "data cache"]
KIND_REASONS = {
    "scores": "it is for classifiers with probabilities, and this model gives scores",
    "regressor of three targets": "it is for classifiers with probabilities, and this model gives values",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["columns of several types with missing values", "the label of the graph", "scores",
                                  "regressor of three targets", "float64 input", "map of strings"])  # fmt: skip
def test_a_model_of_any_kind_is_correct_in_its_patterns_and_the_others_have_a_reason(run, tmp_path, kind):
    folder = write_model(tmp_path / "model", kind)
    result = tour(run("--model-dir", str(folder)).url, "--model-dir", str(folder))
    found = unserved_patterns(result)
    assert set(NAMES) - found.keys() == set(CLASSIFIER_PATTERNS)
    if kind in KIND_REASONS:
        assert {found[name] for name in ("prep-pred", "horizontal microservice", "edge AI")} == {KIND_REASONS[kind]}
        assert unserved_patterns(result, "skipped for this model") == found
        assert summary_of(result).startswith(
            "6 of 6 patterns of role all are right; skipped for this model: prep-pred, sync-async"
        )
    elif "types" in kind:
        words = "for models with one float32 input, not bool, int64, string"
        assert found["edge AI"] == f"the command works, but the page at /edge/ is {words}"


@pytest.mark.long
def test_names_with_commas_and_strings_with_quotes_are_sent_as_they_are(run, tmp_path):
    folder = pack_mixed(tmp_path / "model")
    result = tour(run("--model-dir", str(folder)).url, "--model-dir", str(folder))
    assert not errors_in(result) and '"age, in years",rooms,city,owner' in result.stdout


def errors_in(process: subprocess.CompletedProcess) -> str:
    return process.stderr or "".join(line for line in process.stdout.splitlines() if " is wrong: " in line)
