"""The edge page in a browser: it predicts without a server, and only a valid bundle replaces the current one."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from edge_bundles import bundle as bundle_builder
from edge_bundles import change_manifest, npm, refresh_manifest, write_manifest
from headless_browser import DESKTOP, PHONE, Browser, open_browser
from http_clients import CI, METRICS, RawConnection, http_request, wait_until
from iris_data import LABELED_ROWS, training_rows
from optional_programs import require_program
from packed_models import write_model
from project import MODEL, ROOT
from selenium.webdriver.common.keys import Keys
from server_process import ServerProcess

pytestmark = [pytest.mark.long, pytest.mark.repeats]

ONNX, WASM = "model/iris_svc.onnx", "ort/ort-wasm-simd-threaded.wasm"
# The predictions of the page's own code with the current bundle, for many rows at once.
ASK_MODEL = """
const [rows, done] = arguments;
import(new URL("device.js", location.href)).then(async device => {
  const model = await device.open((await device.state()).current), probabilities = await model.predict(rows);
  done({ probabilities, labels: probabilities.map(one => model.label(one)) });
}).catch(error => done(String(error)));
"""
CACHES = "const done = arguments[0]; caches.keys().then(names => done(names));"
FORGET = """
const [bundle, path, done] = arguments;
caches.keys().then(async names => {
  const cache = await caches.open(names.find(name => name.endsWith(` ${bundle}`)));
  done(await cache.delete(new URL(path, location.href)));
});
"""


class Static(ThreadingHTTPServer):
    """Static file server that does not depend on the package. Tests change the files in its folder."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.asked = folder, []
        # Path whose response ends in the middle, and the response to telemetry.
        self.cut_off, self.reports, self.silent = None, [], False
        super().__init__(("127.0.0.1", port), Handler)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, *_: object) -> None:
        """Ignores errors, because the browser may have closed the connection."""


class Handler(SimpleHTTPRequestHandler):
    server: Static

    def __init__(self, requests, address, server: Static) -> None:
        super().__init__(requests, address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.removeprefix("/")
        self.server.asked.append(path)
        if path != self.server.cut_off:
            super().do_GET()
            return
        content = (self.server.folder / path).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/telemetry":
            self.send_error(501)
            return
        self.server.reports.append(json.loads(body))
        if not self.server.silent:
            self.send_response(204)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Bundle with the real runtime, which is downloaded once."""
    out = tmp_path_factory.mktemp("built") / "edge"
    line = [sys.executable, "-B", str(ROOT / "bin/edge.d"), "build", "--out", str(out), "--model-dir", str(MODEL)]
    result = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    if result.returncode and "cannot be fetched" in result.stderr:
        (pytest.fail if CI else pytest.skip)(result.stderr)
    assert result.returncode == 0, result.stderr
    return out


def build_own(built: Path, out: Path, model_dir: Path) -> Path:
    """Builds the bundle of another model, with the page and the runtime of the first."""
    paths = {path.relative_to(built / "ort"): path for path in (built / "ort").iterdir() if path.suffix != ".gz"}
    runtime = npm.PackageFiles("1.30.0", {f"ort/{name}": path.read_bytes() for name, path in paths.items()})
    bundle_builder.write(out, model_dir, ROOT / "bin/edge.d", runtime)
    return out


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """Copy of the bundle that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "edge"))


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with open_browser(require_program) as window:
        yield window


@pytest.fixture
def static(bundle: Path) -> Iterator[Static]:
    server = Static(bundle)
    yield server
    server.stop()


@pytest.fixture
def serve(bundle: Path, run: Callable[..., ServerProcess]) -> Callable[..., ServerProcess]:
    """Function that starts a server with the bundle and the prediction routes."""
    return lambda *more: run("--role", "web_single", "--edge-dir", str(bundle), *more)


def open_page(window: Browser, url: str, size=DESKTOP, dark=False) -> Browser:
    """Opens the page and waits until it has predicted."""
    window.visit(url, size, dark)
    ready(window)
    return window


