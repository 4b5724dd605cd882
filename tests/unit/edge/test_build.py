"""The build of the edge bundle: its manifest, the files from the npm registry, and the single-file program."""

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import onnx
import pytest
from edge_bundles import RUNTIME, build_bundle
from project import MODEL, ROOT

import iris_wsgi
from iris_wsgi.errors import BadModel
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.edge.bundle import parse_manifest

sys.path.insert(0, str(ROOT / "bin/edge.d"))
import bundle
import npm
import opsets
import pyz

BUILD = ROOT / "bin/edge.d"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The bundle


def test_the_manifest_describes_every_file(tmp_path):
    files = tree(build_bundle(tmp_path / "edge", MODEL))
    document = json.loads(files.pop("manifest.json"))
    plain = {path: content for path, content in files.items() if not path.endswith(".gz")}
    assert document["files"] == {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for path, content in plain.items()
    }
    lines = sorted(f"{file['sha256']}  {path}\n" for path, file in document["files"].items())
    mark = hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
    assert document["bundle"] == f"{iris_wsgi.__version__}-{mark}"
    assert {"model/golden.json", "model/label.json", "model/iris_svc.onnx", "index.html", *RUNTIME.files} <= set(plain)
    model, _ = load_model(MODEL)
    result = document["model"]
    assert (result["name"], result["version"], result["digest"]) == (model.name, model.version, model.digest)
    assert result["file"] in plain and result["labels"] == list(model.labels)
    assert [feature["name"] for feature in result["features"]] == [feature.name for feature in model.features]
    assert document["minimum"]["onnxruntime-web"] == RUNTIME.version


def test_the_minimum_onnxruntime_is_that_of_the_package():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"onnxruntime>={bundle.MIN_ONNXRUNTIME}," in setup["options"]["install_requires"]
    expected = re.search(r"pip install '(\S+)' '(\S+)'", (BUILD / "zipapp_main.py").read_text()).groups()
    assert set(expected) <= set(setup["options"]["install_requires"].split())


@pytest.mark.parametrize("path", sorted(MODEL.rglob("*.onnx")), ids=lambda path: path.name)
def test_the_operator_sets_are_those_that_onnx_reads(path):
    result = {item.domain or "ai.onnx": item.version for item in onnx.load(path).opset_import}
    assert opsets.opsets(path.read_bytes()) == result


def test_the_same_model_gives_the_same_bytes_whatever_was_there(tmp_path):
    first = tree(build_bundle(tmp_path / "edge", MODEL))
    assert tree(build_bundle(tmp_path / "edge", MODEL)) == first
    other = tree(build_bundle(tmp_path / "edge", MODEL / "fast"))
    assert "model/iris_svc.onnx" not in other and other["manifest.json"] != first["manifest.json"]
    assert tree(build_bundle(tmp_path / "other", MODEL)) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edge", "other"]


@pytest.mark.long
def test_the_target_of_a_link_is_replaced_and_a_fifo_is_not(tmp_path):
    (tmp_path / "edge").symlink_to("real")
    first = tree(build_bundle(tmp_path / "real", MODEL))
    other = tree(build_bundle(tmp_path / "edge", MODEL / "fast"))
    assert (tmp_path / "edge").is_symlink() and tree(tmp_path / "real") == other != first
    (tmp_path / "one.pyz").symlink_to("real.pyz")
    pyz.write(tmp_path / "one.pyz", MODEL, BUILD / "zipapp_main.py")
    assert (tmp_path / "one.pyz").is_symlink() and (tmp_path / "real.pyz").is_file()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        pyz.write(tmp_path / "fifo", MODEL, BUILD / "zipapp_main.py")
    assert (tmp_path / "fifo").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edge", "fifo", "one.pyz", "real", "real.pyz"]


def test_the_compressed_copy_of_a_file_is_that_file(tmp_path):
    files = tree(build_bundle(tmp_path / "edge", MODEL))
    packed = {path: content for path, content in files.items() if path.endswith(".gz")}
    assert {"ort/ort.wasm.gz", "model/golden.json.gz", "manifest.json.gz"} <= set(packed) and "model/label.json.gz" not in packed
    for path, content in packed.items():
        assert gzip.decompress(content) == files[path.removesuffix(".gz")]
        # The compressed copy does not depend on the time.
        assert content[4:8] == bytes(4) and len(content) < len(files[path.removesuffix(".gz")])


def test_all_users_may_read_the_bundle(tmp_path):
    folder = build_bundle(tmp_path / "edge", MODEL)
    assert {path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]} == {0o755, 0o644}


def test_only_the_sources_for_browsers_are_in_the_bundle(tmp_path):
    (tmp_path / "sources").mkdir()
    for name in ("index.html", "edge.js", "edge.css", "package.json", "package-lock.json", "bundle.py"):
        (tmp_path / "sources" / name).write_text(name)
    bundle.write(tmp_path / "edge", MODEL, tmp_path / "sources", RUNTIME)
    top = {path.name for path in (tmp_path / "edge").iterdir() if path.is_file()}
    assert {name for name in top if not name.endswith(".gz")} == {"index.html", "edge.js", "edge.css", "manifest.json"}


