"""The download of a model: the complete files with the expected digest, or nothing."""

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from project import MODEL

from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel
from iris_wsgi.model.download import download
from iris_wsgi.model.session import load_model

FAST = MODEL / "fast"


def seal_of(folder: Path) -> str:
    return f"sha256:{hashlib.sha256((folder / 'golden.json').read_bytes()).hexdigest()}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Web server for tmp_path/served, which a test may fill."""
    (tmp_path / "served").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def serve(tmp_path: Path) -> None:
    for path in FAST.iterdir():
        (tmp_path / "served" / path.name).write_bytes(path.read_bytes())


def test_a_folder_is_copied_and_can_be_served_under_its_digest(tmp_path, capsys):
    into = tmp_path / "a/b"
    assert main(["load", str(FAST), str(into), "--seal", seal_of(FAST)]) == 0
    assert capsys.readouterr().out == f"took iris_lr.onnx from {FAST}, sealed with {seal_of(FAST)}\n"
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {p.name: p.read_bytes() for p in FAST.iterdir()}
    assert load_model(into, seal_of(FAST))[0].name == "iris_lr"


def test_files_that_are_links_as_in_a_mounted_config_map_are_read(tmp_path):
    (tmp_path / "mounted").mkdir()
    for path in FAST.iterdir():
        (tmp_path / "mounted" / path.name).symlink_to(path)
    download(str(tmp_path / "mounted"), tmp_path / "into", seal_of(FAST))
    assert not any(path.is_symlink() for path in (tmp_path / "into").iterdir())


def test_a_folder_on_a_web_server_is_downloaded(web, tmp_path):
    serve(tmp_path)
    download(f"{web}/", tmp_path / "into", seal_of(FAST))
    assert load_model(tmp_path / "into")[0].name == "iris_lr"


def test_loading_again_replaces_the_earlier_model(tmp_path):
    download(str(MODEL), tmp_path, seal_of(MODEL))
    download(str(FAST), tmp_path, seal_of(FAST))
    assert load_model(tmp_path, seal_of(FAST))[0].name == "iris_lr"


