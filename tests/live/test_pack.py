"""bin/pack as a command: from a fitted estimator to the response of a server, and the report without outside results."""

import importlib
import json
import re
import subprocess
import sys

import pytest
from doc_examples import FENCES
from http_clients import fetch, http_request
from optional_programs import require_package
from project import ROOT
from small_models import LEVELS, graph_of, inputs, logistic, write_csv, write_graph

ROWS = inputs(40, seed=1)


def pack(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "iris_wsgi", "pack", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.long
def test_a_saved_estimator_is_served_with_its_own_labels(tmp_path, run):
    estimator = logistic(LEVELS)
    importlib.import_module("joblib").dump(estimator, tmp_path / "levels.joblib")
    csv = write_csv(tmp_path / "rows.csv", ROWS)
    packed = pack(tmp_path / "levels.joblib", "--rows", csv, "--out", tmp_path / "out")
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout.splitlines()[-1] == f"serve the model: bin/serve --model-dir {tmp_path / 'out'}"
    server = run("--model-dir", str(tmp_path / "out"), "--role", "web_single")
    response = fetch(server, http_request("POST", "/predict/batch", {"data": ROWS.tolist()})).json()
    assert response["labels"] == estimator.predict(ROWS).tolist()
    assert abs(response["probabilities"] - estimator.predict_proba(ROWS)).max() < 1e-5


@pytest.mark.long
def test_a_graph_alone_is_packed_with_a_notice(tmp_path):
    path = write_graph(tmp_path, graph_of(logistic()))
    packed = pack(path, "--out", tmp_path)
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout.splitlines()[-1].startswith("no outside result was compared: ")
    assert json.loads((tmp_path / "golden.json").read_text())["proof"] == "self"


@pytest.mark.long
def test_the_two_commands_of_the_readme_pack_and_serve_a_model(tmp_path, run):
    (fence,) = [fence for fence in FENCES if fence.document.name == "README.md" and "bin/pack " in fence.text]
    packs, serves = (line.split() for line in fence.text.splitlines())
    assert (packs[0], serves[0]) == ("bin/pack", "bin/serve")
    estimator = logistic(LEVELS)
    importlib.import_module("joblib").dump(estimator, tmp_path / packs[1])
    write_csv(tmp_path / packs[packs.index("--rows") + 1], ROWS)
    command = [sys.executable, "-m", "iris_wsgi", "pack", *packs[1:]]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, timeout=120)
    server = run(*serves[1:], cwd=tmp_path)
    response = fetch(server, http_request("POST", "/predict/batch", {"data": ROWS.tolist()})).json()
    assert response["labels"] == estimator.predict(ROWS).tolist()


@pytest.mark.long
def test_the_block_of_the_document_packs_a_model_and_gets_the_shown_prediction(tmp_path, run):
    require_package("pandas")
    (fence,) = [fence for fence in FENCES if fence.language == "sh" and "iris_wsgi.pack" in fence.text]
    assert len(re.sub("<<'END'.*^END$", "", fence.text, flags=re.MULTILINE | re.DOTALL).splitlines()) <= 5
    script = re.search("<<'END'\n(.*?)^END$", fence.text, re.MULTILINE | re.DOTALL)[1]
    packed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert packed.returncode == 0, packed.stderr
    assert "labels equal" in packed.stdout
    server = run("--model-dir", str(tmp_path / "wine"))
    body = json.loads(re.search("-d '(.*)'", fence.text)[1])
    assert fetch(server, http_request("POST", "/predict/label", body)).json() == json.loads(fence.output)