def ready(page: Browser, bundle: str = "") -> None:
    """Waits until the page has predicted with this bundle."""
    # The first time, the page downloads and compiles 14 MB.
    wait_until(lambda: page.find_all("#bars li.best") and (not bundle or current(page) == bundle), f"the page is ready {bundle}")


def current(page: Browser) -> str:
    return page.run("return document.querySelector('#bundle')?.textContent || ''")


def name_of(bundle: Path) -> str:
    return json.loads((bundle / "manifest.json").read_text())["bundle"]


def change(bundle: Path, **contents: str | bytes) -> str:
    """Writes another bundle and returns its name. The arguments are texts to append to its files (edge_css for edge.css)."""
    for name, more in contents.items():
        path = bundle / name.replace("_", ".")
        path.write_bytes(path.read_bytes() + (more.encode() if isinstance(more, str) else more))
    return reseal(bundle)


def reseal(bundle: Path) -> str:
    """Updates the manifest for the current files, and removes the compressed copies."""
    for packed in bundle.rglob("*.gz"):
        packed.unlink()
    refresh_manifest(bundle)
    return name_of(bundle)


def choose_example(page: Browser, label: str) -> None:
    next(button for button in page.find_all("#examples button") if button.text == label).click()
    page.wait_until(lambda: page.text("#label") == label, f"the example {label} is predicted")


def type_row(page: Browser, row) -> None:
    for i, value in enumerate(row):
        field = page.find(f"#field-{i}")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value))


def set_sliders(page: Browser, row) -> None:
    """Sets the sliders with arrow keys, starting at the left end."""
    for i, value in enumerate(row):
        slider = page.find(f"#slider-{i}")
        slider.send_keys(Keys.HOME)
        steps = round((value - float(slider.get_attribute("value"))) / float(slider.get_attribute("step")))
        slider.send_keys(Keys.ARROW_RIGHT * steps)


def async_script(page: Browser, seconds: float = 30.0):
    page.driver.set_script_timeout(seconds)
    return page.driver.execute_async_script


def click_when_ready(page: Browser, selector: str) -> None:
    page.wait_until(lambda: page.find(selector).is_enabled(), f"{selector} can be clicked")
    page.find(selector).click()


# With and without a server


def test_the_page_predicts_with_a_server_and_after_it_has_stopped(window, serve):
    server = serve()
    page = open_page(window, f"{server.url}/edge/")
    page.wait_until(lambda: page.text("#agreement").startswith("agrees: the same label"), "the server agrees")
    assert page.text("#chip-model") == "34 golden rows passed here"
    assert page.text("#chip-offline") == "Ready for offline use"
    assert page.text("#latency").endswith("ms on this device")
    # The page loads nothing from other origins, and the console has no warnings.
    assert {urlsplit(url).netloc for url in page.requested_urls()} == {f"127.0.0.1:{server.port}"}
    assert page.console_messages() == []
    server.stop()
    for place in ("index.html", "?from=elsewhere", ""):
        open_page(page, f"{server.url}/edge/{place}")
        page.wait_until(
            lambda: page.text("#chip-server").startswith("Server unreachable"), "the page shows that there is no server"
        )
        assert page.text("#chip-offline") == "Ready for offline use"
        for label in LABELED_ROWS:
            choose_example(page, label)
    for label in ("virginica", "versicolor", "setosa"):
        type_row(page, LABELED_ROWS[label])
        page.wait_until(lambda label=label: page.text("#label") == label, f"{label} is predicted from typed values")
    for label in ("virginica", "versicolor", "setosa"):
        set_sliders(page, LABELED_ROWS[label])
        page.wait_until(lambda label=label: page.text("#label") == label, f"{label} is predicted from slider values")


@pytest.mark.parametrize("kind", ["map of strings", "map of numbers", "the label of the graph", "bool classes", "missing values",
                                  "string classes", "tree classifier", "weights in a second file"])  # fmt: skip
