"""The cards of the patterns on the page: their forms, their code, and their figures, in Chromium."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from chosen_models import pack_mixed
from edge_bundles import build_bundle
from headless_browser import DESKTOP, PHONE, Browser, open_browser
from iris_data import LABELED_ROWS
from optional_programs import require_program
from packed_models import write_model
from project import MODEL
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from server_process import ServerProcess, start_server

from iris_wsgi.cli.tour import PATTERNS

pytestmark = [pytest.mark.long, pytest.mark.repeats]

IDS = [pattern.name.replace(" ", "-") for pattern in PATTERNS]
ROW, OTHER = json.dumps(LABELED_ROWS["setosa"]), json.dumps(LABELED_ROWS["virginica"])
TOKEN = "a-token-of-some-letters"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with open_browser(require_program) as window:
        yield window


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Server of role all with an edge bundle."""
    bundle = build_bundle(tmp_path_factory.mktemp("edge") / "bundle", MODEL)
    server = start_server("--edge-dir", str(bundle))
    yield server
    server.stop()


@pytest.fixture
def page(window: Browser, server: ServerProcess) -> Browser:
    return open_cards(window, server.url)


def open_cards(window: Browser, url: str, size=DESKTOP, dark=False) -> Browser:
    window.visit(url, size, dark)
    wait_for_cards(window)
    return window


def wait_for_cards(page: Browser) -> None:
    page.wait_until(lambda: page.find_all("#patterns:not([hidden]):not([aria-busy])"), "the cards have their forms")


def state_of_job(page: Browser) -> str:
    # One script, because the page replaces the elements.
    return page.run("return document.querySelector('#asynchronous .steps .now').textContent")


def press(page: Browser, card: str, text: str) -> None:
    (button,) = [one for one in page.find_all(f"#{card} form button") if one.text == text]
    button.send_keys(Keys.ENTER)


def put(page: Browser, selector: str, text: str) -> None:
    page.run("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
             page.find(selector), text)  # fmt: skip


def result(page: Browser, card: str, pattern: str) -> str:
    """Waits until the result of the card matches the pattern, and returns its text."""
    page.wait_until(lambda: re.search(pattern, page.text(f"#{card} .result"), re.DOTALL), f"{card} shows {pattern}")
    return page.text(f"#{card} .result")


def fault(page: Browser, card: str, text: str) -> None:
    page.wait_until(lambda: text in page.text(f"#{card} .fault"), f"{card} shows the problem {text}")


FIGURES = """return Object.fromEntries([...document.querySelectorAll(`#${arguments[0]} .figures div`)]
  .map(one => [...one.children].map(part => part.textContent)))"""
LINES = """return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]
  .map(line => [...line.children].map(cell => cell.textContent))"""


def figure(page: Browser, card: str, name: str) -> str:
    """Returns a figure, with one script, because the page replaces the elements."""
    return page.run(FIGURES, card)[name]


def lines(page: Browser, card: str) -> list[list[str]]:
    """Returns the lines of the table of a card: of a cache, the request, hit or miss, latency, result, and Cache-Status."""
    return page.run(LINES, card)


def code(page: Browser, card: str, language: str) -> str:
    summary = page.find(f"#{card} summary")
    if not page.find(f"#{card} details").get_property("open"):
        summary.send_keys(Keys.ENTER)
    buttons: list[WebElement] = page.find_all(f"#{card} details .row button")
    next(one for one in buttons if one.text == language).send_keys(Keys.ENTER)
    return page.find(f"#{card} details pre").get_property("textContent")


def test_the_cards_have_the_names_and_the_words_of_the_tour(page):
    assert [one.text for one in page.find_all(".card h3")] == [pattern.name for pattern in PATTERNS]
    assert [one.text for one in page.find_all(".card h3 + p")] == [f"Use it when {pattern.when}" for pattern in PATTERNS]
    assert [one.get_attribute("href").partition("#")[2] for one in page.find_all("#jump a")] == IDS
    assert all(page.find(f"#{name}").is_displayed() for name in IDS)


