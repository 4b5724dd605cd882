"""Every route over a model of every kind: the values of the graph, in the documented form."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import webtest
from applications import RecordingLog
from job_requests import run_worker
from jsonschema import Draft202012Validator
from metrics_text import metric_families, sample_value
from openapi_documents import example_in, parameters_of, schema_in
from packed_models import (
    ALL_KINDS,
    INTEGERS,
    KINDS,
    SOME_KINDS,
    Answers,
    Input,
    PackedModel,
    answers_of,
    feeds_of,
    node,
    write,
    write_model,
)

from iris_wsgi.factory import build
from iris_wsgi.settings import Settings

DATATYPES = {"float32": "FP32", "float64": "FP64", "bool": "BOOL", "string": "BYTES"} | {name: name.upper() for name in INTEGERS}
LABEL_TYPES = {"tensor(int64)": "INT64", "tensor(int32)": "INT32", "tensor(bool)": "BOOL", "tensor(string)": "BYTES"}
MEMBERS = {"classifier": "probabilities", "scores": "scores", "regressor": "values"}
NO_CACHE = {"Cache-Control": "no-cache"}


class Served(NamedTuple):
    """An application of a kind of model, its parts, and the predictions of the graph for its golden rows."""

    app: webtest.TestApp
    model: PackedModel
    answers: Answers
    kind: str


@pytest.fixture(scope="module", params=ALL_KINDS)
def served(request, tmp_path_factory):
    """Application of the role `all` with a job worker, for a model of each kind."""
    folder = tmp_path_factory.mktemp("kind")
    model = KINDS[request.param]
    write_model(folder / "model", request.param)
    service = build(Settings(model_dir=str(folder / "model"), state_dir=str(folder / "state")), RecordingLog())
    app = webtest.TestApp(service.app)
    app.service = service
    service.background.start()
    yield Served(app, model, answers_of(folder / "model", model, model.rows), model.members.get("kind", "classifier"))
    service.background.stop(0)


def by_name(model: PackedModel, row: list[Any]) -> dict[str, Any]:
    """Returns a row as an object without the missing values."""
    return {name: value for (name, _, _), value in zip(model.features, row, strict=True) if value is not None}


def label_type(served: Served) -> str:
    """Returns the type of the label output of the graph."""
    return next(one.type for one in served.app.service.model.session.get_outputs() if one.name == served.model.label)


def batch_document(served: Served) -> dict[str, Any]:
    """Returns the response of /predict/batch for the golden rows."""
    if served.kind == "regressor":
        return {"targets": served.model.members["columns"], "values": served.answers.values}
    names = {"classes": list(served.model.labels), "labels": served.answers.labels}
    return {**names, MEMBERS[served.kind]: served.answers.values}


def row_document(served: Served, i: int) -> dict[str, Any]:
    """Returns the response of /predict for a golden row."""
    values = served.answers.values[i]
    if served.kind == "regressor":
        return {"targets": served.model.members["columns"], "values": values}
    return {"prediction": values} if served.kind == "classifier" else {"label": served.answers.labels[i], "scores": values}


def item_document(served: Served, i: int) -> dict[str, Any]:
    """Returns the members that describe the prediction of an item or of a hybrid."""
    values = {MEMBERS[served.kind]: served.answers.values[i]}
    if served.kind == "regressor":
        return {"targets": served.model.members["columns"], **values}
    return {"classes": list(served.model.labels), "label": served.answers.labels[i], **values}


def v2_tensors(model: PackedModel, rows: list[list[Any]], binary: bool) -> tuple[list[dict[str, Any]], bytes]:
    """Returns the inputs of a request of the protocol v2, and their binary data."""
    inputs, tail = [], b""
    for name, array in feeds_of(model, rows).items():
        kind = next(one.type for one in model.inputs if one.name == name)
        entry = {"name": name, "datatype": DATATYPES[kind], "shape": list(array.shape)}
        if binary:
            part = array.tobytes()
            if kind == "string":
                texts = [text.encode() for text in array.ravel()]
                part = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
            tail += part
            entry["parameters"] = {"binary_data_size": len(part)}
        else:
            entry["data"] = [None if value != value else value for value in array.ravel().tolist()]
        inputs.append(entry)
    return inputs, tail


def test_predict_returns_the_values_of_the_graph_for_lists_and_for_objects(served):
    for i, row in enumerate(served.model.rows):
        for sent in (row, by_name(served.model, row)):
            response = served.app.post_json("/predict", {"data": [sent]})
            assert response.json == row_document(served, i)
            assert response.headers["X-Model-Digest"] == served.app.service.model.digest


def test_batch_returns_the_values_of_the_graph_for_lists_for_objects_and_for_both(served):
    rows = served.model.rows
    objects = [by_name(served.model, row) for row in rows]
    for sent in (rows, objects, [*objects[:1], *rows[1:]]):
        for headers in ({}, NO_CACHE):
            assert served.app.post_json("/predict/batch", {"data": sent}, headers=headers).json == batch_document(served)


def test_the_routes_of_labels_and_probabilities_exist_if_the_model_has_them(served):
    app, labels = served.app, list(served.model.labels)
    for i, row in enumerate(served.model.rows):
        body = {"data": [row]}
        if served.kind == "regressor":
            for method, path in (("GET", "/label"), ("GET", "/predict/test/label")):
                app.request(path, method=method, status=404)
            app.post_json("/predict/label", body, status=404)
            app.post_json("/predict/proba", body, status=404)
            continue
        assert app.post_json("/predict/label", body).json == {"prediction": served.answers.labels[i]}
        if served.kind == "scores":
            detail = app.post_json("/predict/proba", body, status=404).json["detail"]
            assert detail == "This model gives scores, not probabilities: POST /predict returns its label and its scores."
            continue
        pairs = [{"label": name, "probability": p} for name, p in zip(labels, served.answers.values[i], strict=True)]
        assert app.post_json("/predict/proba", body).json == {"prediction": pairs}
    if labels:
        assert app.get("/label").json == {str(i): name for i, name in enumerate(labels)}
        assert app.get("/predict/test/label").json == {"prediction": served.answers.labels[0]}
    assert app.get("/predict/test").json == row_document(served, 0)


def test_metadata_describes_the_kind_the_features_the_proof_and_the_runtimes(served):
    document = served.app.get("/metadata").json
    model, description = served.model, document["model"]
    kinds = {kind for _, kind, _ in model.features}
    dtype = "object" if "string" in kinds else kinds.pop() if len(kinds) == 1 else "float64"
    assert document["data_type"] == dtype and document["data_structure"] == f"(1,{len(model.features)})"
    assert document["data_sample"] == [model.rows[0]] and document["prediction_type"] == "float32"
    assert [type(v) for v in document["data_sample"][0]] == [type(v) for v in model.rows[0]]
    assert document["prediction_sample"] == served.answers.values[0]
    assert document["prediction_structure"] == f"(1,{len(served.answers.values[0])})"
    assert (description["kind"], description["labels"]) == (served.kind, list(model.labels))
    assert [(f["name"], f["type"], f["missing"]) for f in description["features"]] == model.features
    assert description.get("scores", description.get("values")) == model.members.get("columns")
    assert description["proof"]["answers"] == "expected"
    assert description["runtime"]["packed"] == description["runtime"]["serving"]


@pytest.mark.parametrize("binary", [False, True])
def test_inference_requests_return_the_values_of_the_graph_with_its_own_labels(served, binary):
    inputs, tail = v2_tensors(served.model, served.model.rows, binary)
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    response = served.app.post("/v2/models/packed/infer", head + tail, headers=headers, content_type="application/json")
    outputs = {output["name"]: output for output in response.json["outputs"]}
    columns = len(served.answers.values[0])
    assert outputs[served.model.values]["shape"] == [len(served.model.rows), columns]
    assert np.reshape(outputs[served.model.values]["data"], (-1, columns)).tolist() == served.answers.values
    assert set(outputs) == {served.model.values} | ({served.model.label} if served.model.label else set())
    if served.model.label:
        label = outputs[served.model.label]
        datatype = LABEL_TYPES[label_type(served)]
        assert (label["datatype"], label["shape"]) == (datatype, [len(served.model.rows)])
        assert label["data"] == served.answers.classes
        assert [type(value) for value in label["data"]] == [type(value) for value in served.answers.classes]


def test_all_outputs_can_be_requested_as_binary_data(served):
    inputs, _ = v2_tensors(served.model, served.model.rows, binary=False)
    body = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    response = served.app.post_json("/v2/models/packed/infer", body)
    size = int(response.headers["Inference-Header-Content-Length"])
    parts, offset = {}, size
    for output in json.loads(response.body[:size])["outputs"]:
        length = output["parameters"]["binary_data_size"]
        parts[output["name"]] = response.body[offset : offset + length]
        offset += length
    assert offset == len(response.body)
    assert parts[served.model.values] == np.array(served.answers.values, "<f4").tobytes()
    if served.model.label:
        classes = served.answers.classes
        if isinstance(classes[0], str):
            expected = b"".join(len(name.encode()).to_bytes(4, "little") + name.encode() for name in classes)
        else:
            expected = np.array(classes, {"INT64": "<i8", "INT32": "<i4", "BOOL": "?"}[LABEL_TYPES[label_type(served)]]).tobytes()
        assert parts[served.model.label] == expected


def test_a_raw_request_is_the_matrix_of_the_only_input(served):
    feeds = feeds_of(served.model, served.model.rows)
    content = b"".join(array.tobytes() for array in feeds.values() if array.dtype != object) or b"\0\0\0\0"
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    is_raw = len(feeds) == 1 and next(iter(feeds.values())).dtype != object
    response = served.app.post("/v2/models/packed/infer", content, headers=headers, status=200 if is_raw else 400)
    if is_raw:
        assert response.body.count(np.array(served.answers.values, "<f4").tobytes()) == 1
    else:
        assert "which this model cannot take" in response.json["error"]


def test_the_highest_values_can_be_requested_with_the_names_of_their_columns(served):
    inputs, _ = v2_tensors(served.model, served.model.rows, binary=False)
    parameters = {"classification": 1}
    body = {"inputs": inputs, "outputs": [{"name": served.model.values, "parameters": parameters}]}
    (output,) = served.app.post_json("/v2/models/packed/infer", body).json["outputs"]
    names = served.model.members.get("columns", served.model.labels)
    best = [max(range(len(row)), key=row.__getitem__) for row in served.answers.values]
    expected = [f"{row[j]!r}:{j}:{names[j]}" for row, j in zip(served.answers.values, best, strict=True)]
    assert (output["datatype"], output["data"]) == ("BYTES", expected)
    if served.model.label:
        body["outputs"] = [{"name": served.model.label, "parameters": parameters}]
        assert "classification" in served.app.post_json("/v2/models/packed/infer", body, status=400).json["error"]


def test_the_metadata_and_the_configuration_of_the_protocol_name_the_type_of_each_tensor(served):
    document = served.app.get("/v2/models/packed").json
    shapes = {one.name: (DATATYPES[one.type], [-1, one.width][: 1 + bool(one.width)]) for one in served.model.inputs}
    assert {one["name"]: (one["datatype"], one["shape"]) for one in document["inputs"]} == shapes
    outputs = {one["name"]: (one["datatype"], one["shape"]) for one in document["outputs"]}
    assert outputs[served.model.values] == ("FP32", [-1, len(served.answers.values[0])])
    assert len(outputs) == 1 + bool(served.model.label)
    config = served.app.get("/v2/models/packed/config").json
    for side, tensors in (("input", document["inputs"]), ("output", document["outputs"])):
        for one, other in zip(tensors, config[side], strict=True):
            assert other["data_type"] == ("TYPE_STRING" if one["datatype"] == "BYTES" else f"TYPE_{one['datatype']}")
            assert (other["dims"], "reshape" in other) == (one["shape"][1:] or [1], len(one["shape"]) == 1)


def test_v1_returns_the_values_of_the_graph(served):
    for sent in (served.model.rows, [by_name(served.model, row) for row in served.model.rows]):
        response = served.app.post_json("/v1/models/packed:predict", {"instances": sent})
        assert response.json == {"predictions": served.answers.values}


def test_a_job_has_the_result_of_batch(served):
    for sent in (served.model.rows, [by_name(served.model, row) for row in served.model.rows]):
        job = served.app.post_json("/jobs", {"data": sent}).json
        record = served.app.get(job["href"], headers={"Prefer": "wait=30"}).json
        assert (record["status"], record.get("result")) == ("succeeded", batch_document(served))


def test_an_item_has_the_row_of_the_client_and_its_prediction(served):
    for i, row in enumerate(served.model.rows):
        for sent, status in ((row, 201), (by_name(served.model, row), 200)):
            response = served.app.put_json(f"/items/row-{i}", {"data": [sent]}, status=status)
            assert response.json["data"] == [row]
        found = served.app.get(f"/items/row-{i}").json
        assert found == {"id": f"row-{i}", "version": 2, "data": [row]}
        assert [type(value) for value in found["data"][0]] == [type(value) for value in row]
        for _ in range(2):
            prediction = served.app.get(f"/items/row-{i}/prediction").json
            assert prediction == {"id": f"row-{i}", "version": 2, **item_document(served, i)}


def test_the_same_row_comes_from_the_cache(served):
    row = served.model.rows[0]
    served.app.post_json("/predict", {"data": [row]})
    for sent in (row, by_name(served.model, row)):
        response = served.app.post_json("/predict", {"data": [sent]})
        assert "; hit" in response.headers["Cache-Status"] and response.json == row_document(served, 0)


def test_metrics_count_the_rows_of_each_label_and_skip_missing_values_and_strings(served):
    def counts() -> dict[str, float]:
        families = metric_families(served.app.get("/metrics").text)
        outside = families["model_input_out_of_range"].samples if "model_input_out_of_range" in families else []
        rows = {sample.labels["label"]: sample.value for sample in families["model_rows"].samples}
        return rows | {"outside": sum(sample.value for sample in outside)}

    before = counts()
    for row in served.model.rows:
        served.app.post_json("/predict", {"data": [row]}, headers=NO_CACHE)
    served.app.post_json("/predict/batch", {"data": served.model.rows}, headers=NO_CACHE)
    after = counts()
    # All values are in the range of the golden rows.
    assert after["outside"] == before["outside"]
    labels = served.answers.labels
    assert {name: after[name] - before[name] for name in set(labels)} == {name: 2 * labels.count(name) for name in set(labels)}


def contents_of(document, path, method):
    """Returns the schemas of a request and of its responses by status, in the OpenAPI document."""
    operation = document["paths"][path][method]
    body = schema_in(document, operation["requestBody"]["content"]["application/json"]) if "requestBody" in operation else None
    responses = {
        status: schema_in(document, response["content"].get("application/json"))
        for status, response in operation["responses"].items()
        if "content" in response
    }
    return body, responses


def test_requests_and_responses_match_the_openapi_document(served):
    app, rows = served.app, served.model.rows
    inputs, _ = v2_tensors(served.model, rows, binary=False)
    objects = [by_name(served.model, row) for row in rows]
    requests = [
        ("get", "/metadata", None),
        ("get", "/predict/test", None),
        ("get", "/v2/models/{model}", None),
        ("get", "/v2/models/{model}/config", None),
        *(("post", path, {"data": sent}) for path in ("/predict/batch", "/jobs") for sent in (rows, objects)),
        *(("post", "/predict", {"data": [row]}) for row in rows),
        *(("put", "/items/{id}", {"data": [row]}) for row in rows),
        ("get", "/items/{id}", None),
        ("get", "/items/{id}/prediction", None),
        *(("post", "/v1/models/{model}:predict", {"instances": sent}) for sent in (rows, objects)),
        ("post", "/v2/models/{model}/infer", {"inputs": inputs}),
    ]
    if served.model.labels:
        requests += [("get", "/predict/test/label", None), ("post", "/predict/label", {"data": rows[:1]})]
    if served.kind == "classifier":
        requests.append(("post", "/predict/proba", {"data": rows[:1]}))
    document = app.get("/openapi.json").json
    for method, path, body in requests:
        request_schema, responses = contents_of(document, path, method)
        if body is not None:
            Draft202012Validator(request_schema).validate(body)
        url = path.replace("{model}", "packed").replace("{id}", "described")
        response = app.get(url) if body is None else getattr(app, f"{method}_json")(url, body)
        Draft202012Validator(responses[str(response.status_int)]).validate(response.json)


def test_every_example_of_the_openapi_document_is_valid_and_works(served):
    document = served.app.get("/openapi.json").json
    for path, item in document["paths"].items():
        for method, operation in item.items():
            body, responses = contents_of(document, path, method)
            for status, schema in responses.items():
                if schema is not None:
                    example = example_in(document, operation["responses"][status]["content"]["application/json"])
                    Draft202012Validator(schema).validate(example)
            if body is not None:
                sent = example_in(document, operation["requestBody"]["content"]["application/json"])
                Draft202012Validator(body).validate(sent)
                examples = {name: each.get("example") for name, each in parameters_of(document, operation).items()}
                getattr(served.app, f"{method}_json")(
                    path.format(**examples), sent, status="*" if path.endswith("/proba") else None
                )


ROLES = ("web_single", "synchronous", "asynchronous", "sync_async", "data_cache", "prediction_cache")


def body_of(model: PackedModel, path: str) -> dict[str, Any]:
    """Returns a valid request body for a path."""
    if path.endswith("/infer"):
        return {"inputs": v2_tensors(model, model.rows[:1], binary=False)[0]}
    return {"instances" if path.endswith(":predict") else "data": model.rows[:1]}


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_every_route_of_every_role_responds_as_documented(make_app, tmp_path, role, kind):
    model, folder = KINDS[kind], write_model(tmp_path / "model", kind)
    write_model(folder / "fast", kind, name="quick")
    app = make_app(role=role, model_dir=str(folder))
    document = app.get("/openapi.json").json
    table, ids = app.service.app.table, {}
    if "/jobs" in table:
        ids["/jobs/{id}"] = app.post_json("/jobs", body_of(model, "/jobs")).json["id"]
    if "/items/{id}" in table:
        app.put_json("/items/a", body_of(model, "/items"))
    for path, on_path in table.items():
        for method, route in on_path.items():
            body, (_, schemas) = None, contents_of(document, path, method.lower())
            if route.body is not None:
                body = json.dumps(body_of(model, path)).encode()
            url = path.replace("{id}", ids.get(path, "a")).replace("{model}", "packed").replace("{version}", "1")
            headers = {"Accept": route.doc.media_type} | ({"Content-Type": "application/json"} if body else {})
            status = {"PUT": 200}.get(method, (*route.doc.success, *route.doc.failures)[0])
            response = app.request(url, method=method, body=body or b"", headers=headers, status=status)
            media_type = route.doc.media_type if status != 404 else "application/problem+json"
            assert response.headers["Content-Type"] == media_type
            if (schema := schemas.get(str(status))) is not None:
                Draft202012Validator(schema).validate(response.json)


STRANGE = ('"', "\\", "a\nb", "京都", "a/b~c", "{label}", "<b>", "\U0001f600", "\u2028", "'", "a=1,b", " ", "ü:1:x", "%s", "\x7f")


def test_labels_features_and_names_may_have_any_characters(make_app, tmp_path):
    features = [(name, "float32", False) for name in STRANGE]
    nodes = [node("MatMul", "input narrow", "x"), *KINDS["columns of floats"].nodes[-3:]]
    narrow = np.eye(len(STRANGE), 4, dtype=np.float32)
    base = KINDS["columns of floats"]
    packed = base._replace(
        nodes=nodes,
        inputs=[Input("input", "float32", len(STRANGE))],
        features=features,
        labels=STRANGE[:3],
        constants={**base.constants, "narrow": narrow},
        rows=[list(range(len(STRANGE))), [1.0] * len(STRANGE)],
    )
    folder = write(tmp_path / "model", packed, name="ü b", version='1 "x"')
    app = make_app(role="all", model_dir=str(folder))
    labels = answers_of(folder, packed, packed.rows).labels
    sent = dict(zip(STRANGE, packed.rows[0], strict=True))
    assert app.post_json("/predict/batch", {"data": packed.rows}).json["labels"] == labels
    assert app.post_json("/predict/label", {"data": [sent]}).json == {"prediction": labels[0]}
    app.post_json("/predict/label", {"data": [dict.fromkeys(STRANGE, 1000)]})
    for name in STRANGE:
        fault = app.post_json("/predict", {"data": [sent | {name: "x"}]}, status=422).json["errors"][0]
        assert fault["pointer"] == "#/data/0/" + name.replace("~", "~0").replace("/", "~1")
    text = app.get("/metrics").text
    assert sample_value(text, "model_input_out_of_range_total", feature=STRANGE[2]) == 1
    assert sample_value(text, "model_rows_total", label=labels[0]) > 0
    assert app.get("/v2/models/%C3%BC%20b").json["name"] == "ü b"
    assert app.get("/metadata").json["model"]["name"] == "ü b"
    contents_of(app.get("/openapi.json").json, "/predict", "post")
    app.put_json("/items/a", {"data": [sent]})
    assert app.get("/items/a/prediction").json["label"] == labels[0]


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_hybrid_has_the_prediction_of_the_fast_model_at_once_and_that_of_the_full_model_by_a_job(make_app, tmp_path, kind):
    model, folder = KINDS[kind], write_model(tmp_path / "model", kind)
    write_model(folder / "fast", kind, name="quick")
    answers = answers_of(folder, model, model.rows)
    app = make_app(role="all", model_dir=str(folder))
    served = Served(app, model, answers, model.members.get("kind", "classifier"))
    for i, row in enumerate(model.rows):
        for sent in (row, by_name(model, row)):
            response = app.post_json("/predict/hybrid", {"data": [sent]}).json
            assert response["provisional"].pop("model")["name"] == "quick"
            expected = item_document(served, i)
            expected.pop("classes", None)
            assert response["provisional"] == expected and not response["degraded"]
            run_worker(app)
            record = app.get(response["final"]["href"]).json
            assert record["status"] == "succeeded" and record.get("agrees") == (True if model.labels else None)
            assert record["result"][MEMBERS[served.kind]] == [answers.values[i]]
            assert record["result"].get("labels", [""]) == [answers.labels[i]]


@pytest.mark.long
def test_the_openapi_document_is_valid(served):
    from openapi_spec_validator import validate

    validate(served.app.get("/openapi.json").json)
