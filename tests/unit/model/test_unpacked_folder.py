"""A folder with a model and without golden.json: the message names the command that packs it."""

import subprocess
import sys
from pathlib import Path

import pytest
from applications import RecordingLog
from server_process import error_of

from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel
from iris_wsgi.factory import build
from iris_wsgi.settings import Settings


@pytest.mark.parametrize("name", ["churn.onnx", "churn.joblib", "churn.pkl"])
def test_every_way_to_load_the_folder_names_the_command_that_is_missing(tmp_path: Path, capsys, name):
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(BadModel) as refused:
        build(Settings(model_dir=str(tmp_path), state_dir=str(tmp_path / "state")), RecordingLog())
    assert str(refused.value).endswith(f": bin/pack {tmp_path}/{name} --rows rows.csv --out {tmp_path}")
    assert main(["verify", "--model-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"iris_wsgi: {refused.value}\n"


@pytest.mark.parametrize("words", [["serve", "--port", "0"], ["batch", "-", "-", "--in-format", "csv", "--quiet"]])
def test_the_commands_print_it_in_one_line(tmp_path: Path, words):
    (tmp_path / "churn.onnx").write_bytes(b"any")
    command = [sys.executable, "-m", "iris_wsgi", *words, "--model-dir", str(tmp_path)]
    done = subprocess.run(command, input="a\n1\n", capture_output=True, text=True)
    expected = f"{tmp_path}/golden.json cannot be read: No such file or directory; churn.onnx is not packed yet,"
    expected += f" so write golden.json with rows of your data: bin/pack {tmp_path}/churn.onnx --rows rows.csv --out {tmp_path}"
    # A server writes a line of its log.
    found = error_of(done.stderr) if words[0] == "serve" else done.stderr.removeprefix("iris_wsgi: ").removesuffix("\n")
    assert (done.returncode, done.stdout, found) == (1, "", expected)


def test_the_graph_comes_before_a_pickle_and_the_path_is_quoted(tmp_path: Path):
    folder = tmp_path / "my model"
    folder.mkdir()
    for name in ("a.joblib", "b.onnx"):
        (folder / name).write_bytes(b"any")
    with pytest.raises(BadModel, match=f"bin/pack '{folder}/b.onnx' --rows rows.csv --out '{folder}'"):
        build(Settings(model_dir=str(folder), state_dir=str(tmp_path / "state")), RecordingLog())


def test_an_empty_folder_and_a_missing_one_are_named_as_before(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadModel, match="golden.json cannot be read: .*; IRIS_MODEL_DIR names the folder of a model"):
            build(Settings(model_dir=str(folder), state_dir=str(tmp_path / "state")), RecordingLog())