def test_the_top_has_name_tagline_role_health_and_version(page):
    top = page.text("header")
    assert "iris_wsgi" in top and "One trained model, served in ten patterns." in top
    assert [page.text(f"#{name}") for name in ("health", "role", "version")] == ["ready", "role all", "version 0.1.0"]


def test_the_rows_of_the_cards_follow_the_predictor_until_they_are_edited(page):
    put(page, "#row-asynchronous", OTHER)
    page.find("#examples button:nth-child(2)").send_keys(Keys.ENTER)
    value = json.dumps(LABELED_ROWS["versicolor"])
    page.wait_until(lambda: page.find("#row-synchronous").get_property("value") == value, "the row follows")
    assert page.find("#row-asynchronous").get_property("value") == OTHER


def test_web_single_and_synchronous_show_the_response_with_its_digest(page):
    press(page, "web-single", "Predict")
    assert "X-Model-Digest: sha256:" in result(page, "web-single", r"setosa, 99\.95 %.*status 200")
    put(page, "#row-synchronous", OTHER)
    press(page, "synchronous", "Infer")
    assert '"model_name": "iris_svc"' in result(page, "synchronous", '"name": "label", "datatype": "INT64"')
    put(page, "#row-synchronous", "[5.1]")
    press(page, "synchronous", "Infer")
    page.wait_until(lambda: page.text("#synchronous .fault"), "the problem of the server is shown")
    put(page, "#row-synchronous", "5.1")
    press(page, "synchronous", "Infer")
    fault(page, "synchronous", "The row is not a list in JSON.")


def test_a_job_is_queued_runs_and_succeeds(page):
    put(page, "#row-asynchronous", OTHER)
    press(page, "asynchronous", "Submit a job")
    assert "virginica, 99.53 %" in result(page, "asynchronous", r"queued.*running\nafter \d+ ms\nsucceeded\nafter \d+ ms")
    assert state_of_job(page).startswith("succeeded")
    page.wait_until(lambda: int(figure(page, "asynchronous", "succeeded")) > 0, "the figures count the job")


HOLD_JOBS = """
const real = window.fetch; window.states = []; window.running = [];
window.fetch = async (path, options) => {
  const answer = await real(path, options);
  if (!/^jobs\\/./.test(path) || window.states.length === 2) return answer;
  const job = await answer.json();
  window.states.push(document.querySelector("#asynchronous .steps .now").textContent);
  return Response.json({ ...job, status: "running", finished: null, result: undefined });
};
"""


def test_a_slow_job_is_first_shown_as_queued_and_then_as_running(page):
    page.run(HOLD_JOBS)
    press(page, "asynchronous", "Submit a job")
    result(page, "asynchronous", r"succeeded\nafter \d+ ms")
    queued, running = page.run("return states")
    assert queued.startswith("queued") and running.startswith("running")


CSV = 'label,petal_width,petal_length,sepal_width,sepal_length\r\n?,0.2,1.4,3.5,5.1\n\n"a, b",2.5,6.1,3.6,7.2\n'


def test_a_pasted_csv_is_scored_and_the_predictions_can_be_downloaded(page, tmp_path):
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    put(page, "#csv", CSV)
    press(page, "batch", "Score")
    result(page, "batch", "2 rows")
    assert [one.text for one in page.find_all("#batch tbody td:first-child")] == ["setosa", "virginica"]
    page.find("#batch .result a").send_keys(Keys.ENTER)
    page.wait_until((tmp_path / "predictions.csv").exists, "the predictions are downloaded")
    head, first, second = (tmp_path / "predictions.csv").read_text().splitlines()
    assert head == "sepal_length,sepal_width,petal_length,petal_width,label,setosa,versicolor,virginica"
    assert first.startswith("5.1,3.5,1.4,0.2,setosa,0.9995") and second.startswith("7.2,3.6,6.1,2.5,virginica,")
    assert "bin/batch rows.csv predictions.csv" in page.text("#batch .note")


