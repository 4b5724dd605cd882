"""The lines of the start: the proof of the golden rows, and a command with a sample row of any type."""

import json
import shlex

import pytest

from iris_wsgi.codec.model_schema import CLASSIFIER, REGRESSOR
from iris_wsgi.model.artifact import PROOF_TEXTS, PROOFS, ModelDescription
from iris_wsgi.model.golden import proof_of
from iris_wsgi.model.session import RUNTIME_VERSION
from iris_wsgi.server.serve import ReadyInfo, start_lines
from iris_wsgi.settings import Settings

MIXED_ROW = [31.5, None, 'l\'été "<b>" $HOME', True]


def lines_of(row: list, kind: str = CLASSIFIER, **settings) -> list[str]:
    info = ReadyInfo("127.0.0.1", 8000, "my model 1 sha256:0", "5 golden rows answered", "nothing was compared", kind, row)
    return [*start_lines(Settings(**settings), info)]


@pytest.mark.parametrize(
    ("settings", "is_shown"),
    [
        ({"role": "all"}, True),
        ({"role": "worker"}, True),
        ({"role": "worker", "redis_url": "redis://h"}, False),
        ({"role": "all", "redis_url": "redis://h"}, True),
        ({"role": "data_cache"}, True),
        ({"role": "data_cache", "database_url": "postgresql://h/d"}, False),
        ({"role": "web_single"}, False),
        ({"role": "prediction_cache"}, False),
    ],
)
def test_the_state_folder_has_a_line_only_if_the_role_has_an_embedded_store(settings, is_shown, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = lines_of([1.0], model_dir="a", state_dir="b", **settings)
    assert f"model folder: {tmp_path}/a" in lines
    assert (f"state folder: {tmp_path}/b" in lines) is is_shown


def test_the_proof_has_a_line():
    assert "proof: nothing was compared" in lines_of([1.0])


@pytest.mark.parametrize(("role", "path", "member"), [("all", "/predict/label", "data"), ("asynchronous", "/jobs", "data"),
                                                      ("synchronous", "/v1/models/my%20model:predict", "instances")])  # fmt: skip
def test_the_command_sends_null_strings_and_booleans_as_json(role, path, member):
    words = shlex.split(lines_of(MIXED_ROW, role=role)[-1].removeprefix("try: "))
    assert words[:3] == ["curl", "-s", f"http://127.0.0.1:8000{path}"]
    assert json.loads(words[-1]) == {member: [MIXED_ROW]}


def test_the_command_for_a_regressor_asks_for_values():
    assert " http://127.0.0.1:8000/predict -H " in lines_of([1.0], REGRESSOR)[-1]


@pytest.mark.parametrize(("role", "path"), [("all", "/predict/test"), ("synchronous", "/openapi.json")])
def test_a_row_of_many_values_is_not_printed(role, path):
    assert lines_of([0.5] * 5000, role=role)[-1] == f"try: curl -s http://127.0.0.1:8000{path}"


@pytest.mark.parametrize("proof", PROOFS)
def test_the_proof_names_what_was_compared_and_both_runtimes(proof):
    text = proof_of(ModelDescription(proof=proof, runtime="onnxruntime 1.23.0"))
    assert text == f"{PROOF_TEXTS[proof]}; packed with onnxruntime 1.23.0, answered by onnxruntime {RUNTIME_VERSION}"
    assert "packed" not in proof_of(ModelDescription(proof=proof)).partition(";")[2]
    assert ("nothing outside of the graph was compared" in text) == (proof == "self")