def damage_files(folder: Path) -> None:
    content = bytearray((folder / "iris_lr.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "iris_lr.onnx").write_bytes(content)


def with_other_labels(folder: Path) -> None:
    """Changes the order of the labels and updates golden.json, so that only the digest differs."""
    (folder / "label.json").write_text('{"0":"virginica","1":"versicolor","2":"setosa"}')
    document = json.loads((folder / "golden.json").read_text())
    document["files"]["label.json"] = hashlib.sha256((folder / "label.json").read_bytes()).hexdigest()
    (folder / "golden.json").write_text(json.dumps(document))


def with_a_file_outside(folder: Path) -> None:
    document = json.loads((folder / "golden.json").read_text())
    document["files"]["../outside"] = "0" * 64
    (folder / "golden.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damage_files, "iris_lr.onnx has the SHA-256"),
        (with_other_labels, "is sealed with sha256:"),
        (lambda folder: (folder / "label.json").unlink(), "label.json cannot be"),
        (lambda folder: (folder / "golden.json").unlink(), "golden.json cannot be"),
        (lambda folder: (folder / "golden.json").write_text("{"), "JSON object"),
    ],
)
@pytest.mark.parametrize("over_http", [False, True])
def test_files_that_do_not_match_the_digest_leave_no_model(web, tmp_path, spoil, words, over_http):
    serve(tmp_path)
    spoil(tmp_path / "served")
    into = tmp_path / "into"
    download(str(MODEL), into, seal_of(MODEL))
    with pytest.raises(BadModel, match=words) as caught:
        download(web if over_http else str(tmp_path / "served"), into, seal_of(FAST))
    assert "\n" not in str(caught.value)
    assert not (into / "golden.json").exists()


def test_a_name_outside_the_folder_is_never_downloaded_or_written(tmp_path):
    (tmp_path / "served").mkdir()
    serve(tmp_path)
    with_a_file_outside(tmp_path / "served")
    with pytest.raises(BadModel, match="outside its own folder"):
        download(str(tmp_path / "served"), tmp_path / "into", seal_of(tmp_path / "served"))
    assert not (tmp_path / "outside").exists()


def test_the_model_of_the_image_replaces_it_only_with_or_baked(tmp_path, capsys):
    into = tmp_path / "into"
    arguments = ["load", str(tmp_path / "nothing"), str(into), "--seal", seal_of(FAST)]
    assert main(arguments) == 1
    assert "cannot be read: No such file or directory" in capsys.readouterr().err
    assert not into.exists()


def test_the_model_of_the_image_is_used_and_the_reason_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IRIS_MODEL_DIR", str(MODEL))
    into = tmp_path / "into"
    assert main(["load", str(tmp_path / "nothing"), str(into), "--seal", seal_of(FAST), "--or-baked"]) == 0
    result = capsys.readouterr().out
    assert result.startswith(f"took the model of {MODEL}, sealed with {seal_of(MODEL)}, because ") and "cannot be read" in result
    assert load_model(into)[0].name == "iris_svc"


def test_its_messages_are_json_lines_if_the_log_format_is_json(tmp_path, capsys):
    rest = [str(tmp_path / "into"), "--seal", seal_of(FAST), "--log-format", "json"]
    assert main(["load", str(FAST), *rest]) == 0 and main(["load", str(tmp_path / "nothing"), *rest]) == 1
    took, failed = (json.loads(text) for text in capsys.readouterr())
    assert took["level"] == "info" and took["message"].startswith("took iris_lr.onnx from ")
    assert failed["level"] == "error" and "cannot be read: No such file or directory" in failed["message"]


@pytest.mark.parametrize("seal", ["", "sha256:", "sha256:" + "G" * 64, "0" * 64, "md5:" + "0" * 32])
def test_an_invalid_digest_is_an_invalid_setting(tmp_path, capsys, seal):
    assert main(["load", str(FAST), str(tmp_path / "into"), "--seal", seal]) != 0
    assert "--seal=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://[", "http://127.0.0.1:99999999", "http://host.invalid", "http://a b"]
)
def test_an_address_without_a_model_is_reported_in_one_line(tmp_path, url):
    with pytest.raises(BadModel, match="cannot be fetched: ") as caught:
        download(url, tmp_path / "into", seal_of(FAST))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_missing_file_is_reported_with_the_status_of_the_server(web, tmp_path):
    with pytest.raises(BadModel, match="the server answered 404"):
        download(web, tmp_path / "into", seal_of(FAST))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadModel, match="cannot be written"):
        download(str(FAST), tmp_path / "file", seal_of(FAST))
    (tmp_path / "into/iris_lr.onnx").mkdir(parents=True)
    with pytest.raises(BadModel, match="cannot be written"):
        download(str(FAST), tmp_path / "into", seal_of(FAST))
    assert not (tmp_path / "into/golden.json").exists()


@pytest.mark.parametrize("name", ["golden.json", "iris_lr.onnx"])
def test_the_target_of_a_link_is_written_and_a_fifo_is_not(tmp_path, name):
    into, real = tmp_path / "into", tmp_path / "real"
    into.mkdir()
    real.write_text("before")
    (into / name).symlink_to(real)
    download(str(FAST), into, seal_of(FAST))
    assert (into / name).is_symlink() and real.read_bytes() == (FAST / name).read_bytes()
    assert load_model(into)[0].name == "iris_lr"
    (into / name).unlink()
    os.mkfifo(into / name)
    with pytest.raises(BadModel, match=f"{name} cannot be written: it is a FIFO, not a regular file"):
        download(str(FAST), into, seal_of(FAST))
    with pytest.raises(BadModel):
        download(str(FAST), into, seal_of(MODEL))
    assert (into / name).is_fifo()


def test_serving_under_another_digest_is_refused(capsys):
    assert main(["verify", "--model-dir", str(MODEL), "--model-seal", seal_of(FAST)]) == 1
    assert f"{MODEL} is sealed with {seal_of(MODEL)}, expected is {seal_of(FAST)}" in capsys.readouterr().err
    assert main(["verify", "--model-dir", str(MODEL), "--model-seal", seal_of(MODEL)]) == 0
    assert f"seal: {seal_of(MODEL)}\n" in capsys.readouterr().out