def test_a_csv_file_is_scored_when_it_is_chosen_and_an_error_names_its_row(page, tmp_path):
    (tmp_path / "rows.csv").write_text("5.1,3.5,1.4,0.2\n" * 1500 + "5.1,3.5,long,0.2\n")
    page.find("#csv-file").send_keys(str(tmp_path / "rows.csv"))
    fault(page, "batch", "Row 1501, petal_length, must be a number.")
    (tmp_path / "right.csv").write_text("6.7,3.1,4.7,1.5\n" * 1500)
    page.find("#csv-file").send_keys(str(tmp_path / "right.csv"))
    result(page, "batch", "1500 rows")
    assert page.text("#batch .fault") == "" and len(page.find_all("#batch tbody tr")) == 50


DROP = """
const data = new DataTransfer();
data.items.add(new File([arguments[0]], "dropped.csv"));
document.getElementById("csv").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
"""


def test_a_dropped_csv_file_is_scored(page):
    page.run(DROP, CSV)
    result(page, "batch", "2 rows")
    put(page, "#csv", "")
    press(page, "batch", "Score")
    fault(page, "batch", "The CSV has no rows.")


def test_the_second_half_predicts_from_scaled_values_and_the_card_names_the_command_of_the_first(page, server):
    assert f"bin/serve --role prep --port 8001 --pred-url {server.url}" in page.text("#prep-pred .note")
    press(page, "prep-pred", "Infer")
    assert '"model_name": "iris_svc_pred"' in result(page, "prep-pred", "status 200")
    page.wait_until(lambda: figure(page, "prep-pred", "rows of iris_svc_pred") != "0", "the figures count the row")


def test_a_hybrid_response_becomes_final(page):
    put(page, "#row-sync-async", OTHER)
    press(page, "sync-async", "Predict")
    text = result(page, "sync-async", r"final iris_svc virginica")
    assert re.search(r"provisional iris_lr virginica, [\d.]+ % [\d.]+ ms\nfinal iris_svc virginica, 99.53 % [\d.]+ ms", text)
    page.wait_until(lambda: int(figure(page, "sync-async", "final result agrees")) > 0, "the figures count the result")


def test_the_second_prediction_of_a_row_is_a_hit(page):
    put(page, "#row-prediction-cache", OTHER)
    for count, text in enumerate(["Empty the cache", "Predict", "Predict", "Predict without the cache"], 1):
        press(page, "prediction-cache", text)
        page.wait_until(lambda count=count: len(lines(page, "prediction-cache")) == count, f"{text} has a response")
    bypassed, hit, miss, emptied = lines(page, "prediction-cache")
    assert [line[1] for line in (bypassed, hit, miss, emptied)] == ["miss", "hit", "miss", "–"]
    assert "; hit; ttl=" in hit[4] and "fwd=miss; stored" in miss[4] and hit[3] == miss[3] == "virginica, 99.53 %"
    assert all(re.fullmatch(r"[\d.]+ ms", line[2]) for line in (bypassed, hit, miss, emptied))
    page.wait_until(lambda: int(figure(page, "prediction-cache", "hits")) > 0, "the figures count the hit")


def test_an_item_is_looked_up_and_changed(page):
    put(page, "#id-data-cache", "the page")
    press(page, "data-cache", "Look up")
    fault(page, "data-cache", "Item not found")
    put(page, "#id-data-cache", "page_1")
    put(page, "#row-data-cache", OTHER)
    press(page, "data-cache", "Look up")
    fault(page, "data-cache", "Item not found. Change writes it.")
    press(page, "data-cache", "Change")
    result(page, "data-cache", "change to version 1")
    put(page, "#row-data-cache", ROW)
    for count, text in ((2, "Change"), (4, "Look up"), (6, "Look up")):
        press(page, "data-cache", text)
        page.wait_until(lambda count=count: len(lines(page, "data-cache")) == count, f"{text} has a response")
    found = lines(page, "data-cache")
    assert [line[:2] for line in found[:5]] == [
        ["prediction", "hit"],
        ["item, version 2", "hit"],
        ["prediction", "miss"],
        ["item, version 2", found[3][1]],
        ["change to version 2", "–"],
    ]
    assert found[0][3] == "setosa, 99.95 %" and page.find("#row-data-cache").get_property("value") == ROW


