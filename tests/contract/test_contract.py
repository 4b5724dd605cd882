"""Requirements for every route of every role."""

import json
import re

import pytest
from applications import call_wsgi
from edge_bundles import write_bundle
from http_clients import wait_until
from openapi_documents import example_in, parameters_of, resolved, schema_in
from project import MODEL

from iris_wsgi import __version__
from iris_wsgi.model.artifact import sha256
from iris_wsgi.roles import ROLES
from iris_wsgi.wsgi.application import METHODS, NO_CONTENT
from iris_wsgi.wsgi.health_routes import PUBLIC_PATHS

# A role with IRIS_EDGE_DIR has additional routes.
AT_THE_EDGE = "web_single at the edge"
REPORT = {"key": "0123456789abcdef", "counts": [{"day": "2026-01-31", "label": "setosa", "count": 1}]}
ROW = [5.1, 3.5, 1.4, 0.2]
BODIES = {
    "/predict": {"data": [ROW]},
    "/jobs": {"data": [ROW]},
    "/items": {"data": [ROW]},
    ":predict": {"instances": [ROW]},
    "/infer": {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": ROW}]},
    "/ensemble/predict": {"data": [ROW]},
    "/edge/telemetry": REPORT,
}
FAST = f"sha256:{json.loads((MODEL / 'fast/golden.json').read_text())['files']['iris_lr.onnx']}"
MEMBERS = "sha256:" + sha256(
    "\n".join(f"sha256:{sha256(file.read_bytes())}" for file in sorted(MODEL.glob("members/*/*.onnx"))).encode()
)
# Invalid bodies for the routes with these endings.
OF_ROWS = ({}, {"data": []}, {"data": [[1, 2, 3]]}, {"data": [ROW], "foo": 1}, {"data": [["1", 2, 3, 4]]})
OTHERS = {
    "/predict": OF_ROWS,
    "/jobs": OF_ROWS,
    "/items": (*OF_ROWS, {"data": [ROW, ROW]}),
    ":predict": ({}, {"instances": []}, {"instances": [ROW[0]]}, {"instances": [["1", 2, 3, 4]]}),
    "/ensemble/predict": (*OF_ROWS, {"data": [ROW, ROW]}),
    "/edge/telemetry": ({}, {**REPORT, "key": "x"}, {**REPORT, "counts": []}, {**REPORT, "row": ROW}),
    "/infer": ({}, {"inputs": []}, {"inputs": [{"name": "features"}]}, {"inputs": [ROW]}, {"inputs": [], "outputs": 1}),
}


TOKEN = "a-token.of~some+letters/and=="


@pytest.fixture(params=[*ROLES, AT_THE_EDGE])
def role(request, make_app, tmp_path):
    """Application of each role. The application of a role that calls other servers has running ones."""
    yield from application(request, make_app, tmp_path)


@pytest.fixture(params=[*ROLES, AT_THE_EDGE])
def guarded(request, make_app, tmp_path):
    """Application of each role with a token, which webtest sends."""
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    yield from application(request, make_app, tmp_path, f"Bearer {TOKEN}", token_file=str(file))


def application(request, make, tmp_path, authorization="", **settings):
    name = request.param
    upstream = request.getfixturevalue("upstream_settings") if name in ("prep", "gateway") else {}
    more = {"member": {"member": "setosa"}, AT_THE_EDGE: {"edge_dir": str(tmp_path / "edge")}, **upstream}.get(name, {})
    if name == AT_THE_EDGE:
        write_bundle(tmp_path / "edge")
    app = make(role=name.partition(" ")[0], **more, **settings)
    app.extra_environ["HTTP_AUTHORIZATION"] = authorization
    app.name, app.table = name, app.service.app.table
    if not upstream:
        yield app
        return
    app.service.background.start()
    wait_until(lambda: app.service.readiness.problem() is None, "the application knows the other servers")
    if name == "gateway":
        # The gateway is ready when it knows most of its members. Until it knows all, responses come from the known ones.
        wait_until(lambda: app.get("/ensemble/health").json["status"] == "complete", "the application knows all members")
    yield app
    app.service.background.stop(0)


def submit_job(app):
    """Submits a job and returns its id."""
    return app.post_json("/jobs", {"data": [ROW]}).json["id"]


def routes_with_paths(app):
    return [(path, method, route) for path, on_path in app.table.items() for method, route in on_path.items()]


def example_path(app, path):
    """Returns a path for the template of a route."""
    path = path.replace("/items/{id}", "/items/0000")
    path = path.replace("{id}", submit_job(app)) if "{id}" in path else path
    return path.replace("{model}", app.service.model.name).replace("{version}", "1")


def entry_for(by_path, path):
    """Returns the entry of the table whose key starts or ends the path, or None."""
    return next((item for part, item in by_path.items() if path.endswith(part) or path.startswith(part)), None)


def send(app, method, path, route, headers=None, **options):
    """Sends a valid request to the route. At /, the request has the Accept header of a browser or of a program."""
    options["headers"] = {"Accept": route.doc.media_type, **(headers or {})}
    if route.body is None:
        return app.request(example_path(app, path), method=method, **options)
    body = json.dumps(entry_for(BODIES, path)).replace("features", app.service.model.inputs[0].name).encode()
    return app.request(example_path(app, path), method=method, body=body, content_type="application/json", **options)


def test_every_route_responds_as_documented_with_its_media_type_and_a_request_id(role):
    for path, method, route in routes_with_paths(role):
        response = send(role, method, path, route)
        assert response.status_int == route.doc.success[0]
        assert response.headers.get("Content-Type") == (None if response.status_int in NO_CONTENT else route.doc.media_type)
        assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])