def with_wrong_answers(folder: Path) -> None:
    text = (folder / "golden.json").read_text()
    (folder / "golden.json").write_text(text.replace('"label": "setosa"', '"label": "virginica"', 1))


def damage_model(folder: Path) -> None:
    (folder / "iris_svc.onnx").write_bytes((folder / "iris_svc.onnx").read_bytes()[:-1] + b"\0")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (with_wrong_answers, "golden row 0 has the label setosa"),
        (damage_model, "has the SHA-256"),
    ],
)
def test_an_unsuitable_model_is_not_included_and_the_old_bundle_stays(tmp_path, model_copy, spoil, words):
    before = tree(build_bundle(tmp_path / "edge", MODEL))
    spoil(model_copy)
    with pytest.raises(BadModel, match=words):
        build_bundle(tmp_path / "edge", model_copy)
    shutil.rmtree(tmp_path / "edge-sources")
    assert tree(tmp_path / "edge") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edge", "model"]


def test_a_folder_that_is_not_a_bundle_is_not_changed(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one").write_text("dear")
    with pytest.raises(BadModel, match="exists and is not a bundle"):
        build_bundle(tmp_path / "letters", MODEL)
    assert tree(tmp_path / "letters") == {"one": b"dear"}


def test_a_device_can_read_a_new_bundle(tmp_path):
    content = (build_bundle(tmp_path / "edge", MODEL) / "manifest.json").read_bytes()
    manifest = parse_manifest(content, "here")
    assert manifest.model_files and manifest.minimum["onnxruntime"] == bundle.MIN_ONNXRUNTIME


# The registry


class Registry(http.server.SimpleHTTPRequestHandler):
    def __init__(self, requests, *arguments, **options) -> None:
        self.asked = requests
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry(tmp_path):
    """Lockfile, the requests to its registry, and the archive there."""
    (tmp_path / "npm").mkdir()
    archive, requests = tmp_path / "npm/onnxruntime-web-1.30.0.tgz", []
    with tarfile.open(archive, "w:gz") as file:
        for name in (*bundle.RUNTIME, "package/dist/ort.js", "package/../../outside"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            file.addfile(info, io.BytesIO(name.encode()))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Registry, requests, directory=str(archive.parent)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    locked = {
        "version": "1.30.0",
        "resolved": f"http://127.0.0.1:{server.server_port}/{archive.name}",
        "integrity": f"sha512-{base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()}",
    }
    lockfile = tmp_path / "package-lock.json"
    lockfile.write_text(json.dumps({"packages": {"": {}, "node_modules/onnxruntime-web": locked}}))
    yield lockfile, requests, archive
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_of_the_locked_package_are_downloaded_once(registry, tmp_path):
    lockfile, requests, _ = registry
    package_files = npm.get_files(lockfile, tmp_path / "cache", bundle.RUNTIME)
    assert package_files == ("1.30.0", {target: source.encode() for source, target in bundle.RUNTIME.items()})
    assert npm.get_files(lockfile, tmp_path / "cache", bundle.RUNTIME) == package_files
    assert requests == ["/onnxruntime-web-1.30.0.tgz"]
    # The cached archive is verified like a downloaded one.
    (environment_kept,) = (tmp_path / "cache").iterdir()
    environment_kept.write_bytes(environment_kept.read_bytes()[:-1])
    assert npm.get_files(lockfile, tmp_path / "cache", bundle.RUNTIME) == package_files and len(requests) == 2


def test_another_archive_than_the_locked_one_is_refused(registry, tmp_path):
    lockfile, _, archive = registry
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(npm.DownloadError, match="the lockfile has sha512-"):
        npm.get_files(lockfile, tmp_path / "cache", bundle.RUNTIME)
    assert not (tmp_path / "cache").exists()
    archive.unlink()
    with pytest.raises(npm.DownloadError, match="cannot be fetched: "):
        npm.get_files(lockfile, tmp_path / "cache", bundle.RUNTIME)


def test_a_package_without_the_required_files_is_refused(registry, tmp_path):
    with pytest.raises(npm.DownloadError, match="has no file for ort/gone.wasm"):
        npm.get_files(registry[0], tmp_path / "cache", bundle.RUNTIME | {"package/dist/gone.wasm": "ort/gone.wasm"})


# The single-file program


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("single") / "iris-edge.pyz"
    pyz.write(out, MODEL, BUILD / "zipapp_main.py")
    return out


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> Path:
    """Python packages of a device: onnxruntime and numpy with their requirements, without this package."""
    folder = tmp_path_factory.mktemp("device")
    import numpy
    import onnxruntime

    for module in (numpy, onnxruntime):
        for path in Path(module.__file__).parent.parent.glob(f"{module.__name__}*"):
            (folder / path.name).symlink_to(path)
    return folder


def run(single: Path, device: Path, *arguments: str, text: str = "", **environ: str) -> subprocess.CompletedProcess:
    """Runs the program without the packages of this Python."""
    environment_kept = {name: value for name, value in os.environ.items() if not name.startswith(("IRIS_", "PYTHON", "COVERAGE"))}
    environment = environment_kept | {"PYTHONPATH": str(device), **environ}
    command = [sys.executable, "-S", str(single), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, cwd=single.parent)


@pytest.mark.long
def test_the_single_file_predicts_without_this_package(single, device):
    gone = run(single, device, "--version")
    assert gone.stdout == f"iris_wsgi {iris_wsgi.__version__}\n"
    probe = subprocess.run([sys.executable, "-S", "-c", "import iris_wsgi"], capture_output=True, cwd=single.parent)
    assert probe.returncode != 0
    result = run(single, device, "predict", "6.7", "3.1", "4.7", "1.5")
    assert (result.returncode, result.stderr, result.stdout.splitlines()[0]) == (0, "", "versicolor")
    result = run(single, device, "stream", text="5.1,3.5,1.4,0.2\n7.2,3.6,6.1,x\n")
    assert (result.returncode, result.stdout.splitlines()[1].partition(",")[0]) == (3, "setosa")
    assert result.stderr == "iris_wsgi: line 2: column 4 is not a number\n"


@pytest.mark.long
def test_the_single_file_updates_and_rolls_back(single, device, tmp_path):
    where = ("--device", str(tmp_path / "device"))

    def name() -> str:
        process = run(single, device, "predict", "--json", *where, "5.1", "3.5", "1.4", "0.2")
        return json.loads(process.stdout)["model"]["name"]

    assert name() == "iris_svc"
    for folder in (MODEL, MODEL / "fast"):
        result = run(single, device, "update", *where, str(build_bundle(tmp_path / "edge", folder)))
        assert (result.returncode, result.stderr) == (0, "")
    assert name() == "iris_lr"
    assert run(single, device, "rollback", *where).returncode == 0 and name() == "iris_svc"
    assert "self-test: 34 golden rows answered" in run(single, device, "status", *where).stdout


def test_a_device_without_onnxruntime_gets_the_message_in_one_line(single, device, tmp_path):
    for missing, words in (("onnxruntime", "No module named 'onnxruntime'"), ("numpy", "No module named 'numpy'")):
        (tmp_path / missing).mkdir()
        for path in device.iterdir():
            if not path.name.startswith(missing):
                (tmp_path / missing / path.name).symlink_to(path)
        result = run(single, tmp_path / missing, "predict", "1", "2", "3", "4")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"iris-edge: {words}: pip install 'onnxruntime>=1.23,!=1.26.0,!=1.27.0' 'numpy>=2.0'\n"
    old = tmp_path / "old"
    (old / "numpy").mkdir(parents=True)
    (old / "numpy/__init__.py").write_text('__version__ = "1.26.4"\n')
    result = run(single, old, "predict", "1", "2", "3", "4")
    assert result.returncode == 1 and result.stderr.startswith(
        "iris-edge: numpy 2 or later is required, this is 1.26.4: pip install"
    )


def test_the_single_file_is_reproducible_and_has_no_server_in_it(single, tmp_path):
    size = pyz.write(tmp_path / "again.pyz", MODEL, BUILD / "zipapp_main.py")
    assert (tmp_path / "again.pyz").read_bytes() == single.read_bytes() and "34 golden rows answered" in size
    names = set(pyz.zipfile.ZipFile(single).namelist())
    assert {
        "__main__.py",
        "iris_wsgi/patterns/edge/update.py",
        "model/golden.json",
        "model/iris_svc.onnx",
        "model/label.json",
    } <= names
    assert (
        not {
            "iris_wsgi/server/event_loop.py",
            "iris_wsgi/wsgi/application.py",
            "iris_wsgi/server/serve.py",
            "iris_wsgi/patterns/batch/file_run.py",
        }
        & names
    )
    assert single.stat().st_size < 270_000
    assert single.stat().st_mode & 0o111 and single.read_bytes().startswith(b"#!/usr/bin/env python3\n")


@pytest.mark.long
def test_the_scripts_write_the_requested_files(tmp_path):
    environment = os.environ | {"IRIS_MODEL_DIR": str(MODEL / "fast")}
    command = [ROOT / "bin/edge", "pyz", "--out", str(tmp_path / "here/fast.pyz")]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert text.startswith(f"{tmp_path}/here/fast.pyz: ") and "iris_lr 1.0.0" in text
    command = [ROOT / "bin/edge", "pyz", "--out", str(tmp_path / "here"), "--model-dir", str(tmp_path)]
    text = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert text.returncode == 1 and text.stderr.startswith(f"bin/edge: {tmp_path}/golden.json cannot be read")