def test_the_members_vote_and_are_up(page):
    page.wait_until(lambda: len(page.find_all("#horizontal-microservice .bars .hit")) == 3, "the three members are up")
    press(page, "horizontal-microservice", "Vote")
    text = result(page, "horizontal-microservice", "setosa, 99.64 %; complete")
    assert re.search(r"up\nsetosa\n99.92 %\nup\nversicolor\n[\d.]+ %\nup\nvirginica\n[\d.]+ %", text)


def test_the_edge_page_is_one_click_away(page, server):
    link = page.find("#edge-AI .note a")
    assert link.get_attribute("href") == f"{server.url}/edge/" and "Its bundle has iris_svc 1.0.0." in page.text("#edge-AI")
    link.send_keys(Keys.ENTER)
    page.wait_until(lambda: page.run("return location.pathname") == "/edge/", "the edge page opens")


JAVASCRIPT = """
const done = arguments[arguments.length - 1], log = [], console = { log: (...words) => log.push(words) };
(async () => { %s })().then(() => done(log), error => done(String(error)));
"""


@pytest.mark.parametrize("card", IDS)
def test_the_code_of_each_card_runs_in_the_three_languages(page, card):
    if card == "asynchronous":
        press(page, card, "Submit a job")
        result(page, card, r"succeeded\nafter")
    command = code(page, card, "curl")
    printed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert [json.JSONDecoder().raw_decode(printed)[0]] and "request_id" not in printed
    python = subprocess.run([sys.executable, "-c", code(page, card, "Python")], capture_output=True, text=True)
    assert python.returncode == 0 and re.match(r"20[012] \{", python.stdout), python.stderr
    log = page.driver.execute_async_script(JAVASCRIPT % code(page, card, "JavaScript"))
    assert log and all(200 <= status < 300 and document for status, document in log), log
    assert len(log) == command.count("curl -s") == len(python.stdout.splitlines())