def test_every_route_returns_a_well_formed_request_id_of_the_caller(role):
    for path, method, route in routes_with_paths(role):
        for good in ("a", "A.b_c-9", "x" * 64):
            assert send(role, method, path, route, headers={"X-Request-ID": good}).headers["X-Request-ID"] == good
        for bad in ("", "x" * 65, "a b", "a\tb", "<script>", "é", "a;b"):
            assert send(role, method, path, route, headers={"X-Request-ID": bad}).headers["X-Request-ID"] != bad


def test_every_prediction_has_the_digest_of_its_model(role):
    for path, method, route in routes_with_paths(role):
        if entry_for(BODIES, path) and "/jobs" not in path and path not in ("/items/{id}", "/edge/telemetry"):
            model = FAST if path == "/predict/hybrid" else role.service.model.digest
            if path == "/ensemble/predict":
                model = MEMBERS
            assert send(role, method, path, route).headers["X-Model-Digest"] == model


def test_head_returns_the_headers_of_get_without_content(role):
    for path, on_path in role.table.items():
        if "GET" in on_path:
            place = example_path(role, path)
            wants = {"Accept": on_path["GET"].doc.media_type}
            get, head = role.get(place, headers=wants), role.head(place, headers=wants)
            assert head.body == b""
            assert head.status == get.status
            # The first request has filled the cache for the second.
            compared = [name for name in get.headers if name not in ("X-Request-ID", "Content-Length", "Cache-Status")]
            assert [(n, head.headers[n]) for n in compared] == [(n, get.headers[n]) for n in compared]
            # The metrics grow with every request. Every other length must be that of the GET response.
            assert path in ("/metrics", "/jobs", "/cache") or head.headers["Content-Length"] == str(len(get.body))


def test_options_returns_204_with_the_allowed_methods(role):
    for path, on_path in role.table.items():
        response = role.options(example_path(role, path))
        assert (response.status_int, response.body) == (204, b"")
        assert "Content-Length" not in response.headers
        allowed = response.headers["Allow"].split(", ")
        assert set(on_path) | {"OPTIONS"} | ({"HEAD"} if "GET" in on_path else set()) == set(allowed)


def test_a_method_that_is_not_allowed_gets_405_with_allow(role):
    for path in role.table:
        allowed = role.options(example_path(role, path)).headers["Allow"]
        for method in METHODS:
            if method not in allowed.split(", "):
                # Without webtest, because its lint rejects CONNECT.
                status, headers, content = call_wsgi(role.service.app, method, example_path(role, path))
                assert (status, headers["Allow"]) == (405, allowed)
                assert (
                    method == "HEAD" or allowed in json.loads(content)["error" if path.startswith(("/v2", "/v1")) else "detail"]
                )


def test_every_error_is_a_document_of_its_protocol_with_the_request_id(role):
    failing_requests = [("GET", "/nowhere", 404), ("GET", "/v2/nowhere", 404), ("GET", "/v1", 404), ("BREW", "/health", 501)]
    failing_requests += [("PATCH", path, 405) for path in role.table]
    failing_requests += [(method, path, 400) for path, method, route in routes_with_paths(role) if route.body is not None]
    for method, path, status in failing_requests:
        found, headers, content = call_wsgi(role.service.app, method, example_path(role, path), HTTP_X_REQUEST_ID="mine")
        assert (found, headers["X-Request-ID"]) == (status, "mine")
        if path.startswith(("/v2", "/v1")):
            assert headers["Content-Type"] == "application/json"
            assert list(json.loads(content)) == ["error"]
            continue
        assert headers["Content-Type"] == "application/problem+json"
        document = json.loads(content)
        assert document["title"] and document["detail"]
        assert (document["status"], document["request_id"]) == (status, "mine")