def test_the_page_of_another_model_agrees_with_its_server(window, run, built, tmp_path, kind):
    folder = write_model(tmp_path / "model", kind)
    own = build_own(built, tmp_path / "edge", folder)
    server = run("--role", "web_single", "--model-dir", str(folder), "--edge-dir", str(own))
    page = open_page(window, f"{server.url}/edge/")
    cases = json.loads((folder / "golden.json").read_text())["rows"]
    assert page.text("#chip-model") == f"{len(cases)} golden rows passed here"
    for case in cases:
        type_row(page, ["" if value is None else value for value in case["row"]])
        for i, value in enumerate(case["row"]):
            if value is None:
                page.find(f"#field-{i}").send_keys(Keys.CONTROL + "a" + Keys.NULL + Keys.DELETE)
        page.wait_until(lambda case=case: page.text("#label") == case["label"], "the label is that of the golden row")
        page.wait_until(lambda: page.text("#agreement").startswith("agrees: the same label"), "the server agrees")
    assert page.console_messages() == []


def test_the_predictions_equal_the_server_on_the_training_rows(window, serve):
    server, rows = serve(), training_rows()
    page = open_page(window, f"{server.url}/edge/")
    page_result = async_script(page)(ASK_MODEL, rows)
    with RawConnection(server) as connection:
        server_result = connection.exchange(http_request("POST", "/predict/batch", {"data": rows})).json()
    assert len(rows) == 150 and page_result["labels"] == server_result["labels"]
    pairs = zip(page_result["probabilities"], server_result["probabilities"], strict=True)
    assert max(abs(a - b) for item, other in pairs for a, b in zip(item, other, strict=True)) <= 1e-6


def test_an_invalid_value_is_reported_at_its_field_and_nothing_is_predicted(window, static):
    page = open_page(window, static.url)
    for bad in ("x", "", "1e39", "1,2,3"):
        type_row(page, [5.1, 3.5, bad if bad else Keys.DELETE, 0.2])
        field = page.find("#field-2")
        assert field.get_attribute("aria-invalid") == "true" and "fault-2" in field.get_attribute("aria-describedby")
        assert page.text("#fault-2") == "This must be a number." and page.text("#label") == "–"
    type_row(page, LABELED_ROWS["setosa"])
    page.wait_until(lambda: page.text("#label") == "setosa", "the value is corrected")
    assert page.find("#field-2").get_attribute("aria-invalid") is None and page.text("#fault-2") == ""


def test_a_static_file_server_is_sufficient(window, bundle):
    line = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(bundle)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        url = process.stdout.readline().partition("(")[2].partition(")")[0]
        page = open_page(window, url)
        choose_example(page, "virginica")
        page.wait_until(lambda: page.text("#agreement") == "has no predictions", "the page shows that the server cannot predict")
        process.terminate()
        process.wait()
        choose_example(open_page(page, url), "versicolor")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious_and_a_phone_scrolls_in_one_direction(window, static, dark):
    page = open_page(window, static.url, PHONE, dark)
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    for size, row in ((PHONE, LABELED_ROWS["virginica"]), (DESKTOP, [5.1, 3.5, "x", 0.2])):
        type_row(open_page(page, static.url, size, dark), row)
        assert [violation for violation in page.violations() if violation[0] in ("serious", "critical")] == []


# Updates


def test_an_update_fetches_the_changed_files_and_keeps_the_previous_bundle(window, static, bundle):
    old = name_of(bundle)
    page = open_page(window, static.url)
    assert current(page) == old and not page.find("#back").is_enabled()
    new = change(bundle, edge_css="/* newer */")
    static.asked.clear()
    page.visit(static.url)
    ready(page, new)
    assert {path for path in static.asked if path not in ("manifest.json", "sw.js")} == {"edge.css"}
    assert page.run("return document.styleSheets[0].href").endswith("/edge.css") and old in page.text("#facts")
    newest = change(bundle, edge_css="/* newest */")
    click_when_ready(page, "#update")
    ready(page, newest)
    result = async_script(page)(CACHES)
    assert sorted(name.rpartition(" ")[2] for name in result if "-" in name.rpartition(" ")[2]) == sorted([new, newest])