BUTTONS = {
    "synchronous": "Infer",
    "asynchronous": "Submit a job",
    "batch": "Score",
    "sync-async": "Predict",
    "prediction-cache": "Predict",
    "data-cache": "Look up",
    "horizontal-microservice": "Vote",
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_wrong_with_the_cards_and_their_results(window, server, size, dark):
    page = open_cards(window, server.url, size, dark)
    for card, text in BUTTONS.items():
        press(page, card, text)
        result(page, card, ".")
    put(page, "#row-web-single", "[")
    press(page, "web-single", "Predict")
    fault(page, "web-single", "not a list")
    code(page, "asynchronous", "Python")
    assert page.violations() == []
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert page.console_messages() == []


def test_enter_in_the_row_of_a_card_sends_it_and_the_links_at_the_top_lead_to_the_cards(page):
    page.find("#row-horizontal-microservice").send_keys(Keys.ENTER)
    result(page, "horizontal-microservice", "complete")
    page.find("#jump a[href='#batch']").send_keys(Keys.ENTER)
    page.wait_until(lambda: page.run("return document.activeElement.id") == "batch", "the card has the focus")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.get_attribute("id") == "csv"


def test_a_gateway_shows_which_member_is_down(window, run):
    up = run("--role", "member", "--member", "setosa")
    members = f"setosa={up.url},versicolor=http://127.0.0.1:9,virginica=http://127.0.0.1:9"
    page = open_cards(window, run("--role", "gateway", "--quorum", "1", "--members", members).url)
    assert [one.text for one in page.find_all(".card h3")] == ["horizontal microservice"]
    page.wait_until(lambda: len(page.find_all(".bars .miss")) == 2 and len(page.find_all(".bars .hit")) == 1, "one is up")
    press(page, "horizontal-microservice", "Vote")
    text = result(page, "horizontal-microservice", "partial")
    assert "Connection refused" in text and text.count("no vote") == 2
    page.wait_until(lambda: figure(page, "horizontal-microservice", "answered") != "0", "the figures count the calls")
    assert page.violations() == []
    page = open_cards(window, up.url)
    assert [one.text for one in page.find_all(".card h3")] == ["synchronous", "horizontal microservice"]
    assert "This server is one member." in page.text("#horizontal-microservice .note")


def test_a_job_without_a_worker_waits_and_can_be_cancelled(window, run):
    page = open_cards(window, run("--role", "sync_async").url)
    assert [one.text for one in page.find_all(".card h3")] == ["asynchronous", "sync-async"]
    assert "python3 -m iris_wsgi worker" in page.text("#asynchronous .note")
    press(page, "asynchronous", "Submit a job")
    result(page, "asynchronous", "queued")
    assert state_of_job(page).startswith("queued")
    page.wait_until(lambda: figure(page, "asynchronous", "queued") == "1", "the queue has a job")
    press(page, "asynchronous", "Cancel the job")
    result(page, "asynchronous", "cancelled")
    press(page, "sync-async", "Predict")
    result(page, "sync-async", r"provisional iris_lr .*final queued")
    assert page.violations() == [] and page.console_messages() == []


CARDS_OF_ROLE = {
    "web_single": ["web single", "batch"],
    "synchronous": ["synchronous"],
    "asynchronous": ["asynchronous"],
    "worker": ["asynchronous"],
    "prediction_cache": ["web single", "batch", "prediction cache"],
    "data_cache": ["data cache"],
    "pred": ["synchronous", "prep-pred"],
}


@pytest.mark.parametrize("role", CARDS_OF_ROLE)
def test_another_role_shows_its_own_patterns(window, run, role):
    page = open_cards(window, run("--role", role).url)
    assert [one.text for one in page.find_all(".card h3")] == CARDS_OF_ROLE[role]
    assert page.text("#role") == f"role {role}"
    for card, text in (("web-single", "Predict"), ("batch", "Score"), ("synchronous", "Infer"), ("data-cache", "Change")):
        if page.find_all(f"#{card}"):
            press(page, card, text)
            result(page, card, ".")
    assert page.violations() == [] and page.console_messages() == []


def test_the_first_half_asks_the_second_and_counts_its_calls(window, run):
    pred = run("--role", "pred")
    page = open_cards(window, run("--role", "prep", "--pred-url", pred.url).url)
    assert [one.text for one in page.find_all(".card h3")] == ["web single", "batch", "prep-pred"]
    page.wait_until(lambda: figure(page, "prep-pred", "answered") != "0", "the figures count the calls")
    assert "/predict' -H" in code(page, "prep-pred", "curl")


def test_the_page_works_behind_a_proxy_that_blocks_metrics_and_readiness(window, run):
    window.command("Network.setBlockedURLs", urls=["*/metrics", "*/readyz"])
    try:
        page = open_cards(window, run("--role", "web_single", "--max-rows", "2").url)
        press(page, "batch", "Score")
        # Three rows are sent in pieces of two.
        result(page, "batch", "3 rows")
        assert page.text("#health") == "health unknown" and page.text("#label") == "setosa"
        assert not page.find("#batch .figures").is_displayed()
    finally:
        window.command("Network.setBlockedURLs", urls=[])


def test_without_an_edge_bundle_the_card_says_how_to_get_one(window, run):
    page = open_cards(window, run().url)
    assert "Run bin/edge build, and start bin/serve again." in page.text("#edge-AI .note")
    assert "bin/edge predict 5.1 3.5 1.4 0.2" in page.text("#edge-AI .note")


def test_with_a_token_set_the_page_asks_for_it_and_keeps_it_in_memory_only(window, run, tmp_path):
    (tmp_path / "tokens").write_text(TOKEN)
    url = run("--token-file", str(tmp_path / "tokens")).url
    window.visit(url)
    window.wait_until(lambda: window.find("#access").is_displayed(), "the page asks for the token")
    assert [window.text(f"#{name}") for name in ("health", "role")] == ["ready", "role all"] and window.violations() == []
    assert not window.find("#tool").is_displayed() and not window.find_all(".card")
    for wrong, words in (("a-token-of-other-letters", "Invalid bearer token."), ("a token", "A token has letters")):
        window.find("#token").send_keys(wrong + Keys.ENTER)
        window.wait_until(lambda words=words: words in window.text("#token-fault"), "the fault is shown")
        put(window, "#token", "")
    window.find("#token").send_keys(TOKEN + Keys.ENTER)
    wait_for_cards(window)
    assert not window.find("#access").is_displayed() and window.text("#label") == "setosa"
    press(window, "asynchronous", "Submit a job")
    result(window, "asynchronous", r"succeeded\nafter")
    for language in ("curl", "Python"):
        text = code(window, "asynchronous", language)
        words = ["sh", "-c", text] if language == "curl" else [sys.executable, "-c", text]
        ran = subprocess.run(words, env={**os.environ, "IRIS_TOKEN": TOKEN}, capture_output=True, text=True)
        assert ran.returncode == 0 and '"id"' in ran.stdout.replace("'", '"'), ran.stderr
    kept = "return [Object.keys(localStorage), Object.keys(sessionStorage), document.cookie, document.documentElement.outerHTML]"
    *stores, html = window.run(kept)
    assert stores == [[], [], ""] and TOKEN not in html and window.find("#token").get_property("value") == ""
    assert not [address for address in window.requested_urls() if TOKEN in address]
    window.driver.refresh()
    window.wait_until(lambda: window.find("#access").is_displayed(), "the page asks again")


TRAINING = """"age, in years",rooms,city,owner,label
31,2,Tokyo,true,no
,3,"L'été, <b>",false,"yes, <i>maybe</i>"
"""


def test_a_model_with_words_and_missing_values_works_in_each_card_that_it_can_have(window, run, tmp_path):
    folder = pack_mixed(tmp_path / "model", training=TRAINING.encode())
    page = open_cards(window, run("--model-dir", str(folder)).url)
    row = '[null, 3, "L\'été <b>", false]'
    for card, press_text in (("web-single", "Predict"), ("asynchronous", "Submit a job"), ("prediction-cache", "Predict")):
        put(page, f"#row-{card}", row)
        press(page, card, press_text)
        result(page, card, r"(no|yes, <i>maybe</i>), [\d.]+ %")
    for language in ("curl", "Python"):
        printed = code(page, "web-single", language)
        words = ["sh", "-c", printed] if language == "curl" else [sys.executable, "-c", printed]
        assert "probability" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    press(page, "batch", "Score")
    result(page, "batch", "2 rows")
    press(page, "synchronous", "Infer")
    result(page, "synchronous", '"datatype": "BYTES"|"outputs"')
    for card, why in (
        ("prep-pred", "no halves"),
        ("sync-async", "no matching fast model"),
        ("horizontal-microservice", "no members"),
    ):
        assert why in page.text(f"#{card} .note") and not page.find_all(f"#{card} form button")
    assert page.violations() == [] and page.console_messages() == []


def test_a_regressor_says_which_patterns_are_for_classifiers_only(window, run, tmp_path):
    page = open_cards(window, run("--model-dir", str(write_model(tmp_path / "model", "regressor of three targets"))).url)
    for card in ("prep-pred", "horizontal-microservice", "edge-AI"):
        assert "it is for classifiers with probabilities, and this model gives values" in page.text(f"#{card} .note")
    for card, text in (("web-single", "Predict"), ("asynchronous", "Submit a job"), ("synchronous", "Infer")):
        press(page, card, text)
        result(page, card, r"5687\.5, -3750, 687\.5")
    press(page, "batch", "Score")
    result(page, "batch", "price weight height")
    assert page.violations() == [] and page.console_messages() == []