def has_the_style_of_responses(body: bytes) -> bool:
    """Returns whether a JSON document is compact, in UTF-8 without escapes that it does not need, and ends with one line feed."""
    return body == (json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def test_every_json_response_is_compact_and_ends_with_one_line_feed(role):
    checked = 0
    for path, method, route in routes_with_paths(role):
        # A file of the edge bundle is sent as it is.
        if route.doc.media_type == "application/json" and not path.startswith("/edge/"):
            response = send(role, method, path, route)
            assert has_the_style_of_responses(response.body), path
            assert response.headers["Content-Length"] == str(len(response.body))
            checked += 1
    assert checked > 4
    failing = [("GET", "/nowhere"), ("GET", "/v2/nowhere"), ("GET", "/predict/"), ("BREW", "/health"), ("GET", "/healt")]
    failing += [("PATCH", path) for path in role.table]
    failing += [(method, path) for path, method, route in routes_with_paths(role) if route.body is not None]
    for method, path in failing:
        _, headers, content = call_wsgi(role.service.app, method, example_path(role, path))
        assert has_the_style_of_responses(content) and headers["Content-Length"] == str(len(content))
    for path, method, route in routes_with_paths(role):
        for bad in entry_for(OTHERS, path) or () if route.body is not None else ():
            options = {"body": json.dumps(bad).encode(), "content_type": "application/json", "expect_errors": True}
            response = role.request(example_path(role, path), method=method, **options)
            assert response.status_int in (400, 422) and has_the_style_of_responses(response.body)


def test_the_root_names_the_server_and_links_to_what_it_serves(role):
    info = role.get("/").json
    assert list(info) == ["status", "name", "version", "role", "links"]
    expected = ("alive", "iris_wsgi", __version__, role.name.partition(" ")[0])
    assert (info["status"], info["name"], info["version"], info["role"]) == expected
    paths = set(info["links"].values())
    assert {"/health", "/livez", "/readyz", "/metrics", "/openapi.json"} <= paths <= role.table.keys()
    # Each pattern of the role has a link: its paths begin with one.
    owned = [path for path in role.table if path not in ("/", "/label", "/training") and path.split("/")[1] != "docs"]
    assert not [path for path in owned if not any(path.split("/")[1] == link.split("/")[1] for link in paths)]
    under_prefix = role.get("/", extra_environ={"SCRIPT_NAME": "/iris"}).json["links"]
    assert under_prefix == {name: f"/iris{path}" for name, path in info["links"].items()}


def test_the_openapi_document_under_a_prefix_has_the_same_style(role):
    assert has_the_style_of_responses(role.get("/openapi.json", extra_environ={"SCRIPT_NAME": "/iris"}).body)


def check_description(app) -> None:
    from openapi_spec_validator import validate

    validate(app.get("/openapi.json").json)


@pytest.mark.long
def test_the_openapi_document_is_valid(role):
    check_description(role)


@pytest.mark.long
def test_the_openapi_document_with_a_token_is_valid(guarded):
    check_description(guarded)


def test_the_openapi_document_describes_the_same_routes_as_the_route_table(role):
    document = role.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    documented = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    assert documented == {(path, method) for path, method, _ in routes_with_paths(role)}


def schemas_in(document):
    """Yields every object of the document that has a type."""
    remaining = [document]
    while remaining:
        item = remaining.pop()
        if isinstance(item, dict):
            remaining += item.values()
            if isinstance(item.get("type"), (str, list)):
                yield item
        elif isinstance(item, list):
            remaining += item


def test_every_array_has_items_and_every_operation_has_a_unique_name_for_code_generators(role):
    document = role.get("/openapi.json").json
    arrays = [element for element in schemas_in(document) if "array" in element["type"]]
    assert arrays and not [array for array in arrays if not isinstance(array.get("items"), dict)]
    operations = [element for item in document["paths"].values() for element in item.values()]
    # The form in which code generators build function and class names.
    names = ["".join(re.findall("[a-z0-9]+", operation["operationId"].lower())) for operation in operations]
    assert len(set(names)) == len(names)
    for path, item in document["paths"].items():
        for element in item.values():
            in_path = [parameter["name"] for parameter in element["parameters"] if parameter.get("in") == "path"]
            assert in_path == re.findall(r"\{(\w+)\}", path)


def test_responses_match_the_schemas_in_the_openapi_document(role):
    from jsonschema import Draft202012Validator

    document = role.get("/openapi.json").json
    for path, method, route in routes_with_paths(role):
        operation = document["paths"][path][method.lower()]
        contents = operation["responses"][str(route.doc.success[0])].get("content", {})
        assert set(contents) == (set() if route.doc.success[0] in NO_CONTENT else {route.doc.media_type}) | (
            {"application/octet-stream"} if route.doc.binary else {"text/html"} if route.doc.html else set()
        )
        if route.doc.media_type == "application/json":
            schema = schema_in(document, contents[route.doc.media_type])
            Draft202012Validator(schema).validate(send(role, method, path, route).json)
        if route.body is not None:
            validator = Draft202012Validator(schema_in(document, operation["requestBody"]["content"]["application/json"]))
            validator.validate(entry_for(BODIES, path))
            for bad in entry_for(OTHERS, path):
                assert not validator.is_valid(bad)


def media_types_of(document):
    """Yields the place, the media type, and its description, for every request and response of every operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parts = {"request": operation.get("requestBody", {}), **operation["responses"]}
            for name, part in parts.items():
                part = resolved(document, part)
                yield from ((f"{method} {path} {name}", kind, found) for kind, found in part.get("content", {}).items())


def test_every_operation_has_valid_examples_of_its_requests_and_responses(role):
    from jsonschema import Draft202012Validator

    document = role.get("/openapi.json").json
    for place, kind, found in media_types_of(document):
        example = example_in(document, found)
        if kind.endswith("json"):
            assert example is not None, place
            Draft202012Validator(schema_in(document, found)).validate(example)
        elif kind.startswith("text/plain"):
            assert isinstance(example, str), place


# Their responses depend on the moment, on earlier requests, or on other servers.
CHANGING = (
    "/jobs",
    "/cache",
    "/stats",
    "/readyz",
    "/openapi.json",
    "/training",
    "/predict/hybrid",
    "/ensemble/predict",
    "/items",
)


def test_the_example_of_a_response_is_the_real_response_to_the_example_of_the_request(role):
    document = role.get("/openapi.json").json
    for path, method, route in routes_with_paths(role):
        if route.doc.media_type != "application/json" or any(part in path for part in CHANGING):
            continue
        if role.name == "prep" and "/predict" in path:
            # The other half may round differently.
            continue
        operation = document["paths"][path][method.lower()]
        options = {"headers": {"Accept": "application/json"}}
        if "requestBody" in operation:
            body = example_in(document, operation["requestBody"]["content"]["application/json"])
            options |= {"body": json.dumps(body).encode(), "content_type": "application/json"}
        examples = {name: found["example"] for name, found in parameters_of(document, operation).items() if "example" in found}
        response = role.request(path.format(**examples), method=method, **options)
        assert response.json == example_in(document, operation["responses"]["200"]["content"]["application/json"]), path


def test_every_operation_has_one_tag_of_its_pattern_with_a_description(role):
    document = role.get("/openapi.json").json
    assert all(tag["description"] for tag in document["tags"])
    used = {tag for item in document["paths"].values() for operation in item.values() for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"]}


def test_every_object_in_the_openapi_document_has_described_members(role):
    document = role.get("/openapi.json").json
    objects = [schema for schema in schemas_in(document) if schema["type"] == "object"]
    assert objects and all({"properties", "additionalProperties"} & schema.keys() for schema in objects)
    for _, kind, found in media_types_of(document):
        if kind == "application/json":
            schema = found["schema"]
            assert "$ref" in schema or "$ref" in schema["items"]


OF_CONTENT = {"Content-Type", "Content-Length", "Content-Encoding", "Vary"}
OF_PAGES = {"Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy"}


def test_every_header_of_a_response_is_described(role):
    document = role.get("/openapi.json").json
    for path, method, route in routes_with_paths(role):
        response = send(role, method, path, route)
        described = document["paths"][path][method.lower()]["responses"][str(response.status_int)]["headers"]
        assert set(response.headers) - OF_CONTENT - OF_PAGES <= set(described), path


def test_the_headers_of_requests_are_described_where_the_routes_use_them(role):
    document = role.get("/openapi.json").json

    def with_header(name):
        return {
            f"{method.upper()} {path}"
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if name in parameters_of(document, operation)
        }

    every = {f"{method} {path}" for path, method, _ in routes_with_paths(role)}
    assert with_header("X-Request-ID") == every
    assert with_header("Idempotency-Key") == every & {"POST /jobs", "POST /predict/hybrid"}
    assert with_header("Prefer") >= every & {"GET /jobs/{id}", "POST /predict/label", "POST /v2/models/{model}/infer"}
    assert with_header("Cache-Control") >= every & {"GET /items/{id}", "GET /items/{id}/prediction"}


def test_every_request_has_one_line_in_the_log_without_its_values(role, log):
    for path, method, route in routes_with_paths(role):
        send(role, method, path, route, headers={"X-Request-ID": "logged"})
    lines = [line for line in log.events() if line.get("request_id") == "logged"]
    assert [(line["route"], line["method"]) for line in lines] == [(path, method) for path, method, _ in routes_with_paths(role)]
    for line in lines:
        route = role.table[line["route"]][line["method"]]
        assert line["status"] == route.doc.success[0] and line["ms"] >= 0 and line["model"] == "1.0.0"
        about_a_row = route.body is not None or line["route"].startswith("/predict/test") or line["route"].endswith("/prediction")
        assert line["rows"] == (1 if about_a_row and not line["route"].startswith("/edge") else None)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert "5.1" not in json.dumps({**line, "ms": 0, "time": ""})
    # Neither the lines of requests nor those of events have whitespace between their tokens.
    assert not [line for line in log.raw_lines if re.search(r"\s", re.sub(r'"(?:[^"\\]|\\.)*"', "", line))]


def test_a_stopping_server_is_alive_and_not_ready(role):
    role.service.readiness.stopping = True
    assert "shutting down" in role.get("/readyz", status=503).json["detail"]
    assert role.get("/readyz?exclude=shutdown").json["ready"] and role.get("/readyz?exclude=other", status=503)
    assert role.get("/livez").json == {"live": True}
    for path, method, route in routes_with_paths(role):
        ready = path == "/readyz" or path.startswith(("/v2/", "/v1/"))
        send(role, method, path, route, status=503 if ready and 503 in route.doc.failures else route.doc.success[0])


def test_a_line_feed_in_a_path_is_escaped_in_the_log(role, log):
    path = '/a\n{"level":"forged"}\x1b[31m"\\\xff'
    assert call_wsgi(role.service.app, "GET", path)[0] == 404
    assert json.loads(log.raw_lines[-1])["path"] == path
    assert log.raw_lines[-1].isprintable()


def test_without_a_token_only_the_root_health_readiness_and_metrics_respond(guarded):
    doors = {*PUBLIC_PATHS} & guarded.table.keys()
    assert doors == {path for path in guarded.table if path.startswith("/docs")} | (
        {"/", "/health", "/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"} & guarded.table.keys()
    )
    nowhere = ["/nowhere", "/v2/nowhere", "/v1", "/health/", "/edge/nothing", "*", "", *({"/v2/health/live"} - doors)]
    for path in [*guarded.table, *nowhere]:
        for method in (*METHODS, "BREW"):
            for headers_sent in ({}, {"HTTP_AUTHORIZATION": "Bearer another-token-of-letters"}):
                # The server does not read the body.
                unread = {"wsgi.input": None, "CONTENT_LENGTH": "9" * 30, "CONTENT_TYPE": "text/html", **headers_sent}
                status, headers, content = call_wsgi(guarded.service.app, method, path, HTTP_X_REQUEST_ID="mine", **unread)
                if path in doors:
                    assert status != 401
                    continue
                assert (status, headers["X-Request-ID"], "Allow" in headers) == (401, "mine", False)
                challenge = 'Bearer realm="iris_wsgi"' + (', error="invalid_token"' if headers_sent else "")
                assert headers["WWW-Authenticate"] == challenge
                is_protocol_path = path.startswith(("/v2", "/v1"))
                assert headers["Content-Type"] == ("application/json" if is_protocol_path else "application/problem+json")
                # The response is the same whether the resource exists or not.
                assert method == "HEAD" or set(json.loads(content)) == (
                    {"error"} if is_protocol_path else {"title", "status", "detail", "request_id"}
                )


def test_with_a_token_every_route_responds_as_without_authentication(guarded):
    for path, method, route in routes_with_paths(guarded):
        assert send(guarded, method, path, route).status_int == route.doc.success[0]
    assert guarded.get("/nowhere", status=404) and guarded.delete("/health", status=405)


def test_the_openapi_document_shows_which_routes_require_a_token(guarded):
    document = guarded.get("/openapi.json").json
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    for path, item in document["paths"].items():
        refused = call_wsgi(guarded.service.app, "GET", example_path(guarded, path))[0] == 401
        for operation in item.values():
            assert operation.get("security") == ([{"token": []}] if refused else None)
            assert ("401" in operation["responses"]) == refused
