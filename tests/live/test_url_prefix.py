"""Locations, links, and pages for clients that see the server under a prefix: mounted, or behind a proxy that removes it."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest
from applications import call_wsgi
from edge_bundles import write_bundle
from headless_browser import open_browser
from http_clients import fetch, http_request, wait_until
from optional_programs import require_program
from project import MODEL

from iris_wsgi.settings import BadSetting, Settings

WAITRESS = """
import sys
from waitress import serve
from iris_wsgi import create_app
app = create_app(role="asynchronous", model_dir=sys.argv[2], state_dir=sys.argv[3])
serve(app, host="127.0.0.1", port=int(sys.argv[1]), url_prefix="/iris")
"""
ROW = {"data": [[5.1, 3.5, 1.4, 0.2]]}
NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/log; user {user};
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /iris/ {{ proxy_pass {url}/; proxy_set_header X-Forwarded-Prefix "{field}"; }}
    }}
}}
"""


def links(app, **environ: str) -> list[str]:
    """Returns every path of the server in the responses of the application."""
    app.extra_environ.update(environ)
    job = app.post_json("/jobs", ROW)
    record = app.get(f"/jobs/{job.json['id']}").json
    job_record = app.get(f"/jobs/{job.json['id']}", headers={"Prefer": "wait=0"}).json
    hybrid = app.post_json("/predict/hybrid", ROW)
    item = app.put_json(f"/items/{job.json['id']}", ROW, status=201)
    jobs = [job.headers["Location"], job.json["href"], record["href"], job_record["href"]]
    return [*jobs, hybrid.headers["Location"], hybrid.json["final"]["href"], item.headers["Location"]]


def test_mounted_by_a_wsgi_server_every_link_has_the_mount_point(make_app):
    app = make_app()
    assert all(link.startswith(("/jobs/", "/items/")) for link in links(app))
    assert all(link.startswith(("/iris/jobs/", "/iris/items/")) for link in links(app, SCRIPT_NAME="/iris"))
    assert app.get("/openapi.json").json["servers"] == [{"url": "/iris"}]
    assert make_app().get("/openapi.json").json["servers"] == [{"url": "/"}]


@pytest.mark.parametrize(
    ("mount", "prefix"),
    [("/a/b", "/a/b"), ("/a b", "/a%20b"), ("/caf\xc3\xa9", "/caf%C3%A9"), ("//evil.example", "/evil.example"),
     ("/a\r\nSet-Cookie: x", "/a%0D%0ASet-Cookie:%20x"), ('/"<a>', "/%22%3Ca%3E")],
)  # fmt: skip
def test_a_mount_point_of_any_characters_is_a_path_in_links(make_app, mount, prefix):
    # Without webtest's lint, which rejects two slashes.
    app = make_app(role="asynchronous").service.app
    status, headers, body = call_wsgi(app, "POST", "/jobs", json.dumps(ROW).encode(), SCRIPT_NAME=mount)
    assert (status, headers["Location"]) == (202, f"{prefix}/jobs/{json.loads(body)['id']}")
    document = json.loads(call_wsgi(app, "GET", "/openapi.json", SCRIPT_NAME=mount)[2])
    assert document["servers"] == [{"url": prefix}]


def test_the_mount_point_without_its_slash_leads_to_the_root(make_app):
    app = make_app(role="web_single")
    app.extra_environ["SCRIPT_NAME"] = "/iris"
    for send in (app.get, app.head):
        response = send("", headers={"Accept": "text/html"})
        assert (response.status_int, urljoin("http://a/iris", response.headers["Location"])) == (308, "http://a/iris/")


def test_under_waitress_with_a_url_prefix_every_link_works(tmp_path):
    port = free_port()
    words = [sys.executable, "-c", WAITRESS, str(port), str(MODEL), str(tmp_path)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port), "waitress accepts connections")
        url = f"http://127.0.0.1:{port}/iris"
        follow(f"{url}/jobs")
        root = fetch_status(url)
        document = json.loads(root.read())
        assert (root.url, document["status"], document["links"]["jobs"]) == (f"{url}/", "alive", "/iris/jobs")
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def follow(url: str) -> None:
    """Submits a job, and requests it at the location of the response: that of the header, and that of the body."""
    response = fetch_status(url, ROW)
    assert response.status == 202
    document = json.loads(response.read())
    for link in (response.headers["Location"], document["href"]):
        record = json.loads(fetch_status(urljoin(url, link)).read())
        assert (record["id"], urljoin(url, record["href"])) == (document["id"], urljoin(url, link))


def fetch_status(url: str, document: object = None):
    body = None if document is None else json.dumps(document).encode()
    return urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=120)


# Behind a proxy that removes the prefix


def test_the_header_of_a_proxy_counts_only_if_it_is_trusted(make_app):
    field = {"HTTP_X_FORWARDED_PREFIX": "/iris"}
    assert all(link.startswith(("/jobs/", "/items/")) for link in links(make_app(), **field))
    trusting = make_app(url_prefix="forwarded")
    assert all(link.startswith(("/iris/jobs/", "/iris/items/")) for link in links(trusting, **field))
    assert trusting.get("/openapi.json").json["servers"] == [{"url": "/iris"}]
    del trusting.extra_environ["HTTP_X_FORWARDED_PREFIX"]
    assert trusting.get("/openapi.json").json["servers"] == [{"url": "/"}]


@pytest.mark.parametrize(("field", "prefix"), [("/a/", "/a"), ("/", ""), ("", ""), ("/a.b/~c-d_e", "/a.b/~c-d_e")])
def test_the_header_may_end_with_a_slash_or_be_empty(make_app, field, prefix):
    app = make_app(role="asynchronous", url_prefix="forwarded")
    response = app.post_json("/jobs", ROW, headers={"X-Forwarded-Prefix": field})
    assert response.headers["Location"] == response.json["href"] == f"{prefix}/jobs/{response.json['id']}"