@pytest.fixture(scope="module")
def browser_with_bundle(window: Browser, built: Path, tmp_path_factory) -> Iterator[Static]:
    """Static server and a browser that has its bundle. The updates of the test all fail."""
    server = Static(Path(shutil.copytree(built, tmp_path_factory.mktemp("settled") / "edge")))
    open_page(window, server.url)
    yield server
    server.stop()


def spoil(how: str, server: Static) -> None:
    """Damages the update on the server."""
    folder = server.folder
    model, golden, style = folder / ONNX, folder / "model/golden.json", folder / "edge.css"
    other = model.read_bytes().replace(b"1.0.0", b"1.0.1")
    match how:
        case "a tampered model":
            model.write_bytes(other)
            reseal(folder)
            model.write_bytes(other[:-40] + bytes([other[-40] ^ 1]) + other[-39:])
        case "a wrong hash":
            change(folder, edge_css="/* */")
            document = json.loads((folder / "manifest.json").read_text())
            document["files"]["edge.css"]["sha256"] = "0" * 64
            write_manifest(folder, document)
        case "a wrong size":
            change(folder, edge_css="/* */")
            style.write_bytes(style.read_bytes()[:-1])
        case "a truncated download":
            change(folder, edge_css="/* */")
            server.cut_off = "edge.css"
        case "a file that is gone":
            change(folder, edge_css="/* */")
            style.unlink()
        case "a golden mismatch":
            document = json.loads(golden.read_text())
            document["rows"][3]["probabilities"][0] += 0.01
            golden.write_text(json.dumps(document))
            reseal(folder)
        case "a golden label":
            document = json.loads(golden.read_text())
            document["rows"][0]["label"] = "virginica"
            golden.write_text(json.dumps(document))
            reseal(folder)
        case "another model":
            model.write_bytes((MODEL / "fast/iris_lr.onnx").read_bytes())
            reseal(folder)
        case "no model":
            model.write_bytes(b"no model")
            reseal(folder)
        case "no runtime":
            (folder / WASM).write_bytes(b"\0asm")
            reseal(folder)
        case "a manifest of other files":
            change(folder, edge_css="/* */")
            change_manifest(folder, lambda document: document["files"]["edge.css"].update(sha256="0" * 64))
        case "a manifest cut off":
            (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-100])
        case "a path out of the bundle":
            change_manifest(folder, lambda document: document["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("a tampered model", f"{ONNX} has another SHA-256 than in manifest.json"),
        ("a wrong hash", "edge.css has another SHA-256 than in manifest.json"),
        ("a wrong size", "bytes instead of the"),
        ("a truncated download", "The download of edge.css failed or is incomplete"),
        ("a file that is gone", "The server returned status 404 for edge.css"),
        ("a golden mismatch", "Golden row 3 returns setosa, off by 1.0e-2; expected setosa within 0.00001"),
        ("a golden label", "Golden row 0 returns setosa"),
        ("another model", "Golden row"),
        ("no model", "Error"),
        ("no runtime", "Error"),
        ("a manifest of other files", "the name of its bundle does not match its files"),
        ("a manifest cut off", "manifest.json does not have valid members"),
        ("a path out of the bundle", "manifest.json lists a file that is invalid in a bundle"),
    ],
)
def test_an_invalid_update_leaves_the_current_bundle_working(window, browser_with_bundle, built, how, words):
    shutil.rmtree(browser_with_bundle.folder)
    shutil.copytree(built, browser_with_bundle.folder)
    browser_with_bundle.cut_off = None
    spoil(how, browser_with_bundle)
    for _ in range(2):
        open_page(window, browser_with_bundle.url)
        window.wait_until(lambda: window.text("#update-status").startswith("Not updated."), "the page shows the reason")
        assert words in window.text("#update-status")
        assert current(window) == name_of(built)
        choose_example(window, "virginica")
        choose_example(window, "setosa")
        # No file of the update remains.
        assert async_script(window)(CACHES) == ["iris-edge /", f"iris-edge / {name_of(built)}"]


