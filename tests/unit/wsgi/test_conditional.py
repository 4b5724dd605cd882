"""ETag, If-None-Match, and 304 on responses that only a new model changes."""

import pytest
from http_clients import RawConnection, http_request
from project import MODEL

FIXED = ["/metadata", "/label", "/predict/test", "/predict/test/label"]


@pytest.fixture(params=["web_single", "prediction_cache"])
def app(request, make_app):
    return make_app(role=request.param)


@pytest.mark.parametrize("path", FIXED)
def test_a_request_with_the_current_tag_gets_304_without_content(app, path):
    first = app.get(path)
    tag = first.headers["ETag"]
    assert tag[0] == tag[-1] == '"' and first.headers["Cache-Control"] == "no-cache"
    for named in (tag, f"W/{tag}", f'"x", {tag}', f'"a,b" ,W/{tag},"c"', "*", f" {tag} "):
        for method in (app.get, app.head):
            response = method(path, headers={"If-None-Match": named})
            assert (response.status, response.body) == ("304 Not Modified", b"")
            assert (response.headers["ETag"], response.headers["Cache-Control"]) == (tag, "no-cache")
            assert "Content-Type" not in response.headers and "Content-Length" not in response.headers
            assert response.headers["X-Model-Digest"] == app.service.model.digest


@pytest.mark.parametrize("path", FIXED)
def test_a_request_with_another_tag_gets_the_whole_response(app, path):
    first = app.get(path)
    tag = first.headers["ETag"]
    for named in ('"x"', 'W/"x"', "", tag[1:-1], tag[:-2] + '"', "**", '"*"', tag[:-1]):
        response = app.get(path, headers={"If-None-Match": named})
        assert (response.status_int, response.body, response.headers["ETag"]) == (200, first.body, tag)


def test_each_response_and_each_model_has_a_different_tag(make_app):
    tags = {
        (path, str(folder)): make_app(role="web_single", model_dir=str(folder)).get(path).headers["ETag"]
        for path in FIXED
        for folder in (MODEL, MODEL / "fast")
    }
    # Both models have the same labels, and predict the same for the sample.
    equal_paths = {"/label", "/predict/test/label"}
    assert len(set(tags.values())) == 2 * (len(FIXED) - len(equal_paths)) + len(equal_paths)


def test_a_post_never_gets_304(app):
    response = app.post_json("/predict", {"data": [[5.1, 3.5, 1.4, 0.2]]}, headers={"If-None-Match": "*"})
    assert response.status_int == 200 and "ETag" not in response.headers


def test_a_304_of_the_server_ends_with_its_head(live_server):
    with RawConnection(live_server) as connection:
        tag = connection.exchange(http_request("GET", "/metadata")).headers["etag"]
        for method in ("GET", "HEAD"):
            connection.send(http_request(method, "/metadata", None, f"If-None-Match: {tag}") + http_request("GET", "/label"))
            response = connection.receive(to_head=True)
            assert (response.status, response.headers["etag"]) == (304, tag)
            assert "content-length" not in response.headers and "content-type" not in response.headers
            assert connection.receive().json()["0"] == "setosa"
