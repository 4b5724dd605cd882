"""Responses of the application to each kind of input, as tables."""

import json

import pytest
from applications import call_wsgi
from input_bodies import ACCEPTED, FIXED, NOT_DECODABLE, NOT_VALID, SINGLE, TAKING

JSON_TYPES = [
    "application/json",
    "Application/JSON",
    "application/json; charset=utf-8",
    'application/json;charset="UTF-8"',
    "application/json ; Charset=utf-8",
    "application/json;",
]
OTHER_TYPES = [
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "application/octet-stream",
    "application/jsonx",
    "application/json+x",
    "application/json; charset=utf-16",
    "application/json; charset=latin-1",
    "application/json, application/json",
    "multipart/form-data; boundary=x",
    "*/*",
    ";",
]


def problem(body: bytes, status: int) -> dict:
    document = json.loads(body)
    assert document["status"] == status
    assert document["title"] and document["detail"] and document["request_id"]
    assert len(document.get("errors", [])) <= 10
    return document


@pytest.mark.parametrize("path", TAKING)
@pytest.mark.parametrize("body", NOT_DECODABLE.values(), ids=NOT_DECODABLE.keys())
def test_a_body_that_cannot_be_parsed_gets_400(call, path, body):
    status, headers, response = call("POST", path, body)
    assert (status, headers["Content-Type"]) == (400, "application/problem+json")
    assert "errors" not in problem(response, 400)