def test_the_remains_of_an_interrupted_update_are_removed_with_the_next_check(window, static):
    open_page(window, static.url)
    script = "const done = arguments[0]; caches.open('iris-edge / 0.1.0-000000000000').then(() => done(true));"
    assert async_script(window)(script) and len(async_script(window)(CACHES)) == 3
    open_page(window, static.url)
    window.wait_until(lambda: len(async_script(window)(CACHES)) == 2, "the remains are removed")


def test_a_first_load_of_an_invalid_bundle_shows_the_reason_and_a_later_valid_one_works(window, static, bundle):
    content = (bundle / ONNX).read_bytes()
    (bundle / ONNX).write_bytes(content[:-1] + b"\0")
    window.visit(static.url)
    window.wait_until(lambda: window.text("#status"), "the page shows the reason")
    assert f"{ONNX} has" in window.text("#status") and window.text("#chip-model") == "No model on this device"
    assert not window.find("#tool").is_displayed()
    (bundle / ONNX).write_bytes(content)
    choose_example(open_page(window, static.url), "versicolor")


def test_a_damaged_service_worker_replaces_nothing(window, static, bundle):
    worker = bundle / "sw.js"
    good = worker.read_text()
    page = open_page(window, static.url)
    worker.write_text(good.replace("kept || fetch", "fetch").replace("caches.match", "caches.delete"))
    open_page(page, static.url)
    response = async_script(page)(
        "navigator.serviceWorker.getRegistration().then(one => one.update()).then(arguments[0], arguments[0])"
    )
    assert response is not None
    static.stop()
    choose_example(open_page(page, static.url), "virginica")


def test_roll_back_returns_to_the_previous_bundle_until_the_user_updates(window, static, bundle):
    old = name_of(bundle)
    page = open_page(window, static.url)
    new = change(bundle, edge_css="/* newer */")
    click_when_ready(page, "#update")
    ready(page, new)
    click_when_ready(page, "#back")
    ready(page, old)
    assert page.text("#update-status") == f"Rolled back from bundle {new}."
    # The page does not install the bundle again automatically.
    open_page(page, static.url)
    page.wait_until(lambda: page.text("#chip-server") == "Server reachable", "the page has checked for an update")
    assert current(page) == old
    click_when_ready(page, "#update")
    ready(page, new)


def test_a_bundle_that_fails_on_the_device_is_replaced_by_the_previous_one(window, static, bundle):
    old = name_of(bundle)
    page = open_page(window, static.url)
    new = change(bundle, edge_css="/* newer */")
    click_when_ready(page, "#update")
    ready(page, new)
    assert async_script(page)(FORGET, new, "model/golden.json")
    page.visit(static.url)
    ready(page, old)
    assert f"Bundle {new} failed on this device: model/golden.json" in page.text("#update-status")


def test_files_removed_by_the_browser_are_fetched_again(window, static, bundle):
    page = open_page(window, static.url)
    assert async_script(page)(FORGET, name_of(bundle), ONNX)
    static.asked.clear()
    choose_example(open_page(page, static.url), "virginica")
    assert WASM not in static.asked
    assert async_script(page)(FORGET, name_of(bundle), ONNX)
    static.stop()
    page.visit(static.url)
    page.wait_until(lambda: page.text("#status"), "the page shows the reason")
    assert ONNX in page.text("#status") and "no longer on this device" in page.text("#status")


def test_an_update_during_use_waits_for_the_next_load(window, static, bundle):
    old = name_of(bundle)
    page = open_page(window, static.url)
    page.wait_until(lambda: page.text("#chip-server") == "Server reachable", "the page has checked for an update")
    choose_example(page, "virginica")
    new = change(bundle, edge_css="/* newer */")
    page.run("dispatchEvent(new Event('online'))")
    page.wait_until(
        lambda: page.text("#update-status").startswith(f"Bundle {new} is installed and tested."), "the page reports the update"
    )
    assert current(page) == old and page.text("#label") == "virginica"
    page.visit(static.url)
    ready(page, new)


