"""The API page: its files, and its behavior in a browser."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread
from urllib.request import Request, urlopen

import pytest
from applications import call_wsgi
from headless_browser import Browser, open_browser
from optional_programs import require_program
from project import ROOT

from iris_wsgi.wsgi import health_routes

pytestmark = pytest.mark.long

TOKEN = "a-token.of~some+letters/and=="
LABEL = "[id$='post_predict_label']"
FILES = ["swagger-ui.css", "swagger-ui-bundle.js"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser(require_program) as window:
        yield window


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_sent_with_gzip_if_the_client_accepts_that(make_app, name):
    app = make_app(role="worker").service.app
    _, headers, plain = call_wsgi(app, "GET", f"/docs/{name}")
    _, packed_headers, packed = call_wsgi(app, "GET", f"/docs/{name}", HTTP_ACCEPT_ENCODING="gzip")
    assert "Content-Encoding" not in headers and packed_headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == plain and headers["Vary"] == packed_headers["Vary"] == "Accept-Encoding"
    assert headers["ETag"] != packed_headers["ETag"]
    for accepted, tag in (("identity", headers["ETag"]), ("gzip", packed_headers["ETag"])):
        status, again, body = call_wsgi(app, "GET", f"/docs/{name}", HTTP_ACCEPT_ENCODING=accepted, HTTP_IF_NONE_MATCH=tag)
        assert (status, again["ETag"], body) == (304, tag, b"")


def test_the_files_may_be_stored_with_gzip_only(make_app, tmp_path, monkeypatch):
    folder = tmp_path / health_routes.SWAGGER_PACKAGE / "dist"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress(name.encode()))
    monkeypatch.setattr(health_routes, "swagger_folder", lambda: folder)
    app = make_app(role="worker")
    assert [app.get(f"/docs/{name}").text for name in FILES] == FILES


def test_without_the_files_the_page_states_what_to_install(make_app, monkeypatch):
    monkeypatch.setattr(health_routes, "SWAGGER_PACKAGE", "not_installed")
    app = make_app(role="worker")
    assert "pip install --no-deps flask-swagger-ui" in app.get("/docs", status=404).json["detail"]
    assert [path for path in app.get("/openapi.json").json["paths"] if path.startswith("/docs")] == ["/docs"]


def test_the_server_does_not_import_the_package_of_the_files():
    assert find_spec(health_routes.SWAGGER_PACKAGE) is not None
    # The packages of other tests have Flask.
    code = (
        "import sys; from iris_wsgi.wsgi import health_routes; assert health_routes.swagger_folder();"
        " assert not {'flask', health_routes.SWAGGER_PACKAGE} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def show(browser: Browser, url: str) -> None:
    browser.visit(f"{url}/docs")
    browser.wait_until(lambda: browser.find_all(LABEL), "the page shows the routes")


def predict_label(browser: Browser) -> dict:
    """Tries POST /predict/label with its example, and returns the response that the page shows."""
    browser.run(f'document.querySelector("{LABEL} .opblock-summary-control").click()')
    browser.wait_until(lambda: browser.find_all(f"{LABEL} button.execute"), "the page shows the route")
    browser.run(f'document.querySelector("{LABEL} button.execute").click()')
    browser.wait_until(lambda: browser.find_all(f"{LABEL} .live-responses-table"), "the page shows the response")
    return json.loads(browser.text(f"{LABEL} .live-responses-table .microlight"))


def check_requests(browser: Browser, url: str) -> None:
    """Checks that all requests went to this server, and that the policy blocked nothing."""
    requested = browser.requested_urls()
    assert requested and all(each.startswith(f"{url}/") for each in requested)
    assert browser.console_messages() == []


def test_a_browser_tries_a_route_on_the_page(browser, run):
    url = run().url
    show(browser, url)
    document = json.loads(browser.run("return fetch('openapi.json').then(response => response.text())"))
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len(browser.find_all(".opblock")) == len(operations)
    assert [tag.get_attribute("data-tag") for tag in browser.find_all(".opblock-tag")] == [t["name"] for t in document["tags"]]
    assert predict_label(browser) == {"prediction": "setosa"}
    check_requests(browser, url)


def test_with_a_token_the_page_asks_for_it_and_sends_it(browser, run, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    url = run("--role", "web_single", "--token-file", str(file)).url
    browser.visit(f"{url}/docs")
    browser.wait_until(lambda: "requires a bearer token" in browser.text("#reason"), "the page asks for a token")
    for token, shown in (("another-token-of-letters", "Invalid bearer token"), (TOKEN, "")):
        browser.find("#token").clear()
        browser.find("#token").send_keys(token)
        browser.run("document.querySelector('#authorize button').click()")
        browser.wait_until(
            lambda shown=shown: shown in browser.text("#reason") if shown else browser.find_all(LABEL), "the server responds"
        )
    assert predict_label(browser) == {"prediction": "setosa"}
    # The only messages are those of the two refused requests.
    assert all("401" in message for message in browser.console_messages())
    assert all(each.startswith(f"{url}/") for each in browser.requested_urls())


def test_behind_a_proxy_the_page_and_its_requests_have_the_prefix(make_app):
    app = make_app(url_prefix="forwarded")
    page = app.get("/docs", headers={"X-Forwarded-Prefix": "/iris"})
    # All references of the page are relative to its own URL.
    assert (
        'href="docs/' in page.text
        and 'src="docs/' in page.text
        and 'fetch("openapi.json"' in page.text
        and '="/' not in page.text
    )
    assert app.get("/openapi.json", headers={"X-Forwarded-Prefix": "/iris"}).json["servers"] == [{"url": "/iris"}]


class StrippingProxy(BaseHTTPRequestHandler):
    """Proxy that removes the prefix /iris, and sends no header about that."""

    upstream = ""

    def do_GET(self):
        length = int(self.headers.get("Content-Length", 0))
        headers = {"Content-Type": self.headers["Content-Type"]} if length else {}
        url = self.upstream + self.path.removeprefix("/iris")
        with urlopen(Request(url, self.rfile.read(length) if length else None, headers, method=self.command)) as response:
            body = response.read()
        self.send_response(response.status)
        for name in ("Content-Type", "Content-Security-Policy"):
            if name in response.headers:
                self.send_header(name, response.headers[name])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def test_the_page_tries_routes_through_a_proxy_that_strips_a_prefix(browser, run):
    handler = type("Proxy", (StrippingProxy,), {"upstream": run("--role", "web_single").url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{proxy.server_port}/iris"
        show(browser, url)
        assert predict_label(browser) == {"prediction": "setosa"}
        check_requests(browser, url)
        proxy.shutdown()


def test_the_version_of_the_extra_is_that_of_the_locked_wheel():
    locked = re.search(r"^flask-swagger-ui==(\S+)", (ROOT / "bin/image.d/docs.txt").read_text(), re.MULTILINE)
    assert locked is not None and f"docs =\n    flask-swagger-ui=={locked[1]}\n" in (ROOT / "setup.cfg").read_text()
