"""The page: the files that the server sends, and its behavior in a browser."""

import gzip
import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from chosen_models import Feature, one_input_graph, pack_classifier, pack_graph, pack_mixed, pack_scores
from headless_browser import DESKTOP, PHONE, Browser, open_browser
from http_clients import fetch, http_request
from iris_data import LABELED_ROWS
from onnx import TensorProto, helper, numpy_helper
from optional_programs import require_program
from packed_models import write_model
from project import MODEL
from sealed_models import seal
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from iris_wsgi.cli.tour import PATTERNS
from iris_wsgi.patterns.web_single.page import page_text, prefers_html
from iris_wsgi.roles import ROLES

pytestmark = [pytest.mark.long, pytest.mark.repeats]

CHROMES = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FIREFOXES = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
BROWSER = {"Accept": CHROMES}
PAGE = page_text()
ALIVE = "alive"
NEEDED = {
    "prep": {"pred_url": "http://127.0.0.1:9"},
    "gateway": {"members": "setosa=http://127.0.0.1:9"},
    "member": {"member": "setosa"},
}


# Responses of the server


@pytest.mark.parametrize(
    "accept",
    [CHROMES, FIREFOXES, "text/html", "TEXT/HTML", "text/html;charset=utf-8", "text/*", "text/html, application/json",
     "application/json;q=0.8, text/html;q=0.9", "text/html;level=1;q=0.5, application/json; q=0.4", "*/*;q=0.1, text/html;q=0.1",
     "application/*;q=0.1,text/html;q=0.2", "text/html;q=0.001"],
)  # fmt: skip
def test_a_client_that_prefers_html_gets_the_page(accept):
    assert prefers_html(accept)


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "application/json", "application/problem+json", "application/json, text/html;q=0.9", "text/html;q=0",
     "text/html;q=0.0", "text/html;q=0.5, */*", "text/html;q=0.9, application/*", "text/plain", "texthtml", "text/htmlx", ",;=",
     "*/*, application/json", "text/*;q=0, */*", "text/*, text/html;q=0"],
)  # fmt: skip
def test_other_clients_get_the_liveness_document(accept, make_app):
    response = make_app(role="worker").get("/", headers={"Accept": accept})
    assert (response.json["status"], response.headers["Content-Type"], response.headers["Vary"]) == (
        ALIVE,
        "application/json",
        "Accept",
    )


@pytest.mark.parametrize("role", ROLES)
def test_in_every_role_the_root_says_alive_also_for_head_and_without_an_accept_header(make_app, role):
    app = make_app(role=role, **NEEDED.get(role, {}))
    response, head = app.get("/"), app.head("/")
    assert response.json["status"] == ALIVE
    compared_headers = ("ETag", "Vary", "Content-Length", "Content-Type")
    assert (head.status_int, head.body, [head.headers[n] for n in compared_headers]) == (
        200,
        b"",
        [response.headers[n] for n in compared_headers],
    )


def test_the_page_and_the_json_at_the_root_have_different_etags(make_app):
    app = make_app(role="worker")
    tag, page_tag = app.get("/").headers["ETag"], app.get("/", headers=BROWSER).headers["ETag"]
    assert tag != page_tag
    conditional = app.get("/", headers={"If-None-Match": tag})
    assert (conditional.status_int, conditional.headers["Vary"]) == (304, "Accept")
    assert app.get("/", headers={"If-None-Match": page_tag}).json["status"] == ALIVE
    assert app.get("/", headers={**BROWSER, "If-None-Match": tag}).text == PAGE


def test_the_liveness_request_of_kserves_client_works_without_a_token(run, tmp_path):
    # kserve/inference_client.py, InferenceRESTClient.is_server_live of protocol v1: GET of the base URL.
    file = tmp_path / "tokens"
    file.write_text("a-token-of-some-letters")
    server = run("--role", "synchronous", "--token-file", str(file))
    response = fetch(server, http_request("GET", "/", None, "Accept: */*", "Content-Type: application/json"))
    assert response.status == 200 and response.json()["status"] == "alive"