@pytest.mark.parametrize("path", TAKING)
@pytest.mark.parametrize(("body", "pointer"), NOT_VALID.values(), ids=NOT_VALID.keys())
def test_a_body_that_violates_the_schema_gets_422_with_a_pointer(call, path, body, pointer):
    status, headers, response = call("POST", path, body)
    assert (status, headers["Content-Type"]) == (422, "application/problem+json")
    assert problem(response, 422)["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("path", TAKING)
@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_every_valid_form_of_a_number_is_accepted(call, path, body):
    status, _, response = call("POST", path, body)
    assert status == 200, response


def test_up_to_ten_errors_of_a_body_are_reported(call):
    rows = [[1, 2, 3], "x", [1, 2, 3, None], [1, 2, 3, 4], [True, 2, 3, 1e39]]
    _, _, response = call("POST", "/predict/batch", json.dumps({"data": rows}).encode())
    assert [fault["pointer"] for fault in json.loads(response)["errors"]] == [
        "#/data/0",
        "#/data/1",
        "#/data/2/3",
        "#/data/4/0",
        "#/data/4/3",
    ]
    _, _, response = call("POST", "/predict/batch", json.dumps({"data": [["x"]] * 500}).encode())
    assert len(problem(response, 422)["errors"]) == 10


@pytest.mark.parametrize("path", SINGLE)
def test_two_rows_on_a_route_for_one_row_get_422_with_the_name_of_the_batch_route(call, path):
    status, _, response = call("POST", path, b'{"data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5]]}')
    assert status == 422
    (fault,) = problem(response, 422)["errors"]
    assert fault["pointer"] == "#/data"
    assert "has 2 rows" in fault["detail"] and "1 at most" in fault["detail"] and "/predict/batch" in fault["detail"]


def test_more_rows_than_the_limit_get_422_with_the_limit(make_app):
    app = make_app(max_rows=3)
    assert app.post_json("/predict/batch", {"data": [[1, 2, 3, 4]] * 3}).status_int == 200
    response = app.post_json("/predict/batch", {"data": [[1, 2, 3, 4]] * 4}, status=422)
    assert "has 4 rows; this route takes 3 at most" in response.json["errors"][0]["detail"]


def test_a_body_over_the_limit_gets_413_with_and_without_a_length(make_app):
    app = make_app(max_body_bytes=200, max_rows=50)
    body = json.dumps({"data": [[1, 2, 3, 4]]}).ljust(200)
    assert app.post("/predict", body, content_type="application/json").status_int == 200
    response = app.post("/predict", body + " ", content_type="application/json", status=413)
    assert "200 bytes" in response.json["detail"]
    # A server that decodes chunks gives no length, and marks the end of the body.
    marked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    assert call_wsgi(app.service.app, "POST", "/predict", body.encode(), **marked)[0] == 200
    assert call_wsgi(app.service.app, "POST", "/predict", body.encode() + b" ", **marked)[0] == 413


def test_a_request_without_a_body_gets_400(call):
    assert call("POST", "/predict", CONTENT_LENGTH="")[0] == 400


@pytest.mark.parametrize("length", ["9" * 20, "9" * 5000, "1048577"])
def test_a_length_over_the_limit_gets_413_and_no_byte_is_read(call, length):
    class Untouched:
        def read(self, size=-1):
            raise AssertionError("the body was read")

    status, _, _ = call("POST", "/predict", CONTENT_LENGTH=length, **{"wsgi.input": Untouched()})
    assert status == 413


@pytest.mark.parametrize("length", ["-1", "+1", "1 ", "1_0", "0x10", "1.0", "٣", "²"])
def test_an_invalid_length_gets_400(call, length):
    assert call("POST", "/predict", FIXED.encode(), CONTENT_LENGTH=length)[0] == 400


def test_leading_zeros_of_a_length_are_ignored(call):
    assert call("POST", "/predict", FIXED.encode(), CONTENT_LENGTH="0" * 30 + str(len(FIXED)))[0] == 200


def test_a_body_shorter_than_its_length_gets_400(call):
    status, _, response = call("POST", "/predict", FIXED.encode(), CONTENT_LENGTH="1000")
    assert status == 400
    assert "ended before" in problem(response, 400)["detail"]


def test_a_body_without_a_marked_end_gets_411(call):
    assert call("POST", "/predict", FIXED.encode(), CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked")[0] == 411


@pytest.mark.parametrize("path", TAKING)
@pytest.mark.parametrize("media", JSON_TYPES)
def test_json_in_utf_8_is_accepted_in_every_notation(call, path, media):
    assert call("POST", path, FIXED.encode(), CONTENT_TYPE=media)[0] == 200


@pytest.mark.parametrize("path", TAKING)
@pytest.mark.parametrize("media", OTHER_TYPES)
def test_another_media_type_or_charset_gets_415_with_the_supported_one(call, path, media):
    status, headers, response = call("POST", path, FIXED.encode(), CONTENT_TYPE=media)
    assert (status, headers["Accept-Post"]) == (415, "application/json")
    problem(response, 415)


@pytest.mark.parametrize("path", TAKING)
def test_a_missing_media_type_is_accepted(call, path):
    assert call("POST", path, FIXED.encode(), CONTENT_TYPE="")[0] == 200


@pytest.mark.parametrize("path", TAKING)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", ""])
def test_a_content_coding_gets_415_with_identity(call, path, coding):
    status, headers, _ = call("POST", path, FIXED.encode(), HTTP_CONTENT_ENCODING=coding)
    assert (status, headers["Accept-Encoding"]) == (415, "identity")


@pytest.mark.parametrize("coding", ["identity", " Identity "])
def test_the_content_coding_identity_has_no_effect(call, coding):
    assert call("POST", "/predict", FIXED.encode(), HTTP_CONTENT_ENCODING=coding)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/predict/", "//predict", "/predict//label", "/Predict", "/predict/../label", "/../etc/passwd", "/./label", "/label\0",
     "/label%00", "/predict%2flabel", "/%2e%2e/label", "/label\n", "/lab\xe9l", "/label\x7f", "/\xff\xfe", "", "label"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_only_the_exact_paths_of_the_routes_are_served(call, method, path):
    status, headers, response = call(method, path)
    assert (status, headers["Content-Type"]) == (404, "application/problem+json")
    assert response == b"" if method == "HEAD" else b"etc" not in response


def test_options_of_the_whole_server_names_the_methods_of_all_routes(call):
    status, headers, _ = call("OPTIONS", "*")
    assert (status, headers["Allow"]) == (204, "GET, HEAD, POST, PUT, DELETE, OPTIONS")


@pytest.mark.parametrize("method", ["BREW", "get", "GETT", "PROPFIND", "M-SEARCH", "\xff"])
@pytest.mark.parametrize("path", ["/predict", "/label", "/nowhere"])
def test_an_unknown_method_gets_501(call, method, path):
    status, _, response = call(method, path)
    assert status == 501
    problem(response, 501)


def test_no_value_of_a_request_appears_in_a_problem_document(call):
    marker = "Zx9pQ7"
    texts = [f'"{marker}"', f'{{"{marker}": 1}}', f'{{"data": [["{marker}"]]}}', f"{marker}", f'{{"data": {marker}}}']
    for body in texts:
        assert marker.encode() not in call("POST", "/predict", body.encode())[2]
    assert marker.encode() not in call("GET", f"/{marker}")[2]
    assert marker.encode() not in call(marker, "/predict")[2]
    assert marker.encode() not in call("POST", "/predict", b"{}", CONTENT_TYPE=marker)[2]
    assert marker.encode() not in call("POST", "/predict", b"{}", CONTENT_LENGTH=marker)[2]
    assert marker.encode() not in call("POST", "/predict", b"{}", HTTP_CONTENT_ENCODING=marker)[2]
