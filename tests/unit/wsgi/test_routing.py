"""The router with parameters: the route of a path, and its cost for literal paths."""

import json
import re

import pytest
import webtest
from applications import RecordingObserver, call_wsgi, make_route
from http_clients import RawConnection

from iris_wsgi.http.request_parser import RequestParser
from iris_wsgi.wsgi.application import App, Request, Response
from iris_wsgi.wsgi.routing import NO_PARAMETERS, Router

TEMPLATES = [
    "/m",
    "/m/all",
    "/m/{name}",
    "/m/{name}/go",
    "/m/{name}:go",
    "/m/{name}/v/{version}",
    "/m/x/v/{version}",
    "/a.c/{name}",
]
FOUND = {
    "/m": ("/m", {}),
    "/m/all": ("/m/all", {}),
    "/m/x": ("/m/{name}", {"name": "x"}),
    "/m/all/go": ("/m/{name}/go", {"name": "all"}),
    "/m/a:b:go": ("/m/{name}:go", {"name": "a:b"}),
    "/m/a:gone": ("/m/{name}", {"name": "a:gone"}),
    "/m/:go": ("/m/{name}", {"name": ":go"}),
    "/m/y/v/2": ("/m/{name}/v/{version}", {"name": "y", "version": "2"}),
    "/m/x/v/2": ("/m/x/v/{version}", {"version": "2"}),
    "/m/\n": ("/m/{name}", {"name": "\n"}),
    "/m/{name}": ("/m/{name}", {"name": "{name}"}),
    "/m/\u00c3\u00a9": ("/m/{name}", {"name": "\u00e9"}),
    "/m/\u00e9": ("/m/{name}", {"name": "\ufffd"}),
    "/a.c/1": ("/a.c/{name}", {"name": "1"}),
}
NOT_FOUND = [
    "",
    "/",
    "*",
    "m",
    "/m/",
    "/m//go",
    "/m/x/",
    "/m/x/go/",
    "/M/x",
    "/m/x/v/",
    "/m/x/v/1/2",
    "/abc/1",
    "x/m/x",
    "/m/x/GO",
]


@pytest.fixture(scope="module")
def paths() -> Router[str]:
    return Router({path: path for path in TEMPLATES}, "nowhere")


@pytest.mark.parametrize(("path", "expected"), FOUND.items())
def test_a_path_finds_the_most_specific_route_with_its_parameters(paths, path, expected):
    assert paths.find(path) == expected


@pytest.mark.parametrize("path", NOT_FOUND)
def test_every_other_path_finds_nothing(paths, path):
    assert paths.find(path) == ("nowhere", {})


def test_a_literal_path_is_one_lookup_in_a_dictionary():
    paths = Router({"/m/all": 1, "/m/{name}": 2}, 0)
    paths.matching = None
    assert paths.find("/m/all") == (1, NO_PARAMETERS)


def test_templates_with_the_same_paths_are_refused_at_construction():
    with pytest.raises(ValueError, match=re.escape("two templates match the same paths: /m/{a}/go and /m/{b}/go")):
        App([make_route(lambda _: Response(b""), path=path) for path in ("/m/{a}/go", "/m/{b}/go")], RecordingObserver(), 100)


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
def app(observer) -> App:
    def respond_with_parameters(request: Request) -> Response:
        return Response(json.dumps([dict(request.parameters), request.environ.get("HTTP_X_Y"), request.body.decode()]).encode())

    table = [
        make_route(respond_with_parameters, path="/m/{name}"),
        make_route(respond_with_parameters, "POST", "/m/{name}", body={}),
        make_route(respond_with_parameters, "PUT", "/v2/{name}", body={}, any_content_type=True),
        make_route(lambda _: 1 / 0, path="/v2/{name}"),
    ]
    return App(table, observer, 100)


def test_a_handler_gets_the_parameters_and_the_headers(app):
    assert webtest.TestApp(app).post_json("/m/x", 1, headers={"X-Y": "z"}).json == [{"name": "x"}, "z", "1"]


def test_the_observer_gets_the_template(app, observer):
    for path, label in (("/m/x", "/m/{name}"), ("/m/{name}", "/m/{name}"), ("/m/x/y", "unmatched"), ("*", "unmatched")):
        call_wsgi(app, "GET", path)
        assert observer.responses[-1][1:3] == (path, label)