class Elements(HTMLParser):
    """Parser that collects the text of scripts and styles, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str, str]] = []
        self.within = ""

    def handle_starttag(self, tag, attributes):
        self.within = tag
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, text):
        if self.within in self.texts:
            self.texts[self.within].append(text)


@pytest.fixture(scope="module")
def elements() -> Elements:
    parsed = Elements()
    parsed.feed(PAGE)
    return parsed


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_the_page_with_security_headers(make_app, role, elements):
    response = make_app(role=role, **NEEDED.get(role, {})).get("/", headers=BROWSER)
    assert (response.text, response.headers["Content-Type"]) == (PAGE, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    for kind in ("script", "style"):
        hashes = [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in elements.texts[kind]]
        assert hashes and policy.pop(f"{kind}-src") == " ".join(hashes)
    none = dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert policy == {**none, "connect-src": "'self'", "img-src": "data:"}
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Vary"] == "Accept, Accept-Encoding"


def test_the_page_is_sent_with_gzip_to_clients_that_accept_it_and_with_an_etag_of_its_own(live_server):
    accept = f"Accept: {CHROMES}"
    plain = fetch(live_server, http_request("GET", "/", None, accept))
    compressed = fetch(live_server, http_request("GET", "/", None, accept, "Accept-Encoding: br, gzip"))
    assert gzip.decompress(compressed.body) == plain.body == PAGE.encode()
    assert len(plain.body) < 80_000 and len(compressed.body) < 30_000
    assert compressed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert compressed.headers["etag"] != plain.headers["etag"]
    assert compressed.headers["content-security-policy"] == plain.headers["content-security-policy"]
    tag = f"If-None-Match: {compressed.headers['etag']}"
    assert fetch(live_server, http_request("GET", "/", None, accept, "Accept-Encoding: gzip", tag)).status == 304
    assert fetch(live_server, http_request("GET", "/", None, accept, tag)).status == 200


def test_the_page_follows_its_own_policy_and_loads_nothing_from_elsewhere(elements):
    assert not [attribute for attribute in elements.attributes if attribute[1] == "style" or attribute[1].startswith("on")]
    assert set(re.findall(r"https?://[\w.]+", PAGE)) == {"http://www.w3.org"}
    assert not re.search(r"[:\s]url\(|@import|innerHTML|\beval\b", PAGE)


@pytest.mark.parametrize("path", ["/", "/training"])
def test_a_current_copy_of_the_page_or_the_rows_gets_304(app, path):
    tag = app.get(path, headers=BROWSER).headers["ETag"]
    response = app.get(path, headers={**BROWSER, "If-None-Match": tag})
    assert (response.status_int, response.body, response.headers["ETag"]) == (304, b"", tag)
    assert path == "/training" or {"Vary", "Content-Security-Policy"} <= set(response.headers)


def test_the_page_is_smaller_than_80_kb():
    assert len(PAGE.encode()) < 80_000


def test_the_training_rows_are_those_of_the_file(app):
    document = app.get("/training").json
    lines = [line.split(",") for line in (MODEL / "training.csv").read_text().splitlines()]
    assert document["features"] == lines[0][:4]
    assert document["rows"] == [[float(value) for value in line[:4]] for line in lines[1:]]
    assert [document["labels"][i] for i in document["classes"]] == [line[4] for line in lines[1:]]


def test_of_many_training_rows_an_even_selection_of_a_thousand_is_sent(make_app, model_copy, log):
    lines = [f"{i},1,2,3,setosa\n" for i in range(12_345)]
    write_training(model_copy, "sepal_length,sepal_width,petal_length,petal_width,label\n" + "".join(lines))
    rows = make_app(role="web_single", model_dir=str(model_copy)).get("/training").json["rows"]
    assert len(rows) == 1000
    assert {after[0] - before[0] for before, after in pairwise(rows)} == {12, 13}


@pytest.mark.parametrize(
    ("text", "why"),
    [("a,b,c,d,label\n1,2,3,4,setosa\n", "other columns"), ("5.1", "other columns"), ("{}\n1,2,3,4,rose\n", "not labels"),
     ("{}\n1,2,3,4\n", "not labels"), ("{}\n1,2,3,inf,setosa\n", "not finite"), ("{}\n1,2,setosa\n", ""), ("", "")],
)  # fmt: skip
def test_a_training_file_of_another_model_is_ignored_with_a_message_in_the_log(make_app, model_copy, log, text, why):
    write_training(model_copy, text.format("sepal_length,sepal_width,petal_length,petal_width,label"))
    app = make_app(role="web_single", model_dir=str(model_copy))
    app.get("/training", status=404)
    (line,) = [event["message"] for event in log.events() if "/training" in event.get("message", "")]
    assert why in line and "training.csv" in line
    assert "/training" not in app.get("/openapi.json").json["paths"]


def test_a_file_without_classes_is_sufficient_for_items_but_not_for_the_plot(make_app, model_copy, log):
    write_training(model_copy, "sepal_length,sepal_width,petal_length,petal_width\n5.1,3.5,1.4,0.2\n")
    app = make_app(model_dir=str(model_copy))
    assert app.get("/items/0000").json["data"] == [[5.1, 3.5, 1.4, 0.2]]
    app.get("/training", status=404)
    assert any("no column for the label" in event.get("message", "") for event in log.events())


def test_a_model_without_a_training_file_has_no_training_rows(make_app, model_copy, log):
    write_training(model_copy, None)
    make_app(role="web_single", model_dir=str(model_copy)).get("/training", status=404)
    assert not [line for line in log.events() if "training" in line.get("message", "")]


def write_training(folder: Path, text: str | None) -> None:
    """Replaces or removes the training file, and writes the manifest of the folder again."""
    document = json.loads((folder / "golden.json").read_text())
    document["files"].pop("training.csv", None)
    (folder / "training.csv").unlink()
    if text is not None:
        (folder / "training.csv").write_text(text)
    (folder / "golden.json").write_text(json.dumps(document))


# Behavior in a browser


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with open_browser(require_program) as window:
        yield window


@pytest.fixture
def page(window: Browser, live_server) -> Browser:
    """Page of a server with every pattern, after its first prediction."""
    return open_page(window, live_server.url)


def open_page(window: Browser, url: str, size=DESKTOP, dark=False) -> Browser:
    window.visit(f"{url}/", size, dark)
    window.wait_until(lambda: window.find_all("#bars li.best"), "the page has a prediction")
    return window


def shows(page: Browser, label: str) -> None:
    page.wait_until(lambda: page.text("#label") == label, f"the page shows {label}")
    assert page.text("#bars li.best .name") == label


def write(page: Browser, i: int, text: str) -> None:
    page.find(f"#field-{i}").send_keys(Keys.CONTROL + "a" + Keys.NULL + text)


def slide(page: Browser, i: int, value: float) -> None:
    """Sets a slider with the keyboard, starting at its lower end."""
    slider = page.find(f"#slider-{i}")
    low, step = (float(slider.get_attribute(name)) for name in ("min", "step"))
    slider.send_keys(Keys.HOME + Keys.ARROW_RIGHT * round((value - low) / step))


def by_slider(page: Browser, label: str) -> None:
    for i, value in enumerate(LABELED_ROWS[label]):
        slide(page, i, value)


def by_field(page: Browser, label: str) -> None:
    for i, value in enumerate(LABELED_ROWS[label]):
        write(page, i, str(value))


def by_example(page: Browser, label: str) -> None:
    (button,) = [element for element in page.find_all("#examples button") if element.text == label]
    button.send_keys(Keys.ENTER)


@pytest.mark.parametrize("how", [by_slider, by_field, by_example])
def test_the_three_labeled_rows_are_predicted(page, live_server, how):
    for label in ("virginica", "setosa", "versicolor"):
        how(page, label)
        shows(page, label)
        assert [float(page.find(f"#field-{i}").get_property("value")) for i in range(4)] == LABELED_ROWS[label]
        assert [float(page.find(f"#slider-{i}").get_property("value")) for i in range(4)] == LABELED_ROWS[label]
        expected = [round(100 * p, 2) for p in response_of(live_server, LABELED_ROWS[label])]
        # The prediction for the last step of a slider may come later than the label.
        page.wait_until(lambda expected=expected: percentages(page) == expected, "the probabilities are those of the server")
    assert page.console_messages() == []


def percentages(page: Browser) -> list[float]:
    return [float(element.text.removesuffix(" %") or "nan") for element in page.find_all("#bars .percent")]


def response_of(server, row: list[float]) -> list[float]:
    result = subprocess.run(
        [
            require_program("curl"),
            "-s",
            f"{server.url}/predict",
            "-d",
            json.dumps({"data": [row]}),
            "-H",
            "Content-Type: application/json",
        ],
        capture_output=True,
        check=True,
    )
    return json.loads(result.stdout)["prediction"]


def test_the_page_sends_requests_to_its_own_server_only_and_the_console_stays_empty(page, live_server):
    by_example(page, "virginica")
    shows(page, "virginica")
    urls = page.requested_urls()
    model = "/v2/models/iris_svc"
    assert {url.removeprefix(live_server.url) for url in urls} == {
        "/", "/openapi.json", "/metadata", "/training", "/predict/proba",
        "/metrics", "/readyz", "/v2/models", model, f"{model}_pred", "/ensemble/health",
    }  # fmt: skip
    assert page.console_messages() == []


@pytest.mark.parametrize(
    ("typed", "detail"), [("long", "must be a number"), ("", "must be a number"), ("1e39", "must be finite")]
)
def test_an_invalid_value_is_reported_at_its_field_until_it_is_corrected(page, typed, detail):
    write(page, 2, typed or Keys.DELETE)
    page.wait_until(lambda: page.text("#fault-2").startswith(f"This {detail}"), "the error is shown")
    field = page.find("#field-2")
    assert field.get_attribute("aria-invalid") == "true"
    assert field.get_attribute("aria-describedby") == "fault-2 hint-2"
    assert not [i for i in (0, 1, 3) if page.find(f"#field-{i}").get_attribute("aria-invalid") or page.text(f"#fault-{i}")]
    assert (page.text("#label"), page.text("#status")) == ("–", "")
    assert {element.text for element in page.find_all("#bars .percent")} == {"–"}
    write(page, 2, "1,4")
    shows(page, "setosa")
    assert page.text("#fault-2") == "" and field.get_attribute("aria-invalid") is None


def test_a_value_outside_of_the_training_range_is_predicted_and_reported_as_such(page):
    assert page.text("#hint-0") == "4.3 to 7.9 in training"
    write(page, 0, "9")
    assert page.text("#hint-0") == "outside the training range: 4.3 to 7.9"
    shows(page, "setosa")


def test_a_screen_reader_announces_the_result_and_errors_of_a_field(page):
    spoken = page.find("#spoken")
    assert spoken.get_attribute("aria-live") == "polite" and page.find("#status").get_attribute("role") == "status"
    page.wait_until(lambda: spoken.get_property("textContent") == "setosa, 99.95 %", "the first result is announced")
    by_example(page, "virginica")
    page.wait_until(lambda: spoken.get_property("textContent") == "virginica, 99.53 %", "the second result is announced")


HELD = """
const real = window.fetch; window.held = [];
window.fetch = (...given) => !given[0].startsWith("predict") ? real(...given)
  : new Promise(go => held.push(() => { const answer = real(...given); go(answer); return answer; }));
