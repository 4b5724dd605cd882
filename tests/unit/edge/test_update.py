"""Bundles brought to a device: whole, checked and tried there, or not at all."""

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
    """Files of a folder; what is asked for is noted, and a path may have something done to it."""

    def __init__(self, asked, happens, *arguments, **options) -> None:
        self.asked, self.happens = asked, happens
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
    """One that says nothing of clients who leave before they have all of it."""

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
def made(tmp_path_factory) -> dict[str, Path]:
    """Bundles of the main model with two pages, and of the fast one."""
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
    """Runs a command on the device: status, what it says, what it complains of."""
    monkeypatch.setenv("IRIS_MODEL_DIR", str(MODEL))

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        return main(["edge", command, "--device", str(device.folder), *map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.fixture
def site(tmp_path, made) -> Iterator[Site]:
    """A web server with the bundle of the fast model, which a test may spoil."""
    (tmp_path / "site").mkdir()
    for path in sorted(made["fast"].rglob("*")):
        target = tmp_path / "site" / path.relative_to(made["fast"])
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    served = Site(tmp_path / "site")
    yield served
    served.end()


def answers(edge) -> str:
    """The name of the model that answers a row."""
    status, said, complained = edge("predict", "--json", *ROW)
    assert status == 0, complained
    return json.loads(said)["model"]["name"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What goes well


@pytest.mark.parametrize("over_http", [False, True])
def test_a_bundle_is_taken_and_answers_from_then_on(edge, device, made, site, over_http):
    assert answers(edge) == "iris_svc"
    assert edge("status")[1] == "current: none\nprevious: none\n"
    status, said, _ = edge("update", site.url if over_http else made["fast"])
    bundle = parse_manifest((made["fast"] / "manifest.json").read_bytes(), "")
    assert status == 0 and said.startswith(
        f"took {bundle.bundle} (iris_lr 1.0.0), 3 of 3 files were new: 31 golden rows answered"
    )
    assert answers(edge) == "iris_lr"
    result = edge("status")[1].splitlines()
    assert result[:2] == [f"current: {bundle.bundle} (iris_lr 1.0.0 {bundle.digest})", "previous: none"]
    assert result[2].startswith("self-test: 31 golden rows answered")
    # The page and the browser's runtime are of no use here.
    assert {name.partition("/")[2] for name in tree(device.bundles)} == {"manifest.json", *bundle.model_files}
    assert set(site.asked) <= {"/manifest.json", *(f"/{path}" for path in bundle.model_files)}


def test_who_asks_for_another_model_gets_that_one(edge, made):
    assert edge("update", made["fast"])[0] == 0
    assert json.loads(edge("predict", "--json", "--model-dir", MODEL, *ROW)[1])["model"]["name"] == "iris_svc"


def test_only_what_has_changed_is_fetched_again(edge, device, made, site):
    assert edge("update", made["main"])[0] == 0
    assert edge("update", site.url)[0] == 0
    assert sorted(site.asked) == ["/manifest.json", "/model/golden.json", f"/{ONNX}"]
    status, said, _ = edge("update", made["page"])
    assert status == 0 and ", 0 of 4 files were new: " in said and answers(edge) == "iris_svc"


def test_a_file_that_was_damaged_here_is_fetched_anew(edge, device, made):
    assert edge("update", made["main"])[0] == 0
    path = device.current().folder / "model/iris_svc.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    status, _, complained = edge("predict", *ROW)
    assert status == 1 and "the file was changed or damaged" in complained and complained.count("\n") == 1
    status, said, _ = edge("update", made["main"])
    assert status == 0 and ", 1 of 4 files were new: " in said and answers(edge) == "iris_svc"


def test_a_state_that_is_a_link_stays_a_link(edge, device, made, tmp_path):
    device.folder.mkdir(parents=True, exist_ok=True)
    (device.folder / "device.json").symlink_to(tmp_path / "state.json")
    assert edge("update", made["main"])[0] == 0
    assert (device.folder / "device.json").is_symlink() and "current" in (tmp_path / "state.json").read_text()


def test_a_bundle_that_is_here_already_is_not_taken_again(edge, device, site):
    assert edge("update", site.url)[0] == 0
    before = tree(device.folder)
    site.asked.clear()
    status, said, _ = edge("update", site.url)
    assert status == 0 and " is here already: 31 golden rows answered" in said
    assert site.asked == ["/manifest.json"] and tree(device.folder) == before


def test_the_bundle_before_is_kept_and_can_be_gone_back_to_and_forth(edge, device, made):
    for name in ("page", "main", "fast"):
        assert edge("update", made[name])[0] == 0
    assert len(list(device.bundles.iterdir())) == 2
    status, said, _ = edge("rollback")
    assert status == 0 and said.startswith("went back to 0.1.0-") and " (iris_svc 1.0.0): 34 golden rows" in said
    assert answers(edge) == "iris_svc"
    assert edge("rollback")[0] == 0 and answers(edge) == "iris_lr"


def test_a_bundle_that_was_left_by_going_back_comes_again_only_when_it_is_asked_for(edge, device, made):
    for name in ("main", "fast"):
        assert edge("update", made[name])[0] == 0
    assert edge("rollback")[0] == 0
    before = tree(device.folder)
    status, said, _ = edge("update", made["fast"])
    assert status == 0 and "is not taken: rollback left it here; --again takes it" in said and tree(device.folder) == before
    assert edge("update", "--again", made["fast"])[0] == 0 and answers(edge) == "iris_lr"
    # What comes later is another matter.
    assert edge("rollback")[0] == 0 and edge("update", made["page"])[0] == 0 and edge("update", made["fast"])[0] == 0
    assert answers(edge) == "iris_lr"


def test_what_the_device_keeps_may_be_read_by_others_than_who_brought_it(edge, device, made):
    assert edge("update", made["main"])[0] == 0
    assert all(path.stat().st_mode & (0o005 if path.is_dir() else 0o004) for path in device.folder.rglob("*"))


# What goes wrong

CONTENT = FAST.joinpath("iris_lr.onnx").read_bytes()


def write(path: str, content: bytes):
    return lambda folder: (folder / path).write_bytes(content)


def remove(path: str):
    return lambda folder: (folder / path).unlink()


def told(**members):
    """A manifest in which these say something else."""
    return lambda folder: change_manifest(folder, lambda document: document.update(members))


def file_told(path: str, **members):
    return lambda folder: change_manifest(folder, lambda document: document["files"].setdefault(path, {}).update(members))


def renamed(path: str, sizes: int = 4):
    """A manifest that is right in itself, with one more file."""

    def spoil(folder: Path) -> None:
        file_told(path, sha256="0" * 64, bytes=sizes)(folder)

    return spoil


def with_other_answers(folder: Path) -> None:
    path = folder / "model/golden.json"
    path.write_text(path.read_text().replace('"label": "setosa"', '"label": "virginica"', 1))
    refresh_manifest(folder)


def with_another_model(folder: Path) -> None:
    """All hashes are right, and golden.json is of the other one."""
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
    "a file that goes on": (write(ONNX, CONTENT + b"\0"), rf"{ONNX} is over {len(CONTENT)} bytes"),
    "a missing file": (remove(ONNX), rf"{ONNX} cannot be (read|fetched)"),
    "a missing manifest": (remove("manifest.json"), r"manifest.json cannot be (read|fetched)"),
    "a wrong hash": (file_told(ONNX, sha256="0" * 64), "has another name than its files give it"),
    "a wrong size": (file_told(ONNX, bytes=len(CONTENT) - 1), f"{ONNX} is over {len(CONTENT) - 1} bytes"),
    "golden rows that do not agree": (with_other_answers, "golden row 0 has the label setosa"),
    "another model": (with_another_model, "iris_lr.onnx has the SHA-256"),
    "another digest": (of_another_digest, "holds another model than its manifest says"),
    "no golden rows": (without_golden_rows, "has no model/golden.json"),
    "a newer runtime": (told(minimum={"onnxruntime": "999.1"}), r"needs onnxruntime 999\.1 or later; this is \d"),
    "a runtime without a version": (told(minimum={"onnxruntime": "new"}), "needs an invalid version of onnxruntime"),
    "no JSON": (write("manifest.json", b"{"), "does not hold a JSON object"),
    "no manifest": (write("manifest.json", b'{"files": []}'), FORM),
    "an endless manifest": (write("manifest.json", b" " * (2 << 20)), "manifest.json is over 1048576 bytes"),
    "a path to the folder above": (renamed("../outside"), OUTSIDE),
    "a path through the folder above": (renamed("model/../../outside"), OUTSIDE),
    "a path from the root": (renamed("/etc/outside"), OUTSIDE),
    "a path of nothing": (renamed(""), OUTSIDE),
    "a path that ends in a slash": (renamed("model/"), OUTSIDE),
    "a path with two slashes": (renamed("model//outside"), OUTSIDE),
    "a path with a backslash": (renamed("model\\..\\outside"), OUTSIDE),
    "a path with a line end": (renamed("model/outside\n"), OUTSIDE),
    "a path with a drive": (renamed("c:outside"), OUTSIDE),
    "a hidden file": (renamed("model/.outside"), OUTSIDE),
    "the manifest in itself": (renamed("manifest.json"), OUTSIDE),
    "a file in place of a folder": (renamed("model"), "has another name than its files give it"),
    "a huge file": (renamed("model/huge", BUNDLE_BYTES), f"lists more than {BUNDLE_BYTES} bytes"),
    "a file of a size below zero": (renamed("model/huge", -1), NOT_FILES),
    "a file of no size": (file_told(ONNX, bytes="1"), NOT_FILES),
    "a file of true bytes": (file_told(ONNX, bytes=True), NOT_FILES),
    "a hash of another kind": (file_told(ONNX, sha256="0" * 63), NOT_FILES),
    "a hash that is no text": (file_told(ONNX, sha256=7), NOT_FILES),
    "a bundle that leads elsewhere": (told(bundle="../0.1.0-000000000000"), "has another name than its files give it"),
    "a bundle without a name": (told(bundle=7), "in texts of at most 200 characters"),
    "a model in colours": (told(model={"name": "\x1b[31m", "version": "1", "digest": "d"}), "in texts of at most 200 characters"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("over_http", [False, True])
def test_what_is_wrong_is_told_in_one_line_and_the_old_bundle_stays(edge, device, made, site, spoil, words, over_http):
    assert edge("update", made["main"])[0] == 0
    before = tree(device.folder.parent / "device")
    spoil(site.folder)
    status, said, complained = edge("update", site.url if over_http else site.folder)
    assert (status, said, complained.count("\n")) == (1, "", 1)
    assert complained.startswith("iris_wsgi: not updated, the current bundle stays: ") and "\x1b" not in complained
    assert re.search(words, complained), complained
    assert tree(device.folder) == before and len(list(device.bundles.iterdir())) == 1
    assert answers(edge) == "iris_svc"
    assert not list(device.folder.parent.rglob("*outside*"))


def test_what_is_wrong_with_the_first_bundle_leaves_the_model_of_the_settings(edge, site):
    write(ONNX, CONTENT[:-1])(site.folder)
    assert edge("update", site.url)[0] == 1
    assert answers(edge) == "iris_svc" and edge("status")[1] == "current: none\nprevious: none\n"


def cut_off(web: Web) -> None:
    """As many bytes are promised as there are, and half of them come."""
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
def test_a_download_that_fails_leaves_the_old_bundle(edge, device, made, site, path, happens, words):
    assert edge("update", made["main"])[0] == 0
    before = tree(device.folder)
    site.happens[path] = happens
    status, _, complained = edge("update", site.url)
    assert status == 1 and complained.count("\n") == 1
    assert re.search(words, complained), complained
    assert tree(device.folder) == before and answers(edge) == "iris_svc"
    # What was wrong with the way there is nothing that stays.
    site.happens.clear()
    assert edge("update", site.url)[0] == 0 and answers(edge) == "iris_lr"


def test_a_bundle_that_changes_while_it_is_fetched_is_not_mixed_with_the_old_one(edge, device, made, site):
    """The manifest is still the old one, and the files are new already."""
    assert edge("update", made["page"])[0] == 0

    def replaced(web: Web) -> None:
        (site.folder / "model/golden.json").write_bytes((made["main"] / "model/golden.json").read_bytes())
        site.happens.clear()
        web.do_GET()

    site.happens["/model/golden.json"] = replaced
    status, _, complained = edge("update", site.url)
    assert status == 1 and "model/golden.json " in complained and answers(edge) == "iris_svc"


def test_a_full_disk_is_one_line_and_the_old_bundle_stays(edge, device, made):
    """A bound for the size of files stands for that of the disk."""
    assert edge("update", made["fast"])[0] == 0
    before = tree(device.folder)

    def bound() -> None:
        # Python ignores SIGXFSZ, so that a write gives an error as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    # Without compiled modules, which would be written in halves.
    command = [sys.executable, "-B", "-m", "iris_wsgi", "edge", "update", "--device", str(device.folder), str(made["main"])]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, env={"IRIS_MODEL_DIR": str(MODEL)})
    assert result.returncode == 1
    assert (
        result.stderr == f"iris_wsgi: not updated, the current bundle stays: {device.folder} cannot be written: File too large\n"
    )
    assert tree(device.folder) == before and answers(edge) == "iris_lr"


def test_a_folder_that_cannot_be_written_is_named(edge, device, made):
    device.folder.write_text("")
    status, _, complained = edge("update", made["main"])
    assert status == 1 and f"{device.folder} cannot be written: " in complained and complained.count("\n") == 1


def test_of_two_updates_at_once_the_second_is_refused_and_the_first_goes_on(edge, device, made, site):
    asked, go_on = threading.Event(), threading.Event()

    def held(web: Web) -> None:
        asked.set()
        assert go_on.wait(60)
        site.happens.clear()
        web.do_GET()

    site.happens[f"/{ONNX}"] = held
    command = [sys.executable, "-m", "iris_wsgi", "edge", "update", "--device", str(device.folder), site.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={"IRIS_MODEL_DIR": str(MODEL)}) as first:
        assert asked.wait(60)
        for command in (("update", made["main"]), ("rollback",)):
            status, _, complained = edge(*command)
            assert status == 1 and f"{device.folder} is in use by another update or rollback" in complained
        # Meanwhile what was there answers.
        assert answers(edge) == "iris_svc"
        go_on.set()
        assert first.communicate(timeout=60)[0].startswith(b"took ")
    assert answers(edge) == "iris_lr"


@pytest.mark.long
def test_an_update_that_is_killed_at_any_step_leaves_a_bundle_that_works(made, tmp_path):
    script = ROOT / "tests/support/edge_bundles.py"
    command = [sys.executable, str(script), str(tmp_path), *(str(made[name]) for name in ("page", "fast", "main"))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    document = json.loads(run.stdout)
    assert document["faults"] == [] and document["status"] == 0, run.stderr
    # Some deaths came before the switch and some after it.
    assert document["steps"] > 40 and document["old"] and document["new"]


def test_there_is_no_way_back_where_there_was_nothing_before(edge, made):
    assert edge("rollback")[::2] == (1, "iris_wsgi: the device has no previous bundle\n")
    assert edge("update", made["fast"])[0] == 0
    assert edge("rollback")[::2] == (1, "iris_wsgi: the device has no previous bundle\n")
    assert answers(edge) == "iris_lr"


def test_a_bundle_that_was_damaged_is_not_gone_back_to(edge, device, made):
    for name in ("main", "fast"):
        assert edge("update", made[name])[0] == 0
    path = device.bundle(device.state().previous).folder / "model/iris_svc.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    status, _, complained = edge("rollback")
    assert status == 1 and "the file was changed or damaged" in complained
    assert answers(edge) == "iris_lr"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"current": "../elsewhere", "previous": null}', '{"current": 7}', '{"next": null}']
)
def test_a_state_that_is_none_is_told_and_nothing_is_removed_for_it(edge, device, made, content):
    assert edge("update", made["main"])[0] == 0
    (device.folder / "device.json").write_text(content)
    for command in (("predict", *ROW), ("update", made["fast"]), ("status",)):
        status, _, complained = edge(*command)
        assert status == 1 and "does not name the bundles of this device; remove it to start again" in complained
    assert len(list(device.bundles.iterdir())) == 1


def test_nothing_is_removed_that_was_not_put_there(edge, device, made):
    (device.bundles / "mine").mkdir(parents=True)
    (device.bundles / "mine/letter").write_text("dear")
    (device.folder / "other").write_text("")
    for name in ("main", "fast", "page"):
        assert edge("update", made[name])[0] == 0
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
    ("here", "is_enough"),
    [("1.23.0", True), ("1.23", True), ("1.100.0", True), ("2.0", True), ("1.22.9", False), ("1.3", False), ("odd", False)],
)
def test_a_runtime_is_enough_from_its_least_version_on(made, here, is_enough):
    manifest = parse_manifest((made["main"] / "manifest.json").read_bytes(), "")
    with nullcontext() if is_enough else pytest.raises(BadModel, match="needs onnxruntime 1.23 or later; this is"):
        manifest.check_runtime(here)


def test_the_model_of_the_bundle_is_the_one_that_was_put_in(edge, device, made):
    assert edge("update", made["main"])[0] == 0
    assert device.current().load()[0].digest == load_model(MODEL)[0].digest == device.current().manifest.digest