BAD = ["iris", "//evil.example", "/a//b", "/a/../b", "/..", "/.", "http://evil.example", "/a b", "/a?b", "/a#b", "/a%2Fb",
       '/"', "/<a>",
       "/a, /b", "/a\\b", "/é", "/a;b", "forwarded", f"/{'a' * 200}"]  # fmt: skip


@pytest.mark.parametrize("field", BAD)
def test_a_header_that_is_not_a_path_is_refused_before_anything_is_stored(make_app, field):
    app = make_app(role="asynchronous", url_prefix="forwarded")
    response = app.post_json("/jobs", ROW, headers={"X-Forwarded-Prefix": field}, status=400)
    assert response.json["detail"].startswith("X-Forwarded-Prefix must be a path such as /iris") and "evil" not in response.text
    assert app.get("/jobs").json["jobs"]["queued"] == 0


@pytest.mark.parametrize("value", [*BAD[:-2], BAD[-1], "/iris/", "/"])
def test_a_setting_that_is_not_a_path_stops_the_start(value):
    with pytest.raises(BadSetting, match="IRIS_URL_PREFIX=.* must be a path such as /iris"):
        Settings(url_prefix=value)


def test_a_fixed_prefix_is_put_before_a_mount_point_whatever_the_header_says(make_app):
    app = make_app(url_prefix="/outer")
    assert all(link.startswith(("/outer/jobs/", "/outer/items/")) for link in links(app, HTTP_X_FORWARDED_PREFIX="/other"))
    assert all(link.startswith(("/outer/in/jobs/", "/outer/in/items/")) for link in links(app, SCRIPT_NAME="/in"))


@contextmanager
def nginx(folder: Path, url: str, field: str = "") -> Iterator[str]:
    """nginx that removes /iris/ in front of a server. Yields the address for clients."""
    program = require_program("nginx")
    port = free_port()
    folder.mkdir()
    config = folder / "nginx.conf"
    user = "root" if os.geteuid() == 0 else "nobody"
    config.write_text(NGINX.format(folder=folder, port=port, url=url, field=field, user=user))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port), "nginx accepts connections")
        yield f"http://127.0.0.1:{port}/iris"
    finally:
        process.terminate()
        process.wait(120)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("setting", "field"), [("/iris", ""), ("forwarded", "/iris"), ("forwarded", "/iris/")])
def test_behind_nginx_every_link_works(run, tmp_path, setting, field):
    server = run("--url-prefix", setting)
    with nginx(tmp_path / "nginx", server.url, field) as url:
        follow(f"{url}/jobs")
        final = json.loads(fetch_status(f"{url}/predict/hybrid", ROW).read())["final"]
        assert json.loads(fetch_status(urljoin(url, final["href"])).read())["id"] == final["id"]
        assert json.loads(fetch_status(f"{url}/openapi.json").read())["servers"] == [{"url": "/iris"}]
        links = json.loads(fetch_status(f"{url}/").read())["links"]
        assert [fetch_status(urljoin(url, links[name])).status for name in ("health", "ready", "openapi", "v2", "jobs")] == [
            200
        ] * 5


def test_behind_nginx_the_edge_page_is_found_without_its_slash_and_without_a_setting(run, tmp_path):
    write_bundle(tmp_path / "edge")
    server = run("--role", "web_single", "--edge-dir", str(tmp_path / "edge"))
    with nginx(tmp_path / "nginx", server.url) as url:
        response = fetch_status(f"{url}/edge")
        assert (response.url, response.headers["Content-Type"]) == (f"{url}/edge/", "text/html; charset=utf-8")


def test_a_server_without_trusted_proxies_ignores_the_header(run):
    server = run("--role", "asynchronous")
    response = fetch(server, http_request("POST", "/jobs", ROW, "X-Forwarded-Prefix: /evil"))
    assert response.status == 202 and response.json()["href"] == f"/jobs/{response.json()['id']}"


@pytest.mark.long
@pytest.mark.parametrize("role", ["web_single", "asynchronous"])
def test_behind_nginx_the_page_works_without_a_setting(run, tmp_path, role):
    server = run("--role", role)
    with nginx(tmp_path / "nginx", server.url) as url, open_browser(require_program) as page:
        page.visit(f"{url}/")
        if role == "web_single":
            page.wait_until(lambda: page.find_all("#bars li.best"), "the page has a prediction")
            assert page.text("#label") == "setosa" and f"{url}/predict/proba" in page.find("#curl").get_property("textContent")
        else:
            page.wait_until(lambda: page.find_all("#routes a"), "the routes are there")
            page.wait_until(lambda: page.find_all("#asynchronous form button"), "the form is there")
            page.find("#asynchronous form button").click()
            page.wait_until(lambda: page.find_all("#asynchronous .steps"), "the job is queued")
        link_targets = [element.get_property("href") for element in page.find_all("main a, footer a")]
        assert link_targets and all(target.startswith(f"{url}/") for target in link_targets)
        assert all(requested.startswith(f"{url}/") for requested in page.requested_urls()) and page.console_messages() == []


def test_a_server_with_a_prefix_also_serves_its_root(run):
    # Probes and other pods reach the server directly.
    server = run("--role", "asynchronous", "--url-prefix", "/iris", "--model-dir", str(MODEL))
    job = fetch(server, http_request("POST", "/jobs", ROW)).json()
    assert job["href"] == f"/iris/jobs/{job['id']}"
    assert fetch(server, http_request("GET", f"/jobs/{job['id']}")).json()["id"] == job["id"]
