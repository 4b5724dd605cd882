"""The tour of all patterns: right over a server of role all, and wrong, by name, over one that lies or has another model."""

import re
import shutil
import socket
import subprocess

import pytest
from bundles import build_bundle
from conftest import MODEL, ROOT
from faulty import Faulty
from patterns import ROWS

from iris_wsgi.tour import PATTERNS

NAMES = [pattern.name for pattern in PATTERNS]
# What a lying server says in place of what is so, where that path is asked, and which pattern is wrong for it.
LIES = {
    "web single": (b"POST /predict/proba ", b'"label":"setosa"', b'"label":"satyrs"'),
    "synchronous": (b"/infer ", b'"data":[0.9', b'"data":[0.1'),
    "asynchronous": (b"GET /jobs/", b'"succeeded"', b'"abandoned"'),
    "sync-async": (b"POST /predict/hybrid ", b'"label": "setosa"', b'"label": "satyrs"'),
    "prediction cache": (b"POST /predict ", b"iris_wsgi; hit", b"iris_wsgi; hat"),
    "data cache": (b"GET /items/", b"fwd=uri-miss", b"; hit=no, sir"),
    "horizontal microservice": (b"/ensemble/predict ", b'"complete"', b'"complied"'),
    "edge AI": (b"/edge/manifest.json ", b'"sha256:', b'"sha257:'),
}


class Liar(Faulty):
    """A proxy that puts lies of the same length into what it passes on."""

    def __init__(self, server, *lies: tuple[bytes, bytes, bytes]) -> None:
        self.lies = lies
        super().__init__(server)

    def passed_on(self, request: bytes) -> bytes:
        answer = super().passed_on(request)
        for path, truth, lie in self.lies:
            if path in request.partition(b"\r\n")[0]:
                answer = answer.replace(truth, lie)
        return answer


def tour(url: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([ROOT / "bin/tour", url, *words], capture_output=True, text=True)


def wrong(told: subprocess.CompletedProcess) -> dict[str, str]:
    """Which patterns are, and why, after a tour that went on to its end."""
    assert told.returncode == 1 and f"\n{len(NAMES)}/{len(NAMES)} " in told.stdout and "Traceback" not in told.stderr, told
    found = dict(re.findall(r"^iris_wsgi: (.*?) is wrong: (.*)$", told.stderr, re.MULTILINE))
    assert len(found) == len(told.stderr.splitlines())
    return found


@pytest.mark.long
def test_every_pattern_of_the_readme_is_shown_and_right(run, tmp_path):
    bundle = build_bundle(tmp_path / "bundle", MODEL)
    told = tour(run("--edge-dir", str(bundle)).url)
    assert (told.returncode, told.stderr) == (0, "")
    assert re.findall(r"^(\d+)/10 (.*)$", told.stdout, re.MULTILINE) == [(str(i), name) for i, name in enumerate(NAMES, 1)]
    assert told.stdout.count("\nright\n") == told.stdout.count("\nUse it when ") == 10 and "\x1b" not in told.stdout
    assert "fwd=uri-miss" in told.stdout and "; hit" in told.stdout and "Location: /jobs/" in told.stdout
    # Behind them are two rows of what is no pattern by itself.
    assert [row.pattern for row in ROWS[:-2]] == NAMES


def test_each_lie_of_a_server_is_told_by_the_pattern_that_it_concerns(run, tmp_path):
    server = run("--edge-dir", str(build_bundle(tmp_path / "bundle", MODEL)))
    with Liar(server, *LIES.values()) as liar:
        found = wrong(tour(liar.url))
    assert list(found) == list(LIES)
    assert found["web single"] == "the label is 'satyrs', expected 'setosa'"
    assert found["asynchronous"] == "the status of the job is 'abandoned', expected 'succeeded'"
    assert "expected [0.99" in found["synchronous"]


def test_answers_are_held_to_the_golden_rows_that_are_here(run, model_copy):
    golden = model_copy / "golden.json"
    swapped = {"setosa": "virginica", "virginica": "setosa"}
    labels = re.compile(r'"label": "(setosa|virginica)"')
    golden.write_text(labels.sub(lambda found: f'"label": "{swapped[found[1]]}"', golden.read_text()))
    assert [*wrong(tour(run().url, "--model-dir", str(model_copy)))] == NAMES


@pytest.mark.long
def test_a_server_of_another_model_is_wrong_where_that_matters(run):
    found = wrong(tour(run("--model-dir", str(MODEL / "fast")).url))
    assert found.keys() == set(NAMES) - {"batch"}
    assert "of the pair none" in found["prep-pred"] and "404" in found["horizontal microservice"]


def test_where_there_is_no_server_one_line_says_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    told = tour(url)
    assert told.returncode == 1
    assert told.stderr == (
        f"iris_wsgi: no server answers at {url}: Connection refused; start one with bin/serve in another terminal, "
        "or name its URL\n"
    )


def test_it_shows_the_token_of_the_settings_to_the_server_and_to_nobody_else(run, tmp_path, monkeypatch):
    path = tmp_path / "tokens"
    path.write_text("first-one-of-the-file\nsecond-one-of-the-file\n")
    monkeypatch.setenv("IRIS_TOKEN_FILE", str(path))
    told = tour(run().url)
    assert (told.returncode, told.stderr) == (0, "")
    assert "Bearer …" in told.stdout and "first-one" not in told.stdout
    monkeypatch.setenv("IRIS_TOKEN_FILE", str(tmp_path / "none"))
    assert "IRIS_TOKEN_FILE" in tour("http://127.0.0.1:1").stderr


def test_in_a_terminal_it_is_coloured(run):
    # script(1) gives its command a terminal.
    line = f"{ROOT / 'bin/tour'} http://127.0.0.1:1"
    shown = subprocess.run([shutil.which("script"), "-qec", line, "/dev/null"], capture_output=True, text=True).stdout
    assert "\x1b[1mThe server at http://127.0.0.1:1:\x1b[0m" in shown