def test_head_options_and_wrong_methods_work_for_templates(app):
    webtest.TestApp(app).head("/m/x", status=200)
    assert webtest.TestApp(app).options("/m/x", status=204).headers["Allow"] == "GET, HEAD, POST, OPTIONS"
    status, headers, content = call_wsgi(app, "PUT", "/m/x")
    assert (status, headers["Allow"]) == (405, "GET, HEAD, POST, OPTIONS")
    assert json.loads(content)["detail"] == "This path supports GET, HEAD, POST, OPTIONS."


def test_every_error_under_v2_and_v1_is_an_error_document(app):
    for prefix in ("/v2", "/v1"):
        failing_requests = [("GET", prefix, 404), ("GET", f"{prefix}/x/y", 404), ("BREW", f"{prefix}/", 501)]
        failing_requests += [("DELETE", "/v2/x", 405), ("GET", "/v2/x", 500)]
        for method, path, expected in failing_requests:
            status, headers, content = call_wsgi(app, method, path)
            assert (status, headers["Content-Type"]) == (expected, "application/json")
            (result,) = json.loads(content).items()
            assert result[0] == "error" and result[1].endswith((".", "request id."))
    for path in ("/v2x", "/v22/x", "/v3", "/x/v2"):
        assert call_wsgi(app, "GET", path)[1]["Content-Type"] == "application/problem+json"


def test_a_lenient_route_accepts_any_content_type_and_a_compressed_body_as_large_as_the_limit(app):
    import gzip
    import zlib

    for media in ("", "application/octet-stream", "text/html; charset=x"):
        assert json.loads(call_wsgi(app, "PUT", "/v2/x", b"abc", CONTENT_TYPE=media)[2])[2] == "abc"
    for coding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        packed = {"HTTP_CONTENT_ENCODING": coding}
        assert json.loads(call_wsgi(app, "PUT", "/v2/x", pack(b"a" * 100), **packed)[2])[2] == "a" * 100
        status, _, content = call_wsgi(app, "PUT", "/v2/x", pack(b"a" * 101), **packed)
        assert (status, "limit of 100" in json.loads(content)["error"]) == (413, True)
    status, headers, _ = call_wsgi(app, "PUT", "/v2/x", b"a", HTTP_CONTENT_ENCODING="br")
    assert (status, headers["Accept-Encoding"]) == (415, "gzip, deflate")