def test_a_bundle_whose_page_never_starts_is_replaced_by_the_previous_one(window, static, bundle):
    old = name_of(bundle)
    page = open_page(window, static.url)
    (bundle / "edge.js").write_text("throw new Error('a page that never starts');")
    new = reseal(bundle)
    click_when_ready(page, "#update")
    page.wait_until(lambda: page.console_messages() and not page.find_all("#bars li"), "the new page has not started")
    page.visit(static.url)
    assert not page.find_all("#bars li")
    page.visit(static.url)
    ready(page, old)
    assert page.text("#update-status") == f"Bundle {new} did not start on this device."


# Counts


def predict_and_settle(page: Browser, label: str) -> None:
    """Predicts a label and waits until the prediction counts."""
    choose_example(page, label)
    page.wait_until(lambda: page.text("#announcement").startswith(label), f"{label} is settled")


def reported_counts(server) -> dict[str, int]:
    with RawConnection(server) as connection:
        lines = connection.exchange(METRICS).body.decode().splitlines()
    found = [line.split('"') for line in lines if line.startswith("edge_predictions_total{")]
    return {label: int(number.lstrip("} ")) for _, label, number in found}


def test_counts_are_sent_only_if_the_user_agrees_and_without_the_entered_values(window, static):
    page = open_page(window, static.url)
    for label in ("virginica", "versicolor"):
        predict_and_settle(page, label)
    assert not page.find("#counts").is_selected() and page.run("return localStorage.length") == 0
    assert static.reports == []
    page.find("#counts").click()
    predict_and_settle(page, "setosa")
    page.wait_until(lambda: static.reports, "a report")
    (report,) = static.reports
    assert set(report) == {"key", "counts"}
    (count,) = report["counts"]
    assert (count["label"], count["count"], set(count)) == ("setosa", 1, {"day", "label", "count"})
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "the page confirms the report")
    page.find("#counts").click()
    predict_and_settle(page, "virginica")
    assert page.text("#counts-status") == "" and page.run("return Object.values(localStorage).join()") == '{"on":false}'


def test_a_report_without_a_response_is_sent_again_with_the_same_key(window, static):
    page = open_page(window, static.url)
    page.find("#counts").click()
    static.silent = True
    predict_and_settle(page, "virginica")
    page.wait_until(lambda: "1 prediction waits" in page.text("#counts-status") and static.reports, "the response is lost")
    page.wait_until(lambda: "cannot be reached" in page.text("#counts-status"), "the page shows the failure")
    static.silent, lost_report = False, len(static.reports)
    open_page(page, static.url)
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "the report has arrived")
    assert (
        static.reports[lost_report]["key"] == static.reports[0]["key"]
        and static.reports[lost_report]["counts"] == static.reports[0]["counts"]
    )


def test_predictions_counted_without_a_server_are_reported_once(window, serve):
    server = serve()
    page = open_page(window, f"{server.url}/edge/")
    page.find("#counts").click()
    predict_and_settle(page, "virginica")
    page.wait_until(
        lambda: reported_counts(server) == {"setosa": 0, "versicolor": 0, "virginica": 1}, "the prediction is counted"
    )
    server.stop()
    open_page(page, f"{server.url}/edge/")
    for label in ("versicolor", "virginica", "versicolor"):
        predict_and_settle(page, label)
    page.wait_until(lambda: "wait to be reported" in page.text("#counts-status"), "the counts wait")
    again = serve("--port", str(server.port))
    open_page(page, f"{server.url}/edge/")
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "the counts are sent")
    assert reported_counts(again) == {"setosa": 0, "versicolor": 2, "virginica": 1}
    open_page(page, f"{server.url}/edge/")
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "no count is left")
    assert reported_counts(again) == {"setosa": 0, "versicolor": 2, "virginica": 1}