"""
LET_GO = "const done = arguments[1]; held[arguments[0]]().then(answer => answer.clone().text()).then(() => setTimeout(done, 50))"


def test_a_late_response_is_dropped(page):
    page.run(HELD)
    by_example(page, "versicolor")
    by_example(page, "virginica")
    page.wait_until(lambda: page.run("return held.length") == 2, "both requests are sent")
    page.driver.execute_async_script(LET_GO, 1)
    shows(page, "virginica")
    page.driver.execute_async_script(LET_GO, 0)
    assert page.text("#label") == "virginica"


def test_the_curl_line_can_be_copied_and_gives_the_shown_result(page):
    require_program("curl")
    origin = page.run("return location.origin")
    page.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=origin)
    by_example(page, "virginica")
    shows(page, "virginica")
    page.find("#copy").click()
    page.wait_until(lambda: page.text("#copy") == "Copied", "the line is copied")
    copied = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    document = json.loads(subprocess.run(["sh", "-c", copied], capture_output=True, check=True, text=True).stdout)
    assert max(document["prediction"], key=lambda pair: pair["probability"])["label"] == "virginica"
    write(page, 0, "it's $(no) number")
    curl_line = page.text("#curl")
    document = json.loads(subprocess.run(["sh", "-c", curl_line], capture_output=True, check=True, text=True).stdout)
    assert document["errors"][0]["pointer"] == "#/data/0/0"


def test_the_plot_has_each_training_row_in_its_class_and_the_current_point(page):
    assert len(page.find_all("#plot .point")) == 150
    marks = {(element.get_attribute("class"), element.get_attribute("d")) for element in page.find_all("#plot .point")}
    assert len(marks) == len({colour for colour, _ in marks}) == len({form for _, form in marks}) == 3
    assert [element.text for element in page.find_all("#legend li")] == [
        "setosa (50)",
        "versicolor (50)",
        "virginica (50)",
        "your input",
    ]
    chosen = [Select(page.find(f"#{name}")).first_selected_option.text for name in ("across", "up")]
    assert chosen == ["Petal length (cm)", "Petal width (cm)"]
    by_example(page, "virginica")
    shows(page, "virginica")
    picture = page.find("#plot svg")
    assert picture.get_attribute("aria-label").endswith("Your input is at 6.1 and 2.5.")
    Select(page.find("#across")).select_by_visible_text("Sepal length (cm)")
    assert page.find("#plot svg").get_attribute("aria-label").endswith("Your input is at 7.2 and 2.5.")
    assert len(page.find_all("#now .now")) == 1
    write(page, 0, "99")
    page.wait_until(lambda: not page.find_all("#now .now"), "the point is at the border, without a class")


def all_texts_visible(page: Browser) -> bool:
    """Returns whether all texts of the plot are within its border."""
    return page.run(
        """const picture = document.querySelector("#plot svg").getBoundingClientRect();
        const texts = [...document.querySelectorAll("#plot text")].map(one => one.getBoundingClientRect());
        return texts.every(one => one.left >= picture.left && one.right <= picture.right && one.bottom <= picture.bottom);"""
    )


def test_the_page_names_its_model_and_has_links_to_more(page, live_server):
    assert page.text("#title") == "iris_svc"
    result = page.text("#model")
    document = json.loads((MODEL / "golden.json").read_text())
    assert f"sha256:{document['files'][document['model']]}" in result and "1.0.0" in result
    links = {element.get_attribute("href").removeprefix(live_server.url) for element in page.find_all("#links a")}
    assert {"/openapi.json", "/metrics"} <= links


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_wrong_in_light_and_in_dark_mode_and_with_an_error(window, live_server, size, dark):
    page = open_page(window, live_server.url, size, dark)
    assert page.violations() == []
    write(page, 1, "wide")
    page.wait_until(lambda: page.text("#fault-1"), "the error is shown")
    write(page, 0, "99")
    assert page.violations() == []


def test_light_and_dark_mode_have_different_colors(window, live_server):
    colours = {
        open_page(window, live_server.url, DESKTOP, dark).run("return getComputedStyle(document.body).backgroundColor")
        for dark in (False, True)
    }
    assert len(colours) == 2


def test_on_a_phone_nothing_is_wider_than_the_screen_and_the_result_stays_in_sight(window, live_server):
    page = open_page(window, live_server.url, PHONE)
    assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert all_texts_visible(page)
    page.run("document.getElementById('slider-0').scrollIntoView({block: 'end'})")
    brief = page.find("#brief")
    top, bottom = page.run("const at = arguments[0].getBoundingClientRect(); return [at.top, at.bottom]", brief)
    assert brief.text.split() == ["setosa", "99.95", "%"] and 0 < top < bottom <= PHONE[1]


def test_reduced_motion_is_respected(page):
    duration = "return getComputedStyle(document.querySelector('.bar i')).transitionDuration"
    assert page.run(duration) != "0s"
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert page.run(duration) == "0s"


def test_everything_can_be_used_with_the_keyboard_alone(page):
    page.run("document.body.focus()")
    reached = []
    for _ in range(30):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        item = page.driver.switch_to.active_element
        reached.append(item.get_attribute("id") or item.text)
    order = [pattern.name for pattern in PATTERNS]
    order += ["setosa", "versicolor", "virginica", *(f"{kind}-{i}" for i in range(4) for kind in ("slider", "field"))]
    order += ["curl", "copy", "across", "up"]
    assert reached[: len(order)] == order


def test_a_missing_server_is_reported_and_the_page_finds_its_return_with_a_new_model(window, run):
    server = run("--role", "web_single")
    page = open_page(window, server.url)
    server.stop()
    by_example(page, "virginica")
    page.wait_until(
        lambda: page.text("#status").startswith("The server cannot be reached. Retrying in"), "the page reports the failure"
    )
    assert page.text("#label") == "–"
    run("--role", "web_single", "--port", str(server.port), "--model-dir", str(MODEL / "fast"))
    page.wait_until(lambda: page.text("#label") == "virginica", "the page has a prediction")
    assert page.text("#status") == "This server has another model now. Reload the page to see it."


def test_an_error_of_the_server_is_shown_with_its_message(window, run):
    server = run("--role", "prep", "--pred-url", "http://127.0.0.1:9")
    window.visit(f"{server.url}/")
    window.wait_until(lambda: "Retrying in" in window.text("#status"), "the page shows the error")
    assert "pred" in window.text("#status") and window.text("#label") == "–"
    assert window.violations() == []


@pytest.mark.parametrize("role", ["asynchronous", "synchronous"])
def test_a_role_without_predictions_shows_its_routes(window, run, role):
    server = run("--role", role)
    window.visit(f"{server.url}/")
    window.wait_until(lambda: window.find_all("#routes li"), "the routes are there")
    paths = json.loads(subprocess.run([require_program("curl"), "-s", f"{server.url}/openapi.json"], capture_output=True).stdout)[
        "paths"
    ]
    assert [element.text for element in window.find_all("#routes li span:not(.soft)")] == [
        p for p, ways in paths.items() for _ in ways
    ]
    links = {element.get_attribute("href").removeprefix(server.url) for element in window.find_all("#routes a")}
    assert links == {path for path, ways in paths.items() if "get" in ways and "{" not in path} - {"/"}
    assert not window.find("#tool").is_displayed()
    assert window.violations() == [] and window.console_messages() == []
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")


NAMES = ["temperature", "pressure", "<b>tilt</b>", "drift"]
FEATURES = [
    {"name": "temperature", "unit": "°C", "min": -40, "max": 85},
    {"name": "pressure", "unit": "Pa", "min": 90_000, "max": 110_000},
    {"name": "<b>tilt</b>", "min": -0.02, "max": 0.03},
    {"name": "drift"},
]


def save_model(folder: Path, features: list[dict], classes: int, training: bool) -> None:
    """Writes a model whose first feature determines the class, and its training rows."""
    folder.mkdir()
    width = len(features)
    weights = np.zeros((width, classes), np.float32)
    weights[0] = np.arange(classes)
    offsets = -5 * np.arange(classes, dtype=np.float32) ** 2
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["products"]),
        helper.make_node("Add", ["products", "offsets"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    input_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])
    output_info = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, classes])
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(offsets, "offsets")]
    graph = helper.make_graph(nodes, "g", [input_info], [output_info], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"name": "other", "version": "7", "features": json.dumps(features)})
    (folder / "other.onnx").write_bytes(model.SerializeToString())
    labels = [f"class {i}" for i in range(classes)]
    (folder / "label.json").write_text(json.dumps({str(i): label for i, label in enumerate(labels)}))
    if training:
        rows = [[10 * i + k, 100_000 + k, 0.001 * k, k, label] for i, label in enumerate(labels) for k in range(-4, 5)]
        lines = [[feature["name"] for feature in features] + ["label"], *([*row[:width], row[-1]] for row in rows)]
        (folder / "training.csv").write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    seal(folder)


def test_another_model_has_its_own_page(window, run, tmp_path):
    save_model(tmp_path / "other", FEATURES, 5, training=True)
    page = open_page(window, run("--role", "web_single", "--model-dir", str(tmp_path / "other")).url)
    labels = [element.text for element in page.find_all("#features label")]
    assert labels == ["Temperature (°C)", "Pressure (Pa)", "<b>tilt</b>", "Drift"]
    assert [
        (element.get_attribute("min"), element.get_attribute("max")) for element in page.find_all("#features input[type=range]")
    ] == [
        ("-40", "85"),
        ("90000", "110000"),
        ("-0.020", "0.030"),
        # Only the training rows contain these values.
        ("-4.0", "4.0"),
    ]
    assert [element.text for element in page.find_all("#examples button")] == [f"class {i}" for i in range(5)]
    for i in (4, 0, 2):
        by_example(page, f"class {i}")
        shows(page, f"class {i}")
        assert page.find("#field-0").get_property("value") == str(10 * i)
    slide(page, 0, 30)
    shows(page, "class 3")
    assert len(page.find_all("#bars li")) == 5 and len(page.find_all("#plot .point")) == 45
    marks = {(element.get_attribute("class"), element.get_attribute("d")) for element in page.find_all("#plot .point")}
    assert len(marks) == 5 and page.text("#title") == "other"
    assert all_texts_visible(page)
    assert page.violations() == [] and page.console_messages() == []


def test_a_model_with_little_metadata_and_many_classes_can_be_tried_too(window, run, tmp_path):
    save_model(tmp_path / "bare", [{"name": "x"}], 20, training=False)
    page = open_page(window, run("--role", "web_single", "--model-dir", str(tmp_path / "bare")).url)
    assert page.find_all("input[type=range]") == [] and not page.find("#scatter").is_displayed()
    assert [element.text for element in page.find_all("#examples button")] == ["Sample"]
    write(page, 0, "170")
    shows(page, "class 17")
    assert 0 < len([element for element in page.find_all("#bars li") if element.is_displayed()]) <= 12
    assert page.violations() == [] and page.console_messages() == []


def test_many_features_do_not_push_the_result_out_of_sight(window, run, tmp_path):
    save_model(tmp_path / "wide", [{"name": f"f{i}", "min": 0, "max": 20 + i} for i in range(64)], 3, training=False)
    page = open_page(window, run("--role", "web_single", "--model-dir", str(tmp_path / "wide")).url)
    assert len(page.find_all("#features input[type=text]")) == 64
    assert page.run("return document.documentElement.scrollHeight") < 3 * DESKTOP[1]
    write(page, 63, "no")
    page.wait_until(lambda: page.text("#fault-63") == "This must be a number.", "the error is shown at the last feature")
    assert page.violations() == []


def page_of(window: Browser, run, folder: Path) -> Browser:
    """Opens the page of a model, and waits for its first result."""
    window.visit(f"{run('--role', 'web_single', '--model-dir', str(folder)).url}/")
    window.wait_until(lambda: window.run("return document.getElementById('spoken').textContent"), "the page has a result")
    return window


def spoken(page: Browser, text: str) -> None:
    page.wait_until(lambda: page.find("#spoken").get_property("textContent") == text, f"the page announces {text}")


def values_shown(page: Browser) -> dict[str, str]:
    names, values = (page.find_all(f"#bars .{part}") for part in ("name", "percent"))
    return {name.text: value.text for name, value in zip(names, values, strict=True)}


def test_a_regressor_has_a_value_with_its_name_and_no_bars(window, run, tmp_path):
    page = page_of(window, run, write_model(tmp_path / "model", "regressor of a column"))
    assert (page.text("#label"), page.text("#sure"), page.text("#title")) == ("5687.5", "price", "packed")
    assert values_shown(page) == {"price": "5687.5"} and not page.find_all(".bar") and not page.find_all("#label .marker")
    assert not page.find("#scatter").is_displayed() and "/predict -H" in page.text("#curl")
    write(page, 0, "0")
    spoken(page, "187.5")
    write(page, 0, "")
    write(page, 0, "x")
    page.wait_until(lambda: page.text("#fault-0") == "This must be a number.", "the error is shown")
    assert page.text("#sure") == "no prediction for this input"
    assert page.violations() == []


def test_a_regressor_of_three_targets_shows_them_all(window, run, tmp_path):
    page = page_of(window, run, write_model(tmp_path / "model", "regressor of three targets"))
    assert values_shown(page) == {"price": "5687.5", "weight": "-3750", "height (m)": "687.5"}
    assert not page.find("#label").is_displayed() and "price, weight, and height (m)" in page.text("#lead")
    assert page.violations() == [] and page.console_messages() == []


def test_scores_are_shown_as_scores_and_never_as_probabilities(window, run, tmp_path):
    page = page_of(window, run, pack_scores(tmp_path / "model", labels=("<b>x</b>", "y", "z")))
    assert (page.text("#label"), page.text("#sure")) == ("<b>x</b>", "The scores are not probabilities.")
    assert not page.find_all(".bar") and "%" not in page.text("main") and page.text("#bars li.best .name") == "<b>x</b>"
    assert page.violations() == [] and page.console_messages() == []


TYPED = """"age, in years",rooms,city,owner,label
31,2,Tokyo,true,no
,3,Lima,false,no
50,4,"a ""b"", <c>",true,"yes, <i>maybe</i>"
"""


def test_typed_features_have_fields_of_their_type_and_some_may_be_empty(window, run, tmp_path):
    page = page_of(window, run, pack_mixed(tmp_path / "model", training=TYPED.encode()))
    kinds = [page.find(f"#field-{i}").tag_name for i in range(4)]
    assert kinds == ["input", "input", "input", "select"]
    assert page.text("#hint-0") == "18 to 90 in training; may be empty" and page.text("#hint-1") == "1 to 9 in training"
    assert (page.find("#slider-1").get_attribute("step"), len(page.find_all("input[type=range]"))) == ("1", 2)
    write(page, 0, Keys.DELETE)
    write(page, 2, "L'été <b>")
    Select(page.find("#field-3")).select_by_visible_text("false")
    page.wait_until(lambda: '[[null, 2, "L' in page.text("#curl") and "false]]" in page.text("#curl"), "the row has each type")
    copied = subprocess.run(["sh", "-c", page.text("#curl")], capture_output=True, check=True, text=True).stdout
    best = max(json.loads(copied)["prediction"], key=lambda pair: pair["probability"])["label"]
    shows(page, best)
    write(page, 1, "2.5")
    page.wait_until(lambda: page.text("#fault-1").startswith("This must be a whole number"), "the error is shown")
    by_example(page, "yes, <i>maybe</i>")
    assert [page.find(f"#field-{i}").get_property("value") for i in range(4)] == ["50", "4", 'a "b", <c>', "true"]
    axes = [option.text for option in page.find_all("#across option")]
    assert axes == ["Age, in years (a)", "Rooms"] and len(page.find_all("#plot .point")) == 2
    assert page.violations() == []


def test_one_numeric_feature_has_no_plot(window, run, tmp_path):
    training = "only,label\n1,x\n2,y\n"
    graph = one_input_graph(1, 2, classes=[0, 1], softmax=True)
    members = {"features": [Feature("only")], "classes": [0, 1], "training": training.encode()}
    page = page_of(window, run, pack_graph(tmp_path / "model", graph, [[1.0], [2.0]], ("x", "y"), **members))
    assert not page.find("#scatter").is_displayed() and [one.text for one in page.find_all("#examples button")] == ["x", "y"]


def test_the_label_of_the_graph_is_shown_where_it_is_not_that_of_the_highest_probability(window, run, tmp_path):
    page = page_of(window, run, pack_classifier(tmp_path / "model", shift=0.9))
    for row in ([1.5, -0.25, 0.5], [-1.0, 1.0, 0.25], [2.0, 2.0, 2.0]):
        for i, value in enumerate(row):
            write(page, i, str(value))
        document = json.loads(subprocess.run(["sh", "-c", page.text("#curl")], capture_output=True, check=True).stdout)
        shows(page, document["labels"][0])
    assert page.console_messages() == []


def test_five_thousand_features_are_a_hundred_fields_and_one_of_json(window, run, tmp_path):
    names = [Feature(f"f{i}", None, -1.0, 1.0) for i in range(5000)]
    rows = np.random.default_rng(0).normal(0, 1, (3, 5000)).round(3).tolist()
    graph = one_input_graph(5000, 3, classes=[0, 1, 2], softmax=True)
    folder = pack_graph(tmp_path / "model", graph, rows, ("x", "y", "z"), features=names, classes=[0, 1, 2])
    page = page_of(window, run, folder)
    assert len(page.find_all("#features input[type=text]")) == 100
    assert page.text("label[for=field-100]") == "4900 more features, as a list of JSON: f100 to f4999"
    area = page.find("#field-100")
    assert json.loads(area.get_property("value")) == rows[0][100:]
    for text, detail in (("[1, 2]", "This has 102 values; a row has 5000."), ("[", "This has 101 values; a row has 5000.")):
        page.run("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", area, text)
        page.wait_until(lambda detail=detail: page.text("#fault-100") == detail, "the error is at the field of JSON")
    page.run("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", area, json.dumps(rows[1][100:]))
    page.wait_until(lambda: page.text("#fault-100") == "" and page.text("#label") != "–", "the page has a result again")
    assert page.violations() == []


def test_a_thousand_classes_show_the_twelve_most_probable(window, run, tmp_path):
    page = page_of(window, run, pack_classifier(tmp_path / "model", labels=[f"class <{i}>" for i in range(1000)]))
    assert len(page.find_all("#bars li")) == 12 and "one of 1000 classes" in page.text("#lead")
    assert page.text("#bars li.best .name") == page.text("#label") and "… (1000 in all)" in page.text("#model")
    assert page.violations() == [] and page.console_messages() == []
