"""The edge page in a real browser: it predicts without a server, and only a bundle that is right takes another's place."""

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
from edge_bundles import change_manifest, refresh_manifest, write_manifest
from headless_browser import DESKTOP, PHONE, Browser, open_browser
from http_clients import CI, METRICS, RawConnection, http_request, wait_until
from iris_data import LABELED_ROWS, training_rows
from optional_programs import require_program
from project import MODEL, ROOT
from selenium.webdriver.common.keys import Keys
from server_process import ServerProcess

pytestmark = pytest.mark.long

ONNX, WASM = "model/iris_svc.onnx", "ort/ort-wasm-simd-threaded.wasm"
# What the page itself does, of the current bundle, for many rows at once.
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
    """A static file server that knows nothing of the bundle, with its files in a folder that tests change."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.asked = folder, []
        # A path of which the first half comes, and then the end of the connection; what telemetry is answered.
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
        """A browser that has gone is none."""


class Handler(SimpleHTTPRequestHandler):
    server: Static

    def __init__(self, asked, address, server: Static) -> None:
        super().__init__(asked, address, server, directory=str(server.folder))

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
        """Nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The bundle itself, with the real runtime from the registry; that is fetched once."""
    out = tmp_path_factory.mktemp("built") / "edge"
    line = [sys.executable, "-B", str(ROOT / "bin/edge.d"), "build", "--out", str(out), "--model-dir", str(MODEL)]
    result = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    if result.returncode and "cannot be fetched" in result.stderr:
        (pytest.fail if CI else pytest.skip)(result.stderr)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
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
    """Starts a server with the bundle, that predicts too."""
    return lambda *more: run("--role", "web_single", "--edge-dir", str(bundle), *more)


def opened(window: Browser, url: str, size=DESKTOP, dark=False) -> Browser:
    """The page once it has predicted something by itself."""
    window.visit(url, size, dark)
    ready(window)
    return window


def ready(page: Browser, bundle: str = "") -> None:
    """It has predicted, with this bundle."""
    # The first time it fetches and compiles 14 MB.
    wait_until(lambda: page.find_all("#bars li.best") and (not bundle or current(page) == bundle), f"the page is ready {bundle}")


def current(page: Browser) -> str:
    return page.run("return document.querySelector('#bundle')?.textContent || ''")


def name_of(bundle: Path) -> str:
    return json.loads((bundle / "manifest.json").read_text())["bundle"]


def change(bundle: Path, **contents: str | bytes) -> str:
    """Another bundle in its place, by what its files (edge_css for edge.css) are to have more; its name."""
    for name, more in contents.items():
        path = bundle / name.replace("_", ".")
        path.write_bytes(path.read_bytes() + (more.encode() if isinstance(more, str) else more))
    return sealed(bundle)


def sealed(bundle: Path) -> str:
    """Says the truth of what the files are by now, and leaves nothing packed that says something else."""
    for packed in bundle.rglob("*.gz"):
        packed.unlink()
    refresh_manifest(bundle)
    return name_of(bundle)


def chosen(page: Browser, label: str) -> None:
    next(button for button in page.find_all("#examples button") if button.text == label).click()
    page.wait_until(lambda: page.text("#label") == label, f"the example {label} is predicted")


def typed(page: Browser, row) -> None:
    for i, value in enumerate(row):
        field = page.find(f"#field-{i}")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value))


def slid(page: Browser, row) -> None:
    """By arrow keys, from the left end on."""
    for i, value in enumerate(row):
        slider = page.find(f"#slider-{i}")
        slider.send_keys(Keys.HOME)
        steps = round((value - float(slider.get_attribute("value"))) / float(slider.get_attribute("step")))
        slider.send_keys(Keys.ARROW_RIGHT * steps)


def waits(page: Browser, seconds: float = 30.0):
    page.driver.set_script_timeout(seconds)
    return page.driver.execute_async_script


def clicks(page: Browser, selector: str) -> None:
    page.wait_until(lambda: page.find(selector).is_enabled(), f"{selector} can be clicked")
    page.find(selector).click()


# With a server, and without


def test_the_page_predicts_with_a_server_and_after_it_has_stopped(window, serve):
    server = serve()
    page = opened(window, f"{server.url}/edge/")
    page.wait_until(lambda: page.text("#agreement").startswith("agrees: the same label"), "the server agrees")
    assert page.text("#chip-model") == "34 golden rows passed here"
    assert page.text("#chip-offline") == "Ready for offline use"
    assert page.text("#latency").endswith("ms on this device")
    # What a person sees when all is well has no other origin in it, and nothing to complain of.
    assert {urlsplit(url).netloc for url in page.requested_urls()} == {f"127.0.0.1:{server.port}"}
    assert page.console_messages() == []
    server.stop()
    for place in ("index.html", "?from=elsewhere", ""):
        opened(page, f"{server.url}/edge/{place}")
        page.wait_until(lambda: page.text("#chip-server").startswith("Server unreachable"), "it says that there is no server")
        assert page.text("#chip-offline") == "Ready for offline use"
        for label in LABELED_ROWS:
            chosen(page, label)
    for label in ("virginica", "versicolor", "setosa"):
        typed(page, LABELED_ROWS[label])
        page.wait_until(lambda label=label: page.text("#label") == label, f"{label} is typed and predicted")
    for label in ("virginica", "versicolor", "setosa"):
        slid(page, LABELED_ROWS[label])
        page.wait_until(lambda label=label: page.text("#label") == label, f"{label} is slid to and predicted")


def test_it_equals_the_server_on_the_rows_of_the_training(window, serve):
    server, rows = serve(), training_rows()
    page = opened(window, f"{server.url}/edge/")
    here = waits(page)(ASK_MODEL, rows)
    with RawConnection(server) as connection:
        there = connection.exchange(http_request("POST", "/predict/batch", {"data": rows})).json()
    assert len(rows) == 150 and here["labels"] == there["labels"]
    pairs = zip(here["probabilities"], there["probabilities"], strict=True)
    assert max(abs(a - b) for item, other in pairs for a, b in zip(item, other, strict=True)) <= 1e-6


def test_a_value_that_is_none_is_told_at_its_field_and_nothing_is_predicted(window, static):
    page = opened(window, static.url)
    for bad in ("x", "", "1e39", "1,2,3"):
        typed(page, [5.1, 3.5, bad if bad else Keys.DELETE, 0.2])
        field = page.find("#field-2")
        assert field.get_attribute("aria-invalid") == "true" and "fault-2" in field.get_attribute("aria-describedby")
        assert page.text("#fault-2") == "This must be a number." and page.text("#label") == "–"
    typed(page, LABELED_ROWS["setosa"])
    page.wait_until(lambda: page.text("#label") == "setosa", "it is mended")
    assert page.find("#field-2").get_attribute("aria-invalid") is None and page.text("#fault-2") == ""


def test_a_static_file_server_will_do(window, bundle):
    line = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(bundle)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        url = process.stdout.readline().partition("(")[2].partition(")")[0]
        page = opened(window, url)
        chosen(page, "virginica")
        page.wait_until(lambda: page.text("#agreement") == "has no predictions", "it knows that nothing here predicts")
        process.terminate()
        process.wait()
        chosen(opened(page, url), "versicolor")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious_and_a_phone_scrolls_one_way(window, static, dark):
    page = opened(window, static.url, PHONE, dark)
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    for size, row in ((PHONE, LABELED_ROWS["virginica"]), (DESKTOP, [5.1, 3.5, "x", 0.2])):
        typed(opened(page, static.url, size, dark), row)
        assert [violation for violation in page.violations() if violation[0] in ("serious", "critical")] == []


# Updates


def test_an_update_fetches_what_has_changed_and_keeps_the_bundle_before(window, static, bundle):
    old = name_of(bundle)
    page = opened(window, static.url)
    assert current(page) == old and not page.find("#back").is_enabled()
    new = change(bundle, edge_css="/* newer */")
    static.asked.clear()
    page.visit(static.url)
    ready(page, new)
    assert {path for path in static.asked if path not in ("manifest.json", "sw.js")} == {"edge.css"}
    assert page.run("return document.styleSheets[0].href").endswith("/edge.css") and old in page.text("#facts")
    newest = change(bundle, edge_css="/* newest */")
    clicks(page, "#update")
    ready(page, newest)
    result = waits(page)(CACHES)
    assert sorted(name.rpartition(" ")[2] for name in result if "-" in name.rpartition(" ")[2]) == sorted([new, newest])


@pytest.fixture(scope="module")
def settled(window: Browser, built: Path, tmp_path_factory) -> Iterator[Static]:
    """A static server whose bundle a browser has; what is tried there never gets in."""
    server = Static(Path(shutil.copytree(built, tmp_path_factory.mktemp("settled") / "edge")))
    opened(window, server.url)
    yield server
    server.stop()


def spoil(how: str, server: Static) -> None:
    """Makes what the server has an update that is wrong."""
    folder = server.folder
    model, golden, style = folder / ONNX, folder / "model/golden.json", folder / "edge.css"
    other = model.read_bytes().replace(b"1.0.0", b"1.0.1")
    match how:
        case "a tampered model":
            model.write_bytes(other)
            sealed(folder)
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
            sealed(folder)
        case "a golden label":
            document = json.loads(golden.read_text())
            document["rows"][0]["label"] = "virginica"
            golden.write_text(json.dumps(document))
            sealed(folder)
        case "another model":
            model.write_bytes((MODEL / "fast/iris_lr.onnx").read_bytes())
            sealed(folder)
        case "no model":
            model.write_bytes(b"no model")
            sealed(folder)
        case "no runtime":
            (folder / WASM).write_bytes(b"\0asm")
            sealed(folder)
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
def test_an_update_that_is_wrong_leaves_the_bundle_that_was_there_at_work(window, settled, built, how, words):
    shutil.rmtree(settled.folder)
    shutil.copytree(built, settled.folder)
    settled.cut_off = None
    spoil(how, settled)
    for _ in range(2):
        opened(window, settled.url)
        window.wait_until(lambda: window.text("#update-status").startswith("Not updated."), "the page says why")
        assert words in window.text("#update-status")
        assert current(window) == name_of(built)
        chosen(window, "virginica")
        chosen(window, "setosa")
        # Nothing of the other one is left.
        assert waits(window)(CACHES) == ["iris-edge /", f"iris-edge / {name_of(built)}"]


def test_what_an_update_left_that_was_cut_off_is_gone_with_the_next_look(window, static):
    opened(window, static.url)
    left = "const done = arguments[0]; caches.open('iris-edge / 0.1.0-000000000000').then(() => done(true));"
    assert waits(window)(left) and len(waits(window)(CACHES)) == 3
    opened(window, static.url)
    window.wait_until(lambda: len(waits(window)(CACHES)) == 2, "what was left is gone")


def test_a_first_load_of_a_wrong_bundle_says_why_and_a_right_one_later_works(window, static, bundle):
    content = (bundle / ONNX).read_bytes()
    (bundle / ONNX).write_bytes(content[:-1] + b"\0")
    window.visit(static.url)
    window.wait_until(lambda: window.text("#status"), "the page says why")
    assert f"{ONNX} has" in window.text("#status") and window.text("#chip-model") == "No model on this device"
    assert not window.find("#tool").is_displayed()
    (bundle / ONNX).write_bytes(content)
    chosen(opened(window, static.url), "versicolor")


def test_a_damaged_service_worker_takes_no_ones_place(window, static, bundle):
    worker = bundle / "sw.js"
    good = worker.read_text()
    page = opened(window, static.url)
    worker.write_text(good.replace("kept || fetch", "fetch").replace("caches.match", "caches.delete"))
    opened(page, static.url)
    response = waits(page)("navigator.serviceWorker.getRegistration().then(one => one.update()).then(arguments[0], arguments[0])")
    assert response is not None
    static.stop()
    chosen(opened(page, static.url), "virginica")


def test_roll_back_returns_to_the_bundle_before_until_another_is_asked_for(window, static, bundle):
    old = name_of(bundle)
    page = opened(window, static.url)
    new = change(bundle, edge_css="/* newer */")
    clicks(page, "#update")
    ready(page, new)
    clicks(page, "#back")
    ready(page, old)
    assert page.text("#update-status") == f"Rolled back from bundle {new}."
    # By itself it does not come again.
    opened(page, static.url)
    page.wait_until(lambda: page.text("#chip-server") == "Server reachable", "the page has looked for an update")
    assert current(page) == old
    clicks(page, "#update")
    ready(page, new)


def test_a_bundle_that_fails_on_the_device_gives_way_to_the_one_before(window, static, bundle):
    old = name_of(bundle)
    page = opened(window, static.url)
    new = change(bundle, edge_css="/* newer */")
    clicks(page, "#update")
    ready(page, new)
    assert waits(page)(FORGET, new, "model/golden.json")
    page.visit(static.url)
    ready(page, old)
    assert f"Bundle {new} failed on this device: model/golden.json" in page.text("#update-status")


def test_what_the_browser_took_away_is_fetched_again(window, static, bundle):
    page = opened(window, static.url)
    assert waits(page)(FORGET, name_of(bundle), ONNX)
    static.asked.clear()
    chosen(opened(page, static.url), "virginica")
    assert WASM not in static.asked
    assert waits(page)(FORGET, name_of(bundle), ONNX)
    static.stop()
    page.visit(static.url)
    page.wait_until(lambda: page.text("#status"), "the page says why")
    assert ONNX in page.text("#status") and "no longer on this device" in page.text("#status")


def test_an_update_in_the_middle_of_something_waits_for_the_next_load(window, static, bundle):
    old = name_of(bundle)
    page = opened(window, static.url)
    page.wait_until(lambda: page.text("#chip-server") == "Server reachable", "the page has looked for an update")
    chosen(page, "virginica")
    new = change(bundle, edge_css="/* newer */")
    page.run("dispatchEvent(new Event('online'))")
    page.wait_until(lambda: page.text("#update-status").startswith(f"Bundle {new} is installed and tested."), "the page says so")
    assert current(page) == old and page.text("#label") == "virginica"
    page.visit(static.url)
    ready(page, new)


def test_a_page_that_never_starts_gives_way_to_the_one_before(window, static, bundle):
    old = name_of(bundle)
    page = opened(window, static.url)
    (bundle / "edge.js").write_text("throw new Error('a page that never starts');")
    new = sealed(bundle)
    clicks(page, "#update")
    page.wait_until(lambda: page.console_messages() and not page.find_all("#bars li"), "the new page has not started")
    page.visit(static.url)
    assert not page.find_all("#bars li")
    page.visit(static.url)
    ready(page, old)
    assert page.text("#update-status") == f"Bundle {new} did not start on this device."


# Counts


def predicted(page: Browser, label: str) -> None:
    """So long that it counts."""
    chosen(page, label)
    page.wait_until(lambda: page.text("#announcement").startswith(label), f"{label} is settled")


def counted(server) -> dict[str, int]:
    with RawConnection(server) as connection:
        lines = connection.exchange(METRICS).body.decode().splitlines()
    found = [line.split('"') for line in lines if line.startswith("edge_predictions_total{")]
    return {label: int(number.lstrip("} ")) for _, label, number in found}


def test_counts_are_sent_only_where_they_are_switched_on_and_without_what_was_entered(window, static):
    page = opened(window, static.url)
    for label in ("virginica", "versicolor"):
        predicted(page, label)
    assert not page.find("#counts").is_selected() and page.run("return localStorage.length") == 0
    assert static.reports == []
    page.find("#counts").click()
    predicted(page, "setosa")
    page.wait_until(lambda: static.reports, "a report")
    (report,) = static.reports
    assert set(report) == {"key", "counts"}
    (count,) = report["counts"]
    assert (count["label"], count["count"], set(count)) == ("setosa", 1, {"day", "label", "count"})
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "the page says so")
    page.find("#counts").click()
    predicted(page, "virginica")
    assert page.text("#counts-status") == "" and page.run("return Object.values(localStorage).join()") == '{"on":false}'


def test_a_report_whose_answer_is_lost_comes_again_under_the_same_key(window, static):
    page = opened(window, static.url)
    page.find("#counts").click()
    static.silent = True
    predicted(page, "virginica")
    page.wait_until(lambda: "1 prediction waits" in page.text("#counts-status") and static.reports, "the answer is lost")
    page.wait_until(lambda: "cannot be reached" in page.text("#counts-status"), "the page has noticed")
    static.silent, lost = False, len(static.reports)
    opened(page, static.url)
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "the report is there")
    assert (
        static.reports[lost]["key"] == static.reports[0]["key"] and static.reports[lost]["counts"] == static.reports[0]["counts"]
    )


def test_what_was_counted_without_a_server_arrives_once(window, serve):
    server = serve()
    page = opened(window, f"{server.url}/edge/")
    page.find("#counts").click()
    predicted(page, "virginica")
    page.wait_until(lambda: counted(server) == {"setosa": 0, "versicolor": 0, "virginica": 1}, "it is counted")
    server.stop()
    opened(page, f"{server.url}/edge/")
    for label in ("versicolor", "virginica", "versicolor"):
        predicted(page, label)
    page.wait_until(lambda: "wait to be reported" in page.text("#counts-status"), "they wait")
    again = serve("--port", str(server.port))
    opened(page, f"{server.url}/edge/")
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "they are sent")
    assert counted(again) == {"setosa": 0, "versicolor": 2, "virginica": 1}
    opened(page, f"{server.url}/edge/")
    page.wait_until(lambda: page.text("#counts-status") == "All counts are reported.", "nothing is left")
    assert counted(again) == {"setosa": 0, "versicolor": 2, "virginica": 1}
