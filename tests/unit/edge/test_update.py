"""Updates of the bundle on a device: complete, verified, and tested, or not applied."""

import http.server
import json
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from edge_bundles import build_bundle, change_manifest, refresh_manifest
from project import MODEL, ROOT

from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.edge.bundle import BUNDLE_BYTES, parse_manifest, parse_version
from iris_wsgi.patterns.edge.device_store import DeviceStore

FAST = MODEL / "fast"
ONNX = "model/iris_lr.onnx"
ROW = ["5.1", "3.5", "1.4", "0.2"]


class Web(http.server.SimpleHTTPRequestHandler):
    """Web server for a folder. It records the requests, and a test may replace the handling of a path."""

    def __init__(self, requested, happens, *arguments, **options) -> None:
        self.asked, self.happens = requested, happens
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path in self.happens:
            self.happens[self.path](self)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Unmoved(http.server.ThreadingHTTPServer):
    """Web server that ignores clients which close early."""

    def handle_error(self, *_: object) -> None:
        pass


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.happens = folder, [], {}
        handler = partial(Web, self.asked, self.happens, directory=str(folder))
        self.server = Unmoved(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def end(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def built_bundles(tmp_path_factory) -> dict[str, Path]:
    """Bundles of the main model with two different pages, and of the fast model."""
    folder = tmp_path_factory.mktemp("made")
    return {
        "main": build_bundle(folder / "main", MODEL),
        "page": build_bundle(folder / "page", MODEL, "<!doctype html><title>another</title>"),
        "fast": build_bundle(folder / "fast", FAST),
    }


@pytest.fixture
def device(tmp_path) -> DeviceStore:
    return DeviceStore(tmp_path / "device")


@pytest.fixture
def edge(device, capsys, monkeypatch):
    """Runs a command on the device. Returns its status, its output, and its standard error."""
    monkeypatch.setenv("IRIS_MODEL_DIR", str(MODEL))

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        return main(["edge", command, "--device", str(device.folder), *map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.fixture
def site(tmp_path, built_bundles) -> Iterator[Site]:
    """Web server with the bundle of the fast model, which a test may damage."""
    (tmp_path / "site").mkdir()
    for path in sorted(built_bundles["fast"].rglob("*")):
        target = tmp_path / "site" / path.relative_to(built_bundles["fast"])
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    served = Site(tmp_path / "site")
    yield served
    served.end()


def predicting_model(edge) -> str:
    """Returns the name of the model that predicts a row."""
    status, output, error_output = edge("predict", "--json", *ROW)
    assert status == 0, error_output
    return json.loads(output)["model"]["name"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Successful updates


@pytest.mark.parametrize("over_http", [False, True])
def test_a_bundle_is_downloaded_and_used_from_then_on(edge, device, built_bundles, site, over_http):
    assert predicting_model(edge) == "iris_svc"
    assert edge("status")[1] == "current: none\nprevious: none\n"
    status, output, _ = edge("update", site.url if over_http else built_bundles["fast"])
    bundle = parse_manifest((built_bundles["fast"] / "manifest.json").read_bytes(), "")
    assert status == 0 and output.startswith(
        f"took {bundle.bundle} (iris_lr 1.0.0), 3 of 3 files were new: 31 golden rows answered"
    )
    assert predicting_model(edge) == "iris_lr"
    result = edge("status")[1].splitlines()
    assert result[:2] == [f"current: {bundle.bundle} (iris_lr 1.0.0 {bundle.digest})", "previous: none"]
    assert result[2].startswith("self-test: 31 golden rows answered")
    # A device does not need the page and the browser's runtime.
    assert {name.partition("/")[2] for name in tree(device.bundles)} == {"manifest.json", *bundle.model_files}
    assert set(site.asked) <= {"/manifest.json", *(f"/{path}" for path in bundle.model_files)}


def test_a_request_for_another_model_gets_that_one(edge, built_bundles):
    assert edge("update", built_bundles["fast"])[0] == 0
    assert json.loads(edge("predict", "--json", "--model-dir", MODEL, *ROW)[1])["model"]["name"] == "iris_svc"


def test_only_changed_files_are_downloaded_again(edge, device, built_bundles, site):
    assert edge("update", built_bundles["main"])[0] == 0
    assert edge("update", site.url)[0] == 0
    assert sorted(site.asked) == ["/manifest.json", "/model/golden.json", f"/{ONNX}"]
    status, output, _ = edge("update", built_bundles["page"])
    assert status == 0 and ", 0 of 4 files were new: " in output and predicting_model(edge) == "iris_svc"


def test_a_damaged_local_file_is_downloaded_again(edge, device, built_bundles):
    assert edge("update", built_bundles["main"])[0] == 0
    path = device.current().folder / "model/iris_svc.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    status, _, error_output = edge("predict", *ROW)
    assert status == 1 and "the file was changed or damaged" in error_output and error_output.count("\n") == 1
    status, output, _ = edge("update", built_bundles["main"])
    assert status == 0 and ", 1 of 4 files were new: " in output and predicting_model(edge) == "iris_svc"


def test_a_state_that_is_a_link_stays_a_link(edge, device, built_bundles, tmp_path):
    device.folder.mkdir(parents=True, exist_ok=True)
    (device.folder / "device.json").symlink_to(tmp_path / "state.json")
    assert edge("update", built_bundles["main"])[0] == 0
    assert (device.folder / "device.json").is_symlink() and "current" in (tmp_path / "state.json").read_text()


def test_the_current_bundle_is_not_downloaded_again(edge, device, site):
    assert edge("update", site.url)[0] == 0
    before = tree(device.folder)
    site.asked.clear()
    status, output, _ = edge("update", site.url)
    assert status == 0 and " is here already: 31 golden rows answered" in output
    assert site.asked == ["/manifest.json"] and tree(device.folder) == before


def test_the_previous_bundle_is_kept_and_rollback_switches_between_both(edge, device, built_bundles):
    for name in ("page", "main", "fast"):
        assert edge("update", built_bundles[name])[0] == 0
    assert len(list(device.bundles.iterdir())) == 2
    status, output, _ = edge("rollback")
    assert status == 0 and output.startswith("went back to 0.1.0-") and " (iris_svc 1.0.0): 34 golden rows" in output
    assert predicting_model(edge) == "iris_svc"
    assert edge("rollback")[0] == 0 and predicting_model(edge) == "iris_lr"


def test_a_bundle_that_was_rolled_back_is_installed_again_only_on_request(edge, device, built_bundles):
    for name in ("main", "fast"):
        assert edge("update", built_bundles[name])[0] == 0
    assert edge("rollback")[0] == 0
    before = tree(device.folder)
    status, output, _ = edge("update", built_bundles["fast"])
    assert status == 0 and "is not taken: rollback left it here; --again takes it" in output and tree(device.folder) == before
    assert edge("update", "--again", built_bundles["fast"])[0] == 0 and predicting_model(edge) == "iris_lr"
    # A later update may replace it.
    assert (
        edge("rollback")[0] == 0
        and edge("update", built_bundles["page"])[0] == 0
        and edge("update", built_bundles["fast"])[0] == 0
    )
    assert predicting_model(edge) == "iris_lr"


def test_other_users_can_read_the_files_of_the_device(edge, device, built_bundles):
    assert edge("update", built_bundles["main"])[0] == 0
    assert all(path.stat().st_mode & (0o005 if path.is_dir() else 0o004) for path in device.folder.rglob("*"))


# Failed updates

CONTENT = FAST.joinpath("iris_lr.onnx").read_bytes()


def write(path: str, content: bytes):
    return lambda folder: (folder / path).write_bytes(content)


def remove(path: str):
    return lambda folder: (folder / path).unlink()


def manifest_with(**members):
    """Returns a manifest with changed members."""
    return lambda folder: change_manifest(folder, lambda document: document.update(members))


def file_entry_with(path: str, **members):
    return lambda folder: change_manifest(folder, lambda document: document["files"].setdefault(path, {}).update(members))


def with_extra_file(path: str, sizes: int = 4):
    """Returns a valid manifest with one more file."""

    def spoil(folder: Path) -> None:
        file_entry_with(path, sha256="0" * 64, bytes=sizes)(folder)

    return spoil


def with_other_answers(folder: Path) -> None:
    path = folder / "model/golden.json"
    path.write_text(path.read_text().replace('"label": "setosa"', '"label": "virginica"', 1))
    refresh_manifest(folder)


def with_another_model(folder: Path) -> None:
    """Replaces the model by another one with matching digests. golden.json belongs to the first model."""
    (folder / ONNX).write_bytes((MODEL / "iris_svc.onnx").read_bytes())
    refresh_manifest(folder)


def of_another_digest(folder: Path) -> None:
    change_manifest(folder, lambda document: document["model"].update(digest=f"sha256:{'0' * 64}"))


def without_golden_rows(folder: Path) -> None:
    change_manifest(folder, lambda document: document["files"].pop("model/golden.json"))
    refresh_manifest(folder)


OUTSIDE = "names a file outside of the bundle, or with characters other than"
NOT_FILES = "does not give each file a SHA-256 and a number of bytes"
FORM = "in their right form"
SPOILT = {
    "a tampered model": (write(ONNX, CONTENT[:-1] + b"\0"), rf"{ONNX} has the SHA-256 \w+…, the manifest says \w+…"),
    "a truncated file": (write(ONNX, CONTENT[:-1]), rf"{ONNX} ends after {len(CONTENT) - 1} of {len(CONTENT)} bytes"),
    "a file that is too long": (write(ONNX, CONTENT + b"\0"), rf"{ONNX} is over {len(CONTENT)} bytes"),
    "a missing file": (remove(ONNX), rf"{ONNX} cannot be (read|fetched)"),
    "a missing manifest": (remove("manifest.json"), r"manifest.json cannot be (read|fetched)"),
    "a wrong hash": (file_entry_with(ONNX, sha256="0" * 64), "has another name than its files give it"),
    "a wrong size": (file_entry_with(ONNX, bytes=len(CONTENT) - 1), f"{ONNX} is over {len(CONTENT) - 1} bytes"),
    "golden rows that do not agree": (with_other_answers, "golden row 0 has the label setosa"),
    "another model": (with_another_model, "iris_lr.onnx has the SHA-256"),
    "another digest": (of_another_digest, "holds another model than its manifest says"),
    "no golden rows": (without_golden_rows, "has no model/golden.json"),
    "a newer runtime": (manifest_with(minimum={"onnxruntime": "999.1"}), r"needs onnxruntime 999\.1 or later; this is \d"),
    "a runtime without a version": (manifest_with(minimum={"onnxruntime": "new"}), "needs an invalid version of onnxruntime"),
    "no JSON": (write("manifest.json", b"{"), "does not hold a JSON object"),
    "no manifest": (write("manifest.json", b'{"files": []}'), FORM),
    "an endless manifest": (write("manifest.json", b" " * (2 << 20)), "manifest.json is over 1048576 bytes"),
    "a path to the folder above": (with_extra_file("../outside"), OUTSIDE),
    "a path through the folder above": (with_extra_file("model/../../outside"), OUTSIDE),
    "a path from the root": (with_extra_file("/etc/outside"), OUTSIDE),
    "a path of nothing": (with_extra_file(""), OUTSIDE),
    "a path that ends in a slash": (with_extra_file("model/"), OUTSIDE),
    "a path with two slashes": (with_extra_file("model//outside"), OUTSIDE),
    "a path with a backslash": (with_extra_file("model\\..\\outside"), OUTSIDE),
    "a path with a line end": (with_extra_file("model/outside\n"), OUTSIDE),
    "a path with a drive": (with_extra_file("c:outside"), OUTSIDE),
    "a hidden file": (with_extra_file("model/.outside"), OUTSIDE),
    "the manifest in itself": (with_extra_file("manifest.json"), OUTSIDE),
    "a file in place of a folder": (with_extra_file("model"), "has another name than its files give it"),
    "a huge file": (with_extra_file("model/huge", BUNDLE_BYTES), f"lists more than {BUNDLE_BYTES} bytes"),
    "a file of a size below zero": (with_extra_file("model/huge", -1), NOT_FILES),
    "a file of no size": (file_entry_with(ONNX, bytes="1"), NOT_FILES),
    "a file of true bytes": (file_entry_with(ONNX, bytes=True), NOT_FILES),
    "a hash of another kind": (file_entry_with(ONNX, sha256="0" * 63), NOT_FILES),
    "a hash that is not a string": (file_entry_with(ONNX, sha256=7), NOT_FILES),
    "a bundle that leads elsewhere": (manifest_with(bundle="../0.1.0-000000000000"), "has another name than its files give it"),
    "a bundle without a name": (manifest_with(bundle=7), "in texts of at most 200 characters"),
    "a model of colors": (
        manifest_with(model={"name": "\x1b[31m", "version": "1", "digest": "d"}),
        "in texts of at most 200 characters",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("over_http", [False, True])
def test_an_invalid_bundle_is_reported_in_one_line_and_the_old_one_stays(
    edge, device, built_bundles, site, spoil, words, over_http
):
    assert edge("update", built_bundles["main"])[0] == 0
    before = tree(device.folder.parent / "device")
    spoil(site.folder)
    status, output, error_output = edge("update", site.url if over_http else site.folder)
    assert (status, output, error_output.count("\n")) == (1, "", 1)
    assert error_output.startswith("iris_wsgi: not updated, the current bundle stays: ") and "\x1b" not in error_output
    assert re.search(words, error_output), error_output
    assert tree(device.folder) == before and len(list(device.bundles.iterdir())) == 1
    assert predicting_model(edge) == "iris_svc"
    assert not list(device.folder.parent.rglob("*outside*"))


def test_an_invalid_first_bundle_leaves_the_model_of_the_settings(edge, site):
    write(ONNX, CONTENT[:-1])(site.folder)
    assert edge("update", site.url)[0] == 1
    assert predicting_model(edge) == "iris_svc" and edge("status")[1] == "current: none\nprevious: none\n"


def cut_off(web: Web) -> None:
    """Sends half of the promised bytes."""
    web.send_response(200)
    web.send_header("Content-Length", str(len(CONTENT)))
    web.end_headers()
    web.wfile.write(CONTENT[: len(CONTENT) // 2])


@pytest.mark.parametrize(
    ("path", "happens", "words"),
    [
        (f"/{ONNX}", cut_off, rf"{ONNX} (ends after \d+ of {len(CONTENT)} bytes|cannot be fetched: IncompleteRead$)"),
        (f"/{ONNX}", lambda web: web.send_error(500), f"{ONNX} cannot be fetched: the server answered 500"),
        ("/manifest.json", lambda web: web.send_error(403), "manifest.json cannot be fetched: the server answered 403"),
        (f"/{ONNX}", lambda web: web.wfile.write(b"nonsense\r\n\r\n"), f"{ONNX} cannot be fetched: "),
        (f"/{ONNX}", lambda web: None, f"{ONNX} cannot be fetched: "),
    ],
    ids=["cut off", "500", "403", "nonsense", "nothing"],
)
def test_a_failed_download_leaves_the_old_bundle(edge, device, built_bundles, site, path, happens, words):
    assert edge("update", built_bundles["main"])[0] == 0
    before = tree(device.folder)
    site.happens[path] = happens
    status, _, error_output = edge("update", site.url)
    assert status == 1 and error_output.count("\n") == 1
    assert re.search(words, error_output), error_output
    assert tree(device.folder) == before and predicting_model(edge) == "iris_svc"
    # The update succeeds after the network has recovered.
    site.happens.clear()
    assert edge("update", site.url)[0] == 0 and predicting_model(edge) == "iris_lr"


def test_a_bundle_that_changes_during_the_download_is_not_mixed_with_the_old_one(edge, device, built_bundles, site):
    """The manifest is the old one, and the files are already new."""
    assert edge("update", built_bundles["page"])[0] == 0

    def replaced(web: Web) -> None:
        (site.folder / "model/golden.json").write_bytes((built_bundles["main"] / "model/golden.json").read_bytes())
        site.happens.clear()
        web.do_GET()

    site.happens["/model/golden.json"] = replaced
    status, _, error_output = edge("update", site.url)
    assert status == 1 and "model/golden.json " in error_output and predicting_model(edge) == "iris_svc"


def test_a_full_disk_is_one_line_and_the_old_bundle_stays(edge, device, built_bundles):
    """A limit for the size of files replaces a full disk."""
    assert edge("update", built_bundles["fast"])[0] == 0
    before = tree(device.folder)

    def bound() -> None:
        # Python ignores SIGXFSZ, so that a write raises an error like on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    # Without compiled modules, because Python would write half of them.
    command = [
        sys.executable,
        "-B",
        "-m",
        "iris_wsgi",
        "edge",
        "update",
        "--device",
        str(device.folder),
        str(built_bundles["main"]),
    ]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, env={"IRIS_MODEL_DIR": str(MODEL)})
    assert result.returncode == 1
    assert (
        result.stderr == f"iris_wsgi: not updated, the current bundle stays: {device.folder} cannot be written: File too large\n"
    )
    assert tree(device.folder) == before and predicting_model(edge) == "iris_lr"


def test_a_folder_that_cannot_be_written_is_named(edge, device, built_bundles):
    device.folder.write_text("")
    status, _, error_output = edge("update", built_bundles["main"])
    assert status == 1 and f"{device.folder} cannot be written: " in error_output and error_output.count("\n") == 1


def test_of_two_concurrent_updates_the_second_is_refused_and_the_first_continues(edge, device, built_bundles, site):
    requested, go_on = threading.Event(), threading.Event()

    def held(web: Web) -> None:
        requested.set()
        assert go_on.wait(60)
        site.happens.clear()
        web.do_GET()

    site.happens[f"/{ONNX}"] = held
    command = [sys.executable, "-m", "iris_wsgi", "edge", "update", "--device", str(device.folder), site.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={"IRIS_MODEL_DIR": str(MODEL)}) as first:
        assert requested.wait(60)
        for command in (("update", built_bundles["main"]), ("rollback",)):
            status, _, error_output = edge(*command)
            assert status == 1 and f"{device.folder} is in use by another update or rollback" in error_output
        # The old bundle works during the update.
        assert predicting_model(edge) == "iris_svc"
        go_on.set()
        assert first.communicate(timeout=60)[0].startswith(b"took ")
    assert predicting_model(edge) == "iris_lr"


@pytest.mark.repeats
@pytest.mark.long
def test_an_update_that_is_killed_at_any_step_leaves_a_working_bundle(built_bundles, tmp_path):
    script = ROOT / "tests/support/edge_bundles.py"
    command = [sys.executable, str(script), str(tmp_path), *(str(built_bundles[name]) for name in ("page", "fast", "main"))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    document = json.loads(run.stdout)
    assert document["faults"] == [] and document["status"] == 0, run.stderr
    # Some kills came before the switch and some after it.
    assert document["steps"] > 40 and document["old"] and document["new"]


def test_there_is_no_rollback_without_an_earlier_bundle(edge, built_bundles):
    assert edge("rollback")[::2] == (1, "iris_wsgi: the device has no previous bundle\n")
    assert edge("update", built_bundles["fast"])[0] == 0
    assert edge("rollback")[::2] == (1, "iris_wsgi: the device has no previous bundle\n")
    assert predicting_model(edge) == "iris_lr"


def test_a_rollback_to_a_damaged_bundle_is_refused(edge, device, built_bundles):
    for name in ("main", "fast"):
        assert edge("update", built_bundles[name])[0] == 0
    path = device.bundle(device.state().previous).folder / "model/iris_svc.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    status, _, error_output = edge("rollback")
    assert status == 1 and "the file was changed or damaged" in error_output
    assert predicting_model(edge) == "iris_lr"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"current": "../elsewhere", "previous": null}', '{"current": 7}', '{"next": null}']
)
def test_an_invalid_state_is_reported_and_nothing_is_removed(edge, device, built_bundles, content):
    assert edge("update", built_bundles["main"])[0] == 0
    (device.folder / "device.json").write_text(content)
    for command in (("predict", *ROW), ("update", built_bundles["fast"]), ("status",)):
        status, _, error_output = edge(*command)
        assert status == 1 and "does not name the bundles of this device; remove it to start again" in error_output
    assert len(list(device.bundles.iterdir())) == 1


def test_only_files_of_the_device_are_removed(edge, device, built_bundles):
    (device.bundles / "mine").mkdir(parents=True)
    (device.bundles / "mine/letter").write_text("dear")
    (device.folder / "other").write_text("")
    for name in ("main", "fast", "page"):
        assert edge("update", built_bundles[name])[0] == 0
    assert (device.bundles / "mine/letter").exists() and (device.folder / "other").exists()


# The manifest


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.31.1", (1, 31, 1)),
        ("1.30.0", (1, 30)),
        ("1.32.0.dev20260101", (1, 32)),
        ("1.32rc1", (1, 32)),
        ("0", ()),
        ("v1", None),
        ("", None),
    ],
)
def test_versions_are_compared_by_their_numbers(version, numbers):
    assert parse_version(version) == numbers


@pytest.mark.parametrize(
    ("runtime_version", "is_enough"),
    [("1.23.0", True), ("1.23", True), ("1.100.0", True), ("2.0", True), ("1.22.9", False), ("1.3", False), ("odd", False)],
)
def test_a_runtime_is_sufficient_from_its_minimum_version_on(built_bundles, runtime_version, is_enough):
    manifest = parse_manifest((built_bundles["main"] / "manifest.json").read_bytes(), "")
    with nullcontext() if is_enough else pytest.raises(BadModel, match="needs onnxruntime 1.23 or later; this is"):
        manifest.check_runtime(runtime_version)


def test_the_model_of_the_bundle_is_the_included_one(edge, device, built_bundles):
    assert edge("update", built_bundles["main"])[0] == 0
    assert device.current().load()[0].digest == load_model(MODEL)[0].digest == device.current().manifest.digest