def test_a_lenient_route_compresses_long_responses_and_sends_vary(app):
    import gzip

    request_headers = {"HTTP_X_Y": "z" * 2000, "HTTP_ACCEPT_ENCODING": "br, gzip;q=0.5"}
    _, headers, content = call_wsgi(app, "PUT", "/v2/x", b"a", **request_headers)
    assert (headers["Content-Encoding"], headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert json.loads(gzip.decompress(content))[1] == "z" * 2000
    _, headers, content = call_wsgi(app, "PUT", "/v2/x", b"a", **{**request_headers, "HTTP_ACCEPT_ENCODING": "br"})
    assert "Content-Encoding" not in headers and headers["Vary"] == "Accept-Encoding"
    assert json.loads(content)[1] == "z" * 2000
    assert "Vary" not in call_wsgi(app, "POST", "/m/x", b"1")[1]


def test_a_compressed_body_is_not_decompressed_in_the_loop(app):
    assert app.inline("PUT", "/v2/x", {}, 10)
    assert not app.inline("PUT", "/v2/x", {"HTTP_CONTENT_ENCODING": "gzip"}, 10)
    # A route without compressed bodies refuses at once.
    assert app.inline("POST", "/m/x", {"HTTP_CONTENT_ENCODING": "gzip"}, 10)
    assert not app.inline("POST", "/m/x", {}, 20_000)


STARTS = {
    b"": "",
    b"POST": "",
    b"POST /v2": "/v2",
    b"POST /v2/models/x HTTP/1.1\r\nHost": "/v2/models/x",
    b"POST http://host/v2?x HTTP/1.1\r\n": "/v2",
    b"GET /%762/x HTTP/1.1\r\n": "/v2/x",
    b"GET ?/v2 HTTP/1.1\r\n": "",
    b"GET * HTTP/1.1\r\n": "",
    b"GET /" + b"v2/" * 5000: "/" + "v2/" * 21 + "v",
}


@pytest.mark.parametrize(
    ("request_headers", "path"), STARTS.items(), ids=[repr(request_headers[:30]) for request_headers in STARTS]
)
def test_the_path_of_an_incomplete_request_is_known(request_headers, path):
    reader = RequestParser(100)
    reader.feed(request_headers)
    assert reader.path == path


REFUSED = {
    "a malformed field": (b"POST /v2/models/m/infer HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "a target too long": (b"GET /v2/" + b"x" * 9000 + b" HTTP/1.1\r\n", 414),
    "a head too large": (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 17_000 + b"\r\n", 431),
    "a body too large": (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 413),
    "a chunk too large": (
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n99999999\r\n",
        413,
    ),
    "an expectation": (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\n\r\n", 417),
    "an unknown coding": (b"GET /v1 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x, y\r\n\r\n", 400),
    "an encoded slash": (b"GET /v2/models%2fm HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
}


@pytest.mark.parametrize(("request_headers", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_of_the_server_under_v2_and_v1_is_an_error_document_too(live_server, request_headers, status):
    with RawConnection(live_server) as connection:
        response = connection.exchange(request_headers)
    assert (response.status, response.headers["content-type"]) == (status, "application/json")
    assert list(response.json()) == ["error"] and response.closes


MISTYPED = {
    "/predict/": "/predict",
    "//predict": "/predict",
    "/predict//label/": "/predict/label",
    "/Predict/LABEL": "/predict/label",
    "/predictlabel": "/predict/label",
    "/predit": "/predict",
    "/predict/lable": "/predict/label",
    "/healthz": "/health",
    "/ready": "/readyz",
    "/job": "/jobs",
    "/jobs/j0/": "/jobs/{id}",
    "/Jobs/J0": "/jobs/{id}",
    "/job/j0": "/jobs/{id}",
    "/items/0001/predicton": "/items/{id}/prediction",
    "/v2/models/iris/infr": "/v2/models/{model}/infer",
    "/v2//": "/v2",
    "//": "/",
    "": "/",
}


@pytest.mark.parametrize("path", MISTYPED, ids=repr)
def test_an_unknown_path_gets_404_with_the_path_that_it_resembles(make_app, path):
    status, _, content = call_wsgi(make_app(role="all").service.app, "POST", path)
    document = json.loads(content)
    assert (status, document.get("detail") or document["error"]) == (
        404,
        f"This path is not served, but {MISTYPED[path]} is; GET /openapi.json lists all paths.",
    )


def test_only_paths_that_the_role_serves_are_named_and_other_roles_by_their_name(make_app):
    roles = {"/predict": "web_single", "/predict/hybrid": "sync_async", "/jobs/j0": "asynchronous", "/items/1": "data_cache",
             "/ensemble/health": "gateway", "/v2/models": "synchronous", "/v1/models": "synchronous"}  # fmt: skip
    for served, others in (("worker", roles), ("web_single", {**roles, "/predict": "", "/predict/x": ""})):
        app = make_app(role=served).service.app
        for path, role in others.items():
            status, _, content = call_wsgi(app, "POST", path)
            named = f"This path is not served by this role, but by role {role}; GET /openapi.json lists all paths."
            assert (named.encode() in content) == bool(role) and (status == 404 or path == "/predict")


def test_the_hint_has_the_prefix_of_the_client(make_app):
    app = make_app(role="web_single", url_prefix="/iris").service.app
    detail = json.loads(call_wsgi(app, "GET", "/predict/")[2])["detail"]
    assert detail == "This path is not served, but /iris/predict is; GET /iris/openapi.json lists all paths."
    app = make_app(role="web_single", url_prefix="forwarded").service.app
    refused = json.loads(call_wsgi(app, "GET", "/predict/", HTTP_X_FORWARDED_PREFIX="/a b")[2])["detail"]
    assert refused == "This path is not served, but /predict is; GET /openapi.json lists all paths."


def test_a_hostile_path_is_neither_repeated_nor_compared(make_app, monkeypatch):
    app = make_app(role="all").service.app

    def fail(*_: object) -> None:
        raise AssertionError("a long path is compared")

    monkeypatch.setattr("difflib.get_close_matches", fail)
    for path in ("/" + "q" * 8000, "/" * 8000, "/predict/" * 900, "/v2/models/" + "q" * 8000 + "/infr", "/" + "q/" * 4000):
        status, _, content = call_wsgi(app, "GET", path)
        assert status == 404 and len(content) < 250 and b"qq" not in content


def test_a_path_with_a_similar_one_is_counted_as_unmatched_and_a_wrong_method_keeps_405(make_app):
    app = make_app(role="web_single")
    assert app.post("/predict/", status=404) and app.get("/predict", status=405).headers["Allow"] == "POST, OPTIONS"
    series = 'http_requests_total{method="POST",route="unmatched",status="404"} 1'
    assert series in app.get("/metrics").text.splitlines()
